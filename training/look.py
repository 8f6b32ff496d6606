"""A look at a run's data: what its poses, texts and descriptions hold, and what is wrong with them.

Everything is computed from a sample of each split. A finding is a `Line`, which `training.findings` puts into words.
Thresholds are chosen so that the public corpora that were tried stay below them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from clips.labels import Label, shared_clips, split_labels
from clips.packs import open_descriptions
from config import DatasetSpec
from models import Uni_Sign
from network.vocabulary import Tokenizer
from pose.hand_crops import HANDS
from pose.keypoints import PART_JOINTS, SCORE_THRESHOLD, Part, Pose, PoseFolder, part_keypoints
from system import distributed
from system.faults import CLIP_FAULTS, in_one_line
from temporal_alignment import DescriptionCounts, numbered_from_one
from training import metrics
from training.findings import Report
from training.loader import ClipLoader
from training.text_fit import ENOUGH, PLACES, TextFit, text_fit
from utils import progress

T = TypeVar("T")

logger = logging.getLogger(__name__)

SAMPLE = 300  # clips of each split to look at; more than `ENOUGH`, as some may be damaged
AT_START = 25  # clips whose poses are opened when a run starts: some tenths of a second
# Smallest share of good points of each part. Nine points of the upper body are in nearly every picture of signing, but
# a hand may hang down or a corpus be of one-handed signs: only one that is never seen is suspicious. Some extractors
# leave out the face on purpose.
LEAST: dict[Part, float] = {"body": 0.5, "left": 0.01, "right": 0.01, "face_all": 0.01}
LEAST_HANDS = 0.5  # smallest share of frames in which most points of a hand are good; real corpora: 0.69 and more
SHORTEST = 5  # frames: the kernel of the temporal convolutions, a fifth of a second
ABOVE_ONE = 0.5  # share of scores: some detectors exceed 1 a little; where most do, 0.3 separates nothing
# Percent for a perfect model; Uni-Sign's way of scoring Chinese takes a little for each full-width "！".
MOST_LOST = 5.0
MOST_CUT = 0.01  # share of targets that are cut


class Line(NamedTuple):
    """A finding: its mark ("·" good to know, "!" worth mending), its name in `findings.TEXTS`, and the values there."""

    mark: str
    name: str
    values: Sequence[Any]


class ClipLook(NamedTuple):
    """What a clip's pose holds."""

    n_frames: int
    high: float  # the highest score
    above_one: float  # share of scores above 1
    good: dict[Part, float]  # share of good points of each part
    hands: float  # share of frames in which most points of one hand or of both are good


@dataclass
class SplitLook:
    """What the files of a split hold."""

    labels: Mapping[str, Label]
    paths: Mapping[str, Path]
    poses: PoseFolder
    missing: list[str]  # clips without a pose file
    filed: list[str]  # clips with a description file
    chosen: list[str]  # clips whose pose files were to be opened
    faults: list[str] = field(default_factory=list)  # why some of these cannot be read, one line each
    clips: dict[str, ClipLook] = field(default_factory=dict)  # what the others hold
    texts: dict[str, int] = field(default_factory=dict)  # number of valid descriptions in each file that was opened
    counts: DescriptionCounts | None = None  # what these files hold; None without a folder of descriptions
    from_one: bool = False  # whether descriptions number the frames from 1
    fit: TextFit | None = None  # whether descriptions belong to their clips; None for too few of them

    def lines(self, renumber: str = "") -> list[Line]:
        """Return what is to be said about poses, and about descriptions' numbers, with the command that mends them."""
        if not self.clips:
            return []
        lengths, high, above_one, good, hands = zip(*self.clips.values(), strict=True)
        weights = np.array(lengths) / sum(lengths)
        shares = {part: float(weights @ [clip[part] for clip in good]) for part in PART_JOINTS}
        seen = min(lengths), max(lengths), float(np.median(lengths)), *shares.values()
        found = [Line("·", "seen", seen)]
        found += [
            Line("·" if part == "face_all" else "!", f"unseen_{part}", (shares[part],))
            for part in LEAST
            if shares[part] < LEAST[part]
        ]
        if weights @ hands < LEAST_HANDS and any(shares[hand] >= LEAST[hand] for hand in HANDS):
            found.append(Line("!", "few_hands", (float(weights @ hands),)))
        if weights @ above_one > ABOVE_ONE:
            found.append(Line("!", "above_one", (max(high),)))
        if short := [name for name, clip in self.clips.items() if clip.n_frames < SHORTEST]:
            found.append(Line("!", "short", (len(short), SHORTEST, short[0])))
        return found + [Line("!", "from_one", (renumber,))] * self.from_one

    def fit_lines(self, refused: bool) -> list[Line]:
        """Say whether descriptions belong to their clips; if not, it is an error where the run is `refused` for it."""
        if self.fit is None:
            return []
        values = self.fit.n_clips, max(0.0, self.fit.own), max(0.0, self.fit.dealt)
        return [Line("✗" if refused else "!", "wrong_texts", values) if self.fit.wrong else Line("·", "told", values)]


