"""Read videos and cameras: all frames in order and upright, with a check that the video is complete.

Videos need PyAV and JPEGs Pillow (the extra `rgb`), cameras OpenCV, which comes with the pose extractors. Images are
(height, width, 3) uint8 RGB.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import PICTURES_CURE

MISSING_SECONDS = 0.5  # an intact file may end so many seconds before its stated end
MAX_PIXELS = 1 << 26  # of an image; 8K has 33 million. A small file can claim any size
# The formats of video files; FFmpeg also plays lists of other files, as endless as their author likes.
FORMATS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,gif,mjpeg,h263,h264,hevc,m4v,ivf,nut,rm,dv,mxf"
FIRST_PICTURES = 5  # images of a camera to drop while it adjusts its exposure


class Facts(NamedTuple):
    """Width and height of the upright images in pixels, and frames per second (0: unknown)."""

    width: int
    height: int
    fps: float


def read_pictures(path: str | Path) -> Iterator[np.ndarray]:
    """Decode all frames of a video; ValueError, perhaps after the last readable frame, if it is none or damaged."""
    with _video(path) as stream:
        for frame in _frames(path, stream):
            yield _picture(frame)


def read_facts(path: str | Path) -> Facts:
    """Read a video's facts from its first frame; ValueError if it cannot be read."""
    with _video(path) as stream:
        frame = next(stream.container.decode(stream), None)
        if frame is None:
            raise ValueError(f"{path}: the video has no frames.")
        height, width = (frame.height, frame.width) if frame.rotation % 180 == 0 else (frame.width, frame.height)
        return Facts(width, height, float(stream.average_rate or 0))


def read_frames(path: str | Path, wanted: set[int], n_expected: int) -> Iterator[tuple[int, np.ndarray]]:
    """Decode frames of a video, (index from 0, image), in order: a small file may hold more than fit into memory.

    ValueError, perhaps after the last of them, if it is damaged or has another number of frames than `n_expected`.
    """
    n_frames = 0
    with _video(path) as stream:
        for n_frames, frame in enumerate(_frames(path, stream), start=1):
            if n_frames - 1 in wanted:
                yield n_frames - 1, _picture(frame)
    check_n_frames(path, n_frames, n_expected)


def count_frames(path: str | Path) -> int:
    """Count a video's frames without decoding them; ValueError if it cannot be read."""
    with _video(path) as stream:
        return sum(map(_is_frame, stream.container.demux(stream)))


def check_n_frames(path: str | Path, n_frames: int, n_expected: int) -> None:
    """Raise ValueError if a video has another number of frames than its poses."""
    if n_frames != n_expected:
        raise ValueError(
            f"{path}: the video has {n_frames} frames, its pose file {n_expected}. Extract the poses from this very "
            "video, or remove the clip from the labels."
        )


def watch(camera: int) -> Iterator[np.ndarray]:
    """Yield the images of a camera, numbered from 0, as they come, not mirrored; ValueError if it gives none."""
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
        there, picture = device.read()
        if not there:
            raise ValueError(f"camera {camera} gives no pictures. Does another program use it?")
        while there:
            yield picture[..., ::-1].copy()  # from OpenCV's BGR
            there, picture = device.read()
    finally:
        device.release()


def read_jpeg(content: bytes, longest: int) -> np.ndarray:
    """Decode a JPEG of a stranger; ValueError if it is none, damaged, or a side has more than `longest` pixels."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:  # reads its size alone
            if max(picture.size) > longest:
                raise ValueError(f"the picture has {picture.width} x {picture.height} pixels; {longest} is the most.")
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture is no whole JPEG ({type(error).__name__}).") from None


@contextlib.contextmanager
def _video(path: str | Path) -> Iterator[Any]:
    """Open a file's first video stream that is no cover picture; decoding errors become ValueErrors."""
    if Path(path).is_dir():
        raise ValueError(f"{path}: is a folder; wanted a video. {PICTURES_CURE}")
    try:
        import av
    except ImportError:
        raise ValueError('reading videos needs av: pip install -e ".[rgb]"') from None

    fault = "cannot be read"
    try:
        with av.open(str(path), options={"format_whitelist": FORMATS}) as container:
            cover = av.stream.Disposition.attached_pic
            streams = [stream for stream in container.streams.video if not stream.disposition & cover]
            if not streams:
                raise ValueError(f"{path}: holds no video.")
            stream = streams[0]
            if stream.codec_context is None:
                raise ValueError(f"{path}: the video has a codec that FFmpeg does not know here. Encode it as H.264.")
            if (width := stream.codec_context.width) * (height := stream.codec_context.height) > MAX_PIXELS:
                raise ValueError(f"{path}: its images have {width} x {height} pixels. Scale the video down.")
            # For images that differ from the header; codecs pad theirs.
            stream.codec_context.options = {"max_pixels": str(2 * MAX_PIXELS)}
            stream.codec_context.thread_count = 1  # many processes read videos at the same time
            fault = "is cut short or damaged"
            yield stream
    except av.ArgumentError:
        raise ValueError(f"{path}: its format is none of a video that is read here. Make it an .mp4.") from None
    except av.FFmpegError as error:
        raise ValueError(f"{path}: the video {fault}: {error.strerror}.") from None


def _is_frame(packet: Any) -> bool:
    if packet.size == 0 or packet.is_discard:
        return False
    # VP8 can have invisible reference frames, marked by a bit of the first byte (RFC 6386, 9.1).
    return packet.stream.codec_context.codec.canonical_name != "vp8" or bool(bytes(packet)[0] & 16)


def _frames(path: str | Path, stream: Any) -> Iterator[Any]:
    """Decode all frames and detect damage; FFmpeg alone would silently stop early or make up frames."""
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
    # A file that was trimmed without re-encoding states more frames than it shows, but the correct duration; a stream
    # that was recorded live states neither.
    if stream.frames and stream.duration:
        stated = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        lacks = n_packets < stream.frames and end < stated - 0.5 / float(stream.average_rate or 25)
    else:
        stated = ((stream.container.start_time or 0) + (stream.container.duration or 0)) / 1e6
        end, lacks = end_of_all, end_of_all < stated - MISSING_SECONDS
    if lacks:
        raise ValueError(f"{path}: the video is cut short: it ends after {end:.2f} of {stated:.2f} seconds.")


def _picture(frame: Any) -> np.ndarray:
    """Return the upright frame: phones store frames rotated, with the angle as metadata."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
