"""Read pose files other than pickles, to the same content: "keypoints", "scores", optionally "start" and "end".

    .npz    the same as arrays: keypoints (F, 133, 2) or (F, P, 133, 2), scores (F, 133) or (F, P, 133)
    .pose   the pose-format library's file: MediaPipe Holistic, OpenPose, COCO-WholeBody (MMPose, AlphaPose)

This module only reads files and converts points to COCO-WholeBody's order; `pose.keypoints.read_pose` validates the
result. Shapes: F frames, P people, N points in the file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from system.disk import check_unpacked, check_zip, read_unpacked
from system.faults import in_one_line
from system.safe_pickle import check_empty

KEYS = ("keypoints", "scores", "start", "end")

# -- sources of the 133 points in other systems ------------------------------------------------------------------------

BODY = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle left_big_toe left_small_toe left_heel "
    "right_big_toe right_small_toe right_heel"
)

# MediaPipe's face mesh for the 68 face points (jaw, brows, nose, eyes, outer lips, inner lips); "a/b" is the mean of
# two points, if the mesh has no point at the position.
FACE_MESH = (
    "127 234 93 132/58 58/172 136 150 176 152 400 379 365 397/288 288/361 323 454 356 "
    "70 63 105 66 107 336 296 334 293 300 168 197 5 4 75 97 2 326 305 "
    "33 160 158 133 153 144 362 385 387 263 373 380 "
    "61 39 37 0 267 269 291 405 314 17 84 181 78 82 13 312 308 317 14 87"
)


def _openpose(name: str) -> str:
    side, _, rest = name.partition("_")
    return side[0].upper() + rest.title().replace("_", "") if rest else name.title()


# System -> its components in COCO-WholeBody's order: names of the points, or their number if already in that order.
# "Left" is the signer's left in all of them.
SYSTEMS: dict[str, dict[str, list[str] | int]] = {
    "MediaPipe Holistic": {
        "POSE_LANDMARKS": BODY.replace("big_toe", "foot_index").upper().split(),  # it has no small toe
        "FACE_LANDMARKS": FACE_MESH.split(),
        "LEFT_HAND_LANDMARKS": 21,
        "RIGHT_HAND_LANDMARKS": 21,
    },
    "OpenPose": {
        "pose_keypoints_2d": [_openpose(name) for name in BODY.split()],
        "face_keypoints_2d": 68,  # two pupils follow
        "hand_left_keypoints_2d": 21,
        "hand_right_keypoints_2d": 21,
    },
    "COCO-WholeBody": {"BODY": 23, "FACE": 68, "LEFT_HAND": 21, "RIGHT_HAND": 21},
    "AlphaPose": {"BODY_133": 23, "FACE_133": 68, "LEFT_HAND_133": 21, "RIGHT_HAND_133": 21},
}


def load_pose_file(path: str | Path, data: bytes | None = None) -> dict[str, Any]:
    """Read a `.npz` or `.pose` file without executing any code in it.

    `data` is what the file holds, if it has been read already.

    Returns:
        "keypoints" and "scores" with a person axis, and "start" and "end" if the file has them.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is unreadable or of another type; one line that names it.
    """
    readers = {".npz": _load_npz, ".pose": _load_pose_format}
    kind = Path(path).suffix.lower()
    if kind not in readers:
        raise ValueError(f"{path}: pose files end in .pkl, .npz or .pose.")
    return readers[kind](path, data)


def _unreadable(path: str | Path, kind: str, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a readable {kind} file: {in_one_line(error, 300)}. Copy or make it again.")


def _load_npz(path: str | Path, data: bytes | None) -> dict[str, Any]:
    try:
        data = read_unpacked(path, False, data)
        check_zip(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as parts:
            content: dict[str, Any] = {key: np.asarray(parts[key]) for key in KEYS if key in parts}
        for array in content.values():
            check_empty(array)
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 -- a damaged file raises nearly anything; each becomes one line
        raise _unreadable(path, ".npz", error) from None
    for key, n_axes in (("keypoints", 3), ("scores", 2)):
        if key in content and content[key].ndim == n_axes:
            content[key] = content[key][:, None]  # no person axis: add one
    for key in {"start", "end"} & set(content):
        if content[key].size != 1:
            raise ValueError(f"{path}: {key} has the shape {content[key].shape}; wanted one number.")
        content[key] = content[key].item()
    return content


def check_frames(n_frames: int, size: int) -> None:
    """Raise ValueError for more frames than a file of this size may hold: each takes memory, even an empty one."""
    check_unpacked(n_frames * 133 * 3 * 4, size)


def _load_pose_format(path: str | Path, data: bytes | None) -> dict[str, Any]:
    try:
        from pose_format import Pose as PoseFormatPose
    except ImportError:
        raise ValueError(
            f"{path}: .pose files are read with the library pose-format, which is not installed. "
            'pip install -e ".[pose]", or convert the files to .npz.'
        ) from None
    data = read_unpacked(path, False, data)
    try:
        file = PoseFormatPose.read(data)
        check_frames(math.prod(file.body.data.shape[:2]), len(data))
        coordinates = np.asarray(file.body.data.filled(0))  # (F, P, N, 2 or 3)
        confidence = np.clip(file.body.confidence, 0, 1)  # (F, P, N); resampled files exceed this range
        size = np.array([file.header.dimensions.width, file.header.dimensions.height])
        points = {component.name: list(component.points) for component in file.header.components}
    except Exception as error:  # noqa: BLE001 -- a damaged file raises nearly anything; each becomes one line
        raise _unreadable(path, ".pose", error) from None
    if not size.all():
        raise ValueError(f"{path}: the header gives no width and height, which the coordinates are divided by.")
    try:
        keypoints, scores = to_whole_body(points, coordinates[..., :2] / size, confidence)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {"keypoints": keypoints, "scores": scores}


def to_whole_body(
    points: Mapping[str, Sequence[str]], coordinates: np.ndarray, confidence: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Convert the points of another system to COCO-WholeBody's order.

    Args:
        points: component -> names of its points, in column order.
        coordinates: (F, P, N, 2).
        confidence: (F, P, N); 0 where a point was not found.

    Returns:
        keypoints (F, P, 133, 2) and scores (F, P, 133), float32; 0 for missing points.

    Raises:
        ValueError: the system is unknown.
    """
    sources = _sources(points)
    keypoints = np.zeros((*coordinates.shape[:2], len(sources), 2), np.float32)
    scores = np.zeros(keypoints.shape[:3], np.float32)
    for point, wanted in enumerate(sources):
        if wanted:
            keypoints[:, :, point] = coordinates[:, :, wanted].mean(2)
            scores[:, :, point] = confidence[:, :, wanted].min(2)
    keypoints[scores == 0] = 0  # undetected points may hold any value
    return keypoints, scores


def _sources(points: Mapping[str, Sequence[str]]) -> list[list[int]]:
    """Return the columns whose mean gives each of the 133 points; none for a point the system lacks."""
    system = next((parts for parts in SYSTEMS.values() if next(iter(parts)) in points), None)
    if system is None:
        raise ValueError(f"has the components {list(points)}; known systems are {', '.join(SYSTEMS)}.")
    first = dict(zip(points, accumulate(map(len, points.values()), initial=0), strict=False))
    sources: list[list[int]] = []
    for component, wanted in system.items():
        names = points.get(component, [])
        if isinstance(wanted, list):
            for means in (point.split("/") for point in wanted):
                there = all(name in names for name in means)
                sources.append([first[component] + names.index(name) for name in means] if there else [])
        elif len(names) >= wanted:
            sources += [[first[component] + place] for place in range(wanted)]
        elif names:
            raise ValueError(f"{component} has {len(names)} points; wanted {wanted}.")
        else:
            sources += [[]] * wanted
    return sources
