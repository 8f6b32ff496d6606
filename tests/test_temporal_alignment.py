"""Which frames are kept, and which text each of them gets."""

import numpy as np
import pytest

from temporal_alignment import Alignment, TemporalAligner, sample_frames


def align_slowly(descriptions: dict[int, str], frames: list[int]) -> Alignment:
    """The rule, frame by frame and without arithmetic on arrays."""
    texts: list[str | None] = []
    for frame in frames:
        if frame in descriptions:
            texts.append(descriptions[frame])
        else:
            ranked = sorted(descriptions, key=lambda other: (abs(other - frame), other))
            texts.append(descriptions[ranked[0]] if ranked else None)
    return Alignment(texts, [int(frame in descriptions) for frame in frames])


@pytest.mark.parametrize("seed", range(20))
def test_align_agrees_with_the_slow_rule(seed):
    rng = np.random.default_rng(seed)
    n_frames = int(rng.integers(1, 60))
    described = rng.permutation(n_frames)[: rng.integers(0, n_frames + 1)].tolist()
    descriptions = {frame: f"text of {frame}" for frame in described}  # not in order
    frames = rng.permutation(sample_frames(n_frames, int(rng.integers(1, 40)), rng))
    expected = align_slowly(descriptions, frames.tolist())
    assert TemporalAligner().align(descriptions, frames) == expected
    assert TemporalAligner().align(descriptions, frames.tolist()) == expected


def test_align_by_hand():
    # 0 and 1: before the first; 4: as near to 2 as to 6, the earlier; 9: after the last.
    result = TemporalAligner().align({2: "up", 6: "down"}, [0, 1, 2, 3, 4, 5, 6, 9])
    assert result.descriptions == ["up", "up", "up", "up", "up", "down", "down", "down"]
    assert result.has_description == [0, 0, 1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("descriptions", [{}, {3: "x"}])
def test_no_frames_give_an_empty_alignment(descriptions):
    assert TemporalAligner().align(descriptions, []) == Alignment([], [])


@pytest.mark.parametrize("in_training", [True, False])
def test_samples_are_sorted_distinct_and_within_the_clip(in_training):
    rng = np.random.default_rng(3) if in_training else None
    for n_frames in (0, 1, 2, 3, 7, 8, 9, 31, 255, 256, 257, 300, 513, 4001):
        for max_length in (1, 2, 3, 8, 256):
            frames = sample_frames(n_frames, max_length, rng)
            assert frames.dtype == np.int64
            assert frames.shape == (min(n_frames, max_length),)
            assert (np.diff(frames) > 0).all()
            assert ((frames >= 0) & (frames < n_frames)).all()


def test_evaluation_takes_evenly_spaced_frames_from_first_to_last():
    assert sample_frames(10, 4).tolist() == [0, 3, 6, 9]
    assert sample_frames(11, 4).tolist() == [0, 3, 7, 10]  # 0, 3 1/3, 6 2/3, 10
    assert sample_frames(9, 1).tolist() == [0]
    for n_frames, max_length in ((257, 256), (300, 256), (1000, 256), (4001, 17)):
        frames = sample_frames(n_frames, max_length)
        assert (frames[0], frames[-1]) == (0, n_frames - 1)
        assert np.abs(frames - np.linspace(0, n_frames - 1, max_length)).max() <= 0.5
        assert np.array_equal(frames, sample_frames(n_frames, max_length))


def test_training_takes_every_frame_equally_often():
    rng = np.random.default_rng(0)
    drawn = np.bincount(np.concatenate([sample_frames(10, 4, rng) for _ in range(5000)]), minlength=10)
    # Binomial(5000, 0.4): mean 2000, standard deviation 35.
    assert np.abs(drawn - 2000).max() < 5 * 35
