"""What a training saves: states to resume from, folders under `output_dir/resume`, and the weights of its epochs.

Every write is complete or absent. How weights lie in a file is the matter of `weights.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import under_root
from deepspeed_engine import full_state_dict, optimizer_numbers, optimizer_tensors, restore_optimizer
from disk import UNFINISHED, explain, new_folder, read_lines, remove_folder, sha256, write_text, write_whole
from distributed import all_gather, broadcast_object, broadcast_weights, is_main, rank, world_size
from weights import fusion_weights, save_weights

logger = logging.getLogger(__name__)

STATE_WEIGHTS = "weights.pt"  # in a state's folder


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
    if failure := broadcast_object(failure):
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
            for old in sorted(folder.glob("step_*"))[:-keep_last] if keep_last else ():
                remove_folder(old)
        except OSError as error:
            failure = explain(error, target)
    for _ in parts:  # those who do not write, or cannot, take part all the same
        pass
    if failure := broadcast_object(failure):
        raise SaveError(failure)
    return target


def _parts(engine: Any, state: TrainState) -> Iterator[tuple[str, Any]]:
    """File name and content of all that is in a state; the content is rank 0's. All processes must go through it."""
    own: dict[str, Any] = {"cpu": torch.get_rng_state(), "epoch_sums": state.epoch_sums}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    yield "processes.pt", all_gather(own)
    yield STATE_WEIGHTS, full_state_dict(engine)
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


# What a run writes into its folder, train.log apart, which goes on.
_OF_A_RUN = (
    "resume", "run.json", "tensorboard", "log.txt", "steps.jsonl", "bad_clips.jsonl", "non_finite",
    "best_checkpoint.pth", "best_fusion.pth", "checkpoint*.pth", "*_predictions.jsonl", "*_metrics.json", "*_tmp_*.txt",
)  # fmt: skip


def set_aside(output_dir: str | Path) -> None:
    """Move all that an earlier run has written to a folder of its own, so that a new run in its place loses nothing."""
    left = [path for pattern in _OF_A_RUN for path in sorted(Path(output_dir).glob(pattern))]
    if left:
        earlier = _unused(Path(output_dir) / "earlier")
        earlier.mkdir()
        for path in left:
            path.rename(earlier / path.name)
        logger.warning("%s holds an earlier run: all that it has written now lies in %s.", output_dir, earlier)


def _unused(folder: Path) -> Path:
    """A folder's name or, where that is taken, the first of NAME_2, NAME_3 and so on that is not."""
    names = (folder if n == 1 else folder.with_name(f"{folder.name}_{n}") for n in itertools.count(1))
    return next(name for name in names if not name.exists())


def trim_curves(output_dir: str | Path, state: TrainState) -> None:
    """Drop what an interrupted run logged after the state from which it goes on."""
    for name, key, kept in (("log.txt", "epoch", state.epoch - 1), ("steps.jsonl", "step", state.step)):
        path = Path(output_dir) / name
        if path.is_file():
            lines = [json.dumps(line, ensure_ascii=False) for line in read_lines(path) if line[key] <= kept]
            write_text(path, "".join(f"{line}\n" for line in lines))


def set_later_aside(output_dir: str | Path, state: TrainState) -> None:
    """Move states that were saved after this one out of the way: the run goes on without what they hold."""
    folders = sorted(resume_dir(output_dir).glob("step_*"))
    later = [folder for folder in folders if int(folder.name.removeprefix("step_")) > state.step]
    if later:
        target = _unused(Path(output_dir) / "earlier") / "resume"
        target.mkdir(parents=True)
        for folder in later:
            folder.rename(target / folder.name)
            logger.warning(
                "%s was saved after step %d, where the run goes on; it lies in %s.", folder, state.step, target
            )


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