def look_at_pose(pose: Pose) -> ClipLook:
    """Measure what a pose holds."""
    good = pose.scores > SCORE_THRESHOLD  # (F, 133)
    return ClipLook(
        len(pose),
        float(pose.scores.max()),
        float((pose.scores > 1).mean()),
        {part: float(good[:, joints].mean()) for part, joints in PART_JOINTS.items()},
        float(np.any([good[:, PART_JOINTS[hand]].mean(1) > 0.5 for hand in HANDS], axis=0).mean()),
    )


def look_at_files(
    title: str,
    labels: Mapping[str, Label],
    paths: Mapping[str, Path],
    sizes: np.ndarray,
    poses: PoseFolder,
    descriptions: Path | None,
    limit: int,
) -> SplitLook:
    """Open about `limit` pose files and as many description files of a split.

    `paths` has names in the order of `labels`, `sizes` is 0 for missing files; descriptions may be packed, or None.
    """
    missing = {name for name, size in zip(paths, sizes, strict=True) if not size}
    reader = open_descriptions(descriptions, labels) if descriptions else None
    unfiltered = reader.counting_anew() if reader else None
    filed = [name for name, size in zip(labels, reader.sizes([*labels]), strict=True) if size] if reader else []
    described = dict.fromkeys(every(filed, limit))
    counts = reader.counts if reader else None
    look = SplitLook(labels, paths, poses, list(missing), filed, every(labels, limit), counts=counts)
    numbers: list[tuple[int, Collection[int]]] = []
    compared, clips = set(every(described, 2 * ENOUGH)), list[tuple[np.ndarray, list[str]]]()
    for name in progress(dict.fromkeys([*look.chosen, *described]), title):
        pose = None
        if name not in missing:
            try:
                pose = poses.read(paths[name], labels[name])
                look.clips[name] = look_at_pose(pose)
            except CLIP_FAULTS as error:
                look.faults.append(in_one_line(error))
        if name in described and reader and unfiltered:
            texts = reader.load(name, pose.frames if pose else None)
            look.texts[name] = len(texts)
            if name in compared and pose and texts:
                clips.append(keypoints_and_texts(pose, texts))
            numbers += [(pose.n_recorded, list(unfiltered.load(name)))] if pose else []
    look.from_one = numbered_from_one(numbers)
    look.fit = text_fit(every(clips, ENOUGH)) if len(clips) >= ENOUGH else None
    return look


def keypoints_and_texts(pose: Pose, texts: Mapping[int, str]) -> tuple[np.ndarray, list[str]]:
    """Return what `text_fit` takes of a clip: normalised keypoints, (PLACES, J), and their texts."""
    described = np.array(sorted(texts))
    places = np.linspace(0, len(described) - 1, PLACES).round().astype(int)
    parts = part_keypoints(pose, described - pose.start)
    keypoints = np.concatenate([part.numpy().reshape(len(described), -1) for part in parts.values()], axis=1)
    return keypoints[places], [texts[frame] for frame in described[places].tolist()]


