"""Videos whose frames can be told apart."""

import numpy as np


def greys(n: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames that say by their brightness which they are."""
    return [np.full((height, width, 3), 40 + 4 * (i % 50), np.uint8) for i in range(n)]
