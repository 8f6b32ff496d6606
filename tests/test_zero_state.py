"""The whole of what ZeRO scatters: the same state for any number of processes and any stage."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from forked import curves, start
from torch import nn

import disk
import zero_state

# Dropout would be drawn anew on another number of processes, and batch statistics are each process's own on a CPU:
# what is compared is the state itself, and the way it is read.


def state(folder):
    files = {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}
    return {name: content for name, content in files.items() if name != "processes.pt"}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        if isinstance(one[name], dict):
            assert_same(one[name], other[name])
        elif isinstance(one[name], torch.Tensor):
            assert torch.equal(one[name], other[name]), name
        else:
            assert one[name] == other[name], name


class SaveAtOnce:
    """Save a state as soon as the run has loaded one, and end."""

    def __call__(self):
        import fine_tuning

        def train_one_epoch(engine, loader, state, guards, args):
            fine_tuning.save(engine, state, guards, args)
            raise ValueError("saved")

        fine_tuning.train_one_epoch = train_one_epoch


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_number_of_the_step_lies_beside_the_moments(monkeypatch, stage):
    """On a GPU, a fused optimizer refuses one on the CPU; the meta device stands for the GPU."""
    flat = nn.Parameter(torch.zeros(3, device="meta"))
    inner = SimpleNamespace(state={})
    held = SimpleNamespace(fp32_partitioned_groups_flat=[flat], single_partition_of_fp32_groups=[flat])
    engine = SimpleNamespace(optimizer=held, zero_optimization_stage=lambda: stage)
    monkeypatch.setattr(zero_state, "_inner_optimizer", lambda _: inner)
    monkeypatch.setattr(zero_state, "_trained", lambda _: [("flat", flat)])
    monkeypatch.setattr(zero_state, "_link", lambda _: None)
    zero_state._make_room(engine, ["exp_avg"], 7.0)
    assert {value.device.type for value in inner.state[flat].values()} == {"meta"}


CHANGES = [(2, 1, "2", "0"), (1, 2, "0", "3"), (2, 1, "3", "2"), (1, 2, "2", "1"), (2, 2, "1", "3"), (2, 1, "0", "1")]


@pytest.mark.parametrize(
    ("before", "after", "stage", "other_stage"),
    [*CHANGES[:2], *(pytest.param(*change, marks=pytest.mark.slow) for change in CHANGES[2:])],
)
def test_a_state_is_the_same_for_any_size(tiny_corpus, tmp_path, before, after, stage, other_stage):
    """Saved on N processes, loaded on M with another stage, saved again: every bit is the same; then it trains on."""
    sizes = {1: ("--gradient-accumulation-steps", "4"), 2: ("--gradient-accumulation-steps", "2")}
    flags, others = ([*sizes[n], "--zero_stage", s] for n, s in ((before, stage), (after, other_stage)))
    first, second = tmp_path / "first", tmp_path / "second"
    start(tiny_corpus, first, *flags, "--epochs", "2", n_processes=before).finish()
    newest = sorted((first / "resume").iterdir())[-1]
    one = sorted((first / "resume").iterdir())[0]
    assert newest != one
    shutil.copytree(first, second)
    shutil.rmtree(second / "resume" / newest.name)
    again = start(tiny_corpus, second, *others, "--epochs", "2", n_processes=after, before=SaveAtOnce())
    text = again.finish(code=1)
    assert "error: saved" in text
    assert ("dropout is drawn anew" in text) == (before != after)
    assert_same(state(one), state(second / "resume" / one.name))
    start(tiny_corpus, second, *others, "--epochs", "2", n_processes=after).finish()
    steps = [disk.read_lines(out / "steps.jsonl") for out in (first, second)]
    assert [line["lr"] for line in steps[0]] == [line["lr"] for line in steps[1]]
    losses = [[line["loss"] for line in lines] for lines in steps]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("stage", ["2", pytest.param("3", marks=pytest.mark.slow)])
def test_two_processes_resume_bit_for_bit(tiny_corpus, tmp_path, stage):
    """Most tensors here do not divide by two, which ZeRO pads."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = ("--epochs", "2", "--zero_stage", stage, "--keep_last", "0", "--gradient-accumulation-steps", "1")
    start(tiny_corpus, whole, *flags, n_processes=2).finish()
    shutil.copytree(whole, cut)
    for path in sorted((cut / "resume").iterdir())[-4:]:  # of six: it goes on within the first epoch
        shutil.rmtree(path)
    assert "resumed" in start(tiny_corpus, cut, *flags, n_processes=2).finish()
    assert curves(whole) == curves(cut)
    newest = [sorted((out / "resume").iterdir())[-1] for out in (whole, cut)]
    assert_same(*(state(path) for path in newest))
