"""What a run leaves on disk: weights to use elsewhere, and states to resume from. Every write is complete or absent.

Weights (`checkpoint_{epoch}.pth`, `best_checkpoint.pth`) are `{"model": state_dict, ...}` with Uni-Sign's names; the
fusion modules' weights lie beside them in the same dict, and alone in `best_fusion.pth`. States are folders under
`output_dir/resume`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import ModelConfig
from distributed import barrier, gather, is_main, rank, world_size

logger = logging.getLogger(__name__)

FUSION_PREFIXES = ("gating_fusion.", "mask_embedding.", "text_projection.")
TEXT_ENCODER_PREFIX = "text_encoder."


# -- weights ---------------------------------------------------------------------------------------------------------


def save_weights(path: str | Path, state_dict: Mapping[str, torch.Tensor], config: ModelConfig, **facts: Any) -> None:
    """Write weights that load here and in Uni-Sign; the file appears only when it is whole."""
    content = {"model": dict(state_dict), "config": dataclasses.asdict(config), **facts}
    unfinished = Path(f"{path}.unfinished")
    with open(unfinished, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def fusion_weights(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the fusion modules alone."""
    return {name: value for name, value in state_dict.items() if name.startswith(FUSION_PREFIXES)}


def read_weights(path: str | Path, flag: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a .pth or .safetensors file without running anything that it may hold.

    Args:
        path: the file.
        flag: the flag that named it, for the message.

    Returns:
        The state dict, and whatever lies beside it in the file (config, epoch ...).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no weights.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{flag}: {path} does not exist.")
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path), {}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{flag}: {path} holds no weights that can be read safely: {reason}") from None
    model = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping) or not all(isinstance(value, torch.Tensor) for value in model.values()):
        raise ValueError(f"{flag}: {path} holds no state dict; wanted {{'model': state_dict}}.")
    return dict(model), {key: value for key, value in content.items() if key != "model"} if "model" in content else {}


def load_finetune(model: nn.Module, path: str | Path, config: ModelConfig) -> None:
    """Start from the weights of `--finetune`: all of the base model must be there, the text branch may be new.

    Raises:
        FileNotFoundError: no such file.
        ValueError: weights that do not fit, and why that may be.
    """
    weights, facts = read_weights(path, "--finetune")
    saved = facts.get("config", {})
    if saved.get("use_descriptions") and not config.use_descriptions:
        raise ValueError(f"--finetune: {path} was trained with descriptions; add --use_descriptions.")
    of_text = ["text_encoder", "text_max_tokens"] if saved.get("use_descriptions") else []
    for key in ["hidden_dim", *of_text] if saved else []:
        if saved[key] != getattr(config, key):
            raise ValueError(
                f"--finetune: {path} was trained with --{key} {saved[key] or '(none)'}; this run has "
                f"{getattr(config, key) or '(none)'}. Give the same."
            )
    own = model.state_dict()
    text_branch = (*FUSION_PREFIXES, TEXT_ENCODER_PREFIX)
    holds_encoder = [any(name.startswith(TEXT_ENCODER_PREFIX) for name in names) for names in (weights, own)]
    if holds_encoder == [True, False] and config.use_descriptions:
        raise ValueError(
            f"--finetune: {path} holds a trained text encoder; --text_encoder_freeze would use the one of its folder. "
            "Drop --text_encoder_freeze (with --trainable fusion the encoder stays as it is)."
        )
    missing = [name for name in own if name not in weights and not name.startswith(text_branch)]
    unknown = [name for name in weights if name not in own]
    reshaped = [name for name, value in weights.items() if name in own and value.shape != own[name].shape]
    if missing or unknown or reshaped:
        raise ValueError(_misfit(path, weights, own, missing, unknown, reshaped))
    model.load_state_dict(weights, strict=False)
    new = [name for name in own if name not in weights]
    logger.info("--finetune %s: %d tensors loaded, %d of the text branch are new.", path, len(weights), len(new))


