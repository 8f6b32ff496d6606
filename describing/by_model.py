"""Descriptions by a vision-language model: choose the frames to show, and store the answers.

One request describes a segment of a clip; its text is stored at the segment's first and last frame. Answers are
written as they arrive, so the files record the progress, and a later run requests only the rest.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from describing.files import Clip, write_descriptions
from describing.vlm_client import EndpointError, FailedRequestError, LimitReachedError, VlmClient
from pose.drawing import draw_pose, encode, picture_box, video_picture
from pose.keypoints import Pose
from pose.video import read_frames
from system.disk import check_name, to_json, write_text
from system.faults import CLIP_FAULTS, in_one_line
from temporal_alignment import read_descriptions
from utils import progress

logger = logging.getLogger(__name__)


class Segment(NamedTuple):
    """The frames of a clip that one request describes, counted from the clip's start."""

    first: int
    last: int

    def shown(self, pictures: int) -> list[int]:
        """Return the evenly spaced frames that the model is shown.

        >>> Segment(16, 31).shown(4), Segment(7, 7).shown(4)
        ([16, 21, 26, 31], [7])
        """
        count = min(pictures, self.last - self.first + 1)
        return [round(self.first + i * (self.last - self.first) / max(count - 1, 1)) for i in range(count)]

    def described(self, start: int) -> list[int]:
        """Return the frames that get its text, numbered in a recording in which the clip begins at `start`."""
        return sorted({start + self.first, start + self.last})


def segments(n_frames: int, length: int) -> list[Segment]:
    """Divide a clip into segments.

    >>> segments(40, 16)
    [Segment(first=0, last=15), Segment(first=16, last=31), Segment(first=32, last=39)]
    """
    return [Segment(first, min(first + length, n_frames) - 1) for first in range(0, n_frames, length)]


class GrowingFile:
    """A clip's file to which texts are added; one that nobody signed is copied before the first change.

    ValueError if it cannot have its name.
    """

    def __init__(self, clip: Clip, maker: str) -> None:
        check_name(clip.out)
        self.path, self.maker = clip.out, maker
        self.texts, self.made_by, *_ = read_descriptions(clip.out)
        self.foreign = clip.out.exists() and not (self.texts and all(self.made_by.values()))

    def add(self, frames: Sequence[int], text: str) -> None:
        """Store a text at the given frames that have none yet."""
        if self.foreign:
            original = self.path.with_name(f"{self.path.name}.original")
            if not original.exists():
                shutil.copyfile(self.path, original)
            self.foreign = False
        new = [frame for frame in frames if frame not in self.texts]
        self.texts |= dict.fromkeys(new, text)
        self.made_by |= dict.fromkeys(new, self.maker)
        write_descriptions(self.path, self.texts, self.made_by)


@dataclass
class Outcome:
    """The results of a run."""

    stored: int = 0
    failures: list[dict] = field(default_factory=list)
    stopped: str = ""  # why no further requests are sent
    hopeless: str = ""  # why none can succeed

    def failed(self, clip: Clip, frames: list[int], reason: str) -> None:
        self.failures.append({"clip": clip.name, "frames": frames, "reason": reason})


@dataclass(frozen=True)
class Question:
    """What a request asks and shows of a segment."""

    prompt: str
    max_tokens: int  # of the answer
    images: str  # "video" for frames of the video, "skeleton" for drawn keypoints
    segment: int  # frames that one request describes
    pictures: int  # shown of a segment
    height: int  # of a picture, in pixels
    aspect: float  # width of the videos / their height

    def maker(self, model: str) -> str:
        """Return what is stored with each text: the model, and what it was shown and asked."""
        digest = hashlib.blake2b(self.prompt.encode(), digest_size=4).hexdigest()
        return f"{model}, {self.images} x{self.segment}, prompt {digest}"

    def draw(self, clip: Clip, pose: Pose, segments: list[Segment]) -> dict[int, tuple[str, bytes]]:
        """Return {frame in the clip: (media type, content)} to show; OSError or ValueError for an unreadable video."""
        frames = sorted({frame for segment in segments for frame in segment.shown(self.pictures)})
        if not frames:
            return {}
        if self.images == "skeleton":
            box = picture_box(pose)
            drawn = {frame: draw_pose(pose, frame, box, self.height, self.aspect) for frame in frames}
            return {frame: ("image/png", encode(image, "png")) for frame, image in drawn.items()}
        if clip.video is None:
            raise FileNotFoundError(f"{clip.name} has no video.")
        read = read_frames(clip.video, {pose.start + frame for frame in frames}, pose.n_recorded)
        pictures = {number: encode(video_picture(frame, self.height), "jpeg") for number, frame in read}
        return {number - pose.start: ("image/jpeg", picture) for number, picture in pictures.items()}


