"""Whether descriptions belong to their clips: keypoints tell more of a clip's own texts than of other clips'.

Found before training, without a model, in about a second. A linear map from a frame's keypoints to the character pairs
of its text is fitted by ridge regression and tried on clips that were left out. Then the texts are dealt out to other
clips, each to the same place in the clip, since hands rest at the beginning and the end of most: what the keypoints
tell of those is chance.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PLACES = 12  # described frames of a clip that are taken, from its first to its last; fewer are repeated
ENOUGH = 200  # clips to judge from; with half of the texts in one language and half in another, 50 did not suffice
SURE = 3.0  # smallest z of right texts; those tried had 11 to 140, wrong ones 2 at most, from twice as many clips 6
LEAST = 0.02  # smallest share that they tell beyond chance; those tried had 0.1 to 0.5, wrong ones up to 0.006
DEALS = 20
FOLDS = 5
WIDTH = 128  # numbers that character pairs are hashed to
LONGEST = 400  # characters of a text that are read: about what a text encoder reads of it


class TextFit(NamedTuple):
    """How well the texts of some clips fit their keypoints."""

    n_clips: int
    own: float  # share of the texts' variance that the keypoints of left-out clips tell; below 0 if a mean tells more
    dealt: float  # the same for texts of other clips, mean of `DEALS`
    z: float  # own less dealt, in standard deviations of the latter

    @property
    def wrong(self) -> bool:
        """Whether the texts fit their clips no better than those of other clips."""
        return self.z < SURE or self.own - self.dealt < LEAST


def text_fit(clips: Sequence[tuple[np.ndarray, Sequence[str]]]) -> TextFit:
    """Compare clips with their texts: of each, `PLACES` normalised keypoints, (PLACES, J), and texts. See `ENOUGH`."""
    pairs = {text: _pairs(text) for _, texts in clips for text in texts}
    own = np.array([[pairs[text] for text in texts] for _, texts in clips])  # (n, PLACES, WIDTH)
    draw = np.random.default_rng(0)
    y = np.stack([own, *(own[draw.permutation(len(clips))] for _ in range(DEALS))], axis=2)
    y = y.reshape(-1, 1 + DEALS, WIDTH) - own.mean((0, 1))  # (N, 1 + DEALS, WIDTH)
    x = np.concatenate([keypoints for keypoints, _ in clips]).astype(np.float32)  # (N, J)
    x = (x - x.mean(0)) / (x.std(0) + 1e-3)
    fold = np.repeat(np.arange(len(clips)) % FOLDS, PLACES)
    error = np.zeros(1 + DEALS)
    for left_out in range(FOLDS):
        fitted, tried = fold != left_out, fold == left_out
        ridge = np.count_nonzero(fitted) * np.eye(x.shape[1], dtype=np.float32)
        weights = np.linalg.solve(x[fitted].T @ x[fitted] + ridge, x[fitted].T @ y[fitted].reshape(fitted.sum(), -1))
        error += np.square((x[tried] @ weights).reshape(y[tried].shape) - y[tried]).sum((0, 2))
    told = 1 - error / np.maximum((y**2).sum((0, 2)), 1e-6)
    dealt, spread = float(told[1:].mean()), float(told[1:].std())
    return TextFit(len(clips), float(told[0]), dealt, (float(told[0]) - dealt) / max(spread, 1e-6))


def _pairs(text: str) -> np.ndarray:
    """Count the hashed character pairs of a text, (WIDTH,), damped by a square root; they suit any script."""
    counts, start = np.zeros(WIDTH, np.float32), text[:LONGEST]
    for pair in zip(" " + start, start + " ", strict=True):
        counts[zlib.crc32("".join(pair).encode()) % WIDTH] += 1
    return np.sqrt(counts)
