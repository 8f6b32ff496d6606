"""Ranks and the engine's configuration; several processes are tried in test_fine_tuning.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import distributed
import utils

ROOT = Path(__file__).resolve().parents[1]


def test_a_process_without_a_launcher_is_a_group_of_one():
    code = (
        "import distributed as d; d.start(); print(d.rank(), d.world_size(), d.is_main(), d.gather('x'), d.device());"
        "d.barrier(); d.stop()"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    device = distributed.device()
    assert run.stdout.splitlines()[-1] == f"0 1 True ['x'] {device}"


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ([], "zero_optimization", {"stage": 2}),
        (
            ["--zero_stage", "3", "--offload"],
            "zero_optimization",
            {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        ),
        ([], "torch_autocast", {"enabled": True, "dtype": "bfloat16"}),
        (["--dtype", "fp16"], "torch_autocast", {"enabled": True, "dtype": "float16"}),
        (["--dtype", "fp32"], "torch_autocast", {"enabled": False, "dtype": "bfloat16"}),
        (["--gradient-clipping", "0.5"], "gradient_clipping", 0.5),
        (["--gradient-accumulation-steps", "3"], "gradient_accumulation_steps", 3),
        (["--batch-size", "5"], "train_micro_batch_size_per_gpu", 5),
    ],
)
def test_flags_reach_deepspeed(flags, key, value):
    assert distributed.engine_config(utils.parse_args(flags))[key] == value


@pytest.mark.parametrize(("dtype", "result"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_is_that_of_training(dtype, result):
    with distributed.autocast(dtype):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == result


UPDATES = """
import sys, torch
import distributed, utils
from optimization import build_optimizer, build_schedule
from zero_state import full_state_dict

distributed.start()
for stage in "023":
    flags = f"--dtype {sys.argv[1]} --zero_stage {stage} --opt sgd --lr 1 --weight-decay 0 --gradient-clipping 0.01"
    args = utils.parse_args([*flags.split(), "--gradient-accumulation-steps", "1"])
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 1))
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    optimizer = build_optimizer(model, args)
    engine = distributed.start_engine(model, optimizer, build_schedule(optimizer, args, 1), args)
    loss = (engine(torch.ones(4, 64, device=engine.device)).float() - 1).square().mean() / 10
    engine.backward(loss)
    engine.step()
    after = torch.cat([value.flatten() for value in full_state_dict(engine).values()])
    print("update", *(after - before).tolist())
"""


def test_gradients_are_clipped_in_fp16_as_in_fp32():
    """In processes of their own, for DeepSpeed keeps autocast on for every later engine."""
    updates = []
    for dtype in ("fp32", "fp16"):
        run = subprocess.run(
            [sys.executable, "-c", UPDATES, dtype], cwd=ROOT, capture_output=True, text=True, check=True
        )
        lines = [line.split()[1:] for line in run.stdout.splitlines() if line.startswith("update")]
        updates.append(torch.tensor([[float(number) for number in line] for line in lines]))
    assert updates[0].norm(dim=1).tolist() == pytest.approx([0.019] * 3, rel=1e-3)  # 0.01, and Nesterov's momentum
    torch.testing.assert_close(updates[1], updates[0], rtol=0.02, atol=1e-5)


def test_batch_statistics_stay_in_fp32_under_autocast():
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with distributed.autocast("bf16"):
        norm(torch.randn(64, 4) * 1e-3 + 1).sum().backward()
    assert norm[1].running_mean.dtype == torch.float32
    assert norm[1].running_mean.to(torch.bfloat16).float().ne(norm[1].running_mean).any()


def test_batch_norm_is_left_alone_in_one_process():
    assert type(distributed.synchronised_batch_norm(nn.BatchNorm1d(3))) is nn.BatchNorm1d
