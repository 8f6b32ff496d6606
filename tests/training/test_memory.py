"""Full memory is told with what helps, and the estimate counts what is there."""

import json

import pytest
import torch

import config
from training.memory import MT5_BASE, MemorySettings, estimate, explain_memory, mt5_parameters


@pytest.mark.parametrize(
    ("training", "flags"),
    [
        (True, "--gradient_checkpointing --batch-size --offload --text_encoder_freeze --max_length --trainable"),
        (False, "--batch-size --num_beams --max_length"),
    ],
)
def test_out_of_memory_is_one_line_with_the_shape_and_what_helps(training, flags):
    src_input = {"attention_mask": torch.ones(16, 231), "descriptions": [["a", "b", None], ["a"]]}
    with pytest.raises(ValueError, match="out of GPU memory") as error, explain_memory(src_input, training):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has ...\nmore")
    text = str(error.value)
    assert "\n" not in text
    assert "a batch of 16 clips x 231 frames with 2 distinct texts (CUDA out of memory)" in text
    places = [text.index(flag) for flag in flags.split()]
    assert places == sorted(places)
    assert ("--offload" in text) == training


def test_parameters_are_estimated_as_they_are(corpus):
    from network.mt5 import load_mt5

    folder = corpus / config.mt5_path
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    exact = sum(parameter.numel() for parameter in load_mt5(folder).parameters())
    assert sum(mt5_parameters(sizes)) == pytest.approx(exact, rel=0.01)


def test_one_gpu_keeps_no_copy_of_the_weights():
    """There torch trains alone: 16 bytes per parameter, as docs/TRAINING.md has it; on two GPUs 4 + 16 / 2."""
    run = MemorySettings(8, 256, "bf16", 2, False, False, False, False)
    state = [estimate(run, MT5_BASE, 256, 0, n_gpus)[0] for n_gpus in (1, 2)]
    assert state == pytest.approx([8.8, 6.6], abs=0.1)
