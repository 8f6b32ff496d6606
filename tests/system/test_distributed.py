"""Ranks and precision; several processes are tried in test_fine_tuning.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from system import distributed

ROOT = Path(__file__).resolve().parents[2]


def test_a_process_without_a_launcher_is_a_group_of_one():
    code = (
        "from system import distributed as d; d.start(); print(d.rank(), d.world_size(), d.is_main(), "
        "d.all_gather('x'), "
        "d.device()); d.barrier(); d.stop()"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    device = distributed.device()
    assert run.stdout.splitlines()[-1] == f"0 1 True ['x'] {device}"


@pytest.mark.parametrize(("dtype", "result"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_is_that_of_training(dtype, result):
    with distributed.autocast(dtype, torch.device("cpu")):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == result


def test_batch_statistics_stay_in_fp32_under_autocast():
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with distributed.autocast("bf16", torch.device("cpu")):
        norm(torch.randn(64, 4) * 1e-3 + 1).sum().backward()
    assert norm[1].running_mean.dtype == torch.float32
    assert norm[1].running_mean.to(torch.bfloat16).float().ne(norm[1].running_mean).any()