def _misfit(
    path: str | Path,
    weights: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    missing: list[str],
    unknown: list[str],
    reshaped: list[str],
) -> str:
    seen = []
    if missing:
        seen.append(f"{len(missing)} weights are missing (first {missing[0]})")
    if unknown:
        seen.append(f"{len(unknown)} are unknown (first {unknown[0]})")
    if reshaped:
        first = reshaped[0]
        shapes = f"{tuple(weights[first].shape)} for {tuple(own[first].shape)}"
        seen.append(f"{len(reshaped)} have another shape (first {first}: {shapes})")
    cause = "Is it another mT5 (--mt5_path), an RGB-pose checkpoint, or no Uni-Sign checkpoint at all?"
    return f"--finetune: {path} does not fit this model: {'; '.join(seen)}. {cause}"


def load_fusion(model: nn.Module, path: str | Path) -> None:
    """Load the fusion modules of `--fusion_checkpoint` (a `best_fusion.pth`, or a whole checkpoint that has them).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a weight of the fusion modules is missing or has another shape.
    """
    weights = fusion_weights(read_weights(path, "--fusion_checkpoint")[0])
    own = fusion_weights(model.state_dict())
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in own.items()}:
        differing = sorted(set(own) ^ set(weights)) or [n for n in own if own[n].shape != weights[n].shape]
        raise ValueError(
            f"--fusion_checkpoint: {path} does not hold this model's fusion modules (first difference {differing[0]}). "
            "Give a best_fusion.pth made with the same mT5 and text encoder."
        )
    model.load_state_dict(weights, strict=False)
    logger.info("--fusion_checkpoint %s: %d tensors loaded.", path, len(weights))


# -- states to resume from -------------------------------------------------------------------------------------------


@dataclass
class TrainState:
    """Where a run stands.

    Attributes:
        epoch: the epoch under way, from 0.
        micro_batch: how many of its micro-batches are done.
        step: optimizer steps taken in all.
        best: the best score on dev so far.
        revision: git revision of the code.
        arguments: the command line, as a dict.
        lr: the learning rate of the last step.
        epoch_sums: this process's sums over the epoch under way, so that its means come out as without a pause.
    """

    epoch: int = 0
    micro_batch: int = 0
    step: int = 0
    best: float | None = None
    lr: float = 0.0
    revision: str = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    epoch_sums: dict[str, float] = dataclasses.field(default_factory=dict)


def resume_dir(output_dir: str | Path) -> Path:
    """Where a run's states lie."""
    return Path(output_dir) / "resume"


def save_state(engine: Any, state: TrainState, output_dir: str | Path, keep_last: int) -> Path:
    """Save all that a resumed run needs to continue as if it had not stopped; every process calls this.

    The folder gets its name, step_{step}, when every process has written its part.
    """
    folder = resume_dir(output_dir)
    target = folder / f"step_{state.step:08d}"
    unfinished = folder / f"unfinished_{state.step:08d}"
    if is_main():
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    barrier()
    engine.save_checkpoint(str(unfinished), tag="engine", save_latest=False)
    own: dict[str, Any] = {"cpu": torch.get_rng_state(), "epoch_sums": state.epoch_sums}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    torch.save(own, unfinished / f"process_{rank()}.pt")
    gather(None)  # all parts are written
    if is_main():
        write_progress(unfinished, state)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(unfinished, target)
        _forget(sorted(folder.glob("step_*")), keep_last)
    barrier()
    return target


