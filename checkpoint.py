"""What a run leaves on disk: weights to use elsewhere, and states to resume from. Every write is complete or absent.

Weights (`checkpoint_{epoch}.pth`, `best_checkpoint.pth`) are `{"model": state_dict, ...}` with Uni-Sign's names; the
fusion modules' weights lie beside them in the same dict, and alone in `best_fusion.pth`. States are folders under
`output_dir/resume`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import ModelConfig
from disk import UNFINISHED, explain, new_folder, read_lines, remove_folder, sha256, write_text, write_whole
from distributed import from_main, gather, is_main, rank, share_weights, world_size
from rgb_fusion import PREFIXES as RGB_PREFIXES
from zero_state import full_state_dict, optimizer_numbers, optimizer_tensors, restore_optimizer

logger = logging.getLogger(__name__)

MAPPER_PREFIX = "description_mapper."
FUSION_PREFIXES = ("gating_fusion.", "mask_embedding.", "text_projection.", MAPPER_PREFIX)
TEXT_ENCODER_PREFIX = "text_encoder."


# -- weights ---------------------------------------------------------------------------------------------------------


def save_weights(path: str | Path, state_dict: Mapping[str, torch.Tensor], config: ModelConfig, **facts: Any) -> None:
    """Write weights that load here and in Uni-Sign; the file appears only when it is whole."""
    content = {"model": dict(state_dict), "config": dataclasses.asdict(config), **facts}
    write_whole(path, partial(torch.save, content))


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
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > Path(path).stat().st_size:
                    raise ValueError("it is a packed archive, and torch.save packs nothing")
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path), {}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 -- a damaged file raises nearly anything; each becomes one line
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{flag}: {path} holds no weights that can be read safely: {reason}") from None
    model = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping) or not all(_is_weight(name, value) for name, value in model.items()):
        raise ValueError(f"{flag}: {path} holds no state dict; wanted {{'model': state_dict}}.")
    return dict(model), {key: value for key, value in content.items() if key != "model"} if "model" in content else {}


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided


def load_finetune(model: nn.Module, path: str | Path, config: ModelConfig) -> list[str]:
    """Start from the weights of `--finetune`: all of the base model must be there, text and RGB branch may be new.

    Returns:
        Names of the model's weights that are new.

    Raises:
        FileNotFoundError: no such file.
        ValueError: weights that do not fit, and why that may be.
    """
    weights, facts = read_weights(path, "--finetune")
    saved = facts.get("config")
    saved = saved if isinstance(saved, Mapping) else {}
    if saved.get("use_descriptions") and not config.use_descriptions:
        raise ValueError(f"--finetune: {path} was trained with descriptions; add --use_descriptions.")
    of_text = ["text_encoder", "text_max_tokens"] if saved.get("use_descriptions") else []
    for key in ["hidden_dim", *of_text]:
        if key in saved and saved[key] != getattr(config, key):
            raise ValueError(
                f"--finetune: {path} was trained with --{key} {saved[key] or '(none)'}; this run has "
                f"{getattr(config, key) or '(none)'}. Give the same."
            )
    own = model.state_dict()
    holds_rgb = any(name.startswith(RGB_PREFIXES) for name in weights)
    if holds_rgb and not config.rgb_support:
        raise ValueError(f"--finetune: {path} is an RGB-pose checkpoint; add --rgb_support.")
    text_branch = (*FUSION_PREFIXES, TEXT_ENCODER_PREFIX)
    holds_encoder = [any(name.startswith(TEXT_ENCODER_PREFIX) for name in names) for names in (weights, own)]
    if holds_encoder == [True, False] and config.use_descriptions:
        raise ValueError(
            f"--finetune: {path} holds a trained text encoder; --text_encoder_freeze would use the one of its folder. "
            "Drop --text_encoder_freeze (with --trainable fusion the encoder stays as it is)."
        )
    if config.use_descriptions and not config.uses_mapper and any(name.startswith(MAPPER_PREFIX) for name in weights):
        raise ValueError(
            f"--finetune: {path} holds a mapper from poses to texts. Add --missing_text mapper to use it where a text "
            "is missing, or --description_alignment W to leave missing texts to the mask embedding."
        )
    may_be_new = text_branch if holds_rgb else (*text_branch, *RGB_PREFIXES)
    missing = [name for name in own if name not in weights and not name.startswith(may_be_new)]
    unknown = [name for name in weights if name not in own]
    reshaped = [name for name, value in weights.items() if name in own and value.shape != own[name].shape]
    if missing or unknown or reshaped:
        raise ValueError(_misfit(path, weights, own, missing, unknown, reshaped))
    model.load_state_dict(weights, strict=False)
    new = [name for name in own if name not in weights]
    modules = Counter(name.partition(".")[0] for name in new)
    told = ", ".join(f"{module} ({count} tensors)" for module, count in modules.items())
    logger.info("--finetune %s: %d tensors loaded, new is %s.", path, len(weights), told or "nothing")
    return new


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
    cause = "Is it another mT5 (--mt5_path), another --hidden_dim, or no Uni-Sign checkpoint at all?"
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
        n_processes: how many there are.
        digests: file -> SHA-256 of the state's other files.
        epoch_sums: this process's sums over the epoch under way, so that its means come out as without a pause.
    """

    epoch: int = 0
    micro_batch: int = 0
    step: int = 0
    best: float | None = None
    lr: float = 0.0
    revision: str = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    n_processes: int = 1
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    epoch_sums: dict[str, float] = dataclasses.field(default_factory=dict)


