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


def test_what_is_sent_to_a_gpu_is_pinned(monkeypatch):
    """Without pinned memory the copy would wait; tensors that stay on their device are not pinned."""
    pinned, sent = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, non_blocking: sent.append((x, device, non_blocking)))
    x, gpu = torch.ones(2), torch.device("cuda", 1)
    distributed.send(x, gpu)
    distributed.send(x, torch.device("cpu"))
    distributed.send(torch.ones(2, device="meta"), gpu)
    assert len(pinned) == 1
    assert pinned[0] is x
    assert [to for _, *to in sent] == [[gpu, True], [torch.device("cpu"), True], [gpu, True]]


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
