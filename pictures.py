"""Pictures for a vision-language model to look at, and for people to check texts by: skeletons, and frames of videos.

Pillow (requirements-rgb.txt) is imported when the first picture is wanted.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pose import SCORE_THRESHOLD, Pose

if TYPE_CHECKING:
    from PIL.Image import Image

_HAND = [(0, 1, 2, 3, 4), *((0, *range(knuckle, knuckle + 4)) for knuckle in range(5, 18, 4)), (5, 9, 13, 17)]
_FACE = [(0, 17), (17, 22), (22, 27), (27, 31), (31, 36)]  # jaw, brows, bridge and base of the nose: open lines
_RINGS = [(36, 42), (42, 48), (48, 60), (60, 68)]  # eyes, outer and inner lips: closed lines

# Lines through points of the 133, with their colour and width in thousandths of the picture.
LINES: list[tuple[list[int], str, float]] = [
    ([7, 5, 6, 8], "#444444", 5),
    ([5, 11], "#999999", 3),
    ([6, 12], "#999999", 3),
    ([5, 7, 9], "#1f6fd6", 6),
    ([6, 8, 10], "#d6452f", 6),
    *(([91 + joint for joint in finger], "#1f6fd6", 4) for finger in _HAND),
    *(([112 + joint for joint in finger], "#d6452f", 4) for finger in _HAND),
    *((list(range(23 + first, 23 + end)), "#555555", 2) for first, end in _FACE),
    *(([*range(23 + first, 23 + end), 23 + first], "#555555", 2) for first, end in _RINGS),
]


def picture_box(pose: Pose) -> tuple[float, float, float, float]:
    """The part of the image that holds the clip's upper body: left, top, right, bottom, in image widths and heights."""
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
    """Draw one frame: the right hand and arm in red, the left in blue; points with a low score are left out.

    Args:
        pose: the clip.
        frame: counted from the clip's start.
        box: of `picture_box`; the same for all frames of a clip, or movement would not be seen.
        height: of the picture in pixels.
        aspect: width of the original images / their height.
    """
    from PIL import Image

    left, top, right, bottom = box
    width = round(min(max(height * aspect * (right - left) / (bottom - top), height / 4), height * 4))
    image = Image.new("RGB", (width, height), "white")
    where = (pose.keypoints[frame] - [left, top]) * [width / (right - left), height / (bottom - top)]  # (133, 2)
    _draw_lines(image, where, pose.scores[frame])
    return image


def draw_pose_over(picture: np.ndarray, pose: Pose, frame: int, height: int = 384) -> Image:
    """Draw a frame's pose over the video's picture of it, (H, W, 3) uint8: what was found, and what was not."""
    image = video_picture(picture, height)
    _draw_lines(image, pose.keypoints[frame] * image.size, pose.scores[frame])
    return image


def _draw_lines(image: Image, where: np.ndarray, scores: np.ndarray) -> None:
    from PIL import ImageDraw

    draw, good = ImageDraw.Draw(image), scores > SCORE_THRESHOLD
    for joints, colour, thickness in LINES:
        for a, b in zip(joints, joints[1:], strict=False):
            if good[a] and good[b]:
                draw.line([*where[a], *where[b]], fill=colour, width=max(1, round(thickness * image.height / 1000)))


def side_by_side(images: Sequence[Image]) -> Image:
    """One picture of several of one height."""
    from PIL import Image

    row = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width
    return row


def encode(image: Image, kind: str) -> bytes:
    """A picture's file: `kind` is "png", for drawings, or "jpeg"."""
    content = io.BytesIO()
    image.save(content, kind, quality=90)
    return content.getvalue()


def video_picture(frame: np.ndarray, height: int) -> Image:
    """Make a picture of a video's frame (H, W, 3), no higher than `height` pixels."""
    from PIL import Image

    image = Image.fromarray(frame)
    if image.height <= height:
        return image
    return image.resize((max(1, round(image.width * height / image.height)), height))


def require_packages(flag: str, *names: str) -> None:
    """Say which packages a flag needs before work begins.

    Raises:
        ValueError: one is missing.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{flag} needs {' and '.join(missing)}: pip install -r requirements-rgb.txt")


def player_data(pose: Pose, frames: np.ndarray, aspect: float = 1.0) -> dict[str, Any]:
    """What `static/skeleton_player.js` draws: some frames of a clip, in thousandths of the picture that shows them.

    Args:
        pose: the clip.
        frames: which of its frames, from the clip's start.
        aspect: width of the original images / their height.
    """
    left, top, right, bottom = picture_box(pose)
    where = (pose.keypoints[frames] - [left, top]) * [1000 / (right - left), 1000 / (bottom - top)]  # (T, 133, 2)
    good = pose.scores[frames] > SCORE_THRESHOLD
    points = [
        [place if seen else None for place, seen in zip(row, shown, strict=True)]
        for row, shown in zip(where.round().astype(int).tolist(), good.tolist(), strict=True)
    ]
    return {
        "points": points,
        "lines": [{"joints": joints, "colour": colour, "width": width} for joints, colour, width in LINES],
        "ratio": min(max(aspect * (right - left) / (bottom - top), 0.25), 4.0),
    }
