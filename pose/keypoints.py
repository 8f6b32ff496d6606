"""COCO-WholeBody keypoints (133 per frame): read and check pose files, split into body parts, normalise.

Shapes: F frames of the clip, T sampled frames, V joints of a part.
Coordinates x and y are fractions of the image's width and height; left and right are the signer's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from pose.files import check_frames, load_pose_file
from system.disk import file_sizes
from system.safe_pickle import load_pickle

if TYPE_CHECKING:
    import torch

N_KEYPOINTS = 133
SCORE_THRESHOLD = 0.3  # points with this score or less count as not detected
FAR = 10  # image sizes; if most coordinates lie farther from the corner than this, they must be in pixels
BEYOND = 1e30  # no point lies there, and differences of such numbers are infinite
MIN_BODY_POINTS = 4  # with fewer good points the body's size is unknown
MOST_PEOPLE = 16  # in a frame; an array with more of them, and with fewer frames, has its axes the other way round
MAX_SCORE = 20  # logits of RTMPose's models stay below; percentages and bytes do not

Part = Literal["body", "left", "right", "face_all"]
# The parts in the order in which Uni-Sign concatenates them, and the joints of each.
PART_JOINTS: dict[Part, np.ndarray] = {
    "body": np.array([0, *range(3, 11)]),  # nose, ears, shoulders, elbows, wrists
    "left": np.arange(91, 112),
    "right": np.arange(112, 133),
    "face_all": np.array([*range(23, 40, 2), *range(83, 91), 53]),  # jaw, inner lips, nose tip
}
# Each part's origin, to which its other joints are relative (index within the part).
PART_ORIGIN = {"left": 0, "right": 0, "face_all": -1}
# The body joint (index within "body") whose feature is added to each part: its wrist or the nose.
PART_ANCHOR = {"left": 7, "right": 8, "face_all": 0}

PartKeypoints: TypeAlias = "dict[Part, torch.Tensor]"


@dataclass(frozen=True)
class Pose:
    """One clip's keypoints."""

    keypoints: np.ndarray  # (F, 133, 2), x and y as fractions of the image's width and height
    scores: np.ndarray  # (F, 133), the detector's confidence
    start: int = 0  # index of the clip's first frame in the recording it was cut from
    n_after: int = 0  # number of frames in the recording after the clip

    def __len__(self) -> int:
        """Return F, the number of frames."""
        return len(self.scores)

    @property
    def frames(self) -> range:
        """Return the indices of the clip's frames in the recording."""
        return range(self.start, self.start + len(self))

    @property
    def n_recorded(self) -> int:
        """Return the number of frames in the recording."""
        return self.start + len(self) + self.n_after


