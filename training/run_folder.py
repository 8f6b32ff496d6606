"""A run's output folder: its results, and what an earlier or interrupted run left in it."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from system.disk import read_lines, to_json, write_text
from training.findings import TEXTS
from training.metrics import MAIN_METRIC, Scores, prepare_hypothesis, prepare_reference, why_zero

if TYPE_CHECKING:
    from datasets import S2T_Dataset

logger = logging.getLogger(__name__)

RECORD = "run.json"
BEST, BEST_FUSION = "best_checkpoint.pth", "best_fusion.pth"  # the latter has the fusion modules alone
SAME = 0.5  # share of equal sentences that no labels explain: a decoder that writes one sentence whatever it sees
HELPS = (
    "What usually helps: weights to start from (--finetune), more optimizer steps (--epochs, a smaller "
    "--gradient-accumulation-steps), --lr 3e-4; python pre_training_checklist.py --full looks at the data."
)

# Everything a run writes to its folder except train.log, which is continued.
_OF_A_RUN = (
    "resume", RECORD, "tensorboard", "log.txt", "steps.jsonl", "bad_clips.jsonl", "non_finite",
    BEST, BEST_FUSION, "checkpoint*.pth", "*_predictions.jsonl", "*_metrics.json", "*_tmp_*.txt",
)  # fmt: skip


def set_aside(output_dir: str | Path) -> None:
    """Move all files of an earlier run to a folder of their own, so that a new run does not overwrite them."""
    left = [path for pattern in _OF_A_RUN for path in sorted(Path(output_dir).glob(pattern))]
    if left:
        earlier = _unused(Path(output_dir) / "earlier")
        earlier.mkdir()
        for path in left:
            path.rename(earlier / path.name)
        logger.warning("%s holds an earlier run: all that it has written now lies in %s.", output_dir, earlier)


def _unused(folder: Path) -> Path:
    """Return `folder` or, if it exists, the first free one of NAME_2, NAME_3 ..."""
    names = (folder if n == 1 else folder.with_name(f"{folder.name}_{n}") for n in itertools.count(1))
    return next(name for name in names if not name.exists())


def trim_curves(output_dir: str | Path, epochs: int, steps: int) -> None:
    """Delete what an interrupted run logged after the state it resumes from, with so many whole epochs and steps."""
    for name, key, kept in (("log.txt", "epoch", epochs - 1), ("steps.jsonl", "step", steps)):
        path = Path(output_dir) / name
        if path.is_file():
            lines = [to_json(line) for line in read_lines(path) if line.get(key, kept) <= kept]
            write_text(path, "".join(f"{line}\n" for line in lines))


def set_later_aside(output_dir: str | Path, step: int) -> None:
    """Move states saved after a step out of the way, since the run continues from there without them."""
    later = [folder for folder in states(resume_dir(output_dir)) if int(folder.name.removeprefix("step_")) > step]
    if later:
        target = _unused(Path(output_dir) / "earlier") / "resume"
        target.mkdir(parents=True)
        for folder in later:
            folder.rename(target / folder.name)
            logger.warning("%s was saved after step %d, where the run goes on; it lies in %s.", folder, step, target)


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """Read run.json, its `id` and its `starts`, oldest first; None if there is none, ValueError if it is damaged."""
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(record["id"], str) and isinstance(record["starts"], list)):
            raise ValueError("no list of starts")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}). Remove it, or put it back.") from None
    return record


def results_folder(weights: str | Path, dataset: str) -> Path:
    """Return where an evaluation's files go by default: beside the weights.

    Those of a run's best weights belong to the run; others get a folder of their own, named after the file. ValueError
    if the weights were trained on another data set, whose results must not be replaced.
    """
    path = Path(weights)
    starts = (read_record(path.parent) or {"starts": []})["starts"]
    trained_on = [start["dataset"]["name"] for start in starts if start["what"] == "training"]
    if trained_on and trained_on[-1] != dataset:
        raise ValueError(
            f"--eval: {path} was trained on {trained_on[-1]}, not on {dataset}. Give --dataset or --dataset_config as "
            f"in training, or name another folder for the results on {dataset} with --output_dir."
        )
    if path.is_dir():
        return path
    return path.parent if path.name == BEST else path.with_suffix("")


def resume_dir(output_dir: str | Path) -> Path:
    """Return the folder of a run's states."""
    return Path(output_dir) / "resume"


