"""GPU memory: an estimate of what training needs, and which flags help when it is not enough."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from clips.batch import SrcInput
from training.loader import SEARCHED

IN_TRAINING = (
    "--gradient_checkpointing (the same result in more time), then half of --batch-size and twice "
    "--gradient-accumulation-steps (the same global batch), then --offload, then --text_encoder_freeze or a smaller "
    "--max_length (these change results), then --trainable fusion"
)
IN_EVALUATION = (
    f"a smaller --batch-size (an evaluation searches up to {SEARCHED} times as many clips together), then fewer "
    "--num_beams or a smaller --max_length (these change results)"
)


@contextlib.contextmanager
def explain_memory(src_input: SrcInput, training: bool = True) -> Iterator[None]:
    """Raise ValueError in place of an out-of-memory error: the batch's shape and what flags help, the best first."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        clips, frames = src_input["attention_mask"].shape
        texts = {text for clip in src_input.get("descriptions", []) for text in clip if text}
        shape = f"{clips} clips x {frames} frames" + (f" with {len(texts)} distinct texts" if texts else "")
        reason = " ".join(str(error).split()).partition(". ")[0]
        advice = IN_TRAINING if training else IN_EVALUATION
        raise ValueError(
            f"out of GPU memory in a batch of {shape} ({reason}). What helps, in order, if the run has it not yet: "
            f"{advice}."
        ) from None


@dataclass(frozen=True)
class MemorySettings:
    """The settings of a run that decide how much memory it needs; most are flags."""

    batch_size: int
    hidden_dim: int
    dtype: str
    zero_stage: int
    offload: bool
    encodes_texts: bool  # whether a text encoder is trained; a frozen one in --finetune runs, too, and is not counted
    rgb_support: bool
    fusion_alone: bool  # whether only the fusion modules train


MT5_BASE = {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "vocab_size": 250112}


def mt5_parameters(mt5_sizes: Mapping[str, Any]) -> tuple[int, int]:
    """Count the parameters of mT5's encoder and decoder with their embeddings, except for small ones.

    >>> sum(mt5_parameters(MT5_BASE))
    582352896
    """
    d_model, d_kv, d_ff, n_layers, n_heads, vocab_size = (mt5_sizes[name] for name in MT5_BASE)
    attention, feed_forward = 4 * d_model * d_kv * n_heads, 3 * d_model * d_ff
    encoder = vocab_size * d_model + n_layers * (attention + feed_forward)
    return encoder, encoder + n_layers * attention


def estimate(
    run: MemorySettings, mt5_sizes: Mapping[str, Any], frames: int, texts: float, n_gpus: int
) -> tuple[float, float]:
    """Estimate the GiB that training takes on each GPU: for weights and optimizer, and for a micro-batch's activations.

    Weights, gradients and AdamW in fp32 take 16 bytes per parameter; with ZeRO, DeepSpeed shards them over several GPUs
    and keeps another copy of the weights, which it does not shard.

    Activations, measured in fp32: the graph convolutions keep 34 floats per joint and channel (half in bf16), mT5's
    encoder 190 bytes per layer and channel, its decoder a fifth of that; for a description of about 40 tokens, where
    attention is shorter, the encoder keeps 110 bytes (70 in bf16); a hand crop takes 24 MiB (14 in bf16).

    Args:
        run, n_gpus: the run's settings, and the number of GPUs.
        mt5_sizes: the content of mT5's config.json; what it lacks is that of mt5-base.
        frames, texts: of the longest clip, and the mean number of texts per clip.
    """
    sizes = MT5_BASE | dict(mt5_sizes)
    encoder, decoder = mt5_parameters(sizes)
    # The last terms: graph convolutions and fusion, and the RGB branch.
    parameters = encoder + decoder + run.encodes_texts * encoder + 7e6 + run.rgb_support * 5e6
    per_parameter = 4 + 16 / n_gpus if run.zero_stage and n_gpus > 1 else 16
    if run.fusion_alone:
        per_parameter = 4
    elif run.offload:
        per_parameter = 8
    whole = run.dtype == "fp32"
    channels = sizes["num_layers"] * sizes["d_model"]
    clip = frames * (34 * 69 * run.hidden_dim * (4 if whole else 2) + 1.2 * 190 * channels)
    if run.rgb_support:
        clip += 2 * 0.1 * frames * (24 if whole else 14) * 2**20  # both hands, in a tenth of the frames
    clip += 40 * texts * (110 if whole else 70) * channels * run.encodes_texts
    clip += 25 * 12 * sizes["vocab_size"]  # a sentence's logits
    return parameters * per_parameter / 2**30, run.batch_size * clip / 2**30
