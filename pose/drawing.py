"""Images of skeletons and video frames, for vision-language models and for people who check texts.

Pillow (the extra `rgb`) is imported on first use; HTML pages draw skeletons without it.

Shapes: T frames, J drawn joints.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pose.keypoints import SCORE_THRESHOLD, Pose

if TYPE_CHECKING:
    from PIL.Image import Image

_HAND = [(0, 1, 2, 3, 4), *((0, *range(knuckle, knuckle + 4)) for knuckle in range(5, 18, 4)), (5, 9, 13, 17)]
_FACE = [(0, 17), (17, 22), (22, 27), (27, 31), (31, 36)]  # jaw, brows, bridge and base of the nose: open lines
_RINGS = [(36, 42), (42, 48), (48, 60), (60, 68)]  # eyes, outer and inner lips: closed lines

# Lines through keypoints, their kind, and their width in thousandths of the image height.
LINES: list[tuple[list[int], str, float]] = [
    ([7, 5, 6, 8], "bone", 5),
    ([5, 11], "faint", 3),
    ([6, 12], "faint", 3),
    ([5, 7, 9], "left", 6),
    ([6, 8, 10], "right", 6),
    *(([91 + joint for joint in finger], "left", 4) for finger in _HAND),
    *(([112 + joint for joint in finger], "right", 4) for finger in _HAND),
    *((list(range(23 + first, 23 + end)), "bone", 2) for first, end in _FACE),
    *(([*range(23 + first, 23 + end), 23 + first], "bone", 2) for first, end in _RINGS),
]
COLOURS = {"left": "#1f6fd6", "right": "#d6452f", "bone": "#555555", "faint": "#999999"}  # on white
DRAWN = sorted({joint for joints, _, _ in LINES for joint in joints})
PATHS = [([DRAWN.index(joint) for joint in joints], kind, width) for joints, kind, width in LINES]  # indices into DRAWN
FULL = 65535  # the image's width and height, in `picture_points`


def picture_box(pose: Pose) -> tuple[float, float, float, float]:
    """Return the relative box (left, top, right, bottom) of the clip's upper body in the image."""
    points = np.concatenate([np.arange(0, 11), np.arange(23, 133)])
    seen = pose.keypoints[:, points][pose.scores[:, points] > SCORE_THRESHOLD]
    if not len(seen):
        return 0.0, 0.0, 1.0, 1.0
    (left, top), (right, bottom) = np.quantile(seen, 0.005, axis=0), np.quantile(seen, 0.995, axis=0)
    margin = 0.06 * max(right - left, bottom - top, 0.01)
    return float(left - margin), float(top - margin), float(right + margin), float(bottom + margin)


def draw_pose(
    pose: Pose, frame: int, box: tuple[float, float, float, float], height: int = 384, aspect: float = 1.0
) -> Image:
    """Draw one frame of a clip: the right hand and arm in red, the left in blue; points with a low score are skipped.

    `box` is that of `picture_box`, the same for all frames, so that movement is visible; `height` is the image's in
    pixels, `aspect` width / height of the original images.
    """
    from PIL import Image

    left, top, right, bottom = box
    width = round(min(max(height * aspect * (right - left) / (bottom - top), height / 4), height * 4))
    image = Image.new("RGB", (width, height), "white")
    where = (pose.keypoints[frame] - [left, top]) * [width / (right - left), height / (bottom - top)]  # (133, 2)
    _draw_lines(image, where, pose.scores[frame])
    return image


def draw_pose_over(picture: np.ndarray, pose: Pose, frame: int, height: int = 384) -> Image:
    """Draw a frame's detected points over the video frame, (H, W, 3) uint8."""
    image = video_picture(picture, height)
    _draw_lines(image, pose.keypoints[frame] * image.size, pose.scores[frame])
    return image


def _draw_lines(image: Image, where: np.ndarray, scores: np.ndarray) -> None:
    from PIL import ImageDraw

    draw, good = ImageDraw.Draw(image), scores > SCORE_THRESHOLD
    for joints, kind, thickness in LINES:
        for a, b in zip(joints, joints[1:], strict=False):
            if good[a] and good[b]:
                width = max(1, round(thickness * image.height / 1000))
                draw.line([*where[a], *where[b]], fill=COLOURS[kind], width=width)


def side_by_side(images: Sequence[Image]) -> Image:
    """Join images of equal height in a row."""
    from PIL import Image

    return Image.fromarray(np.concatenate([np.asarray(image) for image in images], axis=1))


def encode(image: Image, kind: str) -> bytes:
    """Encode an image; `kind` is "png" (for drawings) or "jpeg"."""
    content = io.BytesIO()
    image.save(content, kind, quality=90)
    return content.getvalue()


def video_picture(frame: np.ndarray, height: int) -> Image:
    """Convert a video frame, (H, W, 3), to an image of at most `height` pixels."""
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((image.width, height))
    return image


def picture_points(pose: Pose, frames: np.ndarray, aspect: float = 1.0) -> tuple[np.ndarray, float]:
    """Return the positions of the joints of `DRAWN` in T frames of a clip; `aspect` is width / height of the images.

    Returns:
        (T, J, 2) uint16, x and y from 1 (left, top) to `FULL`, 0 for undetected joints; and the image's width / height.
    """
    left, top, right, bottom = picture_box(pose)
    at = (pose.keypoints[frames][:, DRAWN] - [left, top]) / [right - left, bottom - top]
    seen = (pose.scores[frames][:, DRAWN] > SCORE_THRESHOLD)[..., None]
    points = np.where(seen, np.clip(at, 0, 1) * (FULL - 1) + 1, 0).astype(np.uint16)
    return points, min(max(aspect * (right - left) / (bottom - top), 0.4), 2.5)


def player_data(points: np.ndarray, ratio: float) -> dict[str, Any]:
    """Return the data for `pages/static/skeleton_player.js`, from the result of `picture_points`."""
    content = base64.b64encode(points.astype("<u2").tobytes()).decode()
    return {"points": content, "joints": points.shape[1], "lines": PATHS, "ratio": ratio}