def write_progress(folder: Path, state: TrainState) -> None:
    """Write where the run stands into a state's folder; alone, when only that has changed since it was saved."""
    unfinished = folder / "state.json.unfinished"
    unfinished.write_text(json.dumps(dataclasses.asdict(state), indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / "state.json")


def set_aside(output_dir: str | Path) -> None:
    """Move states and curves of an earlier run to `earlier/`, so that a new run in its folder is not mixed with it."""
    left = [Path(output_dir) / name for name in ("resume", "log.txt", "steps.jsonl")]
    left = [path for path in left if path.exists()]
    if left:
        earlier = Path(output_dir) / "earlier"
        shutil.rmtree(earlier, ignore_errors=True)
        earlier.mkdir()
        for path in left:
            path.rename(earlier / path.name)
        logger.warning("%s holds an earlier run: its states and curves now lie in %s.", output_dir, earlier)


def trim_curves(output_dir: str | Path, state: TrainState) -> None:
    """Drop what an interrupted run logged after the state from which it goes on."""
    for name, key, kept in (("log.txt", "epoch", state.epoch - 1), ("steps.jsonl", "step", state.step)):
        path = Path(output_dir) / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            path.write_text("".join(f"{line}\n" for line in lines if json.loads(line)[key] <= kept), encoding="utf-8")


def find_state(resume: str, output_dir: str | Path) -> Path | None:
    """The folder of `--resume`: the newest state of the output folder for "auto", else the folder itself.

    Returns:
        None for "auto" where no state was saved yet: the run starts at the beginning.

    Raises:
        FileNotFoundError: the folder named holds no state.
    """
    if resume == "auto":
        states = sorted(path for path in resume_dir(output_dir).glob("step_*") if (path / "state.json").is_file())
        return states[-1] if states else None
    path = Path(resume)
    if (path / "state.json").is_file():
        return path
    raise FileNotFoundError(
        f"--resume: {path} holds no state (state.json). Name a folder under OUTPUT_DIR/resume, or auto."
    )


# Flags that must not change between the parts of a run: with another value the resumed run would be another experiment.
FIXED_FLAGS = (
    "dataset",
    "dataset_config",
    "task",
    "max_length",
    "length_grouping",
    "hidden_dim",
    "label_smoothing",
    "use_descriptions",
    "text_dropout_p",
    "text_encoder",
    "text_encoder_freeze",
    "text_max_tokens",
    "trainable",
    "finetune",
    "fusion_checkpoint",
    "epochs",
    "batch_size",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "opt",
    "sched",
    "lr",
    "min_lr",
    "warmup_epochs",
    "weight_decay",
    "seed",
    "zero_stage",
    "dtype",
    "uni_sign_padding",
)


def load_state(engine: Any, folder: Path, arguments: Mapping[str, Any]) -> TrainState:
    """Put engine and random numbers back to where the state was saved.

    Raises:
        ValueError: the command line asks for another experiment than the one that was saved.
    """
    state = TrainState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    for name in FIXED_FLAGS:
        if state.arguments.get(name) != arguments[name]:
            raise ValueError(
                f"--resume: {folder} was saved with --{name} {state.arguments.get(name)}; this run has "
                f"{arguments[name]}. Give the same, or start a new run in another --output_dir."
            )
    n_saved = len(list(folder.glob("process_*.pt")))
    if n_saved != world_size():
        raise ValueError(
            f"--resume: {folder} was saved by {n_saved} processes, now there are {world_size()}. Start as many."
        )
    engine.load_checkpoint(str(folder), tag="engine")
    own = torch.load(folder / f"process_{rank()}.pt", map_location="cpu", weights_only=True)
    torch.set_rng_state(own["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])
    # At the end of an epoch only state.json is written anew: the sums in the other files are of the epoch before.
    return dataclasses.replace(state, epoch_sums=own["epoch_sums"] if state.micro_batch else {})


def forget_checkpoints(output_dir: str | Path, keep_last: int) -> None:
    """Delete all but the newest `checkpoint_{epoch}.pth`; 0 keeps all."""
    numbered = [
        path for path in Path(output_dir).glob("checkpoint_*.pth") if re.fullmatch(r"checkpoint_\d+", path.stem)
    ]
    _forget(sorted(numbered, key=lambda path: int(path.stem.split("_")[1])), keep_last)


def _forget(paths: list[Path], keep_last: int) -> None:
    for path in paths[:-keep_last] if keep_last else []:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
