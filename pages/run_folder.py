"""Read a run's folder for reports; what a run has not written yet is recorded in `left_out`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import SPLITS, DatasetSpec
from system.disk import read_lines
from training.metrics import MAIN_METRIC, is_better
from training.run_folder import BEST, RECORD, read_record


@dataclass
class RunFolder:
    """The content of a run's folder."""

    folder: Path  # the run's --output_dir
    starts: list[dict[str, Any]]  # the starts in run.json, oldest first
    last: dict[str, Any]  # the latest training of these, else the latest start
    task: str
    spec: DatasetSpec  # the data set, with resolved paths
    epochs: list[dict[str, Any]]  # log.txt; None: not finite
    steps: list[dict[str, Any]]  # steps.jsonl, likewise
    # split -> name -> reference and hypothesis
    predictions: dict[str, dict[str, dict[str, str]]]
    left_out: list[str] = field(default_factory=list)  # sentences that say what is missing

    @classmethod
    def read(cls, place: str | Path) -> RunFolder:
        """Read a run's folder.

        Raises:
            FileNotFoundError: it is none.
            ValueError: run.json or the sentences are damaged, or of another version of this code.
        """
        folder = Path(place)
        if not folder.is_dir():
            raise FileNotFoundError(f"{place} is not a folder. Name the --output_dir of a run.")
        record = read_record(folder)
        if record is None:
            raise FileNotFoundError(f"{place} holds no {RECORD} of a run. Name its --output_dir.")
        try:
            starts = record["starts"]
            trainings = [start for start in starts if start["what"] == "training"]
            last = (trainings or starts)[-1]
            data = last["dataset"]
            spec = DatasetSpec(**data | {"tasks": tuple(data["tasks"])}).under(last["folder"])
            predictions = {
                split: _read_predictions(path)
                for split in SPLITS
                if (path := folder / f"{split}_predictions.jsonl").is_file()
            }
            epochs, steps = read_lines(folder / "log.txt"), read_lines(folder / "steps.jsonl")
            run = cls(folder, starts, last, last["arguments"]["task"], spec, epochs, steps, predictions)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{place}: its files are damaged, or of another version of this code ({type(error).__name__}: {error})."
            ) from None
        if trainings:  # an evaluation writes no curves
            curves = {"log.txt": run.epochs, "steps.jsonl": run.steps}
            run.left_out += [f"{name} holds nothing that can be read." for name, lines in curves.items() if not lines]
        return run

    @property
    def weights(self) -> Path | None:
        """Return the path of the best checkpoint, else of the evaluated weights, or None."""
        best = self.folder / BEST
        if best.is_file():
            return best
        named = self.last["arguments"].get("finetune")
        return Path(self.last["folder"]) / named if named and self.last["what"] == "evaluation" else None

    def best_epoch(self) -> dict[str, Any] | None:
        """Return the line of log.txt with the best dev score, whose weights are best_checkpoint.pth."""
        best = None
        for line in self.epochs:
            if line.get(f"dev_{MAIN_METRIC[self.task][0]}") is None:
                continue
            if best is None or is_better(self.task, self._rank(line), self._rank(best)):
                best = line
        return best

    def _rank(self, line: dict[str, Any]) -> tuple[float, float]:
        nll = line.get("dev_nll")
        return line[f"dev_{MAIN_METRIC[self.task][0]}"], math.inf if nll is None else nll


def _read_predictions(path: Path) -> dict[str, dict[str, str]]:
    """Return name -> line; unlike curves this file is written whole, so that any line that is none is damage."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return {row["name"]: row for row in map(json.loads, filter(None, lines))}