# What may change when a run goes on: where things lie, how the work is divided, what is shown and kept, and the search.
# With any other flag changed the resumed run would be another experiment.
FREE_FLAGS = frozenset(
    [
        "root",
        "mt5_path",
        "packed",
        "text_cache",
        "output_dir",
        "resume",
        "eval",
        "num_workers",
        "pin_mem",
        "local_rank",
        "zero_stage",
        "offload",
        "batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "num_beams",
        "max_new_tokens",
        "save_steps",
        "quick_break",
        "keep_last",
        "max_bad_clips",
        "max_skipped_steps",
        "max_failed_saves",
        "tensorboard",
        "wandb",
    ]
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
    round_then, round_now = (size[0] * size[2] for size in sizes)  # clips that all processes see in a micro-batch
    micro_batch = min(n_batches, math.ceil(state.micro_batch * round_then / round_now))
    return dataclasses.replace(state, micro_batch=micro_batch, arguments=dict(arguments), n_processes=world_size())


def load_model_state(model: nn.Module, folder: Path) -> None:
    """Put a state's weights into the model, before it gets its engine; every process calls this."""
    if is_main():
        model.load_state_dict(_read(folder / STATE_WEIGHTS))
    broadcast_weights(model)


def load_optimizer_state(engine: Any, folder: Path, state: TrainState) -> TrainState:
    """Put optimizer, schedule and random numbers back to where the state was saved; every process calls this.

    Returns:
        The state with this process's sums over the epoch.
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
    else:  # dropout goes on with other numbers; the sums are rank 0's from here on
        torch.manual_seed((state.step << 32) + state.arguments["seed"] + rank())
        names = processes[0]["epoch_sums"] if is_main() else ()
        sums = {name: sum(process["epoch_sums"][name] for process in processes) for name in names}
        logger.info("resumed on %d processes after %d: dropout is drawn anew.", world_size(), len(processes))
    # At the end of an epoch only state.json is written anew: the sums in the other files are of the epoch before.
    return dataclasses.replace(state, epoch_sums=sums if state.micro_batch else {})


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def weights_facts(args: argparse.Namespace) -> dict[str, Any]:
    """What inference needs to know beside a checkpoint's weights and config."""
    mt5_path = str(Path(under_root(args.root, args.mt5_path)).absolute())
    return {"mt5_path": mt5_path, "max_length": args.max_length}


def save_epoch(engine: Any, epoch: int, score: float | None, best: bool, args: argparse.Namespace) -> bool:
    """Write checkpoint_{epoch}.pth and, for the best so far, best_checkpoint.pth and best_fusion.pth."""
    weights = full_state_dict(engine)
    output_dir, config = Path(args.output_dir), engine.module.config
    facts = {**weights_facts(args), "epoch": epoch, "score": score}

    def write() -> None:
        if best:
            save_weights(output_dir / "best_checkpoint.pth", weights, config, **facts)
            if config.use_descriptions:
                save_weights(output_dir / "best_fusion.pth", fusion_weights(weights), config, **facts)
        save_weights(output_dir / f"checkpoint_{epoch}.pth", weights, config, **facts)
        forget_checkpoints(output_dir, epoch, args.keep_last)

    write_on_main(output_dir, write)
    return True


def save_quick(engine: Any, epoch: int, args: argparse.Namespace) -> None:
    """Write checkpoint.pth, which --quick_break asks for within an epoch; every process calls this."""
    path, weights = Path(args.output_dir) / "checkpoint.pth", full_state_dict(engine)
    facts = {**weights_facts(args), "epoch": epoch, "score": None}
    write_on_main(path, partial(save_weights, path, weights, engine.module.config, **facts))


def forget_checkpoints(output_dir: str | Path, epoch: int, keep_last: int) -> None:
    """Delete `checkpoint_{n}.pth` of all but the last epochs up to this one; 0 keeps all.

    Those of later epochs are another run's, which was longer.
    """
    for path in Path(output_dir).glob("checkpoint_*.pth") if keep_last else ():
        if (name := re.fullmatch(r"checkpoint_(\d+)", path.stem)) and int(name[1]) <= epoch - keep_last:
            path.unlink()
