"""HTML view of a clip: animated skeleton, gate and texts below, and sentences with and without descriptions.

Shapes: T sampled frames, J drawn joints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from clips.packs import open_descriptions
from datasets import S2T_Dataset
from pages.elements import Html, data, element, polyline
from pages.run_folder import RunFolder
from pose.drawing import FULL, PATHS, picture_points, player_data
from pose.keypoints import Pose
from system.faults import CLIP_FAULTS, in_one_line
from temporal_alignment import DescriptionLoader, sample_frames
from translator import Candidate, Explained, Translator

FILM = 8  # images in a film strip
FILM_HEIGHT = 300  # height of each, in SVG units
MOST_FRAMES = 256  # maximum frames of a clip without gate

Mark = Callable[[str], Html]  # marks a sentence's differences from the reference


class Lane(NamedTuple):
    """A run's gate on a clip: for each frame the gate, its text, and whether the text is its own."""

    gate: list[float]
    texts: list[str | None]
    own: list[int]


class Said(NamedTuple):
    """A run's sentence, and how it was generated."""

    how: str
    found: Explained


@dataclass
class Viewer:
    """A run's model and data for showing clips, as far as available."""

    label: str  # the run's name on the page
    style: str  # "a" or "b"
    run: RunFolder
    split: str
    left_out: list[str] = field(default_factory=list)  # sentences that say why the model or the data are missing
    dataset: S2T_Dataset | None = None
    translator: Translator | None = None
    descriptions: DescriptionLoader | None = None

    def open(self, device: str) -> None:
        """Load labels and weights; failures are added to `left_out`."""
        spec, path, lost = self.run.spec, self.run.weights, "skeletons, gate and new translations"
        try:
            self.dataset = S2T_Dataset(spec, self.split, task=self.run.task, max_bad_clips=1.0)
            lost = "gate and new translations"
            if path is None:
                raise ValueError("the folder has no best_checkpoint.pth.")
            arguments = self.run.last["arguments"]
            options = {key: arguments[key] for key in ("num_beams", "max_new_tokens", "dtype")}
            if options["dtype"] == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
                options["dtype"] = "fp32"
            self.translator = Translator.from_checkpoint(path, device=device, **options)
            lost = "descriptions"
            if self.translator.model.config.use_descriptions:
                self.descriptions = open_descriptions(
                    Path(spec.description_dir) / spec.folder(self.split), self.dataset.labels
                )
        except (ValueError, OSError) as error:
            self.left_out.append(f"{lost}: {error}")

    def described(self) -> set[str]:
        """Return the names of clips with a description file."""
        if self.descriptions is None:
            return set()
        names = list(self.run.predictions[self.split])
        sizes = self.descriptions.sizes(names)
        return {name for name, size in zip(names, sizes, strict=True) if size}

    def pose(self, name: str) -> Pose:
        """Read a clip's pose; KeyError if there is no such clip or no data, OSError or ValueError of its file."""
        if self.dataset is None:
            raise KeyError(name)
        return self.dataset.poses.read(self.dataset.pose_paths[name], self.dataset.labels[name])

    def says(self, name: str, pose: Pose | None) -> tuple[list[Said], Lane | None]:
        """Return the run's sentences for a clip, and its gate; without a model, the evaluated sentence.

        Raises:
            ValueError: the model fails, and the clip was not evaluated.
        """
        evaluated = self.run.predictions.get(self.split, {}).get(name)
        if self.translator is not None and pose is not None:
            try:
                return self._says_anew(self.translator, name, pose)
            except CLIP_FAULTS as error:  # the text encoder's folder may have been moved
                if evaluated is None:
                    raise ValueError(in_one_line(error)) from None
                self.left_out.append(f"gate and new translations of {name}: {error}")
        assert evaluated is not None, "without a model only evaluated clips are shown"
        return [Said("as evaluated", Explained([Candidate(evaluated["hypothesis"], 0.0)], None, []))], None

    def _says_anew(self, translator: Translator, name: str, pose: Pose) -> tuple[list[Said], Lane | None]:
        if not translator.model.config.use_descriptions:
            return [Said("", translator.explain([translator.sample(pose)])[0])], None
        texts = self.descriptions.load(name, pose.frames) if self.descriptions else {}
        samples = [translator.sample(pose, texts)] + ([translator.sample(pose, {})] if texts else [])
        explained = translator.explain(samples)
        hows = ["with descriptions", "without"] if texts else ["has no description"]
        said = [Said(how, found) for how, found in zip(hows, explained, strict=True)]
        return said, Lane(explained[0].gate or [], samples[0].descriptions or [], samples[0].has_description or [])