def by_model(
    clips: list[Clip], question: Question, client: VlmClient, concurrency: int, failures: Path, whole: bool
) -> int:
    """Describe clips with a vision-language model, and log the usage; return the exit status: 1 if something is left.

    Segments that have a text are skipped. What failed is listed in the file `failures`; if these are all clips
    (`whole`) and nothing failed, an old list goes. ValueError if the endpoint refuses all requests.
    """
    outcome = Outcome()
    pool = ThreadPoolExecutor(concurrency)
    try:
        counts = pool.map(partial(describe_clip, question=question, client=client, outcome=outcome), clips)
        for stored in progress(counts, "asking", total=len(clips)):
            outcome.stored += stored
    finally:
        client.stop()
        pool.shutdown(cancel_futures=True)
        report(client, outcome, failures, whole)
    if outcome.hopeless:
        raise ValueError(f"--endpoint: {outcome.hopeless}")
    return 1 if outcome.failures or outcome.stopped else 0


def describe_clip(clip: Clip, question: Question, client: VlmClient, outcome: Outcome) -> int:
    """Ask about each segment of a clip that has no text yet, store each answer, and return how many there were."""
    if outcome.stopped:
        return 0
    try:
        pose = clip.read_pose()
        file = GrowingFile(clip, question.maker(client.model))
        todo = [
            segment
            for segment in segments(len(pose), question.segment)
            if not file.texts.keys() >= {*segment.described(pose.start)}
        ]
        pictures = question.draw(clip, pose, todo)
    except CLIP_FAULTS as error:
        outcome.failed(clip, [], in_one_line(error))
        return 0
    stored = 0
    for segment in todo:
        frames, shown = segment.described(pose.start), [pictures[i] for i in segment.shown(question.pictures)]
        try:
            file.add(frames, client.ask(question.prompt, shown, question.max_tokens))
            stored += 1
        except FailedRequestError as error:
            outcome.failed(clip, frames, str(error))
        except LimitReachedError as limit:
            outcome.stopped = outcome.stopped or f"stopped by {limit}"
            break
        except EndpointError as error:
            outcome.failed(clip, frames, str(error))
            outcome.hopeless = outcome.stopped = str(error)
            break
        except OSError as error:  # of the disk: nothing more is asked that cannot be stored
            outcome.stopped = str(error)
            raise
    return stored


def report(client: VlmClient, outcome: Outcome, failures: Path, whole: bool) -> None:
    """Log the results, and list failures in a file, which goes when a run over all clips (`whole`) has none."""
    logger.info(
        "%d requests, %d texts stored, %d failed; %d tokens in, %d out.",
        client.n_requests, outcome.stored, len(outcome.failures), client.tokens_in, client.tokens_out,
    )  # fmt: skip
    if outcome.stopped:
        logger.warning("%s; the same command goes on from here.", outcome.stopped)
    if outcome.failures:
        write_text(failures, "".join(to_json(entry) + "\n" for entry in outcome.failures))
        first = outcome.failures[0]
        logger.warning("%d failed, the first: %s: %s", len(outcome.failures), first["clip"], first["reason"])
        logger.warning("They are listed in %s; the same command asks again.", failures)
    elif whole and not outcome.stopped:
        failures.unlink(missing_ok=True)
