"""Measure on the first GPU what could not be measured without one, the most valuable first, on one page.

    python -m tools.gpu_report OUT

Each section is a process of its own: one that fails, or hangs, is recorded with its last line, and the next one runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from system.disk import read_lines, to_json, write_text
from utils import Parser, run

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 150  # seconds of a section; what takes longer hangs
SHORTEST = 20  # with less time left, none is begun
SAMPLE = {"base": (256, 16, 16), "tiny": (8, 2, 2)}  # clips of the sample corpus
TRAINING = (
    "--use_descriptions --hidden_dim 16 --batch-size 8 --gradient-accumulation-steps 1 --num_workers 0 --num_beams 2 "
    "--max_new_tokens 20 --resume auto"
)


def sections(size: str) -> dict[str, list[str]]:
    """Return the command of each section, in the order of value."""

    def measure(*stages: str) -> list[str]:
        return ["-m", "tools.benchmark", "--size", size, "--json", "{out}.json", "--only", *stages]

    def train(dtype: str, zero_stage: int) -> list[str]:
        epochs = "1" if size == "tiny" else "3"
        changing = ["--epochs", epochs, "--dtype", dtype, "--zero_stage", str(zero_stage), "--output_dir", "{out}"]
        return ["fine_tuning.py", "--root", "{folder}/sample", *TRAINING.split(), *changing]

    return {
        "as on a CPU": ["-m", "pytest", "-q", "tests/test_gpu.py"],
        "training step": measure("training step without", "forward", "reference", "training step, mixed"),
        "corpus": ["-m", "tools.sample_data", "--out", "{folder}/sample", "--clips", *map(str, SAMPLE[size])],
        "bf16, ZeRO 2": train("bf16", 2),
        "fp16, ZeRO 2": train("fp16", 2),
        "trained texts": measure("training step with trained"),
        "frozen texts": measure("training step with frozen"),
        "evaluation": measure("evaluation"),
        "bf16, ZeRO 0": train("bf16", 0),
        "bf16, ZeRO 3": train("bf16", 3),
        "bf16, ZeRO 1": train("bf16", 1),
        "parts of a step": measure("pose", "mT5", "decoder", "optimizer", "text"),
        "compiled": [*measure("training step without"), "--compile"],
    }


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and reject invalid values."""
    parser = Parser(prog="python -m tools.gpu_report", description=__doc__.partition("\n")[0] if __doc__ else "")
    add = parser.add_argument
    add("out", metavar="OUT", help="folder to write; a second call does what is missing there")
    add("--minutes", type=float, default=8, help="begin nothing that would take longer; default: 8")
    add("--size", default="base", choices=SAMPLE, help="tiny: to try the command; default: base, mt5-base's")
    args = parser.parse_args(argv)
    if Path(args.out).exists() and not Path(args.out).is_dir():
        parser.error(f"{args.out} is no folder.")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sections that are missing, and write results.json and report.html after each."""
    args = parse_args(argv)
    folder, end = Path(args.out).absolute(), time.monotonic() + 60 * args.minutes
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    if (folder / "results.json").exists():
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    commands = sections(args.size)
    for name, words in commands.items():
        left = end - time.monotonic()
        if results.get(name, {}).get("done"):
            continue
        if left < SHORTEST:
            results[name] = {"done": False, "last_line": "no time was left: call the command again"}
        else:
            results[name] = run_section(folder, name, words, min(left, LONGEST))
        write_text(folder / "results.json", to_json(results, indent=1) + "\n")
        write_text(folder / "report.html", to_page(results))
        sys.stdout.write(f"{name}: {'' if results[name]['done'] else 'FAILED: '}{results[name]['last_line']}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{sum(r['done'] for r in results.values())} of {len(commands)}; see {folder / 'report.html'}\n")


def run_section(folder: Path, name: str, words: Sequence[str], limit: float) -> dict[str, Any]:
    """Run a section's command; return whether it succeeded, its last line, its seconds and its figures."""
    out = folder / name.replace(", ", "_").replace(" ", "_")
    command = [word.format(out=out, folder=folder) for word in words]
    begun = time.monotonic()
    with open(f"{out}.log", "w+", encoding="utf-8", errors="replace") as log:
        log.write(f"python {shlex.join(command)}\n")
        log.flush()
        try:
            status = subprocess.run(
                [sys.executable, *command], cwd=ROOT, stdout=log, stderr=log, timeout=limit, check=False
            ).returncode
            log.seek(0)
            last_line = [line.strip() for line in log if line.strip()][-1][:300]
        except subprocess.TimeoutExpired:
            status, last_line = 1, f"not ended after {limit:.0f} s"
    result = {"done": status == 0, "last_line": last_line, "seconds": round(time.monotonic() - begun, 1)}
    if (figures := Path(f"{out}.json")).exists():  # of the stages that were reached
        result |= json.loads(figures.read_text(encoding="utf-8"))
    if (out / "steps.jsonl").exists():
        result["losses"] = [line["loss"] for line in read_lines(out / "steps.jsonl")]
    return result


