"""Ablation: do descriptions help? One command runs all trainings and tests, and writes one table.

    python sample_data.py --out sample --clips 2000 100 200
    python ablate.py --root sample --jobs 2 --out runs/ablation

All work is done by printed commands of `fine_tuning.py`, so that each can be run by hand. Trainings differ only in the
folder of descriptions and a few flags; tests of one training differ only in the folder of descriptions. An interrupted
run continues where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

import config
from cli import Parser, add_dataset_flags, run
from description_files import write_descriptions
from disk import write_text
from metrics import Tally, compare, draw_clips, tally
from temporal_alignment import DescriptionLoader

logger = logging.getLogger("ablate")

HERE = Path(__file__).parent
# A small model that a CPU trains in minutes on a few thousand clips.
SMALL = "--hidden_dim 16 --epochs 6 --warmup-epochs 0.6 --lr 2e-3 --batch-size 32 --gradient-accumulation-steps 1 "
SMALL += "--dtype fp32 --num_workers 1 --num_beams 2 --max_new_tokens 40"
QUICK = "--epochs 1 --num_beams 1 --max_new_tokens 5 --hidden_dim 16"
RESAMPLES = 1000
DESCRIBED = ("--use_descriptions",)  # the manual's command 2: the text encoder is trained
FROZEN = (*DESCRIBED, "--text_encoder_freeze")  # its command 3
ALIGNED = (*FROZEN, "--description_alignment", "0.3")

EXAMPLES = (
    """examples:
  python ablate.py --root sample --jobs 2 --out runs/ablation
  python ablate.py --root sample --jobs 2 --out runs/ablation --seeds 5    goes on from what is there
  python ablate.py --root sample --arms pose own shuffled --out runs/small
  python ablate.py --root sample --quick --out runs/quick                  proves only that it runs
  python ablate.py --root my_data --dataset_config my.toml --out runs/mine -- --hidden_dim 64 --epochs 20

Flags after -- go to every training and test, after these: """
    + SMALL
)


@dataclass(frozen=True)
class Row:
    """A row of the table: a test of a trained model.

    Attributes:
        name: the row's name in the table.
        texts: the descriptions for the test, a key of `TEXTS`.
    """

    name: str
    texts: str


@dataclass(frozen=True)
class Arm:
    """A training and its tests.

    Attributes:
        texts: the descriptions for the training, a key of `TEXTS`.
        flags: flags of the training and its tests.
        tests: rows of the table.
    """

    texts: str
    flags: tuple[str, ...]
    tests: tuple[Row, ...]


ARMS: dict[str, Arm] = {
    "pose": Arm("none", (), (Row("pose only", "none"),)),
    "own": Arm("own", FROZEN, (Row("own texts", "own"), Row("own texts in training only", "none"))),
    "trained": Arm(
        "own",
        DESCRIBED,
        (Row("own texts, trained encoder", "own"), Row("trained encoder, texts in training only", "none")),
    ),
    # With --finetune, the manual's command 3 trains the fusion modules alone; this arm trains the rest, too.
    "all": Arm(
        "own",
        (*FROZEN, "--trainable", "all"),
        (Row("own texts, all but the encoder trained", "own"), Row("all trained, texts in training only", "none")),
    ),
    "aligned": Arm(
        "own", ALIGNED, (Row("alignment, own texts", "own"), Row("alignment, texts in training only", "none"))
    ),
    "rules": Arm("rules", FROZEN, (Row("texts made by rules", "rules"),)),
    "tenth": Arm("tenth", FROZEN, (Row("texts for 10 % of the clips", "tenth"),)),
    "hundredth": Arm("hundredth", FROZEN, (Row("texts for 1 % of the clips", "hundredth"),)),
    # Controls: if meaningless texts help, it is not the meaning of texts that helps.
    "shuffled": Arm("shuffled", FROZEN, (Row("texts of other clips", "shuffled"),)),
    "constant": Arm("constant", FROZEN, (Row("one text for all", "constant"),)),
    "errors": Arm("errors", FROZEN, (Row("error texts that pass for descriptions", "errors"),)),
}
BASE = "pose only"


# -- descriptions ----------------------------------------------------------------------------------------------------

Clips = dict[str, dict[int, str]]  # name -> {frame number: text}


def no_texts(_clips: Clips, _seed: int) -> Clips:
    """Return no descriptions at all."""
    return {}


def shuffled_texts(clips: Clips, seed: int) -> Clips:
    """Give each clip's described frames the texts of another clip, in their order.

    >>> shuffled_texts({"a": {3: "up", 9: "down"}, "b": {0: "left"}}, 0)
    {'a': {3: 'left', 9: 'left'}, 'b': {0: 'up'}}
    """
    names = [name for name in sorted(clips) if clips[name]]
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    found = {}
    for name, other in zip(order, order[1:] + order[:1], strict=True):
        frames, texts = sorted(clips[name]), [clips[other][frame] for frame in sorted(clips[other])]
        found[name] = {frame: texts[i * len(texts) // len(frames)] for i, frame in enumerate(frames)}
    return dict(sorted(found.items()))


def constant_texts(clips: Clips, _seed: int) -> Clips:
    """Give every described frame the most frequent text."""
    counts = Counter(text for texts in clips.values() for text in texts.values())
    text = min(counts, key=lambda text: (-counts[text], text), default="")
    return {name: dict.fromkeys(texts, text) for name, texts in clips.items()}


def some_texts(share: int, clips: Clips, seed: int) -> Clips:
    """Keep the texts of one clip in `share`, and of one clip at least."""
    names = np.random.default_rng(seed).permutation(sorted(name for name in clips if clips[name]))
    return {name: clips[name] for name in sorted(names[: max(1, len(names) // share)].tolist())}


def error_texts(clips: Clips, seed: int) -> Clips:
    """Replace every text by an error message of its own, of a form that no filter knows."""
    codes = np.random.default_rng(seed)
    return {
        name: {frame: f"upstream closed the stream, trace {codes.integers(1 << 32):08x}" for frame in texts}
        for name, texts in clips.items()
    }


TEXTS: dict[str, Callable[[Clips, int], Clips] | None] = {
    "own": None,
    "rules": None,
    "none": no_texts,
    "tenth": partial(some_texts, 10),
    "hundredth": partial(some_texts, 100),
    "errors": error_texts,
    "shuffled": shuffled_texts,
    "constant": constant_texts,
}


def write_texts(spec: config.DatasetSpec, kind: str, folder: Path) -> None:
    """Write the descriptions of one kind for all splits."""
    make = TEXTS[kind]
    assert make is not None, f"{kind} is not made from the clips' own descriptions"
    for split in {spec.folder(split) for split in spec.labels}:
        source = Path(spec.description_dir) / split
        loader = DescriptionLoader(source)
        names = sorted(path.relative_to(source).with_suffix("").as_posix() for path in source.rglob("*.json"))
        clips = {name: loader.load(name) for name in names}
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name, texts in make(clips, 0).items():
            write_descriptions(folder / split / f"{name}.json", texts, dict.fromkeys(texts, f"ablation: {kind}"))


def to_toml(spec: config.DatasetSpec, description_dir: Path) -> str:
    """Format a data set's record as TOML, with another folder of descriptions and absolute paths."""
    values = dataclasses.asdict(spec) | {"description_dir": str(description_dir.absolute())}
    labels = {split: os.path.abspath(path) for split, path in values.pop("labels").items()}
    values |= {key: os.path.abspath(values[key]) for key in ("pose_dir", "rgb_dir") if values[key]}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join([*lines, "[labels]", *(f"{split} = {json.dumps(path)}" for split, path in labels.items())]) + "\n"


