"""mT5 as transformers has it, with the same numbers in less time: what is run otherwise than there.

Letters: B sequences, L their tokens (padded), H attention heads, D mT5's d_model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import NewGELUActivation


def use_fused_activation(mt5: nn.Module) -> None:
    """Replace GELU, which transformers spells out in eight passes over memory, by torch's own with the same formula."""
    for module in mt5.modules():
        if isinstance(getattr(module, "act", None), NewGELUActivation):
            module.act = nn.GELU(approximate="tanh")


def keep_rows(mt5: Any, kept: torch.Tensor) -> None:
    """Leave of the input embeddings, and of the output matrix if there is one, the rows of some tokens.

    Args:
        mt5: whole or its encoder alone; the two matrices are not tied.
        kept: (V,) token numbers.

    Raises:
        ValueError: a token that it does not have.
    """
    embeddings = mt5.get_input_embeddings().weight.detach()
    if int(kept.max()) >= len(embeddings):
        raise ValueError(
            f"mT5 has {len(embeddings)} tokens; the weights keep token {int(kept.max())} of a larger one. Name the mT5 "
            "of training with --mt5_path."
        )
    mt5.set_input_embeddings(nn.Embedding.from_pretrained(embeddings[kept], freeze=False))
    if (head := getattr(mt5, "lm_head", None)) is not None:
        head.weight, head.out_features = nn.Parameter(head.weight.detach()[kept]), len(kept)
    for module in mt5.modules():
        if hasattr(module, "config"):
            module.config.vocab_size = len(kept)


def encode(stack: Any, embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run mT5's encoder on embedded tokens.

    The relative bias and the mask are one tensor for all layers here. In transformers each layer makes and keeps its
    own, and looks at the mask's values, for which a GPU has to stop.

    Args:
        stack: mT5's encoder.
        embeds: (B, L, D).
        mask: (B, L), 0 on padding.

    Returns:
        (B, L, D).
    """
    length = embeds.shape[1]
    bias = stack.block[0].layer[0].SelfAttention.compute_bias(length, length, device=embeds.device)  # (1, H, L, L)
    bias = bias.masked_fill(mask[:, None, None] == 0, torch.finfo(bias.dtype).min)  # (B, H, L, L)
    x = stack.dropout(embeds)
    for block in stack.block:
        x = block(x, None, bias)[0]
    return stack.dropout(stack.final_layer_norm(x))


def across(mask: torch.Tensor) -> torch.Tensor:
    """The mask of the encoder's states as a decoder takes it without looking at its values, (B, 1, 1, L)."""
    return mask[:, None, None] != 0
