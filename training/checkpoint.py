"""Save and restore training: states to resume from (folders in `output_dir/resume`), and checkpoints of epochs.

Every write is atomic. `training/weight_files.py` defines the format of weight files.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from network.state_dicts import differences
from system.disk import UNFINISHED, new_folder, remove_folder, sha256, to_json, write_text, write_whole
from system.distributed import all_gather, broadcast_object, broadcast_weights, is_main, rank, world_size
from training.engine import full_state_dict, optimizer_numbers, optimizer_tensors, restore_optimizer
from training.run_folder import resume_dir, states
from training.weight_files import read_weights

logger = logging.getLogger(__name__)

STATE_WEIGHTS = "weights.pt"  # file name in a state's folder


@dataclass
class TrainState:
    """The progress of a run."""

    epoch: int = 0  # the current one, from 0
    micro_batch: int = 0  # how many of the epoch are done
    step: int = 0  # optimizer steps, skipped ones included
    best: Sequence[float] | None = None  # main score and loss of the best epoch on dev so far
    lr: float = 0.0  # of the last step
    revision: str = ""  # of the code, in git
    arguments: dict[str, Any] = field(default_factory=dict)  # the command line
    n_processes: int = 1
    digests: dict[str, str] = field(default_factory=dict)  # file -> SHA-256 of the state's other files
    sources: dict[str, Any] = field(default_factory=dict)  # what identifies data and files beside the weights
    epoch_sums: dict[str, float] = field(default_factory=dict)  # this process's, so that an epoch's means stay

    @property
    def folder_name(self) -> str:
        """Return the name of this state's folder, which sorts by step."""
        return f"step_{self.step:08d}"


def state_writer(engine: Any, state: TrainState, folder: Path, keep_last: int = 0) -> Callable[[], None]:
    """Copy everything needed to resume a run exactly; every process must call this.

    Weights and optimizer state are stored by name in fp32, whatever the number of processes and the ZeRO stage; random
    numbers and sums, process by process.

    Returns:
        A function that writes the copy, on rank 0, also in a thread while the training goes on. It sets the state's
        digests and keeps the last `keep_last` states, 0 for all; OSError if it fails.
    """
    own: dict[str, Any] = {"cpu": torch.get_rng_state(), "epoch_sums": dict(state.epoch_sums)}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    parts = {"processes.pt": all_gather(own), STATE_WEIGHTS: full_state_dict(engine)}
    parts |= {f"optimizer_{kind}.pt": tensors for kind, tensors in optimizer_tensors(engine)}
    parts["optimizer.pt"] = copy.deepcopy(optimizer_numbers(engine))
    progress = dataclasses.replace(state, digests={}, epoch_sums={})  # which the loop goes on changing

    def write() -> None:
        for left in folder.parent.glob(f"{UNFINISHED}*"):  # from a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        with new_folder(folder) as unfinished:
            for name, part in parts.items():
                write_whole(unfinished / name, partial(torch.save, part))
                progress.digests[name] = sha256(unfinished / name)
            write_progress(unfinished, progress)
        state.digests = progress.digests
        for old in states(folder.parent)[:-keep_last] if keep_last else ():
            try:
                remove_folder(old)
            except OSError as error:  # somebody reads or protects it; the new state is whole
                logger.warning("%s cannot be removed: %s.", old, error.strerror or error)

    return write if is_main() else lambda: None


def write_progress(folder: Path, state: TrainState) -> None:
    """Write state.json to a state's folder; also used alone when only the progress has changed since saving."""
    content = dataclasses.asdict(state)
    write_text(folder / "state.json", to_json({"sha256": _digest(content), **content}, indent=1) + "\n")


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(content, sort_keys=True).encode()).hexdigest()


