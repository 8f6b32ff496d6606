"""Clips that cannot be read: each is listed once, with its reason, and too many of them end the run."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from torch import nn

from batch import SrcInput
from disk import explain, read_lines, write_text
from distributed import all_gather, is_main

logger = logging.getLogger(__name__)

FILE_NAME = "bad_clips.jsonl"


class BadClips:
    """What a run could not read; nothing is put in its place.

    Args:
        output_dir: of the run; what an interrupted run has listed there is not listed again.
        max_share: of a split's clips, beyond which the run ends (`--max_bad_clips`).
    """

    def __init__(self, output_dir: str | Path, max_share: float) -> None:
        self.path, self.max_share = Path(output_dir) / FILE_NAME, max_share
        self.reasons: dict[str, dict[str, str]] = {}  # split -> clip -> reason

    @cached_property
    def entries(self) -> list[dict[str, str]]:
        """What is listed; read when first needed, for a new run moves the list of an earlier one away."""
        return read_lines(self.path)

    def note(self, src_input: SrcInput, split: str, n_clips: int) -> None:
        """Take over what a batch had to leave out.

        Raises:
            ValueError: this process alone has met too many; with `settle`, all processes count together.
        """
        if met := src_input.get("bad_clips"):
            self.reasons.setdefault(split, {}).update((clip.name, clip.reason) for clip in met)
            self._judge(split, n_clips)

    def settle(self, split: str, n_clips: int) -> dict[str, str]:
        """Bring together what all processes have met in a split, list it, and judge; all of them call this.

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
    """Undo what a batch of which no clip could be read does to the batch statistics.

    It cannot be left out of the step: on several GPUs all processes normalise together and would wait for the one that
    does not. (There the others' statistics of this step hold its one empty frame.)

    Args:
        model: in training; forward and backward pass and step are in the block.
        src_input: the batch.
    """
    if src_input["name_batch"]:
        yield
        return
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)
