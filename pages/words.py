"""Data of a sentence's words over the frames of its clip, for HTML pages.

Shapes: W words, T shown frames.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from network.attention import Word


def words_data(text: str, found: Sequence[Word], frames: int) -> dict[str, Any] | None:
    """Return the data of a sentence for `pages/static/words.js`; None without words.

    These are the sentence, its words, and (W, T) bytes in base64: shares, where 255 is the word's largest. They are
    resampled if the model saw another number of frames than T.
    """
    if not found:
        return None
    shares = np.array([word.frames for word in found])
    shares = shares[:, np.arange(frames) * shares.shape[1] // frames]  # (W, T)
    levels = (shares / shares.max(1, keepdims=True) * 255).astype(np.uint8)  # rounded down: 255 is the largest alone
    return {"text": text, "words": [word.text for word in found], "shares": base64.b64encode(levels.tobytes()).decode()}