# -- the page --------------------------------------------------------------------------------------------------------

COLUMNS = ("stage", "ms", "clips/s", "% of ceiling", "kernels", "launches", "GPU busy, %", "lines that wait",
           "peak GiB", "calculated GiB")  # fmt: skip


def to_page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the results as an HTML page."""
    from pages.elements import Line, chart, element, page, table

    measured = [(result["run"], row) for result in results.values() for row in result.get("stages", ())]
    about = ("device", "torch", "dtype", "ceiling_tflops", "batch_size", "frames")
    facts = ", ".join(f"{key} {run_[key]}" for run_, _ in measured[:1] for key in about)
    stages = [(*_speed(row), *_memory(run_, row)) for run_, row in measured]
    runs = [
        (name, "done" if result["done"] else "failed", f"{result.get('seconds', 0):.0f}", result["last_line"])
        for name, result in results.items()
    ]
    trained = {name: result["losses"] for name, result in results.items() if result.get("losses")}
    styles = itertools.cycle(("a", "b", "a dashed", "b dashed", "a faint"))
    curves = [Line(name, list(enumerate(losses, 1)), next(styles)) for name, losses in trained.items()]
    drawn = chart("Loss of a small training", curves, "step")
    return page(
        "On a GPU", element("h1", "On a GPU"), element("p", facts), table(stages, COLUMNS), drawn,
        table(runs, ("section", "", "seconds", "last line")),
    )  # fmt: skip


def _speed(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a stage about time; "-" stands for what a CPU has not."""
    time_ = f"{1000 * row['seconds']:,.1f}", f"{row['clips_per_second']:,.1f}", f"{100 * row['share_of_ceiling']:.0f}"
    if "kernels" not in row:
        return row["stage"], *time_, "-", "-", "-", "-"
    busy = f"{100 * row['busy_seconds'] / row['seconds']:.0f}"
    waits = ", ".join(f"{n} x {line}" for line, n in row["waits"].items())
    return row["stage"], *time_, f"{row['kernels']:,}", f"{row['launches']:,}", busy, waits or "none"


def _memory(run_: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the GPU's peak in a training step, and what `training.memory` calculates for it."""
    if row["in_use_mib"] is None or not row["stage"].startswith("training step with"):
        return "-", "-"
    from training.memory import MemorySettings, estimate

    size = run_["model"]
    settings = MemorySettings(
        size["batch_size"], size["hidden_dim"], run_["dtype"], zero_stage=0, offload=False,
        encodes_texts="trained" in row["stage"], rgb_support=False, fusion_alone=False,
    )  # fmt: skip
    calculated = sum(estimate(settings, size["mt5"], size["frames"], size["texts"], 1))
    return f"{(row['in_use_mib'] + row['peak_mib']) / 1024:.1f}", f"{calculated:.1f}"


if __name__ == "__main__":
    run(main)
