"""The benchmark in its smallest form: it runs, and what it writes is whole. Never how long anything takes."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tools import benchmark
from tools.benchmark import MT5_BASE
from training.loader import SEARCHED

TINY, STAGES = benchmark.SIZES["tiny"], benchmark.STAGES
OF_DATA = {*STAGES[:4], "optimizer"}  # no matrix products


def run(line):
    benchmark.main(benchmark.parse_args(line))


def test_every_stage_is_measured(tmp_path, capsys):
    run(["--size", "tiny", "--repeats", "1", "--json", str(tmp_path / "r.json")])
    content = json.loads((tmp_path / "r.json").read_text())
    assert [row["stage"] for row in content["stages"]] == [*STAGES]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0][2:] for line in lines] == ["stage", "---", *STAGES]
    for row in content["stages"]:
        n = TINY.batch_size * (SEARCHED if row["stage"] == "evaluation" else 1)
        assert row["clips_per_second"] * row["seconds"] == pytest.approx(n)
        assert row["frames_per_second"] * row["seconds"] == pytest.approx(n * TINY.frames)
        assert (row["share_of_ceiling"] > 0) == (row["stage"] not in OF_DATA)
    assert {"device", "torch", "threads", "dtype", "clock", "batch_size", "frames", "model"} <= content["run"].keys()


def test_some_stages_alone(capsys):
    run(["--size", "tiny", "--repeats", "1", "--only", "coll", "clips"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == ["clips from files", "clips from packs", "collation"]


def test_the_optimizer_has_gradients(tmp_path):
    stages = benchmark.all_stages(TINY, tmp_path, torch.device("cpu"), "fp32")
    stage = next(stage for stage in stages if stage.name == "optimizer")
    (group, *_) = stage.work.__self__.param_groups
    before = [weight.clone() for weight in group["params"]]
    stage.work()
    assert not any(torch.equal(*pair) for pair in zip(before, group["params"], strict=True))


def test_share_of_the_ceiling_counts_matrix_products():
    a = torch.ones(64, 64)
    meter = benchmark.Meter(torch.device("cpu"), "wall", 1)
    row = meter.measure(benchmark.Stage("product", lambda: a @ a, clips=1, frames=1), ceiling=1e6)
    assert row["share_of_ceiling"] * row["seconds"] * 1e6 == pytest.approx(2 * 64**3)


def test_peak_memory_sees_what_was_freed_again():
    meter = benchmark.Meter(torch.device("cpu"), "wall", 1)
    peak = meter.peak(lambda: torch.ones(64 * 2**18).sum())  # 64 MiB
    if peak is None:
        pytest.skip("this system has no /proc/self/clear_refs, which is how peak memory is measured on a CPU")
    assert 60 < peak < 90


class Operations(TorchDispatchMode):
    """Counts operations that are no views."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += not func.is_view
        return func(*args, **kwargs or {})


def test_a_training_step_has_few_operations(tmp_path):
    """At mt5-base's depth in bf16, forward and backward. On a GPU these are 2,164 kernels, half of the official code's.

    The number follows from layers and branches, not from widths.
    """
    narrow = MT5_BASE | {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4}
    size = replace(benchmark.SIZES["base"], hidden_dim=16, mt5=narrow, batch_size=4, frames=16)
    stages = benchmark.all_stages(size, tmp_path, torch.device("cpu"), "bf16")
    stage = next(stage for stage in stages if stage.name == "forward and backward")
    with Operations() as seen:
        stage.work()
    assert 4500 < seen.n < 5150
