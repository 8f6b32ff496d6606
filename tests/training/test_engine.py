"""The whole of what ZeRO scatters: the same state for any number of processes and any stage."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import utils
from system import disk
from tests.helpers.processes import curves, start
from training import build
from training import engine as engine_module

ROOT = Path(__file__).resolve().parents[2]
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


def save_at_once():
    """Save a state as soon as the run has loaded one, and end."""
    import fine_tuning

    def train_one_epoch(engine, loader, state, guards, args):
        fine_tuning.save(engine, state, guards, args)
        raise ValueError("saved")

    fine_tuning.train_one_epoch = train_one_epoch


def test_the_number_of_the_step_lies_beside_the_moments(monkeypatch):
    """On a GPU, a fused optimizer refuses one on the CPU; the meta device stands for the GPU."""
    flat = nn.Parameter(torch.zeros(3, device="meta"))
    inner = SimpleNamespace(state={})
    engine = SimpleNamespace(optimizer=SimpleNamespace(optimizer=inner, single_partition_of_fp32_groups=[flat]))
    monkeypatch.setattr(engine_module, "_link", lambda _: None)
    engine_module._make_room(engine, ["exp_avg"], 7.0)
    assert {value.device.type for value in inner.state[flat].values()} == {"meta"}


CHANGES = [(2, 1, "2", "0"), (1, 2, "0", "2"), (2, 2, "0", "1"), (2, 2, "1", "0")]


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
    again = start(tiny_corpus, second, *others, "--epochs", "2", n_processes=after, before=save_at_once)
    text = again.finish(code=1)
    assert "error: saved" in text
    assert ("dropout is drawn anew" in text) == (before != after)
    assert_same(state(one), state(second / "resume" / one.name))
    start(tiny_corpus, second, *others, "--epochs", "2", n_processes=after).finish()
    steps = [disk.read_lines(out / "steps.jsonl") for out in (first, second)]
    assert [line["lr"] for line in steps[0]] == [line["lr"] for line in steps[1]]
    losses = [[line["loss"] for line in lines] for lines in steps]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)  # rank 0's clips are others, and so is the dropout


@pytest.mark.parametrize("stage", ["2", pytest.param("0", marks=pytest.mark.slow)])
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


def test_one_process_takes_the_steps_of_two(tiny_corpus, tmp_path):
    """Two micro-batches of one process are the batches of two: same clips, same losses, same weights.

    Each batch is normalised by itself either way; on GPUs processes share their batch statistics.
    """
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    sizes = tmp_path / "corpus" / "tiny" / "config.json"
    sizes.write_text(json.dumps(json.loads(sizes.read_text()) | {"dropout_rate": 0.0}))
    flags = "--epochs 1 --zero_stage 0 --opt-eps 0.01 --lr 0.02".split()
    outs = {n: tmp_path / str(n) for n in (1, 2)}
    for n, out in outs.items():
        own = ("--gradient-accumulation-steps", str(2 // n))
        start(tmp_path / "corpus", out, *flags, *own, described=False, n_processes=n).finish()
    (alone,), (shared,) = (curves(out)[1] for out in outs.values())
    assert alone["loss"] == pytest.approx(shared["loss"], rel=1e-5)
    one, two = (torch.load(out / "checkpoint_0.pth", weights_only=True)["model"] for out in outs.values())
    for name in one:
        if not any(word in name for word in ("running_", "num_batches")):
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5, msg=name)


def with_deepspeed():
    import fine_tuning
    from training import tracking

    for module in (engine_module, fine_tuning, tracking):
        module.needs_deepspeed = lambda *_: True


def without_deepspeed():
    """Be a process where it cannot be imported."""
    sys.modules["deepspeed"] = None


def test_one_process_trains_alike_without_deepspeed(tiny_corpus, tmp_path):
    """Accumulation, clipping, schedule and optimizer; each engine goes on from a state of the other.

    With its usual epsilon, AdamW makes whole steps of gradients that are nothing but rounding.
    """
    flags = "--epochs 2 --zero_stage 2 --gradient-clipping 0.1 --keep_last 0 --opt-eps 0.01 --lr 0.02".split()
    outs = {"deepspeed": (tmp_path / "deepspeed", with_deepspeed), "torch": (tmp_path / "torch", without_deepspeed)}
    for engine, (out, before) in outs.items():
        said = start(tiny_corpus, out, *flags, before=before).finish()
        assert ("torch alone" in said) == (engine == "torch")
        assert json.loads((out / "run.json").read_text())["starts"][0]["engine"] == engine
    steps = {engine: curves(out)[0] for engine, (out, _) in outs.items()}
    assert [line["lr"] for line in steps["torch"]] == [line["lr"] for line in steps["deepspeed"]]
    losses = [line["loss"] for line in steps["deepspeed"]]
    assert len(set(losses)) == len(losses) > 2
    assert [line["loss"] for line in steps["torch"]] == pytest.approx(losses, rel=1e-5)
    for engine, other in (("torch", "deepspeed"), ("deepspeed", "torch")):
        cut = tmp_path / f"to_{engine}"
        shutil.copytree(outs[other][0], cut)
        for folder in sorted((cut / "resume").iterdir())[2:]:
            shutil.rmtree(folder)
        assert "resumed" in start(tiny_corpus, cut, *flags, before=outs[engine][1]).finish()
        assert [line["loss"] for line in curves(cut)[0]] == pytest.approx(losses, rel=1e-5)
    best = str(outs["deepspeed"][0] / "best_checkpoint.pth")
    evaluation = ("--resume", "", "--eval", "--finetune", best)
    start(tiny_corpus, tmp_path / "eval", *evaluation, before=without_deepspeed).finish()
    assert (tmp_path / "eval/test_metrics.json").is_file()


def test_a_weight_without_a_gradient_has_a_state_to_go_on_from():
    """A global attention that no text was long enough for, for example."""

    def engine():
        model = nn.ModuleDict({"used": nn.Linear(2, 1), "not yet": nn.Linear(2, 1)})
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        config = engine_module.EngineConfig(1, 1, 1.0, 2, offload=False, pin_mem=False, dtype="fp32")
        return engine_module.TorchEngine(model, optimizer, schedule, config)

    one, other = engine(), engine()
    one.set_gradient_accumulation_boundary(True)
    one.backward(one.module["used"](torch.ones(1, 2, device=one.device)).sum())
    one.step()
    state = dict(engine_module.optimizer_tensors(one))
    engine_module.restore_optimizer(other, engine_module.optimizer_numbers(one), list(state), state.__getitem__)
    again = dict(engine_module.optimizer_tensors(other))
    assert_same(again, state)
    assert not again["exp_avg"]["not yet.weight"].any()
    assert again["exp_avg"]["used.weight"].all()


def test_flags_reach_deepspeed():
    def config(line):
        args = utils.parse_args(line.split())
        return engine_module.deepspeed_config(build.from_flags(engine_module.EngineConfig, args))

    assert config("")["zero_optimization"] == {"stage": 2}
    assert config("")["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert not config("--dtype fp32")["torch_autocast"]["enabled"]
    line = "--zero_stage 1 --offload --dtype fp16 --gradient-clipping .5 --gradient-accumulation-steps 3 --batch-size 5"
    wanted = {
        "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        "torch_autocast": {"enabled": True, "dtype": "float16"},
        "gradient_clipping": 0.5,
        "gradient_accumulation_steps": 3,
        "train_micro_batch_size_per_gpu": 5,
    }
    assert wanted.items() <= config(line).items()


START = """
import sys, torch
import utils
from system import distributed
from training import engine
from training.build import from_flags
from training.engine import EngineConfig, full_state_dict, start_engine
from training.optimization import OptimizerConfig, build_optimizer, build_schedule

engine.needs_deepspeed = lambda *_: True

def engine_of(model, flags):
    args = utils.parse_args([*flags.split(), "--gradient-accumulation-steps", "1"])
    config = from_flags(OptimizerConfig, args)
    optimizer = build_optimizer(model, config)
    return start_engine(model, optimizer, build_schedule(optimizer, config, 1), from_flags(EngineConfig, args))

distributed.start()
"""
UPDATES = """
for stage in "12":
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 1))
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    flags = f"--dtype {sys.argv[1]} --zero_stage {stage} --opt sgd --lr 1 --weight-decay 0 --gradient-clipping 0.01"
    engine = engine_of(model, flags)
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
            [sys.executable, "-c", START + UPDATES, dtype], cwd=ROOT, capture_output=True, text=True, check=True
        )
        lines = [line.split()[1:] for line in run.stdout.splitlines() if line.startswith("update")]
        updates.append(torch.tensor([[float(number) for number in line] for line in lines]))
    assert updates[0].norm(dim=1).tolist() == pytest.approx([0.019] * 2, rel=1e-3)  # 0.01, and Nesterov's momentum
    torch.testing.assert_close(updates[1], updates[0], rtol=0.02, atol=1e-5)
