"""Descriptions by a vision-language model: choose the frames to show, and store the answers.

One request describes a segment of a clip; its text is stored at the segment's first and last frame. Answers are
written as they arrive, so the files record the progress, and a later run requests only the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from config import SPLITS
from describing.files import Clip, makers_by_frame, write_descriptions
from describing.vlm_client import EndpointError, FailedRequestError, LimitReachedError, Limits, VlmClient, api_key
from pose.drawing import draw_pose, encode, picture_box, video_picture
from pose.keypoints import Pose
from pose.video import read_frames
from system.disk import write_text
from temporal_alignment import read_descriptions
from utils import progress, require_packages

logger = logging.getLogger(__name__)

PROMPTS = Path(__file__).parents[1] / "description" / "prompts"


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


def segments(n_frames: int, length: int) -> list[Segment]:
    """Divide a clip into segments.

    >>> segments(40, 16)
    [Segment(first=0, last=15), Segment(first=16, last=31), Segment(first=32, last=39)]
    """
    return [Segment(first, min(first + length, n_frames) - 1) for first in range(0, n_frames, length)]


class GrowingFile:
    """A clip's file to which texts are added; a file of another maker is copied before the first change."""

    def __init__(self, clip: Clip, maker: str) -> None:
        self.path, self.maker = clip.out, maker
        self.texts: dict[int, str] = {}
        self.made_by: dict[int, str] = {}
        self.foreign = clip.out.exists()
        if not self.foreign:
            return
        self.texts, _ = read_descriptions(clip.out)
        self.made_by = makers_by_frame(clip.out)
        self.foreign = not (self.texts and self.made_by.keys() >= self.texts.keys())

    def add(self, frames: tuple[int, ...], text: str) -> None:
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
class Call:
    """One request about a segment; `frames` are numbers in the original recording."""

    clip: Clip
    file: GrowingFile
    frames: tuple[int, ...]
    pictures: list[tuple[str, bytes]]


@dataclass
class Outcome:
    """The results of a run."""

    stored: int = 0
    failures: list[dict] = field(default_factory=list)
    stopped: str = ""

    def failed(self, clip: Clip, frames: tuple[int, ...], reason: str) -> None:
        self.failures.append({"clip": clip.name, "frames": list(frames), "reason": reason})


def by_model(args: argparse.Namespace, clips: list[Clip], language: str) -> int:
    """Describe clips with a vision-language model; return the exit status.

    Raises:
        FileNotFoundError: the prompt or the folder of videos does not exist.
        ValueError: the address is invalid, a package is missing, or the endpoint refuses all requests.
    """
    require_packages("--endpoint", "PIL", *(["av"] if args.images == "video" else []))
    prompt_file = Path(args.prompt) if args.prompt else PROMPTS / f"{language}.txt"
    if not prompt_file.is_file():
        raise FileNotFoundError(f"--prompt: {prompt_file} does not exist.")
    if args.images == "video" and not any(clip.video for clip in clips):
        raise FileNotFoundError("--images video: there is no folder of videos. Use --images skeleton, or name one.")
    prompt = prompt_file.read_text(encoding="utf-8").strip()
    digest = hashlib.blake2b(prompt.encode(), digest_size=4).hexdigest()
    maker = f"{args.model}, {args.images} x{args.segment}, prompt {digest}"
    limits = Limits(
        args.max_requests, args.max_cost, args.price_in, args.price_out, args.retries, args.timeout, args.backoff
    )
    key = api_key(args.api_key_env)
    client = VlmClient(args.endpoint, args.model, key, language, limits, json.loads(args.fields))
    outcome = Outcome()
    calls = calls_to_make(args, progress(clips, "asking"), maker, outcome)
    try:
        ask_all(calls, lambda call: client.ask(prompt, call.pictures, args.max_tokens), args.concurrency, outcome)
    finally:
        client.stop()
        folder = Path(args.out) if args.out else clips[0].out.parent.parent
        report(client, outcome, folder / "failures.jsonl", whole=not args.clips and set(args.splits) == set(SPLITS))
    return 1 if outcome.failures or outcome.stopped else 0