def read_progress(folder: Path) -> TrainState:
    """Read a state's `state.json` and verify the checksums of all files it lists.

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


def find_state(resume: str, output_dir: str | Path) -> tuple[Path, TrainState] | None:
    """Find the state of `--resume`: for "auto" the newest intact one in the output folder, else the named folder.

    Returns:
        The folder and its state; None for "auto" if no state was saved yet.

    Raises:
        ValueError: the named state, or with "auto" every state, is damaged or missing.
    """
    if resume == "auto":
        folders = states(resume_dir(output_dir))[::-1]
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
    try:
        return path, read_progress(path)
    except ValueError as error:
        raise ValueError(f"--resume: {error} Name another state, or auto.") from None


# Flags that may change when a run is resumed: paths, division of the work, logging and saving, and decoding.
# Changing any other flag would make the resumed run a different experiment.
# What --dataset_config says of the data is part of the sources.
_FREE = (
    "root dataset_config mt5_path packed text_cache output_dir resume eval num_workers pin_mem local_rank zero_stage "
    "offload batch_size gradient_accumulation_steps gradient_checkpointing compile num_beams max_new_tokens save_steps "
    "quick_break keep_last no_test max_bad_clips tensorboard wandb"
)
FREE_FLAGS = frozenset(_FREE.split())
MAY_BE_MENDED = ("poses_sha256", "described", "descriptions_sha256")  # see `S2T_Dataset.fingerprint`


def check_resumable(folder: Path, state: TrainState, arguments: Mapping[str, Any], n_batches: int) -> TrainState:
    """Check that the command line matches the saved experiment, and convert its position in the epoch.

    The number of processes, `--batch-size` and `--gradient-accumulation-steps` may change as long as their product, the
    global batch size, does not: the order of clips depends on this product only.

    Returns:
        The state, with micro_batch, arguments and n_processes of this run, of `n_batches` micro-batches per epoch.

    Raises:
        ValueError: the experiments differ.
    """
    for name, value in arguments.items():
        if name not in FREE_FLAGS and state.arguments.get(name) != value:
            raise ValueError(
                f"--resume: {folder} was saved with --{name} {state.arguments.get(name)}; this run has "
                f"{value}. Give the same, or start a new run in another --output_dir."
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
    round_then, round_now = (size[0] * size[2] for size in sizes)  # clips per micro-batch, all processes
    micro_batch = min(n_batches, math.ceil(state.micro_batch * round_then / round_now))
    return dataclasses.replace(state, micro_batch=micro_batch, arguments=dict(arguments), n_processes=world_size())


def check_sources(folder: Path, state: TrainState, sources: Mapping[str, Any]) -> None:
    """Check that a run goes on with what it began with; other poses and descriptions, which get mended, are a warning.

    Raises:
        ValueError: the labels or a file of the model are others.
    """
    differing = [name for name, value in sources.items() if state.sources.get(name, value) != value]
    mild = [name for name in differing if name.endswith(MAY_BE_MENDED)]
    if severe := ", ".join(name for name in differing if name not in mild):
        raise ValueError(
            f"--resume: {folder} was saved with other data or files; different are: {severe}. Put them back as they "
            "were, or start a new run in another --output_dir."
        )
    if mild and is_main():
        logger.warning("--resume: since %s was saved, these have changed: %s.", folder, ", ".join(mild))


def best_on_disk(state: TrainState, path: Path, epochs: int) -> Sequence[float] | None:
    """Return the state's best score if the best checkpoint has it; None if another course has replaced that file.

    Args:
        state: the state to resume from.
        path: the best checkpoint of its output folder.
        epochs: of the run.

    Raises:
        ValueError: it has been replaced or removed, and no epoch is left to make another.
    """
    if state.best is None:
        return None
    facts: dict[str, Any] = {}
    with contextlib.suppress(ValueError, FileNotFoundError):
        _, facts = read_weights(path, "--resume")
    if facts.get("score") == state.best[0] and facts["epoch"] < state.epoch:
        return state.best
    told = f"--resume: {path} is not the best checkpoint so far, whose score was {state.best[0]:.4g}"
    if state.epoch >= epochs:
        raise ValueError(f"{told}, and no epoch is left to make another. Put it back.")
    if facts.get("epoch") != state.epoch:  # else the run was killed right after it had saved a better one
        logger.warning("%s; the best is chosen among the epochs from here.", told)
    return None


def load_model_state(model: nn.Module, folder: Path) -> None:
    """Load a state's weights into the model, before the engine is made; every process must call this."""
    if is_main():
        weights, _ = read_weights(folder / STATE_WEIGHTS, "--resume")
        if misfit := differences(weights, model.state_dict()):
            raise ValueError(f"--resume: {folder} does not fit the mT5 of --mt5_path: {misfit}. Name that of training.")
        model.load_state_dict(weights)
    broadcast_weights(model)


def load_optimizer_state(engine: Any, folder: Path, state: TrainState) -> TrainState:
    """Restore optimizer, schedule and random generators from a state; every process must call this.

    Returns:
        The state, with this process's `epoch_sums`.
    """
    kinds = broadcast_object(sorted(path.stem.removeprefix("optimizer_") for path in folder.glob("optimizer_*.pt")))
    numbers = broadcast_object(_read(folder / "optimizer.pt") if is_main() else None)
    restore_optimizer(engine, numbers, kinds, lambda kind: _read(folder / f"optimizer_{kind}.pt"))
    processes = broadcast_object(_read(folder / "processes.pt") if is_main() else None)
    if len(processes) == world_size():
        own = processes[rank()]
        torch.set_rng_state(own["cpu"])
        if torch.cuda.is_available() and "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"])
        sums = own["epoch_sums"]
    else:  # dropout draws different numbers; rank 0 takes over all sums
        torch.manual_seed((state.step << 32) + state.arguments["seed"] + rank())
        names = processes[0]["epoch_sums"] if is_main() else ()
        sums = {name: sum(process["epoch_sums"][name] for process in processes) for name in names}
        logger.info("resumed on %d processes after %d: dropout is drawn anew.", world_size(), len(processes))
    # At the end of an epoch only state.json is rewritten: the sums in processes.pt belong to the previous epoch.
    return dataclasses.replace(state, epoch_sums=sums if state.micro_batch else {})


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