def states(folder: Path) -> list[Path]:
    """Return the states in a folder, oldest first; a copy under another name is none."""
    return sorted(path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdecimal())


def forget_checkpoints(output_dir: str | Path, epoch: int, keep_last: int) -> None:
    """Delete all `checkpoint_{n}.pth` up to this epoch except the last `keep_last`; 0 keeps all.

    Checkpoints of later epochs belong to another, longer run, and stay.
    """
    for path in Path(output_dir).glob("checkpoint_*.pth") if keep_last else ():
        if (name := re.fullmatch(r"checkpoint_(\d+)", path.stem)) and int(name[1]) <= epoch - keep_last:
            path.unlink()


@dataclass(frozen=True)
class Results:
    """The results of an evaluation, in the data set's order; identical on every process."""

    task: str
    dataset: S2T_Dataset
    hypotheses: Sequence[str]  # a text for each clip
    references: Sequence[str]
    scores: Scores
    losses: dict[str, float]  # "loss" with label smoothing and "nll" without, per token
    bad_clips: dict[str, str]  # clips that could not be read -> why

    @property
    def rank(self) -> tuple[float, float]:
        """Return what orders epochs: the main score, then the loss without smoothing."""
        nll = self.losses["nll"]  # in fp16 a clip may overflow
        return self.scores.values[MAIN_METRIC[self.task][0]], nll if math.isfinite(nll) else sys.float_info.max

    def numbers(self, prefix: str = "") -> dict[str, float]:
        """Return all scores and losses."""
        return {prefix + name: value for name, value in (self.scores.values | self.losses).items()}

    def complaint(self) -> str:
        """Return one line on why nothing can be measured or, if the model has learnt next to nothing, on what helps."""
        metric, higher = MAIN_METRIC[self.task]
        spec, value, total = self.dataset.spec, self.scores.values[metric], len(self.references)
        (text, often), (_, expected) = (
            Counter(texts).most_common(1)[0] for texts in (self.hypotheses, self.references)
        )
        if self.task == "SLT" and (why := why_zero(self.references, spec.text_unit, spec.bleu_tokenizer)):
            said = f"{TEXTS[why][0]}."
        elif often >= SAME * total > expected:
            said = f"{often} of {total} sentences are the same, {text[:40]!r}. {HELPS}"
        elif value == 0 if higher else value >= 100:
            said = f"{metric} is {value:g}. {HELPS}"
        else:
            return ""
        return f"{self.dataset.split}: {said}"


def write_predictions(output_dir: Path, results: Results) -> None:
    """Write {split}_predictions.jsonl, {split}_metrics.json, and Uni-Sign's two text files."""
    dataset, scores, bad_clips = results.dataset, results.scores, results.bad_clips
    split = dataset.split
    lines = []
    for name, reference, hypothesis in zip(dataset.names, results.references, results.hypotheses, strict=True):
        line = {"name": name, "reference": reference, "hypothesis": hypothesis}
        line |= {"unreadable": bad_clips[name]} if name in bad_clips else {}
        lines.append(to_json(line) + "\n")
    write_text(output_dir / f"{split}_predictions.jsonl", "".join(lines))
    numbers = {**results.numbers(), "clips": len(dataset), "unreadable": len(bad_clips)}
    content = to_json({**numbers, "signatures": scores.signatures}, indent=1)
    write_text(output_dir / f"{split}_metrics.json", content + "\n")
    # Sentences as they are scored (split into characters with "char"). Glosses and single signs are unchanged.
    unit = dataset.spec.text_unit if results.task == "SLT" else "word"
    for file, what, texts, prepare in (
        ("pres", "prediction", results.hypotheses, prepare_hypothesis),
        ("refs", "reference", results.references, prepare_reference),
    ):
        said = (prepare(text, unit).replace("\n", " ") for text in texts)
        lines = [f"sample: {name}, {what}: {text}\n" for name, text in zip(dataset.names, said, strict=True)]
        write_text(output_dir / f"{split}_tmp_{file}.txt", "".join(lines))