class SaveError(Exception):
    """Something could not be written, on a full disk for example; what was saved before is whole."""


def write_on_main(path: str | Path, write: Callable[..., object], *arguments: Any) -> None:
    """Let rank 0 write; all processes learn how it went.

    Raises:
        SaveError: on all of them; `path` is where to look for free space.
    """
    failure = ""
    if is_main():
        try:
            write(*arguments)
        except OSError as error:
            failure = explain(error, path)
    if failure := from_main(failure):
        raise SaveError(failure)


def resume_dir(output_dir: str | Path) -> Path:
    """Where a run's states lie."""
    return Path(output_dir) / "resume"


def save_state(engine: Any, state: TrainState, folder: Path, keep_last: int = 0) -> Path:
    """Save all that a resumed run needs to continue as if it had not stopped; every process calls this.

    Rank 0 alone writes. The folder gets its name, step_{step}, when all of it is on the disk. Its content depends
    neither on the number of processes nor on the ZeRO stage: weights and the optimizer's memory lie in it by name and
    in fp32.

    Raises:
        SaveError: it cannot be written.
    """
    target = folder / f"step_{state.step:08d}"
    parts = _parts(engine, state)
    failure = ""
    if is_main():
        try:
            for left in folder.glob(f"{UNFINISHED}*"):  # of a run that was killed
                shutil.rmtree(left)
            with new_folder(target) as unfinished:
                digests = {}
                for name, content in parts:
                    digests[name] = write_whole(unfinished / name, partial(torch.save, content))
                write_progress(unfinished, dataclasses.replace(state, digests=digests))
            state.digests = digests
            _forget(sorted(folder.glob("step_*")), keep_last)
        except OSError as error:
            failure = explain(error, target)
    for _ in parts:  # those who do not write, or cannot, take part all the same
        pass
    if failure := from_main(failure):
        raise SaveError(failure)
    return target


def _parts(engine: Any, state: TrainState) -> Iterator[tuple[str, Any]]:
    """File name and content of all that is in a state; the content is rank 0's. All processes must go through it."""
    own: dict[str, Any] = {"cpu": torch.get_rng_state(), "epoch_sums": state.epoch_sums}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    yield "processes.pt", gather(own)
    yield "weights.pt", full_state_dict(engine)
    for kind, tensors in optimizer_tensors(engine):
        yield f"optimizer_{kind}.pt", tensors
    yield "optimizer.pt", optimizer_numbers(engine)


def write_progress(folder: Path, state: TrainState) -> None:
    """Write where the run stands into a state's folder; alone, when only that has changed since it was saved."""
    content = {**dataclasses.asdict(state), "epoch_sums": {}}
    content = {"sha256": _digest(content), **content}
    write_text(folder / "state.json", json.dumps(content, indent=1) + "\n")


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_progress(folder: Path) -> TrainState:
    """Read a state's `state.json`, and make sure that all it names is there and as it was written.

    Raises:
        ValueError: the state is damaged; one line that names the file.
    """
    path = folder / "state.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("sha256") != _digest(content):
            raise ValueError("checksum differs")
        state = TrainState(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}).") from None
    for name, digest in state.digests.items():
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise ValueError(f"{folder / name} cannot be read ({error.strerror}).") from None
        if found != digest:
            raise ValueError(f"{folder / name} is damaged: its checksum is not the one that was saved.")
    return state


def set_aside(output_dir: str | Path) -> None:
    """Move states and curves of an earlier run to `earlier/`, so that a new run in its folder is not mixed with it."""
    names = ("resume", "run.json", "tensorboard", "log.txt", "steps.jsonl", "bad_clips.jsonl")
    left = [Path(output_dir) / name for name in names]
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
            lines = [json.dumps(line, ensure_ascii=False) for line in read_lines(path) if line[key] <= kept]
            write_text(path, "".join(f"{line}\n" for line in lines))


def find_state(resume: str, output_dir: str | Path) -> tuple[Path, TrainState] | None:
    """The state of `--resume`: for "auto" the newest whole one of the output folder, else that of the folder named.

    Returns:
        None for "auto" where no state was saved yet: the run starts at the beginning.

    Raises:
        FileNotFoundError: the folder named holds no state.
        ValueError: the state named, or every state for "auto", is damaged.
    """
    if resume == "auto":
        folders = sorted(resume_dir(output_dir).glob("step_*"), reverse=True)
        for folder in folders:
            try:
                return folder, read_progress(folder)
            except ValueError as error:
                logger.warning("--resume auto: %s The state before it is looked at.", error)
        if folders:
            raise ValueError(
                f"--resume auto: all {len(folders)} states in {resume_dir(output_dir)} are damaged. Start without "
                "--resume, with --finetune and a checkpoint_*.pth of this run for example."
            )
        return None
    path = Path(resume)
    if not (path / "state.json").is_file():
        raise FileNotFoundError(
            f"--resume: {path} holds no state (state.json). Name a folder under OUTPUT_DIR/resume, or auto."
        )
    try:
        return path, read_progress(path)
    except ValueError as error:
        raise ValueError(f"--resume: {error} Name another state, or auto.") from None


