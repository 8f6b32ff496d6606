"""An extractor that finds recorded poses: the pictures are numbers. Nothing slow is imported, as its process starts."""

import io
import time
from pathlib import Path

import numpy as np

from pose.keypoints import read_pose

BITS = 12


def jpeg(number: int) -> bytes:
    """A square picture that holds a number as black and white bars."""
    from PIL import Image

    bars = np.repeat([255 * (number >> bit & 1) for bit in range(BITS)], 8).astype(np.uint8)  # (96,)
    Image.fromarray(np.tile(bars, (len(bars), 1))).save(content := io.BytesIO(), "jpeg")
    return content.getvalue()


class Replay:
    """Finds the pose of a picture's number, in so many seconds; with `fps` that of the moment, whatever the picture."""

    label = "replay"

    def __init__(self, path: Path, seconds: float = 0, fps: float = 0) -> None:
        self.pose, self.seconds, self.fps, self.begun = read_pose(path), seconds, fps, 0.0

    def start(self):
        pass

    def __call__(self, picture):
        time.sleep(self.seconds)
        self.begun = self.begun or time.monotonic()
        number = sum(1 << bit for bit in range(BITS) if picture[4, 8 * bit + 4, 0] > 128)
        if self.fps:
            number = min(round((time.monotonic() - self.begun) * self.fps), len(self.pose) - 1)
        of_the_picture = [picture.shape[0] / picture.shape[1], 1]  # the poses are those of a square one
        return self.pose.keypoints[number][None] * of_the_picture, self.pose.scores[number][None]
