"""Which clips stand out, and which runs can be compared."""

import pytest

from pages.comparison import Judged
from pages.run import RunFolder


def test_order_is_by_gain(two_runs):
    judged = Judged([RunFolder.read(run) for run in two_runs], "test")
    gains = [judged.each[1][i] - judged.each[0][i] for i in judged.order()]
    assert gains == sorted(gains)
    assert gains[0] < 0 < gains[-1]
    alone = Judged([RunFolder.read(two_runs[1])], "test")
    assert alone.each[0][alone.order()[-1]] == 100


def test_worse_word_error_rates_come_first(two_runs, tmp_path):
    run = RunFolder.read(two_runs[0])
    run.task = "CSLR"
    run.predictions["test"] = {
        name: {"name": name, "reference": "A B", "hypothesis": text}
        for name, text in {"half": "A", "none": "X Y Z", "all": "A B"}.items()
    }
    judged = Judged([run], "test")
    assert [judged.names[i] for i in judged.order()] == ["none", "half", "all"]


def test_clips_are_spread_over_the_ranking(two_runs):
    judged = Judged([RunFolder.read(two_runs[0])], "test")
    ranking = [judged.names[i] for i in reversed(judged.order())]
    assert judged.spread(3, set()) == [ranking[0], ranking[3], ranking[6]]
    assert judged.spread(1, {ranking[5]}) == [ranking[5]]
    assert judged.spread(99, set()) == ranking


def test_only_clips_of_both_count(two_runs):
    runs = [RunFolder.read(run) for run in two_runs]
    names = list(runs[0].predictions["test"])
    del runs[1].predictions["test"][names[2]]
    judged = Judged(runs, "test")
    assert judged.names == names[:2] + names[3:]
    assert judged.unshared == 1
    runs[1].predictions["test"] = {"another": {"name": "another", "reference": "x", "hypothesis": "x"}}
    with pytest.raises(ValueError, match="no clip in common"):
        Judged(runs, "test")
