"""The benchmark in its smallest form: it runs, and what it writes is whole. Never how long anything takes."""

import json
from dataclasses import replace

import pytest
import torch

from tools import benchmark
from tools.benchmark import Meter, OperationCounter, Stage
from training.loader import SEARCHED

TINY, STAGES = benchmark.SIZES["tiny"], benchmark.STAGES
OF_DATA = {*STAGES[:4], "optimizer"}  # no matrix products
CPU = torch.device("cpu")


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
    stages = benchmark.all_stages(TINY, tmp_path, CPU, "fp32")
    stage = next(stage for stage in stages if stage.name == "optimizer")
    (group, *_) = stage.work.__self__.param_groups
    before = [weight.clone() for weight in group["params"]]
    stage.work()
    assert not any(torch.equal(*pair) for pair in zip(before, group["params"], strict=True))


def test_matrix_products_and_operations_are_counted():
    a = torch.ones(64, 64)
    work = lambda: (a @ a + torch.empty(64)).T[2:].sum()  # noqa: E731 -- three, views and allocations are none
    row = Meter(CPU, "wall", 1).measure(Stage("product", work, clips=1, frames=1), ceiling=1e6)
    assert row["share_of_ceiling"] * row["seconds"] * 1e6 == pytest.approx(2 * 64**3)
    assert row["operations"] == 3


def test_a_training_step_has_no_more_operations(tmp_path):
    """At mt5-base's depth, in bf16, forward and backward: on a GPU they are kernels. Widths do not matter."""
    base = benchmark.SIZES["base"]
    narrow = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4}
    size = replace(base, hidden_dim=16, mt5=base.mt5 | narrow, batch_size=4, frames=16)
    counts = {}
    for stage in benchmark.all_stages(size, tmp_path, CPU, "bf16", ["pose"]):
        if stage.name in ("pose encoder", "forward and backward"):
            with OperationCounter() as operations:
                stage.work()
            counts[stage.name] = operations.n
        if stage.name == "forward and backward":
            break
    assert counts["pose encoder"] <= 720
    assert counts["forward and backward"] <= 4540
