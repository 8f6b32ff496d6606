"""Putting a model together, and weight files: safe reading, atomic saving, and loading into a model.

A weight file (`checkpoint_{epoch}.pth`, `best_checkpoint.pth`) is `{"model": state_dict, ...}` with Uni-Sign's names.
The state dict includes the fusion modules; `best_fusion.pth` holds only these. A folder written by `tools/export.py`
has the same weights in files that other programs can read (see `read_model`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import MODEL_JSON, ModelConfig
from models import Uni_Sign
from network.mt5 import load_mt5
from network.rgb_branch import PREFIXES as RGB_PREFIXES
from network.vocabulary import KEPT_TOKENS, Tokenizer, matrices, move_rows
from pose.keypoints import PART_JOINTS
from system.disk import sync_file, write_whole
from text_fusion_modules import EncodesTexts, TextEncoder

logger = logging.getLogger(__name__)

MAPPER_PREFIX = "description_mapper."
FUSION_PREFIXES = ("gating_fusion.", "mask_embedding.", "text_adapter.", MAPPER_PREFIX)
TEXT_ENCODER_PREFIX = "text_encoder."
TEXT_PREFIXES = (*FUSION_PREFIXES, TEXT_ENCODER_PREFIX)
ENCODER_PREFIX = "text_encoder.encoder."


def assemble(
    config: ModelConfig,
    mt5_folder: str | Path,
    kept: torch.Tensor | None = None,
    texts: EncodesTexts | None = None,
    *,
    with_weights: bool = True,
) -> Uni_Sign:
    """Put a model together from its config, mT5, and the encoder of its descriptions.

    Args:
        config: its sizes and switches.
        mt5_folder: mT5's folder.
        kept: (V,), ids of the tokens of mT5 that the model keeps; None for all.
        texts: a text encoder beside the model, frozen. By default the encoder is part of a model with descriptions.
        with_weights: False to skip loading weights of mT5 and encoder, for a model that gets all from a checkpoint.

    Raises:
        FileNotFoundError: a folder or its weights are missing.
        ValueError: a folder holds another model, or is damaged.
    """
    mt5 = load_mt5(mt5_folder, with_weights=with_weights, kept=kept)
    if config.use_descriptions and texts is None:
        folder, own = (config.text_encoder, None) if config.text_encoder else (mt5_folder, kept)
        texts = TextEncoder(folder, config.text_max_tokens, with_weights=with_weights, kept=own)
    return Uni_Sign(config, mt5, Tokenizer(mt5_folder, kept), texts)


def save_weights(path: str | Path, state_dict: Mapping[str, torch.Tensor], config: ModelConfig, **facts: Any) -> None:
    """Write a weight file that also loads in Uni-Sign; the file appears only when it is complete."""
    content = {"model": dict(state_dict), "config": dataclasses.asdict(config), **facts}
    write_whole(path, partial(torch.save, content))


def fusion_weights(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return only the weights of the fusion modules."""
    return {name: value for name, value in state_dict.items() if name.startswith(FUSION_PREFIXES)}


