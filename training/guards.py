"""Fault tolerance of long runs: stop signals, non-finite steps, failed saves, out-of-memory errors."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clips.batch import SrcInput
from datasets import SEARCHED
from system import distributed
from system.disk import explain
from training.bad_clips import BadClips
from training.engine import lower_gradient_scale
from training.tracking import Tracker

logger = logging.getLogger(__name__)

RESUME_ME = 75  # exit status: stopped on request, can be resumed (EX_TEMPFAIL of sysexits.h: try again)


class StopRequest:
    """Handles SIGTERM, SIGINT and SIGUSR1 inside a `with` block: the first asks the run to stop, a second ends it.

    A process may get a signal twice, from the terminal or SLURM and again from its launcher. So signals within a second
    of the first count as the same request.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    SAME_REQUEST = 1.0  # seconds

    def __init__(self) -> None:
        self.asked = ""
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._hear) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _hear(self, number: int, _: object) -> None:
        name = signal.Signals(number).name
        if not self.asked:
            self.asked, self._first = name, time.monotonic()
            os.write(2, f"{name}: the run stops after this step; once more to end it at once.\n".encode())
        elif time.monotonic() - self._first > self.SAME_REQUEST:
            os._exit(128 + number)

    def agreed(self) -> bool:
        """Return whether any process was asked to stop; a collective call with the same result on every process."""
        return bool(self._before) and distributed.any_process(bool(self.asked))[0]

    def leave(self, where: str) -> None:
        """Exit with the status "resume me"; all processes must call this."""
        logger.info("stopped by %s %s. Go on with --resume auto.", self.asked or "another process", where)
        distributed.stop()
        raise SystemExit(RESUME_ME)


class SkippedSteps:
    """Counts steps skipped because of a non-finite loss or gradient; too many in a row end the run.

    Args:
        limit: number in a row that ends the run (`--max_skipped_steps`).
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.in_row, self.total = limit, 0, 0
        self.losses: list[float] = []  # of the latest steps

    def taken(self, engine: Any, loss: float) -> bool:
        """Return whether the latest step changed the weights; the same result on every process.

        Args:
            engine: the engine, after its `step`.
            loss: this process's mean loss of the step.
        """
        self.losses = [*self.losses[-9:], loss]
        not_finite = distributed.any_process(not math.isfinite(loss))[0]
        if not not_finite and engine.was_step_applied():
            self.in_row = 0
            return True
        self.total += 1
        if not_finite or not lower_gradient_scale(engine):  # fp16 overflows are normal now and then
            self.in_row += 1
        return False

    @property
    def too_many(self) -> bool:
        """Return whether the run has to end."""
        return self.in_row >= self.limit

    def report(self, step: int, lr: float, clips: list[str], place: str) -> str:
        """Return a one-line error message with what may help to find the cause."""
        losses = ", ".join(f"{loss:.4g}" for loss in self.losses)
        names = ", ".join(clips[:8]) + (f" and {len(clips) - 8} more" if len(clips) > 8 else "")
        return (
            f"--max_skipped_steps {self.limit}: {self.in_row} steps in a row had a loss or gradient that is not "
            f"finite, the last is step {step}: learning rate {lr:.3g}, losses {losses}, clips {names}. {place} "
            "Try a lower --lr, --warmup-epochs, --dtype bf16 or fp32."
        )


class Saves:
    """Lets a run continue after failed saves, up to a limit.

    Args:
        limit: maximum number of failures in a row (`--max_failed_saves`).

    Attributes:
        failed: what is saved -> number of failures in a row; 0 after a success.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.failed: Counter[str] = Counter()

    @contextlib.contextmanager
    def attempt(self, what: str, path: str | Path) -> Iterator[None]:
        """Save something inside a `with` block; every process must enter it, though only rank 0 writes.

        An OSError, on whichever process, is counted in `failed` and logged, and all of them go on after the block.

        Args:
            what: what is saved; failures of each are counted separately.
            path: the file or folder, whose free space the message gives.

        Raises:
            ValueError: it failed too often in a row; on all processes.
        """
        failure = ""
        try:
            yield
        except OSError as error:
            failure = explain(error, path)
        failure = next(filter(None, distributed.all_gather(failure)), "")
        self.failed[what] = self.failed[what] + 1 if failure else 0
        if self.failed[what] > self.limit:
            raise ValueError(
                f"--max_failed_saves {self.limit}: saving {what} failed {self.failed[what]} times in a row: "
                f"{failure} What was saved before is whole: make room, then --resume auto."
            ) from None
        if failure:
            logger.warning("%s is not saved: %s The run goes on; what was saved before is whole.", what, failure)

    def finish(self) -> None:
        """Check at the end of the run that everything is saved.

        Raises:
            ValueError: the last attempt to save something failed.
        """
        if missing := [what for what, count in self.failed.items() if count]:
            raise ValueError(
                f"the run is done, but saving {' and '.join(missing)} failed. Make room, then --resume auto."
            )


@dataclass
class Guards:
    """A run's fault handlers, and the tracker of its curves."""

    clips: BadClips
    stop: StopRequest
    steps: SkippedSteps
    saves: Saves
    tracker: Tracker

    @classmethod
    def of(cls, args: argparse.Namespace) -> Guards:
        """Create all from the command line."""
        return cls(
            BadClips(args.output_dir, args.max_bad_clips),
            StopRequest(),
            SkippedSteps(args.max_skipped_steps),
            Saves(args.max_failed_saves),
            Tracker(args),
        )


@contextlib.contextmanager
def explain_memory(src_input: SrcInput, args: argparse.Namespace, training: bool = True) -> Iterator[None]:
    """Replace an out-of-memory error by one line with the batch's shape and the flags that help, the best first.

    Raises:
        ValueError: instead of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        clips, frames = src_input["attention_mask"].shape
        texts = {text for clip in src_input.get("descriptions", []) for text in clip if text}
        shape = f"{clips} clips x {frames} frames" + (f" with {len(texts)} distinct texts" if texts else "")
        advice = in_training(args, clips, frames, bool(texts)) if training else in_evaluation(args)
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"out of GPU memory in a batch of {shape} ({reason}). What helps, in order: {', then '.join(advice)}."
        ) from None


def in_training(args: argparse.Namespace, clips: int, frames: int, described: bool) -> Iterator[str]:
    """Yield the flags by which this run would need less memory in training, the best first."""
    if not args.gradient_checkpointing and args.trainable != "fusion":
        yield "--gradient_checkpointing (the same result in more time)"
    if clips > 1:
        yield "--batch-size (halve it and double --gradient-accumulation-steps: the global batch stays)"
    if described and not args.text_encoder_freeze:
        yield "--text_encoder_freeze"
    if args.dtype == "fp32":
        yield "--dtype bf16"
    if distributed.world_size() == 1 and args.zero_stage > 0 and not args.offload:
        yield "--zero_stage 0 on one GPU"
    if args.zero_stage > 0 and not args.offload:
        yield "--offload"
    yield f"--max_length below {frames} (this changes results)"
    if args.use_descriptions and args.trainable != "fusion":
        yield "--trainable fusion"


def in_evaluation(args: argparse.Namespace) -> Iterator[str]:
    """Yield the flags by which this run would need less memory in evaluation, the best first."""
    if args.batch_size > 1:
        yield f"--batch-size (an evaluation searches up to {SEARCHED} times as many clips together)"
    if args.num_beams > 1:
        yield "--num_beams (this changes results)"
    if args.dtype == "fp32":
        yield "--dtype bf16"
    yield "--max_length (this changes results)"
