"""Weights on disk."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from config import ModelConfig
from training.weight_files import read_weights, save_weights

STATE = {"a.weight": torch.arange(6.0).view(3, 2), "b.bias": torch.ones(4), "steps": torch.tensor(3)}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype


def test_every_kind_of_file_loads(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "bare.pth")
    for name in ("w.safetensors", "bare.pth"):
        found, facts = read_weights(tmp_path / name, "--finetune")
        assert torch.equal(found["a"], torch.ones(2))
        assert facts == {}
    save_weights(tmp_path / "w.pth", STATE, ModelConfig(hidden_dim=32), epoch=3, score=1.5)
    found, facts = read_weights(tmp_path / "w.pth", "--finetune")
    assert_same(found, STATE)
    assert (facts["epoch"], facts["score"], facts["config"]["hidden_dim"]) == (3, 1.5, 32)


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
    with pytest.raises(FileNotFoundError, match=r"--finetune: .* holds no model\. Name a file"):
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


# -- numbers -----------------------------------------------------------------------------------------------------------


BAD = {
    "fp8": lambda: torch.zeros(4).to(torch.float8_e4m3fn),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.qint8),
    "complex": lambda: torch.zeros(4, dtype=torch.complex64),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(4)]),
    "meta": lambda: torch.zeros(4, device="meta"),
    "sparse": lambda: torch.zeros(4).to_sparse(),
}


@pytest.mark.filterwarnings("ignore")  # torch means to give some of them up
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_dense_tensor_of_numbers_is_named(tmp_path, name):
    torch.save({**STATE, name: BAD[name]()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"w.pth holds no state dict: '{name}' is .*, but torch") as error:
        read_weights(tmp_path / "w.pth", "--finetune")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_name_of_many_wrappers_takes_no_time(tmp_path, suffix):
    """Unwrapped one by one, a hundred thousand took half a minute."""
    path, weights = tmp_path / f"w.{suffix}", {"module." * 100_000 + "a": torch.zeros(1)}
    torch.save(weights, path) if suffix == "pth" else save_file(weights, path)
    with pytest.raises(ValueError, match=r"holds no state dict: 'module\.module") as error:
        read_weights(path, "--finetune")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value, dtype):
    state = {**STATE, "c.0.weight": torch.zeros(3, dtype=dtype), "c.0.bias": torch.zeros(3)}
    state["c.0.weight"][1] = state["c.0.bias"][2] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: NaN or infinity in c\.0\.bias, c\.0\.weight: the training diverged"):
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
