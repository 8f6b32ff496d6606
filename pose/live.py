"""Poses as they come, from a camera or from files as if they were live; found in threads of their own.

Pictures that come while the extractor is busy, and one waits already, are dropped.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import VIDEO_SUFFIXES
from pose.extraction import Extractor, one_person
from pose.keypoints import Pose, read_pose
from pose.video import read_facts, read_pictures, watch
from system.faults import CLIP_FAULTS, in_one_line


class Frame(NamedTuple):
    """A moment."""

    time: float  # seconds since the start
    keypoints: np.ndarray  # (133, 2)
    scores: np.ndarray  # (133,)
    aspect: float = 1  # width of the picture / its height
    dropped: int = 0  # number of pictures dropped before it


def as_pose(frames: Sequence[Frame]) -> Pose:
    """Join frames to a clip; those that were dropped are filled in: the model knows no signing that is faster."""
    keypoints, scores = np.stack([f.keypoints for f in frames]), np.stack([f.scores for f in frames])
    there = np.arange(len(frames)) + [frame.dropped - frames[0].dropped for frame in frames]
    wanted = np.arange(there[-1] + 1)
    after, before = np.searchsorted(there, wanted), np.searchsorted(there, wanted, "right") - 1
    share = ((wanted - there[before]) / np.maximum(there[after] - there[before], 1)).astype(np.float32)[:, None, None]
    return Pose(keypoints[before] * (1 - share) + keypoints[after] * share, np.minimum(scores[before], scores[after]))


def live_poses(
    source: int | Sequence[Path], fps: float, aspect: float, load: Callable[[], Extractor]
) -> Generator[list[Frame], None, None]:
    """Yield the frames that have come since the last time; ends with a recording, never with a camera.

    Args:
        source: a camera's number, or videos or pose files, played one after the other.
        fps: frames per second of files; 0: what the first video says.
        aspect: width of the pictures / their height; 0: as they are, 1 for pose files.
        load: loads the extractor, if there are pictures.

    Raises:
        ValueError: what is watched cannot be read, or the extractor does not work.
    """
    found: queue.Queue[Frame | str] = queue.Queue()
    over = threading.Event()

    def find() -> None:
        """Send frames, and at the end "" or what is wrong."""
        try:
            for frame in find_poses(source, fps, aspect, load, over):
                found.put(frame)
            found.put("")
        except CLIP_FAULTS as error:
            found.put(in_one_line(error))

    finder = threading.Thread(target=find, daemon=True)
    finder.start()
    end = None
    try:
        while end is None:
            frames: list[Frame] = []
            with contextlib.suppress(queue.Empty):
                while isinstance(message := found.get(not frames, 1), Frame):  # Windows tells of Ctrl-C after a second
                    frames.append(message)
                end = message
            if frames:
                yield frames
        if end:
            raise ValueError(end)
    finally:
        over.set()
        finder.join()  # Python's end would abort an extractor in C++


def find_poses(
    source: int | Sequence[Path], fps: float, aspect: float, load: Callable[[], Extractor], over: threading.Event
) -> Iterator[Frame]:
    """Yield frames as they come, until `over` is set; see `live_poses`."""
    items: Iterator[Any]
    with_pictures = isinstance(source, int) or source[0].suffix.lower() in VIDEO_SUFFIXES
    if with_pictures:
        extractor = load()
        extractor.start()
    if isinstance(source, int):
        items, fps = watch(source), 0
    elif with_pictures:
        items = itertools.chain.from_iterable(map(read_pictures, source))
        fps = fps or read_facts(source[0]).fps or 25
    else:
        items = (pair for pose in map(read_pose, source) for pair in zip(pose.keypoints, pose.scores, strict=True))
    waiting: queue.Queue = queue.Queue(1 if with_pictures else 0)  # poses are never late
    threading.Thread(target=_watch, args=(items, fps, waiting, over), daemon=True).start()
    while not isinstance(item := waiting.get(), str):
        now, dropped, seen = item
        shape = aspect or (seen.shape[1] / seen.shape[0] if with_pictures else 1)
        keypoints, scores = largest(*extractor(seen)) if with_pictures else seen
        yield Frame(now, keypoints, scores, shape, dropped)
    if item:
        raise ValueError(item)


def _watch(items: Iterable[Any], fps: float, waiting: queue.Queue, over: threading.Event) -> None:
    """Put (time, number dropped before, item) into the queue when its time comes; at the end "" or what is wrong."""
    start, dropped, end = time.time(), 0, ""
    try:
        for number, item in enumerate(items):
            now = number / fps if fps else time.time() - start
            if over.wait(max(0, start + now - time.time())):
                break
            try:
                waiting.put_nowait((now, dropped, item))
            except queue.Full:
                dropped += 1
    except CLIP_FAULTS as error:
        end = in_one_line(error)
    waiting.put(end)


def largest(keypoints: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the person (133, 2), (133,) whose head and shoulders are seen largest, of all in a picture."""
    try:
        places, sure = one_person([keypoints], [scores])
    except ValueError:  # none of several has a head
        places, sure = one_person([keypoints[:1]], [scores[:1]])
    return places[0], sure[0]