def calls_to_make(args: argparse.Namespace, clips: Iterator[Clip], maker: str, outcome: Outcome) -> Iterator[Call]:
    """Yield the requests, with images, for segments that have no text yet."""
    for clip in clips:
        try:
            pose = clip.read_pose()
            file = GrowingFile(clip, maker)
            todo = [
                segment
                for segment in segments(len(pose), args.segment)
                if not {pose.start + segment.first, pose.start + segment.last} <= file.texts.keys()
            ]
            pictures = _pictures(args, clip, pose, todo) if todo else {}
        except (ValueError, OSError) as error:
            outcome.failed(clip, (), str(error))
            continue
        for segment in todo:
            frames = tuple(dict.fromkeys((pose.start + segment.first, pose.start + segment.last)))
            yield Call(clip, file, frames, [pictures[frame] for frame in segment.shown(args.pictures)])


def _pictures(args: argparse.Namespace, clip: Clip, pose: Pose, todo: list[Segment]) -> dict[int, tuple[str, bytes]]:
    """Return {frame within the clip: (media type, content)} for all frames to show."""
    frames = sorted({frame for segment in todo for frame in segment.shown(args.pictures)})
    if args.images == "skeleton":
        box = picture_box(pose)
        drawn = {frame: draw_pose(pose, frame, box, args.picture_height, args.aspect) for frame in frames}
        return {frame: ("image/png", encode(image, "png")) for frame, image in drawn.items()}
    if clip.video is None:
        raise FileNotFoundError(f"{clip.name} has no video.")
    found = read_frames(clip.video, {pose.start + frame for frame in frames}, pose.n_recorded)
    pictures = {number: encode(video_picture(frame, args.picture_height), "jpeg") for number, frame in found.items()}
    return {number - pose.start: ("image/jpeg", picture) for number, picture in pictures.items()}


def ask_all(calls: Iterator[Call], ask: Callable[[Call], str], concurrency: int, outcome: Outcome) -> None:
    """Send requests concurrently; only this thread stores answers.

    Raises:
        ValueError: no request to this endpoint can succeed.
    """
    running: dict[Future[str], Call] = {}
    hopeless = ""
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            while True:
                while not outcome.stopped and len(running) < 2 * concurrency and (call := next(calls, None)):
                    running[pool.submit(ask, call)] = call
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    call = running.pop(future)
                    try:
                        call.file.add(call.frames, future.result())
                        outcome.stored += 1
                    except FailedRequestError as error:
                        outcome.failed(call.clip, call.frames, str(error))
                    except LimitReachedError as limit:
                        outcome.stopped = outcome.stopped or f"stopped by {limit}"
                    except EndpointError as error:
                        outcome.failed(call.clip, call.frames, str(error))
                        hopeless = outcome.stopped = str(error)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if hopeless:
        raise ValueError(f"--endpoint: {hopeless}")


def report(client: VlmClient, outcome: Outcome, failures: Path, whole: bool) -> None:
    """Log the results, and list failures in a file; the next run tries them again.

    Args:
        client: the client, for its usage.
        outcome: the results.
        failures: the file for failures; it is deleted if a complete run (`whole`) has none.
        whole: whether the run covered all clips.
    """
    usage = client.usage
    cost = usage.cost(client.limits)
    logger.info(
        "%d requests, %d texts stored, %d failed; %d tokens in, %d out%s.",
        usage.requests, outcome.stored, len(outcome.failures), usage.tokens_in, usage.tokens_out,
        f", cost {cost:.4f}" if cost else "",
    )  # fmt: skip
    if outcome.stopped:
        logger.warning("%s; the same command goes on from here.", outcome.stopped)
    if outcome.failures:
        write_text(failures, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in outcome.failures))
        first = outcome.failures[0]
        logger.warning("%d failed, the first: %s: %s", len(outcome.failures), first["clip"], first["reason"])
        logger.warning("They are listed in %s; the same command asks again.", failures)
    elif whole and not outcome.stopped:
        failures.unlink(missing_ok=True)
