"""The same seed gives the same numbers, whoever loads the data."""

import pytest

from system.disk import read_lines
from tests.helpers.processes import curves, start


def train(corpus, out, *flags, **options):
    start(corpus, out, "--epochs", "1", "--save_steps", "0", *flags, **options).finish()
    return out


def test_the_same_seed_twice(tiny_corpus, tmp_path):
    """Whoever loads the data; another seed gives other losses."""
    first = train(tiny_corpus, tmp_path / "first")
    again = train(tiny_corpus, tmp_path / "again", "--num_workers", "2")
    other = train(tiny_corpus, tmp_path / "other", "--seed", "43")
    assert curves(first) == curves(again)
    losses = [[line["loss"] for line in read_lines(out / "steps.jsonl")] for out in (first, other)]
    assert all(a != b for a, b in zip(*losses, strict=True))


@pytest.mark.slow
def test_the_same_seed_twice_on_two_processes(tiny_corpus, tmp_path):
    first, again = (train(tiny_corpus, tmp_path / name, n_processes=2) for name in ("first", "again"))
    assert curves(first) == curves(again)
