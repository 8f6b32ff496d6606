"""Read a run's folder for reports; missing and damaged files are skipped and recorded in `left_out`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from clips.labels import MAX_TEXT
from config import SPLITS, DatasetSpec
from system.disk import read_lines
from training.metrics import MAIN_METRIC, is_better
from training.run_folder import BEST, RECORD, read_record

TINY, HUGE = 1e-30, 1e12  # between them lie losses, rates, scores, steps and seconds


@dataclass
class RunFolder:
    """The readable content of a run's folder."""

    folder: Path  # the run's --output_dir
    starts: list[dict[str, Any]] = field(default_factory=list)  # the starts in run.json, oldest first
    epochs: list[dict[str, Any]] = field(default_factory=list)  # log.txt, numbers only; None: not finite
    steps: list[dict[str, Any]] = field(default_factory=list)  # steps.jsonl, likewise
    # split -> name -> reference and hypothesis
    predictions: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # split -> the numbers of `{split}_metrics.json`
    task: str = "SLT"
    text_unit: str = "word"  # the unit of scoring, "char" or "word"
    bleu_tokenizer: str = "13a"  # sacrebleu's
    left_out: list[str] = field(default_factory=list)  # sentences that say what is missing or damaged

    @classmethod
    def read(cls, place: str | Path) -> RunFolder:
        """Read a run's folder; FileNotFoundError if it is none, or holds nothing readable of a run."""
        run = cls(Path(place))
        if not run.folder.is_dir():
            raise FileNotFoundError(f"{place} is not a folder. Name the --output_dir of a run.")
        record = run._try(lambda path: read_record(path.parent), RECORD)
        run.starts = [start for start in (record or {}).get("starts", []) if _is_start(start)]
        run.epochs = [_numbers(line) for line in run._lines("log.txt", partial(_is_point, "epoch", "loss"))]
        run.steps = [_numbers(line) for line in run._lines("steps.jsonl", partial(_is_point, "step", "lr"))]
        for split in SPLITS:
            run._read_split(split)
        if not (run.starts or run.epochs or run.steps or run.predictions or run.metrics):
            why = f" ({' '.join(run.left_out)})" if run.left_out else ""
            raise FileNotFoundError(f"{place} holds nothing of a run that can be read{why}. Name its --output_dir.")
        run._settle_how_texts_are_scored()
        return run

    @property
    def last(self) -> dict[str, Any]:
        """Return the latest training in run.json, else the latest start; {} if there is none."""
        trainings = [start for start in self.starts if start["what"] == "training"]
        return (trainings or self.starts or [{}])[-1]

    @property
    def spec(self) -> DatasetSpec | None:
        """Return the data set with resolved paths, or None if run.json does not have it."""
        try:
            record = self.last["dataset"]
            return DatasetSpec(**record | {"tasks": tuple(record["tasks"])}).under(self.last["folder"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    @property
    def weights(self) -> Path | None:
        """Return the path of the best checkpoint, else of the evaluated weights, or None."""
        best = self.folder / BEST
        if best.is_file():
            return best
        named = self.last.get("arguments", {}).get("finetune")
        return Path(self.last["folder"]) / named if named and self.last["what"] == "evaluation" else None

    def best_epoch(self) -> dict[str, Any] | None:
        """Return the line of log.txt with the best dev score, whose weights are best_checkpoint.pth."""
        metric = f"dev_{MAIN_METRIC[self.task][0]}"
        best: tuple[float, float] | None = None
        found = None
        for line in self.epochs:
            score, nll = line.get(metric), line.get("dev_nll")
            rank = (math.nan if score is None else score, math.inf if nll is None else nll)
            if score is not None and is_better(self.task, rank, best):
                best, found = rank, line
        return found

    # -- reading -----------------------------------------------------------------------------------------------------

    def _try(self, read: Callable[[Path], Any], name: str) -> Any:
        """Read a file with `read`; on failure return None and add a line to `left_out`."""
        path = self.folder / name
        if not path.is_file():
            trained = not self.starts or any(start["what"] == "training" for start in self.starts)
            if trained:  # an evaluation writes no curves
                self.left_out.append(f"{name} is not there.")
            return None
        try:
            return read(path)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            self.left_out.append(f"{name} cannot be read: {str(error).removeprefix(f'{path} ')}")
            return None

    def _lines(self, name: str, is_whole: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Return a file's lines that are whole, and count the others in `left_out`."""
        path = self.folder / name
        good = [line for line in self._try(read_lines, name) or [] if is_whole(line)]
        total = sum(bool(line.strip()) for line in path.read_bytes().splitlines()) if path.is_file() else 0
        if path.is_file() and not total:
            self.left_out.append(f"{name} is empty.")
        if len(good) < total:
            self.left_out.append(f"{name}: {total - len(good)} of {total} lines cannot be read.")
        return good

    def _read_split(self, split: str) -> None:
        scores, predictions = f"{split}_metrics.json", f"{split}_predictions.jsonl"
        if (self.folder / scores).is_file() and (found := self._try(_read_scores, scores)) is not None:
            self.metrics[split] = found
        if (self.folder / predictions).is_file():
            if rows := self._lines(predictions, _is_prediction):
                self.predictions[split] = {row["name"]: row for row in rows}
        elif split in self.metrics:
            self.left_out.append(f"{predictions} is not there: no sentences and intervals of {split}.")

    def _settle_how_texts_are_scored(self) -> None:
        """Set task, text unit and tokenizer from run.json or, without it, guess them from the files."""
        spec = self.spec
        task = self.last.get("arguments", {}).get("task")
        if spec and task in MAIN_METRIC:
            self.task, self.text_unit, self.bleu_tokenizer = task, spec.text_unit, spec.bleu_tokenizer
            return
        scores = {key.removeprefix("dev_") for line in [*self.metrics.values(), *self.epochs] for key in line}
        self.task = next((task for task, (metric, _) in MAIN_METRIC.items() if metric in scores), "SLT")
        texts = "".join(row["reference"] for rows in self.predictions.values() for row in rows.values())
        chinese = len(re.findall("[\u4e00-\u9fff]", texts)) > len(texts) / 2
        self.text_unit = "char" if chinese else "word"
        self.left_out.append(
            f"Without run.json the task is taken for {self.task}, and texts are compared by {self.text_unit}."
        )


def _read_scores(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("it is no table of scores.")
    return _numbers(found)


def _is_start(start: object) -> bool:
    return isinstance(start, dict) and all(
        isinstance(start.get(key), kind)
        for key, kind in {"what": str, "time": str, "folder": str, "arguments": dict, "dataset": dict}.items()
    )


def _is_point(x: str, y: str, line: dict[str, Any]) -> bool:
    line = _numbers(line)
    return isinstance(line.get(x), int) and line[x] >= 0 and y in line


def _is_prediction(row: dict[str, Any]) -> bool:
    texts = [row.get(key) for key in ("name", "reference", "hypothesis")]
    return all(isinstance(text, str) and len(text) <= MAX_TEXT for text in texts) and bool(row["reference"].strip())


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a line; null, NaN and what no run can have written become None."""
    found = {}
    for key, value in line.items():
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            found[key] = value if value is not None and (value == 0 or TINY < abs(value) < HUGE) else None
    return found
