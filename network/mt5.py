"""Load mT5 from a transformers folder, and run parts of it faster with the same results.

Shapes: B sequences, L tokens (padded), H attention heads, D mT5's d_model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MT5ForConditionalGeneration
from transformers.activations import NewGELUActivation
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from network.state_dicts import misfits, not_finite
from network.vocabulary import folder_config

# Its warnings about mT5 (tied weights, unused decoder weights) are known and handled here.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


class MT5(MT5ForConditionalGeneration):
    """mT5 with an output layer of its own.

    In mT5 it differs from the input embeddings, but transformers 5 ties them: it builds mT5 without the output layer's
    weight, and does not miss it in a checkpoint.
    """

    _tied_weights_keys = {f"{half}.embed_tokens.weight": "shared.weight" for half in ("encoder", "decoder")}


def load_mt5(
    folder: str | Path, *, with_weights: bool = True, kept: torch.Tensor | None = None
) -> MT5ForConditionalGeneration:
    """Load mT5 in fp32 from a local folder.

    Args:
        folder: folder with config.json and the weights.
        with_weights: False to skip loading them, for a model that gets all weights from a checkpoint.
        kept: (V,), ids of the tokens to keep; None for all.

    Raises:
        FileNotFoundError: the folder or the weights are missing.
        ValueError: the folder holds another model, or its files are unreadable or lack weights.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}/config.json does not exist. Put mT5 there (google/mt5-base) or name its folder with --mt5_path; "
            "or try the sample corpus, which has a small mT5: python -m tools.sample_data --out sample, then --root "
            "sample."
        )
    if (kind := folder_config(Path(folder)).get("model_type")) != "mt5":
        raise ValueError(f"{folder}/config.json: model_type is {kind!r}, not 'mt5'. Name mT5's folder with --mt5_path.")
    read = read_pretrained if with_weights else read_architecture
    mt5 = read(MT5, Path(folder), "--mt5_path")
    if kept is not None:
        keep_rows(mt5, kept)
    return mt5


def read_pretrained(kind: Any, folder: Path, flag: str) -> Any:
    """Load a model in fp32 from a local folder, with one-line errors; weights are never left randomly initialised.

    Args:
        kind: the transformers class to load.
        folder: folder with config and weights.
        flag: the flag for choosing another folder, for error messages.

    Raises:
        FileNotFoundError: a file is missing or cannot be opened.
        ValueError: the files are damaged, do not match, or lack weights.
    """
    cure = f"Get its files again, or name another folder with {flag}."
    try:
        model, info = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, with the rest
            output_loading_info=True,
        )
    except OSError as error:
        raise FileNotFoundError(f"{folder}: {str(error).splitlines()[0]} {cure}") from None
    except Exception as error:  # damaged weights may raise anything; report one line
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: config.json and the weights are damaged or no pair ({reason}). {cure}") from error
    # The pooler is not used for mean pooling, and many published encoders have none. Weights of modules that the model
    # does not have, such as an encoder's decoder or heads, are not needed.
    missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    names = [name.removeprefix(f"{model.base_model_prefix}.") for name in info["unexpected_keys"]]
    unknown = [name for name in names if hasattr(model, name.partition(".")[0])]
    if fault := misfits(missing, unknown, info["mismatched_keys"]):
        raise ValueError(f"{folder}: config.json and the weights are no pair; {fault}. {cure}")
    if damaged := not_finite(dict(model.named_parameters())):
        raise ValueError(f"{folder}: {damaged}. {cure}")
    return model


def read_architecture(kind: Any, folder: Path, flag: str) -> Any:
    """Build a model in fp32 from config.json, with uninitialised weights, to be loaded from a checkpoint.

    Args:
        kind: the transformers class.
        folder: folder with config.json.
        flag: the flag for choosing another folder, for error messages.

    Raises:
        ValueError: config.json is damaged.
    """
    try:
        with no_init_weights():
            model = kind(kind.config_class.from_pretrained(folder, local_files_only=True)).float()
    except Exception as error:  # a damaged config may raise anything; report one line
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}/config.json is damaged ({reason}). Name another folder with {flag}.") from error
    model.tie_weights()  # left out with the initialisation
    return model


def use_fused_activation(mt5: nn.Module) -> None:
    """Replace transformers' GELU (eight elementwise operations) by torch's fused one with the same formula."""
    for module in mt5.modules():
        if isinstance(getattr(module, "act", None), NewGELUActivation):
            module.act = nn.GELU(approximate="tanh")


def keep_rows(mt5: Any, kept: torch.Tensor) -> None:
    """Trim the input embeddings, and the output matrix if there is one, to the rows of some tokens, in place.

    Args:
        mt5: the whole model with untied embeddings, or its encoder.
        kept: (V,), token ids.

    Raises:
        ValueError: mT5 has no token of such an id.
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

    Position bias and mask are combined once for all layers. In transformers each layer makes and keeps its own copy,
    and inspects the mask's values, which forces a GPU synchronisation.

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
    """Convert a mask, (B, L), to a form that decoder layers use without inspecting its values, (B, 1, 1, L)."""
    return mask[:, None, None] != 0
