"""Fault tolerance of long runs: unreadable clips, stop signals, non-finite steps, failed saves."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clips.batch import SrcInput
from system import distributed
from system.disk import Lines, explain, read_lines
from system.processes import kill_children
from training.engine import lower_gradient_scale
from training.tracking import Tracker

logger = logging.getLogger(__name__)

MAKE_ROOM = "Make room, then start the same command again, a training with --resume auto."
MOST_SKIPPED = 10  # steps in a row with NaN or infinity
MOST_FAILED = 2  # saves in a row, on a full disk for example
RESUME_ME = 75  # exit status: stopped on request, can be resumed (EX_TEMPFAIL of sysexits.h: try again)


class BadClips:
    """Collects the clips that a run could not read, at most `max_share` of a split; they are skipped, not replaced."""

    def __init__(self, output_dir: str | Path, max_share: float) -> None:
        self.lines, self.max_share = Lines(Path(output_dir) / "bad_clips.jsonl"), max_share
        self.reasons: dict[str, dict[str, str]] = {}  # split -> clip -> reason, until `settle`

    @cached_property
    def listed(self) -> set[tuple[str, str]]:
        """Return split and name of the clips that are listed; read when an earlier run's list has been moved away."""
        return {(str(line.get("split")), str(line.get("name"))) for line in read_lines(self.lines.path)}

    def note(self, src_input: SrcInput, split: str, n_clips: int) -> None:
        """Record the unreadable clips of a batch; ValueError if this process alone has too many."""
        if met := src_input.get("bad_clips"):
            self.reasons.setdefault(split, {}).update((clip.name, clip.reason) for clip in met)
            self._judge(split, n_clips)

    def settle(self, split: str, n_clips: int) -> dict[str, str]:
        """Merge and list the unreadable clips of all processes, clip -> reason; all processes must call this.

        Raises:
            ValueError: more than `max_share` of the split's clips cannot be read.
        """
        everyone = distributed.all_gather(self.reasons.get(split, {}))
        self.reasons[split] = {name: reason for part in everyone for name, reason in part.items()}
        if distributed.is_main():
            self._list(split)
        self._judge(split, n_clips)
        return self.reasons.pop(split)  # in the next epoch they may be readable

    def _judge(self, split: str, n_clips: int) -> None:
        bad = self.reasons[split]
        if len(bad) > self.max_share * n_clips:
            self._list(split)
            first = next(iter(bad.values())).rstrip(".")
            raise ValueError(
                f"--max_bad_clips {self.max_share:g}: {len(bad)} of {n_clips} clips of the split {split!r} cannot be "
                f"read, the first: {first}. Mend them or remove them from the labels; {self.lines.path} lists them."
            )

    def _list(self, split: str) -> None:
        new = {name: reason for name, reason in self.reasons[split].items() if (split, name) not in self.listed}
        if new:
            logger.warning("%s: %d clips cannot be read and are left out, see %s.", split, len(new), self.lines.path)
        for name, reason in new.items():
            self.lines.add({"split": split, "name": name, "reason": reason})
            self.listed.add((split, name))


@torch.no_grad()
def copy_all(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], *, back: bool = False) -> None:
    """Copy the first tensor of each pair into the second, or back; on a GPU in a few kernels."""
    if pairs:
        first, second = (list(tensors) for tensors in zip(*pairs, strict=True))
        torch._foreach_copy_(first if back else second, second if back else first)


@contextlib.contextmanager
def statistics_kept(model: nn.Module, src_input: SrcInput) -> Iterator[None]:
    """Restore the running statistics after a batch without any readable clip.

    The batch still takes part in the step: on several GPUs, synchronised normalisation would wait for this process.
    What processes sum up stays as it is, since the others keep it as well (with this batch's one empty frame).
    """
    if src_input["name_batch"]:
        yield
        return
    own = [module for module in model.modules() if distributed.world_size() == 1 or _normalises_alone(module)]
    before = [(buffer, buffer.clone()) for module in own for buffer in module.buffers(recurse=False)]
    yield
    copy_all(before, back=True)


def _normalises_alone(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm)


