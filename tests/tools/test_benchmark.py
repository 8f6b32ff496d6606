"""The benchmark in its smallest form: it runs, and what it counts is right. Never how long anything takes."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from system.disk import read_lines
from tools import benchmark

NARROW = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4}  # operations depend on layers, not on widths


@pytest.mark.parametrize("texts", ["no", "frozen", "trained"])
def test_every_stage_is_measured(texts, capsys):
    benchmark.main(benchmark.parse_args(["--size", "tiny", "--repeats", "1", "--texts", texts]))
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    (*_, peak), _, *rows = rows
    assert peak == "peak GiB"
    stages = ["pose encoder", "text branch", "mT5 encoder", "decoder and loss", "forward and backward"]
    stages += ["training step", "evaluation"]
    assert [row[0] for row in rows] == [stage for stage in stages if texts != "no" or stage != "text branch"]
    for _, *cells in rows:
        assert all(re.fullmatch(r"[\d,]+(\.\d)?", cell) for cell in cells[:3])


def test_operations_by_hand():
    """Views and allocations are none."""
    a = torch.randn(3, 4)
    assert benchmark.count_operations(lambda: a.T.flatten() + torch.empty(12)) == 2  # a copy makes it flat
    assert benchmark.count_operations(lambda: a.view(12)[2:].detach()) == 0


def test_a_training_step_has_few_operations():
    """At mt5-base's depth, in bf16: each is a kernel or a few, and a GPU waits for their launches."""
    base = benchmark.SIZES["base"]
    size = replace(base, batch_size=4, frames=16, hidden_dim=16, mt5=base.mt5 | NARROW)
    works = benchmark.stages(size, "no", torch.device("cpu"), "bf16")
    parts = ["pose encoder", "mT5 encoder", "decoder and loss"]
    counts = {stage: benchmark.count_operations(works[stage]) for stage in (*parts, "forward and backward")}
    assert counts["forward and backward"] <= 4600
    assert counts["pose encoder"] <= 720
    assert sum(counts[part] for part in parts) == pytest.approx(counts["forward and backward"], abs=20)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_on_a_cpu(tmp_path):
    """What needs a GPU says so; nothing else may fail on the day."""
    (tmp_path / "compiled.log").touch()  # takes long; training/test_compiling.py compiles
    root = Path(__file__).resolve().parents[2]
    command = ["make", "gpu", "SIZE=tiny", "LIMIT=3600", f"GPU={tmp_path}", f"RUN={sys.executable}"]
    subprocess.run(command, cwd=root, check=False, capture_output=True)
    failed = {path.stem: path.read_text() for path in tmp_path.glob("*.failed")}
    if not torch.cuda.is_available():
        assert failed.pop("fp16") == "error: --dtype fp16 needs a GPU; on a CPU use bf16 or fp32.\n"
    assert not failed
    assert "| evaluation |" in (tmp_path / "frozen_texts.log").read_text()
    first, *others = ([line["loss"] for line in read_lines(path)] for path in tmp_path.glob("*/steps.jsonl"))
    assert len(others) >= 1
    for losses in others:
        assert losses == pytest.approx(first, rel=0.01)