# Flags that must not change between the parts of a run: with another value the resumed run would be another experiment.
FIXED_FLAGS = (
    "dataset",
    "dataset_config",
    "task",
    "max_length",
    "length_grouping",
    "hidden_dim",
    "label_smoothing",
    "rgb_support",
    "rgb_backbone",
    "use_descriptions",
    "text_dropout_p",
    "text_encoder",
    "text_encoder_freeze",
    "text_max_tokens",
    "description_alignment",
    "missing_text",
    "trainable",
    "finetune",
    "fusion_checkpoint",
    "epochs",
    "gradient_clipping",
    "opt",
    "sched",
    "lr",
    "min_lr",
    "warmup_epochs",
    "weight_decay",
    "seed",
    "dtype",
    "uni_sign_padding",
)


def check_resumable(folder: Path, state: TrainState, arguments: Mapping[str, Any], n_batches: int) -> TrainState:
    """Make sure that the command line asks for the experiment that was saved, and find its place in the epoch.

    The number of processes, `--batch-size` and `--gradient-accumulation-steps` may change as long as their product, the
    global batch, does not: the order of clips is the same for all of them.

    Args:
        folder: of the state.
        state: as saved.
        arguments: of the command line.
        n_batches: micro-batches of an epoch now.

    Raises:
        ValueError: another experiment.
    """
    for name in FIXED_FLAGS:
        if state.arguments.get(name) != arguments[name]:
            raise ValueError(
                f"--resume: {folder} was saved with --{name} {state.arguments.get(name)}; this run has "
                f"{arguments[name]}. Give the same, or start a new run in another --output_dir."
            )
    sizes = [
        (given["batch_size"], given["gradient_accumulation_steps"], processes)
        for given, processes in ((state.arguments, state.n_processes), (arguments, world_size()))
    ]
    if math.prod(sizes[0]) != math.prod(sizes[1]):
        seen, wanted = (f"{math.prod(size)} = {' x '.join(map(str, size))}" for size in sizes)
        raise ValueError(
            f"--resume: {folder} was saved with a global batch of {seen} (--batch-size x --gradient-accumulation-steps "
            f"x processes); this run has {wanted}. Give two numbers that make it the same."
        )
    round_then, round_now = (size[0] * size[2] for size in sizes)  # clips that all processes see in a micro-batch
    micro_batch = min(n_batches, math.ceil(state.micro_batch * round_then / round_now))
    return dataclasses.replace(state, micro_batch=micro_batch, arguments=dict(arguments), n_processes=world_size())


def load_model_state(model: nn.Module, folder: Path) -> None:
    """Put a state's weights into the model, before it gets its engine; every process calls this."""
    if is_main():
        model.load_state_dict(_read(folder / "weights.pt"))
    share_weights(model)


def load_optimizer_state(engine: Any, folder: Path, state: TrainState) -> TrainState:
    """Put optimizer, schedule and random numbers back to where the state was saved; every process calls this.

    Returns:
        The state with this process's sums over the epoch.
    """
    kinds = from_main(sorted(path.stem.removeprefix("optimizer_") for path in folder.glob("optimizer_*.pt")))
    numbers = from_main(_read(folder / "optimizer.pt") if is_main() else None)
    restore_optimizer(engine, numbers, kinds, lambda kind: _read(folder / f"optimizer_{kind}.pt"))
    processes = from_main(_read(folder / "processes.pt") if is_main() else None)
    if len(processes) == world_size():
        own = processes[rank()]
        torch.set_rng_state(own["cpu"])
        if torch.cuda.is_available() and "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"])
        sums = own["epoch_sums"]
    else:  # dropout goes on with other numbers; the sums are rank 0's from here on
        torch.manual_seed((state.step << 32) + state.arguments["seed"] + rank())
        names = processes[0]["epoch_sums"] if is_main() else ()
        sums = {name: sum(process["epoch_sums"][name] for process in processes) for name in names}
        logger.info("resumed on %d processes after %d: dropout is drawn anew.", world_size(), len(processes))
    # At the end of an epoch only state.json is written anew: the sums in the other files are of the epoch before.
    return dataclasses.replace(state, epoch_sums=sums if state.micro_batch else {})


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def forget_checkpoints(output_dir: str | Path, keep_last: int) -> None:
    """Delete all but the newest `checkpoint_{epoch}.pth`; 0 keeps all."""
    numbered = [
        path for path in Path(output_dir).glob("checkpoint_*.pth") if re.fullmatch(r"checkpoint_\d+", path.stem)
    ]
    _forget(sorted(numbered, key=lambda path: int(path.stem.split("_")[1])), keep_last)


def _forget(paths: list[Path], keep_last: int) -> None:
    for path in paths[:-keep_last] if keep_last else []:
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink()
