"""Crops of the hands, cut from a clip's video in up to a tenth of its frames. Needs the extra `rgb`.

Shapes: T sampled frames, N crops of one hand in a clip.

Source: Uni-Sign (Li et al., ICLR 2025), section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from pose.keypoints import PART_JOINTS, SCORE_THRESHOLD, Part, Pose
from pose.video import read_frames
from utils import require_packages

HANDS: tuple[Part, ...] = ("left", "right")
FINGERTIPS = np.array([4, 8, 12, 16, 20])
SHARE = 0.1  # maximum fraction of frames with a crop of a hand
MARGIN = 1.2  # box size relative to the clip's largest hand
CROP = 112  # pixels
MAX_BOX = 1 << 27  # pixels of a box in the rows of an image; PIL makes no image of 179 million
# ImageNet statistics, as used for EfficientNet's published weights.
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


class HandCrops:
    """Chooses frames and cuts crops of the hands.

    Of a crop that extends beyond the image border the part outside is black; with `uni_sign`, as in Uni-Sign, all of it
    at the left or upper border. ValueError if a package is missing.
    """

    def __init__(self, uni_sign: bool = False) -> None:
        self.uni_sign = uni_sign
        require_packages("--rgb_support", "av", "PIL")

    def load(
        self,
        video: str | Path | Sequence[np.ndarray],
        pose: Pose,
        frames: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """Read a clip's video and crop its hands in the chosen frames.

        Args:
            video: the video file, or all images of the recording, (H, W, 3) uint8.
            pose: the clip.
            frames: (T,), indices of the sampled frames within the clip.
            rng: draws the frames to crop; by default always the same ones, so evaluation and translation agree.

        Returns:
            For left and right: {side}_hands (N, 3, 112, 112) float32, {side}_sampled_indices (N,) int64 among the T
            frames, {side}_skeletons_norm (N, 21, 2) float32, x and y of the joints as fractions of the box,
            and {side}_rgb_len (1,) int64, which is N. An invisible hand has one empty crop of zeros with index -1.

        Raises:
            ValueError: the video is unreadable, changes its size, or has another number of frames than the pose file;
                or a crop would take too much memory.
        """
        rng = rng or np.random.default_rng(0)
        keypoints, scores = pose.keypoints[frames], pose.scores[frames]
        chosen = {side: choose_frames(scores[:, PART_JOINTS[side]], rng) for side in HANDS}
        numbers = frames + pose.start
        wanted = {int(numbers[i]) for indices in chosen.values() for i in indices}
        if not wanted:
            return no_crops()
        pictures: Iterable[tuple[int, np.ndarray]]
        if isinstance(video, str | Path):
            pictures = read_frames(video, wanted, pose.n_recorded)
        else:
            pictures = [(number, video[number]) for number in sorted(wanted)]
        shape: tuple[int, ...] = ()
        crops: dict[Part, list[np.ndarray]] = {side: [] for side in HANDS}
        for number, picture in pictures:  # one at a time: those of 8K have 100 MB each
            if not shape:
                shape = picture.shape
                # Joints detected farther away than this are useless.
                points = np.clip(keypoints, -1, 2) * [shape[1], shape[0]]
                joints = {side: points[indices][:, PART_JOINTS[side]] for side, indices in chosen.items()}
                boxes, size = hand_boxes(joints)
            if picture.shape != shape:  # e.g. recorded video calls; a clip's boxes have one size in pixels
                raise ValueError(f"{video}: the video changes its size; encode it again, with all frames of one size.")
            for side, indices in chosen.items():
                if size:
                    crops[side] += [self._crop(picture, box) for box in boxes[side][numbers[indices] == number]]
        clip = no_crops()
        for side, indices in chosen.items():
            if not crops[side]:
                continue
            inside = (joints[side] - boxes[side][:, None, :2]) / size
            clip |= {
                f"{side}_hands": torch.from_numpy(np.stack(crops[side])),
                f"{side}_sampled_indices": torch.from_numpy(indices),
                f"{side}_skeletons_norm": torch.from_numpy(inside.astype(np.float32)),
                f"{side}_rgb_len": torch.tensor([len(indices)]),
            }
        return clip

    def _crop(self, picture: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Cut a box out of an image, resize it to the crop size and normalise it, (3, 112, 112) float32."""
        from PIL import Image

        def resize(image: Image.Image, height: int) -> Image.Image:
            return image.resize((CROP, height), Image.Resampling.BICUBIC)

        x0, y0, x1, y1 = box.tolist()
        part = picture[y0:y1, x0:x1] if self.uni_sign else picture[max(y0, 0) : max(y1, 0)]
        if not part.size:
            image = Image.new("RGB", (CROP, CROP))
        elif self.uni_sign:
            image = resize(Image.fromarray(part), CROP)
        elif (x1 - x0) * len(part) > MAX_BOX:
            raise ValueError(
                f"a joint is so far from its hand that the crop is {x1 - x0} pixels wide, too many for the large "
                "images of this video. Encode it smaller."
            )
        else:
            # The rows inside the image are made narrow before black ones are added: PIL resizes in this order, too, but
            # takes 0.8 GB for a box that is 3.6 times as large as a 4K image.
            narrow = resize(Image.fromarray(part).crop((x0, 0, x1, len(part))), len(part))
            first = y0 - max(y0, 0)
            image = resize(narrow.crop((0, first, CROP, first + y1 - y0)), CROP)
        scaled = np.asarray(image, np.float32) / 255
        return ((scaled - MEAN) / STD).transpose(2, 0, 1)


def no_crops() -> dict[str, torch.Tensor]:
    """Return the result of `HandCrops.load` for a clip without visible hands."""
    clip: dict[str, torch.Tensor] = {}
    for side in HANDS:
        clip |= {
            f"{side}_hands": torch.zeros(1, 3, CROP, CROP),
            f"{side}_sampled_indices": torch.tensor([-1]),
            f"{side}_skeletons_norm": torch.zeros(1, len(PART_JOINTS[side]), 2),
            f"{side}_rgb_len": torch.tensor([1]),
        }
    return clip


def choose_frames(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw up to a tenth of the frames, preferring those with a low fingertip score; `scores`, (T, 21), are a hand's.

    Returns:
        (N,) int64, ascending; N is 0 if the hand is never visible.
    """
    seen = np.flatnonzero(scores.mean(1) > SCORE_THRESHOLD)
    n = min(math.ceil(SHARE * len(scores)), len(seen))
    if n == 0:
        return seen
    worst = scores[seen][:, FINGERTIPS].min(1).astype(np.float64)
    weights = worst.max() - worst + 1e-9  # 1e-9 for the best frame, and for equal frames
    return np.sort(rng.choice(seen, size=n, replace=False, p=weights / weights.sum()))


def hand_boxes(joints: Mapping[Part, np.ndarray]) -> tuple[dict[Part, np.ndarray], int]:
    """Place a square box around each hand, (N, 21, 2) in pixels; all of a clip have one size, to preserve the scale.

    Returns:
        side -> (N, 4) int16, left, top, right and bottom; and the size in pixels, 0 if there is no hand.
    """
    corners = {side: (points.min(1), points.max(1)) for side, points in joints.items()}
    widest = max((float((high - low).max()) for low, high in corners.values() if len(low)), default=0.0)
    half = int(MARGIN * widest / 2)
    boxes = {
        side: np.concatenate([(low + high) / 2 - half, (low + high) / 2 + half], axis=1).astype(np.int16)
        for side, (low, high) in corners.items()
    }
    return boxes, 2 * half
