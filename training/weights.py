"""Putting a model together, and loading weights into it."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from config import ModelConfig
from models import Uni_Sign
from network.mt5 import load_mt5
from network.rgb_branch import PREFIXES as RGB_PREFIXES
from network.state_dicts import differences
from network.vocabulary import KEPT_TOKENS, Tokenizer, matrices, move_rows
from pose.keypoints import PART_JOINTS
from system.faults import shown
from text_fusion_modules import EncodesTexts, TextEncoder, encoder_fingerprint
from training.weight_files import read_weights

logger = logging.getLogger(__name__)

_Fact = TypeVar("_Fact")

FUSED = "gating_fusion."  # weights that every model with descriptions has
MAPPER_PREFIX = "description_mapper."
FUSION_PREFIXES = (FUSED, "mask_embedding.", "text_adapter.", MAPPER_PREFIX)
TEXT_ENCODER_PREFIX = "text_encoder."
TEXT_PREFIXES = (*FUSION_PREFIXES, TEXT_ENCODER_PREFIX)
NEW_PREFIXES = (*TEXT_PREFIXES, *RGB_PREFIXES)  # weights that a base model may lack

OTHER_FLAG = "was trained with --{0} {1}; this run has {2}, give the same"
FROZEN_ENCODER = "the frozen text encoder"  # its name in `files_beside`
# Of mT5's config.json: what changes no weight's shape.
MT5_VALUES = ("num_heads", "layer_norm_epsilon", "relative_attention_max_distance", "dense_act_fn")


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
        config, mt5_folder: the model's sizes and switches, and its mT5.
        kept: (V,), ids of the tokens of mT5 that the model keeps; None for all.
        texts: a text encoder beside the model, frozen. By default the encoder is part of a model with descriptions.
        with_weights: False to skip loading weights of mT5 and encoder, for a model that gets all from a checkpoint.

    Raises:
        FileNotFoundError, ValueError: a folder or its weights are missing, damaged, or of another model.
    """
    mt5 = load_mt5(mt5_folder, with_weights=with_weights, kept=kept)
    if config.use_descriptions and texts is None:
        folder, own = (config.text_encoder, None) if config.text_encoder else (mt5_folder, kept)
        texts = TextEncoder(folder, config.text_max_tokens, with_weights=with_weights, kept=own)
    return Uni_Sign(config, mt5, Tokenizer(mt5_folder, kept), texts)