# -- running ---------------------------------------------------------------------------------------------------------


@dataclass
class Runner:
    """Runs each command once."""

    args: argparse.Namespace
    spec: config.DatasetSpec
    records: dict[str, Path] = field(default_factory=dict)

    def record(self, kind: str) -> Path:
        """Return the data set's TOML record for a kind of descriptions, which are made on first use."""
        if kind not in self.records:
            folder = Path(self.args.out) / "texts" / kind
            if kind == "own":
                folder = Path(self.spec.description_dir)
            elif kind == "rules":
                self.once(folder / "done.json", self._rules(folder))
            elif not (folder / "done.json").exists():
                write_texts(self.spec, kind, folder)
                write_text(folder / "done.json", "{}\n")
            path = Path(self.args.out) / "texts" / f"{kind}.toml"
            write_text(path, to_toml(self.spec, folder))
            self.records[kind] = path
        return self.records[kind]

    def _rules(self, folder: Path) -> list[str]:
        return [str(HERE / "describe.py"), "--dataset_config", str(self.record("own")), "--out", str(folder)]

    def once(self, done: Path, command: list[str]) -> None:
        """Run a command of this project unless it has run before: then the file `done` holds the command.

        Raises:
            ValueError: the command failed, or the folder holds results of another command.
        """
        if done.exists():
            if json.loads(done.read_text(encoding="utf-8")) != command:
                raise ValueError(
                    f"--out: {done.parent} was made by another command. Name another folder, or remove it."
                )
            return
        logger.info("python %s", shlex.join(command))
        done.parent.mkdir(parents=True, exist_ok=True)
        with open(done.parent / "output.txt", "ab") as output:
            status = subprocess.call(
                [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, env=self._environment()
            )
        if status:
            raise ValueError(f"status {status} of: python {shlex.join(command)}\nSee {output.name}.")
        write_text(done, json.dumps(command) + "\n")

    def _environment(self) -> dict[str, str]:
        """Return the environment: parallel jobs share the cores, unless the user sets OMP_NUM_THREADS."""
        threads = max(1, (os.cpu_count() or 1) // self.args.jobs)
        return {"OMP_NUM_THREADS": str(threads), **os.environ}

    def fine_tuning(self, texts: str, flags: Sequence[str], seed: int, out: Path) -> list[str]:
        """Return a command of `fine_tuning.py`."""
        command = [str(HERE / "fine_tuning.py"), "--dataset_config", str(self.record(texts)), "--root", self.args.root]
        command += [*SMALL.split(), *(QUICK.split() if self.args.quick else []), *self.args.flags]
        return [*command, *flags, "--seed", str(seed), "--output_dir", str(out)]

    def arm(self, name: str, seed: int) -> dict[str, list[dict]]:
        """Train an arm and run its tests; return row -> predictions."""
        arm, folder = ARMS[name], Path(self.args.out) / "runs" / f"{name}-seed{seed}"
        train = [*self.fine_tuning(arm.texts, arm.flags, seed, folder / "train"), "--resume", "auto"]
        self.once(folder / "trained.json", train)
        rows = {}
        for number, test in enumerate(arm.tests):
            out = folder / f"test{number}"
            command = self.fine_tuning(test.texts, arm.flags, seed, out)
            weights = str(folder / "train" / "best_checkpoint.pth")
            self.once(folder / f"tested{number}.json", [*command, "--eval", "--finetune", weights])
            with open(out / "test_predictions.jsonl", encoding="utf-8") as file:
                rows[test.name] = [json.loads(line) for line in file]
        return rows


# -- the table -------------------------------------------------------------------------------------------------------


def summarise(predictions: Mapping[str, Mapping[int, list[dict]]], spec: config.DatasetSpec) -> list[dict]:
    """Return one dict per row of the table.

    Args:
        predictions: row -> seed -> the test clips' references and hypotheses.
        spec: the data set's record.
    """
    table = []
    tallies = {row: {seed: bleu4(lines, spec) for seed, lines in by.items()} for row, by in predictions.items()}
    base = tallies.get(BASE, {})
    for row, by_seed in tallies.items():
        values = [counted.total() for counted in by_seed.values()]
        entry = {"row": row, "seeds": len(values), "bleu4": float(np.mean(values)), "each": values}
        if row != BASE and (common := sorted(set(base) & set(by_seed))):
            ours, theirs = ([by[seed] for seed in common] for by in (by_seed, base))
            entry |= compare(ours, theirs, draw_clips(len(predictions[row][common[0]]), RESAMPLES))
        table.append(entry)
    return table


def bleu4(lines: Sequence[dict], spec: config.DatasetSpec) -> Tally:
    """Return the BLEU-4 tally of a test's clips."""
    hypotheses, references = ([line[key] for line in lines] for key in ("hypothesis", "reference"))
    return tally("SLT", hypotheses, references, spec.text_unit, spec.bleu_tokenizer)[0]["bleu4"]


def markdown(table: Sequence[dict]) -> str:
    """Format the table as Markdown."""
    lines = [
        "| model and test | test BLEU-4 | each seed | against pose only | 95 % | p |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for entry in table:
        versus = ["-"] * 3
        if "difference" in entry:
            low, high = entry["interval"]
            versus = [f"{entry['difference']:+.1f}", f"{low:+.1f} to {high:+.1f}", f"{entry['p']:.3f}"]
        each = ", ".join(f"{value:.1f}" for value in entry["each"])
        lines.append("| " + " | ".join([entry["row"], f"{entry['bleu4']:.1f}", each, *versus]) + " |")
    return "\n".join(lines) + "\n"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; flags after -- go to fine_tuning.py."""
    given = list(sys.argv[1:] if argv is None else argv)
    own, flags = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = Parser(
        prog="ablate.py",
        description="Train and test with and without descriptions, and with control texts; write one table.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--root", default="sample", metavar="DIR", help="folder of the data; default: sample")
    add_dataset_flags(parser.add_argument)
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="trainings of each arm; default: 2")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at once, on a CPU; default: 1")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, help="default: all")
    parser.add_argument("--quick", action="store_true", help="one epoch of a tiny model: proves only that it runs")
    parser.add_argument("--out", required=True, metavar="DIR", help="results; a stopped run goes on from what is there")
    args = parser.parse_args(own)
    args.flags = flags
    parser.at_least(args, seeds=1, jobs=1)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run all arms, seed by seed, and write the table after each.

    Raises:
        ValueError: a command failed; running jobs finish first, and no others are started.
    """
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    spec = config.dataset_of(args).under(args.root)
    runner = Runner(args, spec)
    predictions: dict[str, dict[int, list[dict]]] = {}
    out = Path(args.out)
    for arm in (ARMS[name] for name in args.arms):
        for texts in (arm.texts, *(test.texts for test in arm.tests)):
            runner.record(texts)  # before jobs run, to avoid a race
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [(seed, pool.submit(runner.arm, name, seed)) for seed in range(1, args.seeds + 1) for name in args.arms]
        for seed, job in jobs:
            try:
                rows = job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            for row, lines in rows.items():
                predictions.setdefault(row, {})[seed] = lines
            table = summarise(predictions, spec)
            write_text(out / "ablation.json", json.dumps(table, indent=1) + "\n")
            write_text(out / "ablation.md", markdown(table))
    sys.stdout.write(markdown(table))


if __name__ == "__main__":
    run(main)
