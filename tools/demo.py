"""The project in a few minutes: train without and with descriptions on a made-up corpus, side by side, and compare."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import config
from system.disk import read_lines
from utils import Parser, progress, run

EPOCHS = 6
BATCH = 32
SHOWN = 5  # clips in the comparison
WITH = ("--use_descriptions", "--text_encoder_freeze")
ROWS = (
    "trained and tested without texts",
    "trained and tested with texts",
    "    the same, tested without texts",
    "    the same, tested with other clips' texts",
)

WHAT_IT_SHOWS = """
The model reads the texts of its frames, for other clips' texts mislead it; and its poses have learnt from them, for it
does well without any. The corpus is made up, mT5 is small and random, and much of the gap is speed: poses alone, which
may write one sentence for every clip now, reach 49 after twelve epochs and 69 after eighteen. Seeds, controls, trained
poses: docs/DESCRIPTIONS.md.
"""
NEXT = """
Next:  open {page} in a browser
       python -m tools.demo_page --checkpoint {weights}
       python inference.py {pose} --checkpoint {weights}
       your own clips: see README.md
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--root", default="sample", metavar="DIR", help="the corpus, made if missing; default: sample")
    work = "where to work; a second run goes on; default: output_demo"
    parser.add_argument("--out", default="output_demo", metavar="DIR", help=work)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the corpus, train and test side by side, print the comparison and write the report."""
    args = parse_args(argv)
    from synthetic.corpus import write_corpus  # after --help and wrong flags
    from training.experiments import Experiments
    from training.run_folder import BEST

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if not (Path(args.root) / config.mt5_path / "model.safetensors").is_file():  # what is written last
        say(f"making a corpus of {sum(config.SAMPLE_CLIPS.values()):,} clips in {args.root} ...")
        write_corpus(args.root, config.SAMPLE_CLIPS)
    spec = config.DATASETS["CSL_Daily"].under(args.root)
    out = Path(args.out)
    experiments = Experiments(spec, args.root, out, jobs=2)
    for texts in ("own", "none", "shuffled"):
        experiments.prepare(texts)
    without, with_texts = out / "without", out / "with"
    with ThreadPoolExecutor(2) as pool:
        trainings = [
            pool.submit(experiments.train, "none", (), without),
            pool.submit(experiments.train, "own", WITH, with_texts),
        ]
        watch(trainings, [without, with_texts])
        clips = [job.result() for job in trainings]
        tests = [
            pool.submit(experiments.test, "none", WITH, with_texts, out / "no_texts"),
            pool.submit(experiments.test, "shuffled", WITH, with_texts, out / "other_texts"),
        ]
        clips += [job.result() for job in progress(tests, "testing")]
    say(comparison(dict(zip(ROWS, clips, strict=True)), spec))
    page = out / "report.html"
    report = ["-m", "tools.report", str(without), str(with_texts), "--out", str(page)]
    experiments.once(out / "report.json", report)
    pose = Path(spec.pose_dir) / f"{clips[0][0]['name']}.pkl"
    say(WHAT_IT_SHOWS + NEXT.format(page=page, weights=with_texts / BEST, pose=pose))


def say(text: str) -> None:
    """Write to the terminal at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def watch(trainings: Sequence[Future], folders: Sequence[Path]) -> None:
    """Show one bar for all steps, and one line per epoch, until the trainings end."""
    steps = EPOCHS * -(-config.SAMPLE_CLIPS["train"] // BATCH)
    bar = progress([], "training", total=steps * len(folders))
    told = 0
    while True:
        ended = all(training.done() for training in trainings)
        curves = [read_lines(folder / "log.txt") for folder in folders]
        for epoch in range(told, min(map(len, curves))):
            scores = " | ".join(
                f"{name} texts: BLEU-4 {curve[epoch]['dev_bleu4']:4.1f}"
                for name, curve in zip(("without", "with"), curves, strict=True)
            )
            bar.write(f"epoch {epoch + 1} of {EPOCHS} on dev | {scores}", file=sys.stdout)
            told = epoch + 1
        bar.update(sum(len(read_lines(folder / "steps.jsonl")) for folder in folders) - bar.n)
        if ended:
            break
        time.sleep(1)
    bar.close()


def comparison(results: Mapping[str, Sequence[Mapping[str, str]]], spec: config.DatasetSpec) -> str:
    """Format the scores of all tests, and sentences of some clips of the first two, evenly spaced, not chosen."""
    from training.metrics import score

    lines = [f"\n{'test BLEU-4 of ' + str(len(next(iter(results.values())))) + ' clips':46} "]
    for row, clips in results.items():
        hypotheses, references = ([clip[key] for clip in clips] for key in ("hypothesis", "reference"))
        value = score("SLT", hypotheses, references, spec.text_unit, spec.bleu_tokenizer).values["bleu4"]
        lines.append(f"{row:46} {value:5.1f}")
    without, with_texts = list(results.values())[:2]
    for number in range(0, len(without), max(1, len(without) // SHOWN)):
        lines += [
            f"\n{without[number]['name']}",
            f"  reference      {without[number]['reference']}",
            f"  without texts  {without[number]['hypothesis']}",
            f"  with texts     {with_texts[number]['hypothesis']}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