def look_at_texts(
    tokenizer: Tokenizer, targets: Mapping[str, str], spec: DatasetSpec, task: str, max_tokens: int
) -> list[Line]:
    """Compare targets with what the tokenizer makes of them, cut at `max_tokens`."""
    n = len(targets)
    tokens = {name: tokenizer.encode(text, len(text.encode()) + 2) for name, text in targets.items()}
    cut = [name for name, ids in tokens.items() if len(ids) > max_tokens]
    learned = {name: tokenizer.decode(tokenizer.encode(targets[name], max_tokens)) for name in cut}
    whole = {name: tokenizer.decode(ids) for name, ids in tokens.items()}
    changed = [name for name, text in whole.items() if text != targets[name].strip()]
    scores = metrics.score(
        task, list((whole | learned).values()), [*targets.values()], spec.text_unit, spec.bleu_tokenizer
    )
    metric, higher = metrics.MAIN_METRIC[task]
    score = scores.values[metric]
    example = f": {targets[changed[0]]!r:.40} > {whole[changed[0]]!r:.40}" if changed else ""
    longest = max(map(len, tokens.values()))
    found = [Line("·", "tokenized", (len(changed) / n, example, metric, score, len(cut) / n, max_tokens, longest))]
    if abs((100.0 if higher else 0.0) - score) > MOST_LOST:
        why = metrics.why_zero([*targets.values()], spec.text_unit, spec.bleu_tokenizer) if task == "SLT" else ""
        found.append(Line("!", why, ()) if why else Line("!", "lost", (metric, score)))
    if len(cut) > MOST_CUT * n:
        found.append(Line("!", "cut", (len(cut), n, max_tokens, cut[0], learned[cut[0]][-20:], longest)))
    return found


def look_at_splits(spec: DatasetSpec, task: str) -> list[Line]:
    """Compare the splits whose label files exist with one another."""
    labels = {split: split_labels(spec, split) for split, path in spec.labels.items() if Path(path).is_file()}
    found = []
    for shared in shared_clips(spec, labels, task):
        pair, n = (shared.split, shared.other), len(labels[shared.split])
        found += [Line("!", "shared_names", (len(shared.names), n, *pair, shared.names[0]))] if shared.names else []
        found += [Line("!", "shared_poses", (len(shared.poses), n, *pair, shared.poses[0]))] if shared.poses else []
        if shared.targets and task != "ISLR":  # there, words are meant to be in all
            found.append(Line("·", "shared_texts", (len(shared.targets), n, *pair, shared.targets[0])))
    return found or [Line("✓", "apart", ())] * (len(labels) > 1)


def every(items: Iterable[T], limit: int) -> list[T]:
    """Return some evenly spaced items: at least `limit`, if there are so many, and less than twice as many."""
    items = list(items)
    return items[:: max(1, len(items) // limit)]


def log_look(loaders: Mapping[str, ClipLoader], model: Uni_Sign, renumber: str) -> None:
    """Log what a run's data hold, from a few clips of each split; `renumber` is as for `SplitLook.lines`.

    Raises:
        ValueError: a mapper is to learn descriptions from poses, and they are not those of their clips.
    """
    refused = ""
    if distributed.is_main():
        report = Report(write=logger.info)
        for split, loader in loaders.items():
            dataset = loader.dataset
            with report.section(f"{dataset.spec.name} {split}"):
                folder = Path(dataset.spec.description_dir) / dataset.spec.folder(split)
                texts = None if dataset.descriptions is None else folder
                files = dataset.labels, dataset.pose_paths, dataset.sizes, dataset.poses, texts
                look = look_at_files(split, *files, SAMPLE if texts else AT_START)
                needed = split == "train" and model.config.uses_mapper
                report.say_all(look.lines(renumber) + look.fit_lines(needed))
                refused = str(folder) if needed and look.fit and look.fit.wrong else refused
                targets = {name: dataset.target(name) for name in every(dataset.names, SAMPLE)}
                max_tokens = model.config.max_target_tokens
                report.say_all(look_at_texts(model.tokenizer, targets, dataset.spec, dataset.task, max_tokens))
        with report.section(report.text("splits")):
            report.say_all(look_at_splits(dataset.spec, dataset.task))
    if refused := distributed.broadcast_object(refused):
        raise ValueError(
            f"--use_descriptions: the texts in {refused} fit their clips no better than those of other clips, so that "
            "learning from them costs. Let description_dir name the texts of these clips (pre_training_checklist.py "
            "--page shows some), or add --description_alignment 0 to train with them all the same."
        )
