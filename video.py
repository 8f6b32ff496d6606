"""Videos and cameras: every frame in order and upright, and whether all of them are there.

Reading needs PyAV (requirements-rgb.txt), a camera needs OpenCV, which comes with the extractors of poses.
A picture is (height, width, 3) uint8, red, green, blue.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MISSING_SECONDS = 0.5  # a file may end so much before the time that it states, and still be whole
FIRST_PICTURES = 5  # of a camera are dropped: it still sets its exposure


class Facts(NamedTuple):
    """Width and height of the upright pictures in pixels, and frames per second (0: the file does not say)."""

    width: int
    height: int
    fps: float


def read_pictures(path: str | Path) -> Iterator[np.ndarray]:
    """Decode a video from its first frame to its last.

    Raises:
        ValueError: no video, or a damaged one: this may come after the last picture that could be read.
    """
    with _video(path) as stream:
        for frame in _frames(path, stream):
            yield _picture(frame)


def read_facts(path: str | Path) -> Facts:
    """Look at the first frame of a video.

    Raises:
        ValueError: no video.
    """
    with _video(path) as stream:
        frame = next(stream.container.decode(stream), None)
        if frame is None:
            raise ValueError(f"{path}: the video has no frames.")
        height, width = (frame.height, frame.width) if frame.rotation % 180 == 0 else (frame.width, frame.height)
        return Facts(width, height, float(stream.average_rate or 0))


def read_frames(path: str | Path, wanted: set[int], n_expected: int) -> dict[int, np.ndarray]:
    """Read some frames of a video.

    Args:
        path: the video.
        wanted: numbers of frames, counted from 0.
        n_expected: how many frames the video should have.

    Returns:
        number -> picture.

    Raises:
        ValueError: no video, a damaged one, or one with another number of frames.
    """
    pictures, n_frames = {}, 0
    with _video(path) as stream:
        for n_frames, frame in enumerate(_frames(path, stream), start=1):
            if n_frames - 1 in wanted:
                pictures[n_frames - 1] = _picture(frame)
    check_n_frames(path, n_frames, n_expected)
    return pictures


def count_frames(path: str | Path) -> int:
    """Count a video's frames without decoding them.

    Raises:
        ValueError: no video.
    """
    with _video(path) as stream:
        return sum(map(_is_frame, stream.container.demux(stream)))


def check_n_frames(path: str | Path, n_frames: int, n_expected: int) -> None:
    """Refuse a video that its poses do not belong to.

    Raises:
        ValueError: the numbers differ.
    """
    if n_frames != n_expected:
        raise ValueError(
            f"{path}: the video has {n_frames} frames, its pose file {n_expected}. Extract the poses from this very "
            "video, or remove the clip from the labels."
        )


def record(camera: int, seconds: float) -> tuple[list[np.ndarray], float]:
    """Take pictures from a camera, as it gives them: not mirrored.

    Args:
        camera: its number, 0 for the first.
        seconds: how long.

    Returns:
        Pictures, and how many came in a second.

    Raises:
        ValueError: OpenCV is missing, there is no such camera, or it gives no pictures.
    """
    try:
        import cv2
    except ImportError:
        raise ValueError("a camera needs OpenCV, which comes with the extractors of poses (--extractor).") from None

    device = cv2.VideoCapture(camera)
    try:
        if not device.isOpened():
            raise ValueError(f"camera {camera} cannot be opened. Is it connected, free, and allowed for this program?")
        for _ in range(FIRST_PICTURES):
            device.read()
        pictures, start = [], time.monotonic()
        while time.monotonic() - start < seconds:
            there, picture = device.read()
            if not there:
                break
            pictures.append(picture[..., ::-1].copy())  # OpenCV has blue first
        if not pictures:
            raise ValueError(f"camera {camera} gives no pictures. Does another program use it?")
        return pictures, len(pictures) / (time.monotonic() - start)
    finally:
        device.release()


@contextlib.contextmanager
def _video(path: str | Path) -> Iterator[Any]:
    """The first stream of pictures in a file; whatever cannot be read in it is a ValueError."""
    try:
        import av
    except ImportError:
        raise ValueError("reading videos needs av: pip install -r requirements-rgb.txt") from None

    fault = "cannot be read"
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: holds no video.")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # many videos are read at once, each in a process of its own
            fault = "is cut short or damaged"
            yield stream
    except av.FFmpegError as error:
        raise ValueError(f"{path}: the video {fault}: {error.strerror}.") from None


def _is_frame(packet: Any) -> bool:
    return packet.size > 0 and not packet.is_discard


def _frames(path: str | Path, stream: Any) -> Iterator[Any]:
    """Decode all frames; FFmpeg alone would end a damaged file early, or go on with what it made up, in silence."""
    n_packets = n_decoded = n_corrupt = 0
    end, end_of_all = 0.0, 0.0  # seconds
    for packet in stream.container.demux():
        if packet.pts is not None:
            end_of_all = max(end_of_all, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        n_packets += _is_frame(packet)
        for frame in packet.decode():
            n_decoded += 1
            n_corrupt += frame.is_corrupt
            yield frame
    if n_decoded < n_packets:
        raise ValueError(f"{path}: the video is damaged: {n_decoded} of its {n_packets} frames can be decoded.")
    if n_corrupt:
        raise ValueError(f"{path}: the video is damaged: {n_corrupt} of its {n_decoded} frames are not whole.")
    # A file that was cut at its ends, without encoding it again, states more frames than it shows, but the right time;
    # a stream that was recorded live states nothing.
    if stream.frames and stream.duration:
        stated = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        lacks = n_packets < stream.frames and end < stated - 0.5 / float(stream.average_rate or 25)
    else:
        stated = ((stream.container.start_time or 0) + (stream.container.duration or 0)) / 1e6
        end, lacks = end_of_all, end_of_all < stated - MISSING_SECONDS
    if lacks:
        raise ValueError(f"{path}: the video is cut short: it ends after {end:.2f} of {stated:.2f} seconds.")


def _picture(frame: Any) -> np.ndarray:
    """The frame as it is to be seen: phones film lying pictures and note how to turn them."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