def clip_section(name: str, viewers: Sequence[Viewer], reference: str, mark: Mark, aspect: float) -> Html:
    """Return a clip's section, of one or two runs; `mark` marks a sentence's differences from the reference."""
    pose, why = _first_pose(name, viewers)
    says, lanes, explained = [element("dt", "reference"), element("dd", reference)], [], []
    for viewer in viewers:
        said, lane = viewer.says(name, pose)
        for how, found in said:
            candidate = found.candidates[0]
            score = element("small", f" {candidate.score:.2f}") if how != "as evaluated" else ""
            key = element("span", class_=f"key {viewer.style}")
            says.append(element("dt", key, f"{viewer.label}{how and f', {how}'}"))
            says.append(element("dd", mark(candidate.text), score))
        if said[0].found.words:
            explained.append((viewer, said[0].found))
        if lane:
            lanes.append((viewer, lane))
    spoken = element("dl", says, class_="says")
    if pose is None:
        return element("section", element("h3", name), element("p", why, class_="small"), spoken, class_="clip")
    frames = sample_frames(len(pose), len(lanes[0][1].gate) if lanes else MOST_FRAMES)
    lanes = [(viewer, _fit(lane, len(frames))) for viewer, lane in lanes]
    points, ratio = picture_points(pose, frames, aspect)
    content = {
        "frames": (frames + pose.start).tolist(),
        "lanes": [lane._asdict() for _, lane in lanes],
        "words": [words_data(found, len(frames)) for _, found in explained],
        **player_data(points, ratio),
    }
    shown = f"Skeleton of {name}, {len(frames)} frames; right hand and arm red, left blue"
    slider = element("input", type="range", min=0, max=len(frames) - 1, value=0, aria_label=f"Frame of {name}")
    button = element("button", "Play", type="button")
    controls = element("div", button, slider, class_="controls live", hidden=True)
    stage = element("div", element("canvas", role="img", aria_label=shown), class_="stage live", hidden=True)
    now = [element("p", class_="now small") for _ in lanes]
    place = element("small", class_="place")
    player = element("div", stage, controls, place)
    told = "a word lights up over the frames that led to it; choose one to go there"
    words = [_words(viewer, "" if i else told) for i, (viewer, _) in enumerate(explained)]
    over = element("div", words, class_="over live", hidden=True)
    top = element("div", player, over, element("div", spoken, now), class_="clip-top")
    timeline = element(
        "div", film(points, ratio, shown), [_lane(viewer, lane) for viewer, lane in lanes], class_="timeline"
    )
    return element("section", element("h3", name), top, timeline, data(content, "clip-data"), class_="clip")


def _first_pose(name: str, viewers: Sequence[Viewer]) -> tuple[Pose | None, str]:
    """Return the clip's pose from the first run that can read it, or why none can."""
    why = "The skeleton is left out: its data are not there."
    for viewer in viewers:
        try:
            return viewer.pose(name), ""
        except KeyError:
            continue
        except CLIP_FAULTS as error:
            why = f"The skeleton is left out: {in_one_line(error)}"
    return None, why


def film(points: np.ndarray, ratio: float, told: str) -> Html:
    """Draw small images of evenly spaced frames, each from the middle of its interval; `told` says what they show.

    `points`, (T, J, 2), and `ratio`, width / height, are those of `picture_points`.
    """
    n, size = min(FILM, len(points)), [round(FILM_HEIGHT * ratio), FILM_HEIGHT]
    pictures = []
    for i in range(n):
        where = points[int((i + 0.5) * len(points) / n)] / FULL * size  # (J, 2)
        dots = [(round(x), round(y) if x or y else None) for x, y in where]  # a gap where a joint was not found
        shapes = []
        for (kind, thickness), group in groupby(sorted(PATHS, key=lambda p: p[1:]), key=lambda p: p[1:]):
            d = "".join(polyline([dots[joint] for joint in joints]) for joints, _, _ in group)
            shapes.append(element("path", d=d, class_=kind, stroke_width=thickness * 0.6))
        pictures.append(element("svg", shapes, viewBox=f"0 0 {size[0]} {size[1]}", aria_hidden="true"))
    return element("div", pictures, class_="film", role="img", aria_label=told)


def _fit(lane: Lane, length: int) -> Lane:
    """Resample a lane to `length` frames, if another run has sampled the clip differently."""
    picks = [i * len(lane.gate) // length for i in range(length)]
    return Lane([lane.gate[i] for i in picks], [lane.texts[i] for i in picks], [lane.own[i] for i in picks])


def words_data(explained: Explained, frames: int) -> dict[str, Any] | None:
    """Return the data of a clip's best sentence for `pages/static/words.js`; None without words.

    These are the sentence, its words, and for each word and frame its share, where 255 is the word's largest. The
    shares are resampled if the model saw another number of frames.
    """
    if not explained.words:
        return None
    shares = np.array([word.frames for word in explained.words])
    shares = shares[:, np.arange(frames) * shares.shape[1] // frames]  # (words, frames)
    levels = (255 * shares / shares.max(1, keepdims=True)).astype(int)  # rounded down: 255 is the largest alone
    texts = [word.text for word in explained.words]
    return {"text": explained.candidates[0].text, "words": texts, "shares": levels.tolist()}


def _words(viewer: Viewer, told: str) -> Html:
    """Make the place where `pages/static/words.js` shows the words of a run's sentence."""
    key = element("span", element("span", class_=f"key {viewer.style}"), f"{viewer.label}: words")
    return element("div", element("small", key, element("span", told)), element("div", class_="words"), class_="lane")


def _lane(viewer: Viewer, lane: Lane) -> Html:
    """Make the place where `pages/static/words.js` shows a run's gate, and which frames have a text of their own."""
    key = element("span", element("span", class_=f"key {viewer.style}"), f"{viewer.label}: gate")
    own = f"marks: {sum(lane.own)} of {len(lane.own)} frames have a text of their own" if any(lane.texts) else "no text"
    told = f"pale {min(lane.gate):.3f}, full colour {max(lane.gate):.3f}; {own}"
    strip = element("div", class_="strip", role="img", aria_label=f"Gate of {viewer.label}: {told}")
    return element("div", element("small", key, element("span", told)), strip, class_="lane live", hidden=True)
