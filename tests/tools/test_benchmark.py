"""The benchmark in its smallest form: it runs, and what it writes is whole. Never how long anything takes."""

import json
import os
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tools import benchmark
from training.loader import SEARCHED

TINY, STAGES = benchmark.SIZES["tiny"], benchmark.STAGES
OF_DATA = {*STAGES[:2], "optimizer"}  # no matrix products


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
        frames = 4 + 8 if "mixed" in row["stage"] else n * TINY.frames
        assert row["frames_per_second"] * row["seconds"] == pytest.approx(frames)
        assert (row["share_of_ceiling"] > 0) == (row["stage"] not in OF_DATA)
    assert {"device", "torch", "threads", "dtype", "clock", "batch_size", "frames", "model"} <= content["run"].keys()


def test_some_stages_alone(capsys):
    run(["--size", "tiny", "--repeats", "1", "--only", "clips"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == ["clips from files", "clips from packs"]


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


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory of a CPU is reset there; only Linux has it"
)
def test_peak_memory_sees_what_was_freed_again():
    meter = benchmark.Meter(torch.device("cpu"), "wall", 1)
    peak = meter.peak(lambda: torch.ones(64 * 2**18).sum())  # 64 MiB
    assert peak is not None
    assert 60 < peak < 90


def test_a_trace_names_the_lines_that_wait():
    def work():
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("not all synchronizing operations are found", stacklevel=1)  # as torch says of the mode

    trace = benchmark.Meter(torch.device("cpu"), "wall", 1).trace(work)
    assert list(trace["waits"].values()) == [1]
    assert next(iter(trace["waits"])).startswith("tools/test_benchmark.py:")
    assert (trace["kernels"], trace["launches"], trace["busy_seconds"]) == (0, 0, 0)


def test_the_reference_form_is_the_same_model(tmp_path):
    stages = benchmark.all_stages(TINY, tmp_path, torch.device("cpu"), "fp32", ["training"])
    training = next(stage for stage in stages if stage.name == "training step without texts").work.__self__
    model, batch = training.model.eval(), (training.src_input, training.tgt_input)
    losses = [benchmark.ReferenceForm(model).loss(*batch), model(*batch).loss]
    gradients = []
    for loss in losses:
        model.zero_grad()
        loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


# -- kernels ---------------------------------------------------------------------------------------------------------


def kernels(work):
    return benchmark.KernelCounter().count(work)


def test_kernels_by_hand():
    """Views and allocations are none; what a GPU does in one piece is one in each direction."""
    a = torch.randn(3, 4)
    assert kernels(lambda: a.T.flatten() + torch.empty(12)) == 2  # a transposed matrix is copied to be flat
    assert kernels(lambda: a.view(12)[2:].detach()) == 0
    x, heads = a.requires_grad_(), torch.randn(2, 3, 5, 4, requires_grad=True)
    bias, norm, linear = torch.zeros(5, 5, requires_grad=True), nn.RMSNorm(4), nn.Linear(4, 2, bias=False)
    assert kernels(lambda: norm(x)) == kernels(lambda: F.dropout(x, 0.5)) == 1
    assert kernels(lambda: F.scaled_dot_product_attention(heads, heads, heads, bias, 0.1, scale=1.0)) == 1
    assert kernels(lambda: torch.autograd.grad(norm(x), [x, norm.weight], a)) == 2
    assert kernels(lambda: torch.autograd.grad(F.dropout(x, 0.5), x, a)) == 2
    attended = lambda: F.scaled_dot_product_attention(heads, heads, heads, bias, 0.1, scale=1.0)  # noqa: E731
    of_all = lambda: torch.autograd.grad(attended(), [heads, bias], heads)  # noqa: E731
    assert kernels(of_all) == 4  # forward, backward, and the gradients of q, k and v are added up
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernels(lambda: linear(x)) == 3  # both are converted


def test_what_counts_as_one_is_what_it_was():
    """Values and gradients are not changed by counting."""
    norm, heads = nn.RMSNorm(4), torch.randn(2, 3, 5, 4, requires_grad=True)
    bias = torch.randn(5, 5, requires_grad=True)

    def work():
        out = norm(F.scaled_dot_product_attention(heads, heads, heads, bias, 0.0, scale=1.0))
        results.append([out, *torch.autograd.grad(out.pow(3).sum(), [heads, bias, norm.weight])])

    results = []
    work()
    kernels(work)
    torch.testing.assert_close(*results)


def test_a_training_step_has_at_most_2200_kernels():
    """At mt5-base's depth, in bf16, forward and backward: half of the official code's 4,349."""
    size = replace(benchmark.SIZES["base"], batch_size=4, frames=16)
    counts = {}
    for name, n in benchmark.count_kernels(size, ["pose", "mT5", "decoder", "forward"]):
        counts[name] = n
        if name == "forward and backward":
            break
    assert counts["forward and backward"] <= 2200
    assert counts["pose encoder"] <= 720
    assert sum(counts.values()) == pytest.approx(2 * counts["forward and backward"], abs=20)  # its three stages


def test_kernels_from_the_command_line(capsys):
    run(["--size", "tiny", "--kernels", "--only", "text"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["| stage | kernels |", "| --- | --- |"]
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| text branch with frozen texts",
        "| text branch with trained texts",
    ]
    assert all(int(line.split(" | ")[1].rstrip(" |").replace(",", "")) > 100 for line in lines[2:])