def read_weights(path: str | Path, flag: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a .pth or .safetensors file without executing any code in it.

    Args:
        path: the file.
        flag: the flag that named it, for error messages.

    Returns:
        The state dict, and the file's other entries (config, epoch ...).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the path is a folder, or the file holds no weights that can be read safely.
    """
    if Path(path).is_dir():
        raise ValueError(f"{flag}: {path} is a folder; wanted a .pth or .safetensors file.")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{flag}: {path} does not exist.")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > Path(path).stat().st_size:
                    raise ValueError("it is a packed archive, and torch.save packs nothing")
        # Memory mapping avoids reading unused tensors: the vocabulary of a checkpoint is read before its weights.
        if Path(path).suffix == ".safetensors":
            return _read_safetensors(path), {}  # mapped by safetensors itself
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:  # torch's own message suggests executing the file
        raise ValueError(
            f"{flag}: {path} holds no weights that can be read safely: it is no file of torch.save, or asks for more "
            "than tensors and plain data. Get it again, from a source you trust."
        ) from None
    except Exception as error:  # noqa: BLE001 -- a damaged file raises nearly anything; each becomes one line
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{flag}: {path} holds no weights that can be read safely: {reason}") from None
    model = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping) or not all(_is_weight(name, value) for name, value in model.items()):
        raise ValueError(f"{flag}: {path} holds no state dict; wanted {{'model': state_dict}}.")
    return dict(model), {key: value for key, value in content.items() if key != "model"} if "model" in content else {}


def repeated(name: str) -> str:
    """Return the name under which a shared weight occurs first in the state dict, or the name itself.

    Both hands share their modules; mT5's encoder and decoder share its embeddings.

    >>> repeated("gcn_modules.right.layer0_0.gcn.A"), repeated("mt5_model.decoder.embed_tokens.weight")
    ('gcn_modules.left.layer0_0.gcn.A', 'mt5_model.shared.weight')
    """
    name = re.sub(r"^(proj_linear|gcn_modules|fusion_gcn_modules)\.right\.", r"\1.left.", name)
    return re.sub(r"(?:en|de)coder\.embed_tokens\.weight$", "shared.weight", name)


def save_safetensors(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a .safetensors file; shared weights are stored once, with the other names in its metadata, as usual.

    Args:
        path: the file, in a folder that is renamed when complete.
        weights: a state dict, or part of one.
    """
    from safetensors.torch import save_file

    shared = {name: repeated(name) for name in weights if repeated(name) != name and repeated(name) in weights}
    own = {name: value.contiguous().clone() for name, value in weights.items() if name not in shared}
    save_file(own, path, metadata={"format": "pt", **shared})
    sync_file(path)


def _read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no dict
        shared = file.metadata() or {}
    return weights | {name: weights[other] for name, other in shared.items() if other in weights}


def read_model(path: str | Path, flag: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a whole model: a weight file, or a folder written by `tools/export.py`.

    Returns:
        The same as `read_weights`; for a folder, the facts hold the current paths of its mT5 and text encoder.

    Raises:
        FileNotFoundError: the file or folder does not exist, or the folder is incomplete or not from `tools/export.py`.
        ValueError: the weights or the folder's JSON file cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        return read_weights(path, flag)
    if not (folder / MODEL_JSON).is_file():
        best = folder / "best_checkpoint.pth"
        hint = f" Did you mean {best}?" if best.is_file() else ""
        raise FileNotFoundError(
            f"{flag}: {folder} holds no {MODEL_JSON}: it is no folder that tools/export.py wrote.{hint}"
        )
    try:
        facts = json.loads((folder / MODEL_JSON).read_text(encoding="utf-8"))
        encoder = facts["text_encoder"]
        facts["config"]["text_encoder"] = str(folder / "text_encoder") if encoder else ""
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{flag}: {folder / MODEL_JSON} is damaged ({reason}). Export the model again.") from None
    parts = [("", folder), ("mt5_model.", folder / "mt5")]
    if encoder == "trained":
        parts.append((ENCODER_PREFIX, folder / "text_encoder"))
    weights: dict[str, torch.Tensor] = {}
    for prefix, part in parts:
        found, _ = read_weights(part / "model.safetensors", flag)
        weights |= {prefix + name: value for name, value in found.items()}
    return weights, {**facts, "mt5_path": str(folder / "mt5")}


def saved_settings(facts: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that a checkpoint decides: all, or what follows from Uni-Sign's weights."""
    plain: dict[str, Any] = {"rgb_support": any(name.startswith(RGB_PREFIXES) for name in weights)}
    if "part_para" in weights:
        plain["hidden_dim"] = len(weights["part_para"]) // len(PART_JOINTS)
    return dict(facts["config"]) if isinstance(facts.get("config"), Mapping) else plain


def read_config(
    path: str | Path, flag: str, facts: Mapping[str, Any], weights: Mapping[str, torch.Tensor], **given: str
) -> ModelConfig:
    """Return a checkpoint's config, with the given values replaced.

    Raises:
        ValueError: the config has unknown keys, or the weights have fusion modules of an earlier version.
    """
    try:
        own = {key: value for key, value in given.items() if value}
        config = ModelConfig(**saved_settings(facts, weights) | own)
    except TypeError as error:
        raise ValueError(f"{flag}: {path} is of another version of this code ({error}).") from None
    refuse_without_adapter(weights, f"{flag}: {path}")
    return config


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided


def kept_tokens(weights: Mapping[str, torch.Tensor], path: str | Path, flag: str) -> torch.Tensor | None:
    """Return the token ids for which weights have rows, (V,); None for all of mT5's.

    Args:
        weights: a state dict.
        path: its file, for error messages.
        flag: the flag that named it, for error messages.

    Raises:
        ValueError: the stored values are not sorted token ids.
    """
    kept = weights.get(KEPT_TOKENS)
    if kept is None:
        return None
    if kept.dtype != torch.int64 or kept.ndim != 1 or not len(kept) or kept[0] < 0 or (kept.diff() <= 0).any():
        raise ValueError(f"{flag}: {path}: its {KEPT_TOKENS} are no sorted token numbers; the file is damaged.")
    return kept.clone()


def load_finetune(model: nn.Module, path: str | Path, config: ModelConfig) -> list[str]:
    """Load the weights of `--finetune`: the base model must be complete; text branch and RGB branch may be new.

    Returns:
        Names of the model's weights that are not in the file.

    Raises:
        FileNotFoundError: the file does not exist, or the folder is not from `tools/export.py`.
        ValueError: the weights do not fit; the message gives all that differs and likely reasons.
    """
    weights, facts = read_model(path, "--finetune")
    file, own = f"--finetune: {path}", model.state_dict()
    saved = facts["config"] if isinstance(facts.get("config"), Mapping) else {}
    refuse_without_adapter(weights, file)
    if differing := list(_differing_flags(weights, saved, config)):
        raise ValueError(f"{file} {'. It '.join(differing)}.")
    if KEPT_TOKENS in own:
        _fit_vocabulary(weights, own, kept_tokens(weights, path, "--finetune"), config)
    # With equal flags the names are equal, too; any other difference has causes that can only be guessed.
    if differing := list(_differing_weights(weights, own)):
        cause = "Is it another mT5 (--mt5_path), another --hidden_dim, or no Uni-Sign checkpoint at all?"
        raise ValueError(f"{file} does not fit this model: {'; '.join(differing)}. {cause}")
    before, now = saved.get("text_encoder"), config.text_encoder
    if before and _is_fused(weights) and Path(before).resolve() != Path(now).resolve():
        logger.warning(
            "%s was trained with --text_encoder %s; this run reads %s, which must hold the same files.",
            file, before, now,
        )  # fmt: skip
    model.load_state_dict(weights, strict=False)
    new = [name for name in own if name not in weights]
    modules = Counter(name.partition(".")[0] for name in new)
    told = ", ".join(f"{module} ({count} tensors)" for module, count in modules.items())
    logger.info("--finetune %s: %d tensors loaded, new is %s.", path, len(weights), told or "nothing")
    return new


def _differing_flags(
    weights: Mapping[str, torch.Tensor], saved: Mapping[str, Any], config: ModelConfig
) -> Iterator[str]:
    """Yield what weights have that this run's flags do not ask for, and flags that have another value."""
    parts = (
        (TEXT_PREFIXES, config.use_descriptions, "was trained with descriptions; add --use_descriptions"),
        (MAPPER_PREFIX, config.uses_mapper, "holds a mapper from poses to texts; drop --description_alignment 0"),
        (RGB_PREFIXES, config.rgb_support, "is an RGB-pose checkpoint; add --rgb_support"),
    )
    for prefixes, wanted, cure in parts:
        if not wanted and any(name.startswith(prefixes) for name in weights):
            yield cure
    values: dict[str, int | str] = {"hidden_dim": config.hidden_dim}
    if _is_fused(weights) and config.use_descriptions:
        values |= {"text_max_tokens": config.text_max_tokens, "text_encoder": config.text_encoder}
    for name, value in values.items():
        # Folders of text encoders may differ, as they move; but mT5's own encoder ("") is another one.
        same = bool(saved.get(name)) == bool(value) if name == "text_encoder" else saved.get(name) == value
        if name in saved and not same:
            before, now = saved[name] or "(none)", value or "(none)"
            yield f"was trained with --{name} {before}; this run has {now}, give the same"


def _differing_weights(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Yield how weights differ from the model's own; what may be new is not missing."""
    holds_rgb = any(name.startswith(RGB_PREFIXES) for name in weights)
    may_be_new = TEXT_PREFIXES if holds_rgb else (*TEXT_PREFIXES, *RGB_PREFIXES)
    if missing := [name for name in own if name not in weights and not name.startswith(may_be_new)]:
        yield f"{len(missing)} weights are missing (first {missing[0]})"
    if unknown := [name for name in weights if name not in own]:
        yield f"{len(unknown)} are unknown (first {unknown[0]})"
    if reshaped := [name for name, value in weights.items() if name in own and value.shape != own[name].shape]:
        shapes = f"{tuple(weights[reshaped[0]].shape)} for {tuple(own[reshaped[0]].shape)}"
        yield f"{len(reshaped)} have another shape (first {reshaped[0]}: {shapes})"


def _fit_vocabulary(
    weights: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor], saved: torch.Tensor | None, config: ModelConfig
) -> None:
    """Map vocabulary rows of `weights` to a trimmed model's tokens; missing tokens keep the model's own rows."""
    kept = own[KEPT_TOKENS]
    for name in matrices(weights, config):
        rows, into = weights[name], own.get(name)
        # Matrices that do not match stay unchanged and are reported with the other misfits.
        if into is not None and rows.shape[1:] == into.shape[1:] and len(rows) > (kept.max() if saved is None else 0):
            weights[name] = move_rows(rows, saved, into, kept)
    weights[KEPT_TOKENS] = kept


def refuse_without_adapter(weights: Mapping[str, torch.Tensor], file: str) -> None:
    """Refuse fusion modules that were trained before there was a text adapter.

    Raises:
        ValueError: the weights have a gate and no adapter.
    """
    if _is_fused(weights) and "text_adapter.mean" not in weights:
        raise ValueError(
            f"{file} has fusion modules without a text adapter, of an earlier version of this code. Train them again "
            "from pose-only weights."
        )


def _is_fused(weights: Mapping[str, torch.Tensor]) -> bool:
    return any(name.startswith("gating_fusion.") for name in weights)


def load_fusion(model: nn.Module, path: str | Path) -> None:
    """Load the fusion modules of `--fusion_checkpoint` (a `best_fusion.pth`, or a whole checkpoint that has them).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a weight is missing or has another shape.
    """
    content, _ = read_weights(path, "--fusion_checkpoint")
    weights = fusion_weights(content)
    own = fusion_weights(model.state_dict())
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in own.items()}:
        differing = sorted(set(own) ^ set(weights)) or [n for n in own if own[n].shape != weights[n].shape]
        raise ValueError(
            f"--fusion_checkpoint: {path} does not hold this model's fusion modules (first difference {differing[0]}). "
            "Give a best_fusion.pth made with the same mT5 and text encoder."
        )
    model.load_state_dict(weights, strict=False)
    logger.info("--fusion_checkpoint %s: %d tensors loaded.", path, len(weights))
