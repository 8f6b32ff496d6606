"""Full memory is told with what helps, and the estimate counts what is there."""

import json
import sys

import pytest
import torch

import config
import utils
from training.build import memory_settings
from training.memory import explain_memory, in_training, mt5_parameters


def test_out_of_memory_is_one_line_with_the_shape_and_what_helps():
    src_input = {"attention_mask": torch.ones(16, 231), "descriptions": [["a", "b", None], ["a"]]}
    run = memory_settings(utils.parse_args(["--use_descriptions"]))
    with pytest.raises(ValueError, match="out of GPU memory") as error, explain_memory(src_input, run):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has ...\nmore")
    text = str(error.value)
    assert "\n" not in text
    assert "a batch of 16 clips x 231 frames with 2 distinct texts (CUDA out of memory)" in text
    flags = "--gradient_checkpointing --batch-size --text_encoder_freeze --offload --max_length --train"
    places = [text.index(flag) for flag in flags.split()]
    assert places == sorted(places)
    run = memory_settings(utils.parse_args(["--offload", "--dtype", "fp32", "--gradient_checkpointing"]))
    with pytest.raises(ValueError, match="out of GPU memory") as error, explain_memory(src_input, run):
        raise torch.OutOfMemoryError
    assert not any(flag in str(error.value) for flag in ("--offload", "--gradient_checkpointing"))
    assert "--dtype bf16" in str(error.value)


def test_without_deepspeed_no_flag_of_it_is_advised(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    run = memory_settings(utils.parse_args([]))
    assert run.zero_stage == 0
    assert not [flag for flag in in_training(run, 16, 256, described=False) if "zero" in flag or "offload" in flag]


def test_out_of_memory_in_an_evaluation_is_not_helped_by_flags_of_training():
    run = memory_settings(utils.parse_args([]))
    src_input = {"attention_mask": torch.ones(64, 256)}
    with pytest.raises(ValueError, match="64 clips x 256") as error, explain_memory(src_input, run, training=False):
        raise torch.OutOfMemoryError
    words = ("--batch-size", "4 times as many", "--num_beams", "--max_length", "--gradient", "--offload")
    assert [word in str(error.value) for word in words] == [True] * 4 + [False] * 2


def test_parameters_are_estimated_as_they_are(corpus):
    from network.mt5 import load_mt5

    folder = corpus / config.mt5_path
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    exact = sum(parameter.numel() for parameter in load_mt5(folder).parameters())
    assert sum(mt5_parameters(sizes)) == pytest.approx(exact, rel=0.01)
