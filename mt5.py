"""mT5 from a folder, as transformers has it, and what of it is run otherwise here: the same numbers in less time.

Letters: B sequences, L their tokens (padded), H attention heads, D mT5's d_model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MT5ForConditionalGeneration
from transformers.activations import NewGELUActivation
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

# What it says about mT5 (tied weights, a decoder's weights that an encoder does not take) is known and dealt with.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def untie_embeddings(mt5: MT5ForConditionalGeneration) -> MT5ForConditionalGeneration:
    """Give the output layer a weight of its own.

    mT5's input embeddings and output layer differ, but transformers 5 ties them whenever a model is made from its
    config; loading a checkpoint would then silently overwrite the one with the other.
    """
    if mt5.lm_head.weight is mt5.shared.weight:
        mt5.lm_head.weight = nn.Parameter(mt5.shared.weight.detach().clone())
    return mt5


def load_mt5(
    folder: str | Path, *, with_weights: bool = True, kept: torch.Tensor | None = None
) -> MT5ForConditionalGeneration:
    """Load mT5 in fp32 from a local folder.

    Args:
        folder: config.json and the weights.
        with_weights: False leaves them out, for a model that gets all of them from a checkpoint.
        kept: (V,) the tokens that the model is to have, where they are not all.

    Raises:
        FileNotFoundError: no such folder or no weights in it.
        ValueError: it holds another model, or files that cannot be read or lack weights.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}/config.json does not exist. Put mT5 there (google/mt5-base) or name its folder with --mt5_path; "
            "or try the sample corpus, which has a small mT5: python sample_data.py --out sample, then --root sample."
        )
    if (kind := model_type(Path(folder))) != "mt5":
        raise ValueError(f"{folder}/config.json: model_type is {kind!r}, not 'mt5'. Name mT5's folder with --mt5_path.")
    read = read_pretrained if with_weights else read_architecture
    mt5 = untie_embeddings(read(MT5ForConditionalGeneration, Path(folder), "--mt5_path"))
    if kept is not None:
        keep_rows(mt5, kept)
    return mt5


def model_type(folder: Path) -> str:
    """Read from config.json which kind of model a folder holds; "" if it does not say."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    except (ValueError, AttributeError):
        return ""


def read_pretrained(kind: Any, folder: Path, flag: str) -> Any:
    """Load a model in fp32 from a local folder; a damaged one is one line, and never a model with random parts.

    Args:
        kind: the class of transformers to load.
        folder: config and weights.
        flag: that names another folder.

    Raises:
        FileNotFoundError: a file is missing or cannot be opened.
        ValueError: the files are damaged, do not belong together, or lack weights.
    """
    cure = f"Get its files again, or name another folder with {flag}."
    try:
        model, info = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, output_loading_info=True)
    except OSError as error:
        raise FileNotFoundError(f"{folder}: {str(error).splitlines()[0]} {cure}") from None
    except Exception as error:  # damaged weights raise nearly anything; each becomes one line
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: config.json and the weights are damaged or no pair ({reason}). {cure}") from error
    # A pooler has no part in the mean over tokens, and many published encoders come without.
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ValueError(f"{folder}: {len(missing)} weights are missing, {missing[0]} is one. {cure}")
    return model


def read_architecture(kind: Any, folder: Path, flag: str) -> Any:
    """Make a model of a folder's config.json in fp32; its weights mean nothing until a checkpoint brings them.

    Args:
        kind: the class of transformers.
        folder: with config.json.
        flag: that names another folder.

    Raises:
        ValueError: config.json is damaged.
    """
    try:
        with no_init_weights():
            return kind(kind.config_class.from_pretrained(folder, local_files_only=True)).float()
    except Exception as error:  # a damaged config raises nearly anything; each becomes one line
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}/config.json is damaged ({reason}). Name another folder with {flag}.") from error


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


def run_encoder(stack: Any, embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
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


def cross_attention_mask(mask: torch.Tensor) -> torch.Tensor:
    """The mask of the encoder's states as a decoder takes it without looking at its values, (B, 1, 1, L)."""
    return mask[:, None, None] != 0
