"""Weights on disk."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from config import ModelConfig
from training.engine import EngineConfig, full_state_dict, start_engine
from training.weight_files import read_weights, save_weights
from utils import uses_deepspeed

STATE = {"a.weight": torch.arange(6.0).view(3, 2), "b.bias": torch.ones(4), "steps": torch.tensor(3)}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype


def test_weights_survive_the_round_trip(tmp_path):
    state = {"a.weight": torch.randn(3, 2), "b.bias": torch.zeros(4)}
    save_weights(tmp_path / "w.pth", state, ModelConfig(hidden_dim=32), epoch=3, score=1.5)
    found, facts = read_weights(tmp_path / "w.pth", "--finetune")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert (facts["epoch"], facts["score"], facts["config"]["hidden_dim"]) == (3, 1.5, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    save_weights(path, {"a": torch.ones(1)}, ModelConfig())

    def fail(content, file):
        file.write(b"half")
        raise OSError("No space left on device")

    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save_weights(path, {"a": torch.zeros(1)}, ModelConfig())
    assert torch.equal(read_weights(path, "--finetune")[0]["a"], torch.ones(1))


def test_safetensors_and_bare_state_dicts_load(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "bare.pth")
    for name in ("w.safetensors", "bare.pth"):
        found, facts = read_weights(tmp_path / name, "--finetune")
        assert torch.equal(found["a"], torch.ones(2))
        assert facts == {}


@pytest.mark.parametrize("name", ["checkpoint_plain_pickle.pth", "checkpoint_zip.pth"])
def test_hostile_checkpoints_run_nothing(shared_real, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"--finetune: .*{name}") as error:
        read_weights(shared_real / "hostile" / name, "--finetune")
    assert not {"\n", "\x1b"} & set(str(error.value))
    assert "weights_only" not in str(error.value)  # torch advises to execute the file
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut short"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="--finetune: .*w.pth holds no weights"):
        read_weights(path, "--finetune")


def test_other_contents_are_refused(tmp_path):
    torch.save({"model": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(ValueError, match="no state dict"):
        read_weights(tmp_path / "list.pth", "--finetune")
    with pytest.raises(FileNotFoundError, match="--finetune: .*none.pth"):
        read_weights(tmp_path / "none.pth", "--finetune")
    with pytest.raises(FileNotFoundError, match=r"--finetune: .* holds no model: .* of DeepSpeed\.$"):
        read_weights(tmp_path, "--finetune")
    (tmp_path / "weights.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*/weights\.pt\?$"):
        read_weights(tmp_path, "--finetune")


# -- of other programs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "module", None])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.module."])
def test_wherever_programs_keep_the_weights(tmp_path, key, prefix):
    state = {prefix + name: value for name, value in STATE.items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "w.pth")
    weights, facts = read_weights(tmp_path / "w.pth", "--finetune")
    assert_same(weights, STATE)
    assert facts == ({"epoch": 3} if key else {})


def test_a_prefix_of_some_names_is_part_of_them(tmp_path):
    state = {"module.a": torch.ones(1), "a": torch.zeros(1)}
    torch.save(state, tmp_path / "w.pth")
    assert_same(read_weights(tmp_path / "w.pth", "--finetune")[0], state)


def test_plain_things_may_lie_beside_the_weights(tmp_path):
    args = argparse.Namespace(lr=0.1, output_dir=Path("out"), sizes=[1, 2])
    torch.save({"model": STATE, "args": args, "best": np.float64(31.5), "epoch": np.int64(7)}, tmp_path / "w.pth")
    weights, facts = read_weights(tmp_path / "w.pth", "--finetune")
    assert_same(weights, STATE)
    assert facts == {"args": args, "best": 31.5, "epoch": 7}


class Network(nn.Module):
    """A module under two names, a frozen weight, statistics and numbers of tokens, as in the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.gcn_modules = nn.ModuleDict({"left": nn.Linear(3, 4)})
        self.gcn_modules["right"] = self.gcn_modules["left"]
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)
        self.head.bias.requires_grad_(False)
        self.register_buffer("kept_tokens", torch.tensor([0, 1, 5]))

    def forward(self, x):
        return self.head(self.norm(self.gcn_modules["left"](x))).pow(2).sum()


@pytest.mark.skipif(not uses_deepspeed(), reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_folder_of_deepspeed(tmp_path, stage, capsys, monkeypatch):
    monkeypatch.setattr(F, "linear", F.linear)  # ZeRO-3 leaves another one in its place
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    engine = start_engine(model, optimizer, schedule, EngineConfig(2, 1, 1.0, stage, False, False, "fp32"))
    engine.backward(engine(torch.randn(2, 3)))
    engine.step()
    engine.save_checkpoint(tmp_path, tag="step_1", client_state={"args": argparse.Namespace(lr=0.1)})
    wanted = full_state_dict(engine)
    capsys.readouterr()
    for folder in (tmp_path, tmp_path / "step_1"):
        assert_same(read_weights(folder, "--finetune")[0], wanted)
    assert not capsys.readouterr().out  # which may hold the sentences of a translation


@pytest.mark.skipif(not uses_deepspeed(), reason="DeepSpeed is not installed")
@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_a_folder_of_deepspeed_runs_nothing(tmp_path, name):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "PWNED",))

    model = {"module": STATE, "buffer_names": [], "param_shapes": [{}], "shared_params": {}, "ds_version": "0"}
    torch.save(model, tmp_path / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    torch.save({**model, "evil": Evil()}, tmp_path / name)
    with pytest.raises(ValueError, match=r"--finetune: .* holds no weights that can be read safely") as error:
        read_weights(tmp_path, "--finetune")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "PWNED").exists()


def test_a_folder_of_deepspeed_without_deepspeed(tmp_path, monkeypatch):
    torch.save({"module": STATE}, tmp_path / "mp_rank_00_model_states.pt")
    monkeypatch.setattr("training.weight_files.installed", lambda package: package != "deepspeed")
    assert_same(read_weights(tmp_path, "--finetune")[0], STATE)  # it was trained without ZeRO
    (tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    with pytest.raises(ValueError, match="--finetune: .* put together: pip install deepspeed, or run zero_to_fp32.py"):
        read_weights(tmp_path, "--finetune")


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value, dtype):
    state = {**STATE, "c.0.weight": torch.zeros(3, dtype=dtype), "c.0.bias": torch.zeros(3)}
    state["c.0.weight"][1] = state["c.0.bias"][2] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: NaN or infinity in c\.0\.\* \(2\): the training diverged"):
        read_weights(tmp_path / "w.pth", "--finetune")


def test_many_large_numbers_are_numbers(tmp_path):
    """Their sum in fp16 would be infinite."""
    state = {"a": torch.full((70_000,), 60_000.0, dtype=torch.float16), "empty": torch.zeros(0)}
    torch.save(state, tmp_path / "w.pth")
    assert_same(read_weights(tmp_path / "w.pth", "--finetune")[0], state)


def test_one_number_that_claims_to_be_many(tmp_path):
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="no state dict"):
        read_weights(tmp_path / "w.pth", "--finetune")