def read_pose(path: str | Path, person: int = 0, data: bytes | None = None) -> Pose:
    """Read a pose file: {"keypoints": F x (P, 133, 2), "scores": F x (P, 133)}, as in Uni-Sign's pickles.

    By default the first of P people in a frame is used, as in Uni-Sign. A frame without that person gets score 0
    everywhere. A frame in which nobody was detected may also be an empty list or None. A point at exactly (0, 0) gets
    score 0: programs that store a missing point so may leave its score at 1, and one such frame would shrink the whole
    clip's body. One person's array may have the shape (1, F, 133, 2). The optional keys "start" and "end" cut a clip
    out of a longer recording.

    Args:
        path: a `.pkl`, `.npz` or `.pose` file.
        person: index of the person to use, in the file's order, from 0.
        data: what the file holds, if it has been read already.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the content is not a pose, or no frame has that person. One line with the file, what was found and
            what was expected.
    """
    is_pickle = Path(path).suffix.lower() == ".pkl"
    content = load_pickle(path, data=data) if is_pickle else load_pose_file(path, data)
    size = os.stat(path).st_size if data is None else len(data)
    if not isinstance(content, Mapping) or not {"keypoints", "scores"} <= set(content):
        seen = (
            f"the keys {sorted(map(str, content))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        )
        raise ValueError(f"{path}: holds {seen}; wanted a dict with 'keypoints' and 'scores'.")
    keypoints, scores = (
        _frames(path, size, content[what], what, n_axes) for what, n_axes in (("keypoints", 3), ("scores", 2))
    )
    if len(keypoints) != len(scores):
        raise ValueError(f"{path}: {len(keypoints)} frames of keypoints, but {len(scores)} of scores.")
    for i in range(len(scores)):
        if _is_nobody(scores[i]) and _is_nobody(keypoints[i]):
            keypoints[i], scores[i] = np.empty((0, N_KEYPOINTS, 2)), np.empty((0, N_KEYPOINTS))
    start, end = content.get("start", 0), content.get("end", len(scores))
    whole = isinstance(start, (int, np.integer)) and isinstance(end, (int, np.integer))
    if not (whole and 0 <= start < end <= len(scores)):
        raise ValueError(
            f"{path}: frames {start!r:.99} to {end!r:.99} of {len(scores)}; wanted 0 <= start < end <= frames."
        )
    pose = Pose(
        _one_person(path, keypoints[start:end], (N_KEYPOINTS, 2), "keypoints", person),
        _one_person(path, scores[start:end], (N_KEYPOINTS,), "scores", person),
        int(start),
        int(len(scores) - end),
    )
    people = max(map(len, scores[start:end]))
    if person and person >= people:
        raise ValueError(f"{path}: no frame has more than {people} people; person {person} (from 0) is not there.")
    if not np.isfinite(pose.keypoints).all():
        lost = (pose.scores == 0) & ~np.isfinite(pose.keypoints).all(2)
        pose.keypoints[lost] = 0  # undetected points may hold any value
    check_values(path, pose)
    x, y = pose.keypoints[..., 0], pose.keypoints[..., 1]
    pose.scores[(x == 0) & (y == 0)] = 0
    return pose


def cut_clip(path: str | Path, pose: Pose, label: Mapping[str, Any]) -> Pose:
    """Cut the clip that the labels mean out of a pose file's frames.

    Of the label's fields `start` and `end` count, frames of the recording, by default all of the file; and `frames`,
    their number, if it is to be checked. ValueError if there are no such frames, or their number is another.
    """
    start, end = label.get("start", pose.start), label.get("end", pose.frames.stop)
    if not pose.start <= start < end <= pose.frames.stop:
        raise ValueError(
            f"{path}: holds the frames {pose.start} to {pose.frames.stop}, the labels say {start} to {end}. Count "
            "frames from 0, at the frame rate of the video that the poses were made from."
        )
    if len(pose) != end - start:
        part = slice(start - pose.start, end - pose.start)
        pose = Pose(pose.keypoints[part], pose.scores[part], start, pose.n_recorded - end)
    if len(pose) != label.get("frames", len(pose)):
        raise ValueError(
            f"{path}: the clip has {len(pose)} frames, the labels say {label['frames']}. Take poses and labels from "
            "the same video, at the same frame rate, or remove the frame counts from the labels."
        )
    return pose


class PoseFolder:
    """Reads poses from one file per clip; `clips.packs.PosePack` reads packed ones."""

    def read(self, path: Path, label: Mapping[str, Any]) -> Pose:
        """Call `read_pose` and `cut_clip`."""
        return cut_clip(path, read_pose(path, data=self.content(path)), label)

    def content(self, path: Path) -> bytes | None:
        """Return a file's content, if it need not be read from disk."""
        return None

    def sizes(self, paths: Sequence[Path]) -> np.ndarray:
        """Return the size of each file in bytes, 0 if it is missing."""
        return np.array(file_sizes(paths))


def _frames(path: str | Path, size: int, frames: Any, what: str, n_axes: int) -> list:
    """Return the frames of one key of a file of a size, each with a person axis and `n_axes` in all."""
    if not (isinstance(frames, (list, tuple)) or (isinstance(frames, np.ndarray) and frames.ndim)):
        raise ValueError(f"{path}: {what} is a {type(frames).__name__}; wanted a list of one array per frame.")
    try:
        check_frames(len(frames), size)
    except ValueError as error:
        raise ValueError(f"{path}: {what} has {len(frames)} frames, {error}.") from None
    frames = list(frames)
    people = max((len(frame) for frame in frames if isinstance(frame, np.ndarray) and frame.ndim == n_axes), default=0)
    if len(frames) == 1 < people:  # one frame is no signing: these are the frames of one person
        return list(frames[0][:, None])
    if people > max(MOST_PEOPLE, len(frames)):
        raise ValueError(
            f"{path}: {what} has {len(frames)} frames of {people} people. If people come first in it, store "
            f"{what}.swapaxes(0, 1), so that frames do."
        )
    return frames


def _is_nobody(frame: Any) -> bool:
    if isinstance(frame, np.ndarray):
        return frame.shape[:1] == (0,)
    return frame is None or (isinstance(frame, (list, tuple)) and not frame)


def _one_person(path: str | Path, frames: list, shape: tuple[int, ...], what: str, person: int) -> np.ndarray:
    """Return one person's array of each frame, (F, *shape); zeros where the person is not there."""
    rows = []
    for number, frame in enumerate(frames):
        try:
            array = np.asarray(frame)
        except ValueError:  # rows of different lengths
            array = np.empty(0, object)
        if array.shape[1:] != shape or array.dtype.kind not in "fiu":
            raise ValueError(
                f"{path}: frame {number} of {what} is {array.dtype} of the shape {array.shape}; wanted numbers of the "
                f"shape {('people', *shape)}."
            )
        rows.append(array[person : person + 1] if person < len(array) else np.zeros((1, *shape), np.float32))
    whole = np.concatenate(rows)
    # Some people store float16 to save disk space; its 11 bits are too few for the normalisation.
    return whole.astype(np.float32) if whole.dtype.itemsize < 4 else whole


def check_values(path: str | Path, pose: Pose) -> None:
    """Raise ValueError for NaN, infinity, scores far above 1, or pixels; the pose may be read-only."""
    if not (np.isfinite(pose.keypoints).all() and np.isfinite(pose.scores).all()):
        bad = ~(np.isfinite(pose.keypoints).all((1, 2)) & np.isfinite(pose.scores).all(1))
        raise ValueError(f"{path}: {bad.sum()} frames hold NaN or infinite values, the first is {bad.argmax()}.")
    if (highest := pose.scores.max()) > MAX_SCORE:
        raise ValueError(
            f"{path}: scores reach {highest:g}; wanted 0 to 1. Divide them by their largest possible value, 100 or 255."
        )
    distances = np.abs(pose.keypoints.astype(np.float64))  # (F, 133, 2); the smallest integer has no absolute value
    if distances.max() <= FAR:
        return
    good = (pose.scores > SCORE_THRESHOLD) & (pose.keypoints != 0).any(2)
    if (widest := distances[good].max(initial=0)) > BEYOND:
        raise ValueError(f"{path}: coordinates reach {widest:g}; wanted fractions of the image's width and height.")
    far = (distances > FAR) & good[..., None]
    if far.sum() > good.sum():  # over half of the good points' coordinates
        raise ValueError(f"{path}: coordinates are in pixels; divide x by the image's width and y by its height.")


def normalize_keypoints(
    keypoints: np.ndarray, scores: np.ndarray, dtype: np.dtype | None = None
) -> dict[Part, np.ndarray]:
    """Convert a clip's keypoints to the model's input coordinates.

    The bounding box of the body's good points over the whole clip defines one scale and shift, to [-1, 1]. Hands are
    relative to their wrist and the face to the tip of the nose, divided by the same scale. Everything is clipped to
    [-1, 1]. Points with a score of 0.3 or less become zero, including the score. With too few good body points (or
    all of them in one place) everything is zero.

    Args:
        keypoints: (T, 133, 2).
        scores: (T, 133).
        dtype: of the result; default: the common floating-point dtype of keypoints and scores.

    Returns:
        part -> (T, V, 3): x, y and score.

    Source: `load_part_kp` and `crop_scale` of Uni-Sign.
    """
    common = np.result_type(keypoints, scores, np.float32)
    good = scores.astype(common, copy=False) > SCORE_THRESHOLD  # (T, 133)
    parts = {part: np.zeros((len(scores), len(joints), 3), dtype or common) for part, joints in PART_JOINTS.items()}
    body = PART_JOINTS["body"]
    seen = keypoints[:, body][good[:, body]].astype(np.float64)  # (n, 2)
    if len(seen) < MIN_BODY_POINTS or not (scale := np.ptp(seen, axis=0).max()):
        return parts
    for part, joints in PART_JOINTS.items():
        points = keypoints[:, joints].astype(np.float64)  # (T, V, 2)
        if part == "body":
            origin, size = (seen.min(0) + seen.max(0)) / 2, 2
        else:
            origin, size = points[:, PART_ORIGIN[part], None], 1
        x = parts[part]  # (T, V, 3)
        x[..., :2] = ((points - origin) * (size / scale)).clip(-1, 1)  # first: infinity times zero is no number
        x[..., 2] = scores[:, joints].clip(-1, 1)
        x *= good[:, joints, None]
    return parts


def part_keypoints(pose: Pose, frames: np.ndarray) -> PartKeypoints:
    """Normalise frames of a clip, (T,) distinct sorted indices within it; return part -> (T, V, 3) float32."""
    import torch  # here alone: extracting and comparing poses does without

    keypoints, scores = pose.keypoints, pose.scores
    if len(frames) < len(pose):  # otherwise all frames are sampled, in order
        keypoints, scores = keypoints[frames], scores[frames]
    parts = normalize_keypoints(keypoints, scores, np.dtype(np.float32))
    return {part: torch.from_numpy(x) for part, x in parts.items()}
