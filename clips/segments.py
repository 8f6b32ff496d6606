"""Cut signing into segments while it goes on, by a rule on wrists and hands (docs/INFERENCE.md has it as a table).

A cut depends on earlier frames alone: a recording is cut where it was live. Lengths are in widths of the shoulders,
times in seconds, so that distance and frame rate do not matter.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from pose.keypoints import SCORE_THRESHOLD
from pose.live import Frame

# Speed and height (from the shoulders) of a hand: the first of each pair begins a segment, the second keeps it going.
MOVING = (0.8, 0.4)
HIGH = (-0.9, -1.1)
BEGIN, SHORTEST, LONGEST = 0.1, 0.4, 10.0  # of the movement that begins a segment; of a segment
PAUSE, HOLD = 0.5, 1.5  # with lowered hands, with raised ones held still: they end it
MARGIN = 0.15  # kept before and after
SPAN = 0.15  # over which speed is measured
_HANDS = np.array([[9, *range(91, 112)], [10, *range(112, 133)]])  # (2, 22), each with its wrist
_WIDTHS = 50  # frames whose median gives the width of the shoulders, which shrinks when the signer turns


class Segmenter:
    """Finds the segments of a stream of frames; `frames` are those of the one that lasts, margin included."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._recent: deque[Frame] = deque()
        self._widths: deque[float] = deque(maxlen=_WIDTHS)
        self._since = np.inf  # when the movement began that may begin a segment
        self._start = self._signed = self._raised = 0.0  # of the segment: its start, last movement, last raised hand

    def add(self, frame: Frame) -> list[Frame]:
        """Take the next frame; return the frames of a segment if it ends one, else an empty list."""
        speed, height = self._measure(frame)
        now, lasts = frame.time, bool(self.frames)
        moving, high = speed > MOVING[lasts], height > HIGH[lasts]
        if not lasts:
            self._since = min(self._since, now) if moving and high else np.inf
            if now - self._since >= BEGIN:
                self._start, self._signed, self._raised = self._since, now, now
                self.frames = [earlier for earlier in self._recent if earlier.time >= self._since - MARGIN]
            return []
        self.frames.append(frame)
        self._raised = now if high else self._raised
        self._signed = now if high and moving else self._signed
        ends = now - self._raised >= PAUSE or now - self._signed >= HOLD or now - self._start >= LONGEST
        return self.end() if ends else []

    def end(self) -> list[Frame]:
        """End the segment that lasts, as the end of a recording does; return its frames, if it is one."""
        frames, self.frames, self._since = self.frames, [], np.inf
        last = min(self._raised, self._signed + PAUSE) + MARGIN  # a final hold belongs to it
        return [frame for frame in frames if frame.time <= last] if self._signed - self._start >= SHORTEST else []

    def _measure(self, frame: Frame) -> tuple[float, float]:
        """Return the speed of the faster hand and the height of the higher one; -inf if none is in the picture."""
        self._recent.append(frame)
        while len(self._recent) > 2 and self._recent[1].time < frame.time - 2 * SPAN - MARGIN - BEGIN:
            self._recent.popleft()
        before = next((old for old in reversed(self._recent) if old.time <= frame.time - SPAN), self._recent[0])
        shoulders = frame.keypoints[5:7] * [frame.aspect, 1]  # (2, 2)
        if (frame.scores[5:7] > SCORE_THRESHOLD).all():
            self._widths.append(np.hypot(*(shoulders[0] - shoulders[1])))
        width, (hands, seen), (past, known) = np.median([*self._widths] or 0), _hands(frame), _hands(before)
        if not (width and seen.any()):
            return -np.inf, -np.inf
        height = shoulders[:, 1].mean() - (hands[..., 1] * seen).sum(1) / np.maximum(seen.sum(1), 1)  # (2,)
        way = np.hypot(*np.moveaxis(hands - past, -1, 0)) * (seen & known)  # (2, 22)
        speed = way.sum(1) / np.maximum((seen & known).sum(1), 1) / max(frame.time - before.time, 1e-3)  # (2,)
        if not self.frames:  # what comes into the picture moves
            speed[seen.any(1) & ~known.any(1)] = np.inf
        return float(speed.max() / width), float(height[seen.any(1)].max() / width)


def _hands(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of the hands, (2, 22, 2), and which are seen; below the picture, detectors guess."""
    seen = (frame.scores > SCORE_THRESHOLD) & (frame.keypoints[:, 1] < 1)
    return frame.keypoints[_HANDS] * [frame.aspect, 1], seen[_HANDS]
