"""The benchmark in its smallest form: it runs, and what it writes is whole. Never how long anything takes."""

import json

import numpy as np
import pytest
import torch

import benchmark

STAGES = [
    "normalisation",
    "clip from .pkl",
    "clip from a pack",
    "collation",
    "evaluation, beam 4, clips of unequal length",
    "training steps, clips of unequal length",
    "pose encoder",
    "mT5 encoder",
    "decoder and loss",
    "forward and backward",
    "optimizer",
    "training step",
    "step with frozen texts",
    "text branch, one clip",
    "step with trained texts",
]


def test_every_stage_is_measured(tmp_path, capsys):
    benchmark.main(["--size", "tiny", "--compare", "--repeats", "1", "--json", str(tmp_path / "r.json")])
    content = json.loads((tmp_path / "r.json").read_text())
    assert [row["stage"] for row in content["stages"]] == STAGES
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + len(STAGES)
    for row in content["stages"]:
        assert row["seconds"] > 0
        assert row["ratio"] > 0
    assert {"device", "torch", "threads", "dtype", "clock", "model"} <= content["run"].keys()


def test_some_stages_alone(capsys):
    benchmark.main(["--size", "tiny", "--repeats", "1", "--only", "coll"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 3
    assert lines[2].startswith("| collation | ")


def test_lengths_are_like_those_of_csl_daily():
    lengths = benchmark.clip_lengths(20_654, 256)
    assert lengths.mean() == pytest.approx(121, abs=2)
    assert lengths.max() == 256
    assert 40 < np.percentile(lengths, 1) < np.percentile(lengths, 99) < 256
    assert np.array_equal(benchmark.clip_lengths(8, 64), np.ceil(benchmark.clip_lengths(8, 256) / 4))


def test_peak_memory_sees_what_was_freed_again():
    meter = benchmark.Meter(torch.device("cpu"), "wall", 1)
    peak = meter.peak(lambda: torch.ones(64 * 2**18).sum())  # 64 MiB
    if peak is None:
        pytest.skip("this system has no /proc/self/clear_refs, which is how peak memory is measured on a CPU")
    assert 60 < peak < 90
