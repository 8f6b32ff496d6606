"""Poses as they come, from a camera or from files as if they were live; found in a process of their own.

Pictures that come while the extractor is busy, and one waits already, are dropped. Who sends them through a connection
is told when each is taken, and drops those that come until then.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import VIDEO_SUFFIXES
from pose.extraction import Extractor, one_person
from pose.keypoints import Pose, read_pose
from pose.video import read_facts, read_pictures, watch
from system.faults import CLIP_FAULTS, in_one_line

if sys.platform == "win32":
    from multiprocessing.connection import PipeConnection as Connection
else:
    from multiprocessing.connection import Connection


class Frame(NamedTuple):
    """A moment."""

    time: float  # seconds since the start
    keypoints: np.ndarray  # (133, 2)
    scores: np.ndarray  # (133,)
    aspect: float = 1  # width of the picture / its height
    dropped: int = 0  # number of pictures dropped before it


class Taken(NamedTuple):
    """A picture, (H, W, 3) uint8, or the keypoints and scores of one, and the facts of its `Frame`."""

    time: float
    dropped: int
    item: Any


def as_pose(frames: Sequence[Frame]) -> Pose:
    """Join frames to a clip; those that were dropped are filled in: the model knows no signing that is faster."""
    keypoints, scores = np.stack([f.keypoints for f in frames]), np.stack([f.scores for f in frames])
    there = np.arange(len(frames)) + [frame.dropped - frames[0].dropped for frame in frames]
    wanted = np.arange(there[-1] + 1)
    after, before = np.searchsorted(there, wanted), np.searchsorted(there, wanted, "right") - 1
    share = ((wanted - there[before]) / np.maximum(there[after] - there[before], 1)).astype(np.float32)[:, None, None]
    return Pose(keypoints[before] * (1 - share) + keypoints[after] * share, np.minimum(scores[before], scores[after]))


def live_poses(
    source: int | Sequence[Path] | Connection, fps: float, aspect: float, load: Callable[[], Extractor]
) -> Generator[list[Frame], None, None]:
    """Yield the frames that have come since the last time; ends with a recording, never with a camera.

    Of pictures there is an empty list when the extractor is ready, and for each second in which none comes.

    Args:
        source: a camera's number, or videos or pose files, played one after the other; or a connection, closed here,
            that brings `Taken` pictures, and "" at the end. Each is answered with None when its turn comes.
        fps: frames per second of files; 0: what the first video says.
        aspect: width of the pictures / their height; 0: as they are, 1 for pose files.
        load: loads the extractor in the process that needs it, if there are pictures.

    Raises:
        ValueError: what is watched cannot be read, or the extractor does not work or died.
    """
    context = multiprocessing.get_context("spawn")  # threads and GPU state do not survive a fork
    messages = context.Queue()
    process = context.Process(target=_find, args=(messages, source, fps, aspect, load), daemon=True)
    _start(process)
    if not isinstance(source, int | Sequence):
        source.close()  # so that the other end is told when the process dies
    frames: list[Frame] = []
    is_ready = False
    try:
        while True:
            try:
                message = messages.get(not frames, 1)
            except queue.Empty:
                if not (frames or process.is_alive()) and messages.empty():
                    raise ValueError("the process that finds the poses died; is there enough memory?") from None
                if frames or is_ready:
                    yield frames
                    frames = []
                continue
            if message is None:
                is_ready = True
                yield []
                continue
            if not isinstance(message, Frame):
                break
            frames.append(message)
        if frames:
            yield frames
        if message:
            raise ValueError(message)
    finally:
        process.kill()


def _start(process: BaseProcess) -> None:
    """Start a process that Ctrl-C does not reach; Windows blocks no signals."""
    if sys.platform == "win32":
        process.start()
    else:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # the process inherits it
        process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _find(messages: Any, source: Any, fps: float, aspect: float, load: Callable[[], Extractor]) -> None:
    """Send frames, and at the end "" or what is wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows does not inherit it

    def ready() -> Extractor:
        extractor = load()
        messages.put(None)
        return extractor

    try:
        for frame in find_poses(source, fps, aspect, ready):
            messages.put(frame)
        messages.put("")
    except CLIP_FAULTS as error:
        messages.put(in_one_line(error))


def find_poses(source: Any, fps: float, aspect: float, load: Callable[[], Extractor]) -> Iterator[Frame]:
    """Yield frames as they come; see `live_poses`."""
    with_pictures = not isinstance(source, Sequence) or source[0].suffix.lower() in VIDEO_SUFFIXES
    if with_pictures:
        extractor = load()
        extractor.start()
    is_played = isinstance(source, int | Sequence)
    take = _play(source, fps, with_pictures) if is_played else functools.partial(_receive, source)
    while not isinstance(item := take(), str):
        now, dropped, seen = item
        shape = aspect or (seen.shape[1] / seen.shape[0] if with_pictures else 1)
        keypoints, scores = _largest(*extractor(seen)) if with_pictures else seen
        yield Frame(now, keypoints, scores, shape, dropped)
    if item:
        raise ValueError(item)


def _receive(connection: Connection) -> Any:
    """Take what is sent next, and say so."""
    item = connection.recv()
    connection.send(None)
    return item


def _play(source: int | Sequence[Path], fps: float, with_pictures: bool) -> Callable[[], Any]:
    """Begin to watch a camera or to play files; return what waits for the next item."""
    items: Iterator[Any]
    if isinstance(source, int):
        items, fps = watch(source), 0
    elif with_pictures:
        items = itertools.chain.from_iterable(map(read_pictures, source))
        fps = fps or read_facts(source[0]).fps or 25
    else:
        items = (pair for pose in map(read_pose, source) for pair in zip(pose.keypoints, pose.scores, strict=True))
    waiting: queue.Queue = queue.Queue(1 if with_pictures else 0)  # poses are never late
    threading.Thread(target=_watch, args=(items, fps, waiting), daemon=True).start()
    return waiting.get


def _watch(items: Iterable[Any], fps: float, waiting: queue.Queue) -> None:
    """Put items with their times into the queue when their time comes; at the end "" or what is wrong."""
    start, dropped, end = time.time(), 0, ""
    try:
        for number, item in enumerate(items):
            now = number / fps if fps else time.time() - start
            time.sleep(max(0, start + now - time.time()))
            try:
                waiting.put_nowait(Taken(now, dropped, item))
            except queue.Full:
                dropped += 1
    except CLIP_FAULTS as error:
        end = in_one_line(error)
    waiting.put(end)


def _largest(keypoints: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the person (133, 2), (133,) whose head and shoulders are seen largest."""
    try:
        places, sure = one_person([keypoints], [scores])
    except ValueError:  # none of several has a head
        places, sure = one_person([keypoints[:1]], [scores[:1]])
    return places[0], sure[0]