def fusion_weights(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return only the weights of the fusion modules."""
    return {name: value for name, value in state_dict.items() if name.startswith(FUSION_PREFIXES)}


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and what their file says of them."""

    named: str  # the flag and the path that named the file, for messages
    weights: dict[str, torch.Tensor]  # the state dict
    facts: dict[str, Any]  # the file's other entries; none in Uni-Sign's weights

    @classmethod
    def read(cls, path: str | Path, flag: str) -> Checkpoint:
        """Read the file or folder that a flag names; raises what `read_weights` raises."""
        return cls(f"{flag}: {path}", *read_weights(path, flag))

    def holds(self, prefixes: str | tuple[str, ...]) -> bool:
        """Return whether it has weights whose names begin so."""
        return any(name.startswith(prefixes) for name in self.weights)

    @property
    def stated(self) -> dict[str, Any]:
        """The fields of `ModelConfig` that the file states; none in Uni-Sign's weights."""
        config = self.facts.get("config")
        return dict(config) if isinstance(config, Mapping) else {}

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of `ModelConfig` that it decides: what it states, or what follows from its weights."""
        plain: dict[str, Any] = {"rgb_support": self.holds(RGB_PREFIXES)}
        if "part_para" in self.weights:
            plain["hidden_dim"] = self.weights["part_para"].numel() // len(PART_JOINTS)
        return self.stated or plain

    def fact(self, name: str, default: _Fact) -> _Fact:
        """Return an entry that this code writes, or the default if there is none; ValueError for another type."""
        value = self.facts.get(name, default)
        if not _is_plain(value, type(default)):
            kind = shown(value) if isinstance(value, str | bool) else f"of the type {type(value).__name__}"
            raise ValueError(f"{self.named} says {name} {kind}. Get it again, or name the right one: --{name}.")
        return value

    def config(self, **given: str) -> ModelConfig:
        """Return the model's config, with the given values replaced.

        Raises:
            ValueError: the config has unknown keys or another width than the weights, or these have fusion modules of
                an earlier version.
        """
        try:
            values = self.settings | {key: value for key, value in given.items() if value}
            for field in dataclasses.fields(ModelConfig):
                value = values.get(field.name, field.default)
                if not _is_plain(value, type(field.default)):
                    raise TypeError(f"{field.name} is {shown(value)}")
            config = ModelConfig(**values)
        except TypeError as error:
            raise ValueError(f"{self.named} is of another version of this code ({error}).") from None
        self.refuse_without_adapter()
        width, held = config.hidden_dim, sum(value.numel() for value in self.weights.values())
        # The second: a model is never built larger than a small file of others allows.
        wrong = "part_para" in self.weights and self.weights["part_para"].numel() != width * len(PART_JOINTS)
        if wrong or ("part_para" in self.weights and held < width**2):
            raise ValueError(f"{self.named} says hidden_dim {width}, but its weights have another width.")
        return config

    def whole_config(self, **given: str) -> ModelConfig:
        """Return a whole model's config; raises as `config`, or if there is no whole model."""
        config = self.config(**given)
        if not self.holds("mt5_model."):
            raise ValueError(f"{self.named} holds no whole model; give best_checkpoint.pth or a checkpoint_*.pth.")
        return config

    @property
    def kept(self) -> torch.Tensor | None:
        """The token ids for which it has rows, (V,), None for all of mT5's; ValueError if they are not sorted."""
        kept = self.weights.get(KEPT_TOKENS)
        if kept is None:
            return None
        if kept.dtype != torch.int64 or kept.ndim != 1 or not len(kept) or kept[0] < 0 or (kept.diff() <= 0).any():
            raise ValueError(f"{self.named}: its {KEPT_TOKENS} are no sorted token numbers; the file is damaged.")
        return kept.clone()

    def mt5_folder(self) -> str:
        """Return the folder of its mT5; ValueError if it names none, FileNotFoundError if that is gone."""
        folder = self.fact("mt5_path", "")
        if not folder:
            raise ValueError(
                f"{self.named} does not say where its mT5 is; name the folder with its config.json and spiece.model "
                "with --mt5_path."
            )
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(
                f"{self.named} was trained with the mT5 in {folder}, which has no config.json. Name the mT5 of "
                "training with --mt5_path."
            )
        return folder

    def shell(self, config: ModelConfig, mt5_folder: str | Path, texts: EncodesTexts | None = None) -> Uni_Sign:
        """Return the model that its weights belong to, without memory for them; arguments and errors as `assemble`.

        Raises:
            ValueError: the weights do not fit it.
        """
        with torch.device("meta"):  # takes no memory, whatever sizes a file of others asks for
            shell = assemble(config, mt5_folder, self.kept, texts, with_weights=False)
        if misfit := differences(self.weights, shell.state_dict()):
            raise ValueError(
                f"{self.named} does not fit the mT5 in {mt5_folder}, or is no whole model of this code: {misfit}. Name "
                "the mT5 and the text encoder of training: --mt5_path, --text_encoder."
            )
        return shell

    def refuse_without_adapter(self) -> None:
        """Raise ValueError for fusion modules without a text adapter, of an earlier version of this code."""
        if self.holds(FUSED) and "text_adapter.mean" not in self.weights:
            raise ValueError(
                f"{self.named} has fusion modules without a text adapter, of an earlier version of this code. Train "
                "them again from pose-only weights."
            )


def _is_plain(value: Any, kind: type) -> bool:
    """Return whether a file's value is of a type: True is no number, and no text has lines or control characters."""
    if isinstance(value, str) and min(value, default=" ") < " ":
        return False
    return type(value) is kind or (kind is float and type(value) is int)


def files_beside(model: Uni_Sign) -> dict[str, Any]:
    """Return what decides a model's sentences beside its weights and its config: what it reads from other files."""
    mt5 = model.mt5_model.config
    found = {f"mT5's {name}": getattr(mt5, name) for name in MT5_VALUES}
    found["mT5's spiece.model"] = model.tokenizer.sha256
    if fingerprint := getattr(getattr(model, "text_encoder", None), "fingerprint", ""):
        found[FROZEN_ENCODER] = fingerprint
    elif model.config.use_descriptions and model.config.text_encoder and isinstance(model.text_encoder, TextEncoder):
        folder, most = model.config.text_encoder, model.config.text_max_tokens
        found["the text encoder's tokenizer"] = encoder_fingerprint(folder, most, weights=False)
    return found


def differing_files(facts: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return one sentence on what a model reads from other files than the training of a checkpoint did, or ""."""
    files = facts.get("files")
    saved = {name: files[name] for name in own if name in files} if isinstance(files, Mapping) else {}
    names = [name for name, value in saved.items() if type(value) is not type(own[name]) or value != own[name]]
    cure = "Name those of training: --mt5_path, --text_encoder."
    return f"was trained with other files; different are: {', '.join(names)}. {cure}" if names else ""


def load_finetune(model: Uni_Sign, path: str | Path, *, evaluated: bool = False) -> list[str]:
    """Load the weights of `--finetune`: the base model must be complete; text branch and RGB branch may be new.

    If the model's `files_beside` are others than in the training of the weights, it warns, or refuses weights that are
    only `evaluated`.

    Returns:
        Names of the model's weights that are not in the file.

    Raises:
        FileNotFoundError: the file does not exist, or the folder is not from `tools/export.py`.
        ValueError: the weights do not fit; the message gives all that differs and likely reasons.
    """
    checkpoint, own = Checkpoint.read(path, "--finetune"), model.state_dict()
    weights = checkpoint.weights
    checkpoint.refuse_without_adapter()
    if differing := list(_differing_flags(checkpoint, model.config)):
        raise ValueError(f"{checkpoint.named} {'. It '.join(differing)}.")
    if KEPT_TOKENS in own:
        _fit_vocabulary(weights, own, checkpoint.kept, model.config)
    # With equal flags the names are equal, too; any other difference has causes that can only be guessed.
    may_be_new = TEXT_PREFIXES if checkpoint.holds(RGB_PREFIXES) else NEW_PREFIXES
    if misfit := differences(weights, own, {name for name in own if name.startswith(may_be_new)}):
        cause = "Is it another mT5 (--mt5_path), another --hidden_dim, or no Uni-Sign checkpoint at all?"
        raise ValueError(f"{checkpoint.named} does not fit this model: {misfit}. {cause}")
    _refuse_or_say(checkpoint, differing_files(checkpoint.facts, files_beside(model)), evaluated=evaluated)
    model.load_state_dict(weights, strict=False)
    new = [name for name in own if name not in weights]
    modules = Counter(name.partition(".")[0] for name in new)
    told = ", ".join(f"{module} ({count} tensors)" for module, count in modules.items())
    logger.info("--finetune %s: %d tensors loaded, new is %s.", path, len(weights), told or "nothing")
    return new


def _differing_flags(checkpoint: Checkpoint, config: ModelConfig) -> Iterator[str]:
    """Yield what a checkpoint has that this run's flags do not ask for, and flags that have another value."""
    saved = checkpoint.stated
    parts = (
        (TEXT_PREFIXES, config.use_descriptions, "was trained with descriptions; add --use_descriptions"),
        (MAPPER_PREFIX, config.uses_mapper, "holds a mapper from poses to texts; drop --description_alignment 0"),
        (RGB_PREFIXES, config.rgb_support, "is an RGB-pose checkpoint; add --rgb_support"),
    )
    for prefixes, wanted, cure in parts:
        if not wanted and checkpoint.holds(prefixes):
            yield cure
    if checkpoint.holds(FUSED) and config.use_descriptions:
        yield from _differing_text_flags(saved, config)


def _differing_text_flags(saved: Mapping[str, Any], config: ModelConfig) -> Iterator[str]:
    if saved.get("text_max_tokens", config.text_max_tokens) != config.text_max_tokens:
        yield OTHER_FLAG.format("text_max_tokens", saved["text_max_tokens"], config.text_max_tokens)
    # Folders of text encoders may differ, as they move; but mT5's own encoder ("") is another one.
    if bool(saved.get("text_encoder", config.text_encoder)) != bool(config.text_encoder):
        yield OTHER_FLAG.format("text_encoder", saved["text_encoder"] or "(none)", config.text_encoder or "(none)")


def _refuse_or_say(checkpoint: Checkpoint, others: str, *, evaluated: bool) -> None:
    """Say, or if `evaluated` refuse, that a model reads `others` than the training of its weights did."""
    if others and evaluated:
        raise ValueError(f"{checkpoint.named} {others}")
    if others:
        logger.warning("%s %s", checkpoint.named, others)


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


def load_fusion(model: Uni_Sign, path: str | Path, *, evaluated: bool = False, encoder_loaded: bool = False) -> None:
    """Load the fusion modules of `--fusion_checkpoint`, which belong to the text encoder that they were trained with.

    If that is another one than the model's it warns, or refuses modules that are only `evaluated`. `encoder_loaded`:
    the model's encoder came with other weights.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it has no fusion modules that fit, or those of another kind of encoder.
    """
    checkpoint = Checkpoint.read(path, "--fusion_checkpoint")
    weights = fusion_weights(checkpoint.weights)
    if misfit := differences(weights, fusion_weights(model.state_dict())):
        raise ValueError(
            f"{checkpoint.named} does not hold this model's fusion modules: {misfit}. Give a best_fusion.pth made with "
            "the same mT5 and text encoder."
        )
    if differing := list(_differing_text_flags(checkpoint.stated, model.config)):
        raise ValueError(f"{checkpoint.named} {'. It '.join(differing)}.")
    others, saved = differing_files(checkpoint.facts, files_beside(model)), checkpoint.facts.get("files")
    if isinstance(saved, Mapping) and FROZEN_ENCODER not in saved and not encoder_loaded:
        others = "was trained together with its text encoder, which is in the whole checkpoint alone: --finetune."
    _refuse_or_say(checkpoint, others, evaluated=evaluated)
    model.load_state_dict(weights, strict=False)
    logger.info("--fusion_checkpoint %s: %d tensors loaded.", path, len(weights))
