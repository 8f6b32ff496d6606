"""Records of a run: run.json, curves as files, and the same curves in TensorBoard and Weights & Biases.

Only rank 0 writes. Information stored elsewhere is not repeated here: scores are in log.txt and
`{split}_metrics.json`, progress in the states, model sizes in the checkpoints.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import os
import platform
import secrets
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from config import DatasetSpec
from system import distributed
from system.disk import Lines, explain, to_json, write_text
from training.run_folder import RECORD, read_record
from utils import git_revision, needs_deepspeed

logger = logging.getLogger(__name__)

PACKAGES = ("transformers", "deepspeed", "sentencepiece", "sacrebleu", "numpy", "safetensors")


class Tracker:
    """Writes run.json, with the whole command line, and a run's curves; leaving the `with` block closes the boards."""

    def __init__(
        self, folder: str | Path, arguments: Mapping[str, Any], *, tensorboard: bool = False, wandb: bool = False
    ) -> None:
        self.folder, self.arguments = Path(folder), dict(arguments)
        self.tensorboard, self.wandb = tensorboard, wandb
        self._steps, self._epochs = Lines(self.folder / "steps.jsonl"), Lines(self.folder / "log.txt")
        self._writer: Any = None  # of TensorBoard
        self._run: Any = None  # of Weights & Biases

    def start(self, spec: DatasetSpec, data: Mapping[str, Any], step: int | None = None) -> None:
        """Add this start of the program to run.json, and open the boards of --tensorboard and --wandb.

        `data` has each split's fingerprint; `step` is that of the state gone on from, None for an evaluation.
        ValueError if run.json is damaged.
        """
        record = read_record(self.folder) or {"id": secrets.token_hex(4), "starts": []}
        record["starts"].append(_facts(self.arguments, step) | {"dataset": dataclasses.asdict(spec), "data": data})
        write_text(self.folder / RECORD, to_json(record, indent=1) + "\n")
        if step is not None and self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Points of an interrupted run after this step are discarded.
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
        if step is not None and self.wandb:
            self._run = _wandb_run(self.folder, record)

    def step(self, line: Mapping[str, Any]) -> None:
        """Add a line to steps.jsonl, and plot its numbers."""
        self._steps.add(line)
        self._draw(line["step"], {f"train/{name}": line[name] for name in ("loss", "lr")})

    def epoch(self, step: int, line: Mapping[str, Any]) -> None:
        """Add a line to log.txt, and plot its numbers at the epoch's last step."""
        self._epochs.add(line)
        self._draw(step, {_board_name(name): value for name, value in line.items()})

    def _draw(self, step: int, numbers: Mapping[str, float | None]) -> None:
        plotted = {name: value for name, value in numbers.items() if value is not None}
        try:
            if self._run:
                self._run.log({"step": step, **plotted})
            if self._writer:
                for name, value in plotted.items():
                    self._writer.add_scalar(name, value, step)
        except OSError as error:  # plots are not worth ending the run; the files have the same numbers
            logger.warning("The plots stop here, the run goes on: %s", explain(error, self.folder))
            self._run = self._writer = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._writer:
            self._writer.close()
        if self._run:
            self._run.finish(exit_code=int(kind is not None))


def _board_name(name: str) -> str:
    """Return the "group/name" of a number in log.txt.

    >>> _board_name("dev_bleu4"), _board_name("nll")
    ('dev/bleu4', 'epoch/nll')
    """
    return f"dev/{name.removeprefix('dev_')}" if name.startswith("dev_") else f"epoch/{name}"


def _wandb_run(folder: Path, record: Mapping[str, Any]) -> Any:
    """Start a run in Weights & Biases, configured by its environment variables (WANDB_MODE, WANDB_PROJECT ...).

    The `id` in run.json lets a resumed run continue its curves. ValueError if there is no login, or no server.
    """
    import wandb

    names = {
        "project": os.environ.get("WANDB_PROJECT", "uni-sign"),
        "name": os.environ.get("WANDB_NAME", folder.name),
    }
    try:
        run = wandb.init(dir=folder, id=record["id"], resume="allow", config=record["starts"][-1], **names)
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--wandb: {reason} WANDB_MODE=offline needs no account.") from None
    # A resumed run repeats steps that are already plotted, but wandb's own step counter can only increase.
    run.define_metric("*", step_metric="step")
    return run


def _facts(arguments: Mapping[str, Any], step: int | None) -> dict[str, Any]:
    """Return the facts needed to reproduce this start of the program."""
    world = distributed.world_size()
    engine = "deepspeed" if needs_deepspeed(arguments["zero_stage"], arguments["offload"]) else "torch"
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "what": "evaluation" if step is None else "training",
        "from_step": step,
        "command": shlex.join(sys.argv),
        "folder": str(Path.cwd()),
        "revision": git_revision(),
        # The package's metadata does not name the CUDA version that torch was built for.
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version(), "torch": torch.__version__},
        "device": _device(),
        "processes": world,
        "global_batch": arguments["batch_size"] * arguments["gradient_accumulation_steps"] * world,
        "engine": None if step is None else engine,
        "arguments": arguments,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _device() -> str:
    """Describe this process's device; a CPU's number of threads says more about its speed than its name."""
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(distributed.device())
        return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return f"CPU, {platform.machine()}, {torch.get_num_threads()} threads"
