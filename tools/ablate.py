"""Ablation: do descriptions help? One command runs all trainings and tests, and writes one table.

    python -m tools.sample_data --out sample
    python -m tools.ablate --root sample --jobs 2 --out runs/ablation

All work is done by printed commands of `fine_tuning.py`, so that each can be run by hand. Trainings differ only in the
folder of descriptions and a few flags; tests of one training differ only in the folder of descriptions. An interrupted
run continues where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import config
from system.disk import to_json, write_text
from utils import Parser, add_dataset_flags, log_to_terminal, require_paths, run

if TYPE_CHECKING:
    from training.experiments import Experiments
    from training.metrics import Tally

logger = logging.getLogger("ablate")

RESAMPLES = 1000
DESCRIBED = ("--use_descriptions",)  # the manual's command 2: the text encoder is trained
FROZEN = (*DESCRIBED, "--text_encoder_freeze")  # its command 3
UNALIGNED = (*FROZEN, "--description_alignment", "0")

EXAMPLES = (
    """examples:
  python -m tools.ablate --root sample --jobs 2 --out runs/ablation
  python -m tools.ablate --root sample --jobs 2 --out runs/ablation --seeds 5    goes on from what is there
  python -m tools.ablate --root sample --arms pose own shuffled --out runs/small
  python -m tools.ablate --root my_data --dataset_config my.toml --out runs/mine -- --hidden_dim 64 --epochs 20

Flags after -- go to every training and test, after these: """
    + config.SMALL_MODEL
)


class Arm(NamedTuple):
    """A training and its tests. Descriptions are "own", "rules" or a key of `CONTROLS`."""

    texts: str  # the descriptions for the training
    flags: tuple[str, ...]  # flags of the training and its tests
    tests: dict[str, str]  # row of the table -> the descriptions for the test


ARMS: dict[str, Arm] = {
    "pose": Arm("none", (), {"pose only": "none"}),
    "own": Arm("own", FROZEN, {"own texts": "own", "own texts in training only": "none"}),
    "trained": Arm(
        "own", DESCRIBED, {"own texts, trained encoder": "own", "trained encoder, texts in training only": "none"}
    ),
    "unaligned": Arm(
        "own", UNALIGNED, {"no alignment, own texts": "own", "no alignment, texts in training only": "none"}
    ),
    "rules": Arm("rules", FROZEN, {"texts made by rules": "rules"}),
    "tenth": Arm("tenth", FROZEN, {"texts for 10 % of the clips": "tenth"}),
    "hundredth": Arm("hundredth", FROZEN, {"texts for 1 % of the clips": "hundredth"}),
    # Controls: if meaningless texts help, it is not the meaning of texts that helps. With a mapper they are refused.
    "shuffled": Arm("shuffled", UNALIGNED, {"texts of other clips": "shuffled"}),
    "constant": Arm("constant", UNALIGNED, {"one text for all": "constant"}),
    "errors": Arm("errors", UNALIGNED, {"error texts that pass for descriptions": "errors"}),
}
BASE = "pose only"


def run_arm(experiments: Experiments, name: str, seed: int) -> dict[str, list[dict]]:
    """Train an arm, which ends with a test of its own texts, and run its other tests; return row -> predictions."""
    arm, folder = ARMS[name], experiments.out / "runs" / f"{name}-seed{seed}"
    flags = [*arm.flags, "--seed", str(seed)]
    own = experiments.train(arm.texts, flags, folder)
    return {
        row: own if texts == arm.texts else experiments.test(texts, flags, folder, folder / texts)
        for row, texts in arm.tests.items()
    }


# -- the table -------------------------------------------------------------------------------------------------------


def summarise(predictions: Mapping[str, Mapping[int, list[dict]]], spec: config.DatasetSpec) -> list[dict]:
    """Return one dict per row of the table, given row -> seed -> the test clips' references and hypotheses."""
    from training.metrics import compare, draw_clips, tally

    def bleu4(lines: Sequence[dict]) -> Tally:
        hypotheses, references = ([line[key] for line in lines] for key in ("hypothesis", "reference"))
        return tally("SLT", hypotheses, references, spec.text_unit, spec.bleu_tokenizer)[0]["bleu4"]

    table = []
    tallies = {row: {seed: bleu4(lines) for seed, lines in by.items()} for row, by in predictions.items()}
    base = tallies.get(BASE, {})
    for row, by_seed in tallies.items():
        values = [counted.total() for counted in by_seed.values()]
        entry = {"row": row, "seeds": len(values), "bleu4": fmean(values), "each": values}
        if row != BASE and (common := sorted(set(base) & set(by_seed))):
            ours, theirs = ([by[seed] for seed in common] for by in (by_seed, base))
            entry |= compare(ours, theirs, draw_clips(len(predictions[row][common[0]]), RESAMPLES))
        table.append(entry)
    return table


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
    what = "Train and test with and without descriptions, and with control texts; write one table."
    parser = Parser(prog="python -m tools.ablate", description=what, epilog=EXAMPLES)
    parser.add_argument("--root", default="sample", metavar="DIR", help="folder of the data; default: sample")
    add_dataset_flags(parser.add_argument)
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="trainings of each arm; default: 2")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at once, on a CPU; default: 1")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, help="default: all")
    parser.add_argument("--out", required=True, metavar="DIR", help="results; a stopped run goes on from what is there")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="flags of every training and test")
    args = parser.parse_args(argv)
    parser.check(args, seeds=1, jobs=1)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run all arms, seed by seed, and write the table after each; after a failure no other arm is begun."""
    args = parse_args(argv)
    require_paths(root=args.root)
    from training.experiments import Experiments  # after --help and wrong flags

    log_to_terminal()
    spec = config.dataset_of(args.dataset, args.dataset_config).under(args.root)
    if "test" not in spec.labels or spec.dev_is_test:
        raise ValueError(f"{spec.name} has no test split beside dev, and the scores to compare are those of test.")
    out = Path(args.out)
    experiments = Experiments(spec, args.root, out, args.jobs, tuple(args.flags))
    predictions: dict[str, dict[int, list[dict]]] = {}
    for arm in (ARMS[name] for name in args.arms):
        for texts in (arm.texts, *arm.tests.values()):
            experiments.prepare(texts)  # before jobs run, to avoid a race
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [(name, seed) for seed in range(1, args.seeds + 1) for name in args.arms]
        results = pool.map(lambda job: run_arm(experiments, *job), jobs)  # cancels the others after a failure
        for (_, seed), rows in zip(jobs, results, strict=True):
            for row, lines in rows.items():
                predictions.setdefault(row, {})[seed] = lines
            table = summarise(predictions, spec)
            write_text(out / "ablation.json", to_json(table, indent=1) + "\n")
            write_text(out / "ablation.md", markdown(table))
    sys.stdout.write(markdown(table))


if __name__ == "__main__":
    run(main)
