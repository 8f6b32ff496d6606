"""A run's output folder: its results, and what an earlier or interrupted run left in it."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from system.disk import read_lines, to_json, write_text
from training.metrics import Scores, prepare_hypothesis, prepare_reference

if TYPE_CHECKING:
    from datasets import S2T_Dataset

logger = logging.getLogger(__name__)

# Everything a run writes to its folder except train.log, which is continued.
_OF_A_RUN = (
    "resume", "run.json", "tensorboard", "log.txt", "steps.jsonl", "bad_clips.jsonl", "non_finite",
    "best_checkpoint.pth", "best_fusion.pth", "checkpoint*.pth", "*_predictions.jsonl", "*_metrics.json", "*_tmp_*.txt",
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
            lines = [to_json(line) for line in read_lines(path) if line[key] <= kept]
            write_text(path, "".join(f"{line}\n" for line in lines))


def set_later_aside(output_dir: str | Path, step: int) -> None:
    """Move states saved after a step out of the way, since the run continues from there without them."""
    folders = sorted(resume_dir(output_dir).glob("step_*"))
    later = [folder for folder in folders if int(folder.name.removeprefix("step_")) > step]
    if later:
        target = _unused(Path(output_dir) / "earlier") / "resume"
        target.mkdir(parents=True)
        for folder in later:
            folder.rename(target / folder.name)
            logger.warning("%s was saved after step %d, where the run goes on; it lies in %s.", folder, step, target)


def resume_dir(output_dir: str | Path) -> Path:
    """Return the folder of a run's states."""
    return Path(output_dir) / "resume"


def forget_checkpoints(output_dir: str | Path, epoch: int, keep_last: int) -> None:
    """Delete all `checkpoint_{n}.pth` up to this epoch except the last `keep_last`; 0 keeps all.

    Checkpoints of later epochs belong to another, longer run, and stay.
    """
    for path in Path(output_dir).glob("checkpoint_*.pth") if keep_last else ():
        if (name := re.fullmatch(r"checkpoint_(\d+)", path.stem)) and int(name[1]) <= epoch - keep_last:
            path.unlink()


@dataclass
class Results:
    """The results of an evaluation, in the data set's order."""

    task: str
    dataset: S2T_Dataset
    hypotheses: Sequence[str]
    references: Sequence[str]
    scores: Scores
    losses: dict[str, float]
    bad_clips: dict[str, str]


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
    numbers = {**scores.values, **results.losses, "clips": len(dataset), "unreadable": len(bad_clips)}
    content = to_json({**numbers, "signatures": scores.signatures}, indent=1)
    write_text(output_dir / f"{split}_metrics.json", content + "\n")
    # Sentences as they are scored (split into characters with "char"). Glosses and single signs are unchanged.
    unit = dataset.spec.text_unit if results.task == "SLT" else "word"
    for file, texts, prepare in (
        ("pres", results.hypotheses, prepare_hypothesis),
        ("refs", results.references, prepare_reference),
    ):
        content = "".join(prepare(text, unit).replace("\n", " ") + "\n" for text in texts)
        write_text(output_dir / f"{split}_tmp_{file}.txt", content)