class StopRequest:
    """Handles `SIGNALS` inside a `with` block: the first asks the run to stop, a second ends it.

    A process may get a signal twice, from the terminal or SLURM and again from its launcher. So signals within a second
    of the first count as the same request. If something hangs, the run ends a while after the first without a state.
    """

    SIGNALS = [signal.SIGTERM, signal.SIGINT]
    if sys.platform != "win32":
        SIGNALS.append(signal.SIGUSR1)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # of a terminal that is closed; nohup ignores it
            SIGNALS.append(signal.SIGHUP)
    SAME_REQUEST = 1.0  # seconds
    GRACE = 300.0  # seconds for the step and its state

    def __init__(self) -> None:
        self.asked = ""
        self._first = 0.0
        self._before: dict[int, Any] = {}
        self._heard, self._left = threading.Event(), threading.Event()

    def __enter__(self) -> StopRequest:
        threading.Thread(target=self._insist, daemon=True).start()
        self._before = {number: signal.signal(number, self._hear) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._heard.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _hear(self, number: int, _: object) -> None:
        name = signal.Signals(number).name
        if not self.asked:
            self.asked, self._first = name, time.monotonic()
            _tell(f"{name}: the run stops after this step; once more to end it at once.")
            self._heard.set()
        elif time.monotonic() - self._first > self.SAME_REQUEST:
            kill_children()
            os._exit(128 + number)

    def _insist(self) -> None:
        self._heard.wait()
        if not self._left.wait(self.GRACE):
            words = f"{self.asked}: something hangs, {self.GRACE:g} s later; the run ends as it was last saved."
            _tell(f"{words} Go on with --resume auto.")
            kill_children()
            os._exit(RESUME_ME)

    def agreed(self) -> bool:
        """Return whether any process was asked to stop; a collective call with the same result on every process."""
        return bool(self._before) and distributed.any_process(bool(self.asked))

    def leave(self, where: str) -> None:
        """Exit with the status "resume me"; all processes must call this."""
        logger.info("stopped by %s %s. Go on with --resume auto.", self.asked or "another process", where)
        distributed.stop()
        raise SystemExit(RESUME_ME)


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # Ctrl-C ends `| tee` as well, or the terminal is gone
        os.write(2, f"{text}\n".encode())


class SkippedSteps:
    """Counts steps skipped because of a non-finite loss or gradient; `MOST_SKIPPED` in a row end the run."""

    def __init__(self) -> None:
        self.in_row = 0
        self.losses: list[float] = []  # of the latest steps
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []  # the model's, and what they were before this step

    def remember(self, model: nn.Module) -> None:
        """Keep the running statistics, before the first step."""
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def taken(self, engine: Any, loss: float) -> bool:
        """Return whether the engine's step of this mean loss changed the weights; the same on every process.

        A step that did not leaves no trace in the running statistics, where a NaN would stay for ever.
        """
        self.losses = [*self.losses[-9:], loss]
        not_finite = distributed.any_process(not math.isfinite(loss))
        if not not_finite and engine.was_step_applied():
            self.in_row = 0
            copy_all(self._buffers)
            return True
        copy_all(self._buffers, back=True)
        if not_finite or not lower_gradient_scale(engine):  # fp16 overflows are normal now and then
            self.in_row += 1
        return False

    @property
    def too_many(self) -> bool:
        """Return whether the run has to end."""
        return self.in_row >= MOST_SKIPPED

    def report(self, step: int, lr: float, clips: list[str], place: str) -> str:
        """Return a one-line error message with what may help to find the cause."""
        losses = ", ".join(f"{loss:.4g}" for loss in self.losses)
        names = ", ".join(clips[:8]) + (f" and {len(clips) - 8} more" if len(clips) > 8 else "")
        return (
            f"{self.in_row} steps in a row had a loss or gradient that is not finite, the last is step {step}: "
            f"learning rate {lr:.3g}, losses {losses}, clips {names}. {place} "
            "Try a lower --lr, --warmup-epochs, --dtype bf16 or fp32."
        )


class Saves:
    """Lets a run continue after failed saves, at most `MOST_FAILED` in a row."""

    def __init__(self) -> None:
        self.failed: Counter[str] = Counter()  # what is saved -> failures in a row
        self._thread = ThreadPoolExecutor(1)
        self._begun: tuple[str, str | Path, Future[None]] | None = None

    def begin(self, what: str, path: str | Path, write: Callable[[], None]) -> None:
        """Save something in a thread, while the run goes on; every process must call this, and `settle` before it."""
        assert self._begun is None
        self._begun = what, path, self._thread.submit(write)

    def settle(self) -> None:
        """Wait until what was begun is saved, counting and raising as in `attempt`; every process must call this."""
        if self._begun:
            what, path, writing = self._begun
            self._begun = None
            with self.attempt(what, path):
                writing.result()

    @contextlib.contextmanager
    def attempt(self, what: str, path: str | Path) -> Iterator[None]:
        """Save something inside a `with` block; every process must enter it, though only rank 0 writes.

        An OSError, on whichever process, is counted in `failed` and logged, and all of them go on after the block. Too
        many in a row raise ValueError on all processes.
        """
        failure = ""
        try:
            yield
        except OSError as error:
            failure = explain(error, path)
        failure = next(filter(None, distributed.all_gather(failure)), "")
        self.failed[what] = self.failed[what] + 1 if failure else 0
        if self.failed[what] > MOST_FAILED:
            raise ValueError(
                f"saving {what} failed {self.failed[what]} times in a row: {failure} What was saved before is whole. "
                f"{MAKE_ROOM}"
            ) from None
        if failure:
            logger.warning("%s is not saved: %s The run goes on; what was saved before is whole.", what, failure)

    def finish(self) -> None:
        """Raise ValueError, at the end of the run, if the last attempt to save something failed."""
        self.settle()
        if missing := [what for what, count in self.failed.items() if count]:
            raise ValueError(f"the run is done, but saving {' and '.join(missing)} failed. {MAKE_ROOM}")


@dataclass
class Guards:
    """A run's fault handlers, and the tracker of its curves."""

    clips: BadClips
    stop: StopRequest
    steps: SkippedSteps
    saves: Saves
    tracker: Tracker
