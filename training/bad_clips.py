"""Unreadable clips: each is listed once with its reason, and too many end the run."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from torch import nn

from clips.batch import SrcInput
from system.disk import explain, read_lines, write_text
from system.distributed import all_gather, is_main

logger = logging.getLogger(__name__)

FILE_NAME = "bad_clips.jsonl"


class BadClips:
    """Collects the clips that a run could not read; they are skipped, not replaced.

    Args:
        output_dir: the run's folder; clips listed there by an interrupted run are not listed again.
        max_share: maximum fraction of a split's clips (`--max_bad_clips`).
    """

    def __init__(self, output_dir: str | Path, max_share: float) -> None:
        self.path, self.max_share = Path(output_dir) / FILE_NAME, max_share
        self.reasons: dict[str, dict[str, str]] = {}  # split -> clip -> reason

    @cached_property
    def entries(self) -> list[dict[str, str]]:
        """Return the listed clips; read on first use, after a new run has moved an earlier run's list away."""
        return read_lines(self.path)

    def note(self, src_input: SrcInput, split: str, n_clips: int) -> None:
        """Record the unreadable clips of a batch.

        Raises:
            ValueError: there are too many in this process alone; `settle` counts those of all processes.
        """
        if met := src_input.get("bad_clips"):
            self.reasons.setdefault(split, {}).update((clip.name, clip.reason) for clip in met)
            self._judge(split, n_clips)

    def settle(self, split: str, n_clips: int) -> dict[str, str]:
        """Merge and list the unreadable clips of all processes, and check their number; all processes must call this.

        Returns:
            clip -> reason.

        Raises:
            ValueError: more than `max_share` of the split's clips cannot be read.
        """
        everyone = all_gather(self.reasons.get(split, {}))
        self.reasons[split] = {name: reason for part in everyone for name, reason in part.items()}
        if is_main():
            self._list(split)
        self._judge(split, n_clips)
        return self.reasons[split]

    def _judge(self, split: str, n_clips: int) -> None:
        bad = self.reasons[split]
        if len(bad) > self.max_share * n_clips:
            self._list(split)
            first = next(iter(bad.values())).rstrip(".")
            raise ValueError(
                f"--max_bad_clips {self.max_share:g}: {len(bad)} of {n_clips} clips of the split {split!r} cannot be "
                f"read, the first: {first}. Mend them or remove them from the labels; {self.path} lists them."
            )

    def _list(self, split: str) -> None:
        listed = {entry["name"] for entry in self.entries if entry["split"] == split}
        new = {name: reason for name, reason in self.reasons[split].items() if name not in listed}
        if not new:
            return
        logger.warning("%s: %d clips cannot be read and are left out, see %s.", split, len(new), self.path)
        self.entries += [{"split": split, "name": name, "reason": reason} for name, reason in new.items()]
        try:
            write_text(self.path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.entries))
        except OSError as error:
            logger.warning("%s It is written with the next clip.", explain(error, self.path))


@contextlib.contextmanager
def statistics_kept(model: nn.Module, src_input: SrcInput) -> Iterator[None]:
    """Restore the batch statistics after a batch without any readable clip.

    The batch still takes part in the step: on several GPUs, synchronised normalisation would wait for this process.
    (There the other processes' statistics of this step include its one empty frame.)

    Args:
        model: the model; the block contains forward pass, backward pass and step.
        src_input: the batch.
    """
    if src_input["name_batch"]:
        yield
        return
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)
