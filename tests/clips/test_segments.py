"""Segments of signing: made-up signers, with pauses between their sentences."""

import numpy as np
import pytest

from clips.segments import Segmenter
from pose.live import Frame
from synthetic import signer
from synthetic.signer import Form, Signer

FORMS = [Form("flat", "chest", "wave", "up", "mirror"), Form("point", "temple", "tap", "up", "one")]
FPS = 25


def talk(sentences=3, pause=1.0, seed=0):
    """Frames of sentences with rests between them, and where the sentences are."""
    rng = np.random.default_rng(seed)
    person, keypoints, scores, places = Signer.draw(rng), [], [], []
    for _ in range(sentences):
        said = signer.record(FORMS * 2, person, rng)
        start = sum(map(len, scores))
        places.append((start / FPS, (start + len(said.scores)) / FPS))
        rest = round(pause * FPS)
        trembling = said.keypoints[-1:] + rng.normal(0, 0.002, (rest, 133, 2))
        keypoints += [said.keypoints, trembling]
        scores += [said.scores, np.repeat(said.scores[-1:], rest, 0)]
    return np.concatenate(keypoints), np.concatenate(scores), places


def cut(keypoints, scores, fps=FPS):
    """First and last time of every segment."""
    segmenter = Segmenter()
    frames = [Frame(i / fps, *pair) for i, pair in enumerate(zip(keypoints, scores, strict=True))]
    segments = [*map(segmenter.add, frames), segmenter.end()]
    return [(segment[0].time, segment[-1].time) for segment in segments if segment]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("step", "scale"), [(1, 1), (3, 1), (1, 0.4)])
def test_a_sentence_is_a_segment(seed, step, scale):
    """At a third of the frame rate and far from the camera, too."""
    keypoints, scores, places = talk(seed=seed)
    segments = cut(keypoints[::step] * scale, scores[::step], FPS / step)
    assert len(segments) == len(places)
    assert np.abs(np.array(segments) - places).max() < 0.45  # seconds


def test_what_comes_later_does_not_change_a_cut():
    keypoints, scores, _ = talk()
    for n in range(10, len(scores), 10):
        sure = cut(keypoints[:n], scores[:n])[:-1]
        assert sure == cut(keypoints, scores)[: len(sure)]


def posed(heights, waving):
    """A person whose right hand is at these heights, in shoulder widths; it waves (1), trembles or is still (0)."""
    keypoints, scores = np.full((len(heights), 133, 2), 0.5), np.zeros((len(heights), 133))
    keypoints[:, [5, 6], 0] = 0.6, 0.4
    keypoints[:, 112:, 1] -= 0.2 * np.array(heights)[:, None]
    circles = np.stack([np.sin(np.arange(len(heights))), np.cos(np.arange(len(heights)))], 1)[:, None]
    keypoints[:, 112:] += 0.05 * circles * np.array(waving)[:, None, None]
    scores[:, [5, 6]] = scores[:, 112:] = 1
    return keypoints, scores


def seconds(height, waving, n):
    return [(height, waving)] * round(n * FPS)


@pytest.mark.parametrize(
    ("parts", "segments"),
    [
        (seconds(-1.5, False, 3), 0),
        (seconds(-1.5, True, 3), 0),  # in the lap
        (seconds(-0.5, 0.08, 3), 0),  # a hand that rests on a table, and trembles
        (seconds(-1.5, False, 1) + seconds(0, True, 0.2) + seconds(-1.5, False, 1), 0),  # scratching
        (seconds(-1.5, False, 1) + seconds(0, True, 2) + seconds(-1.5, False, 1), 1),
        (seconds(0, True, 2) + seconds(0, False, 0.7) + seconds(0, True, 2), 1),
        (seconds(0, True, 2) + seconds(0, False, 2.2) + seconds(0, True, 2), 2),
        (seconds(0, True, 1) + seconds(-1.5, False, 0.3) + seconds(0, True, 1), 1),
        (seconds(0, True, 15), 2),
        (seconds(-2.6, False, 1) + seconds(0, 0.22, 1) + seconds(-2.6, False, 1), 1),  # slow, from below the picture
    ],
)
def test_the_rule(parts, segments):
    assert len(cut(*posed(*zip(*parts, strict=True)))) == segments
