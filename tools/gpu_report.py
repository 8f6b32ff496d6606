"""Run on the first GPU what could not be run without one, the most valuable first.

    python -m tools.gpu_report OUT

Each section is a process of its own, with a log OUT/SECTION.log: one that fails, or hangs, is recorded with its last
line, and the next one runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from system.disk import to_json, write_text
from utils import Parser, run

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 150  # seconds of a section; what takes longer hangs
CLIPS = {"base": "256 16 16", "tiny": "8 2 2"}  # of the sample corpus
TRAINING = (
    "fine_tuning.py --root {out}/sample --use_descriptions --hidden_dim 16 --epochs 3 --batch-size 8 "
    "--gradient-accumulation-steps 1 --num_workers 0 --num_beams 2 --max_new_tokens 20 --resume auto"
)


def sections(size: str) -> dict[str, str]:
    """Return the arguments of Python in each section, in the order of value."""
    measure = f"-m tools.benchmark --size {size}"
    return {
        "as_on_a_cpu": "-m pytest -q tests/test_gpu.py",
        "pose_only": measure,
        "corpus": f"-m tools.sample_data --out {{out}}/sample --clips {CLIPS[size]}",
        "bf16_zero2": f"{TRAINING} --dtype bf16 --zero_stage 2 --output_dir {{out}}/bf16_zero2",
        "fp16_zero2": f"{TRAINING} --dtype fp16 --zero_stage 2 --output_dir {{out}}/fp16_zero2",
        "trained_texts": f"{measure} --texts trained",
        "frozen_texts": f"{measure} --texts frozen",
        "bf16_zero0": f"{TRAINING} --dtype bf16 --zero_stage 0 --output_dir {{out}}/bf16_zero0",
        "bf16_zero3": f"{TRAINING} --dtype bf16 --zero_stage 3 --output_dir {{out}}/bf16_zero3",
        "bf16_zero1": f"{TRAINING} --dtype bf16 --zero_stage 1 --output_dir {{out}}/bf16_zero1",
        "compiled": f"{measure} --compile",
    }


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and reject invalid values."""
    parser = Parser(prog="python -m tools.gpu_report", description=__doc__.partition("\n")[0] if __doc__ else "")
    add = parser.add_argument
    add("out", metavar="OUT", help="folder to write; a second call does what is missing there")
    add("--size", default="base", choices=CLIPS, help="tiny: to try the command; default: base, mt5-base's")
    args = parser.parse_args(argv)
    if Path(args.out).exists() and not Path(args.out).is_dir():
        parser.error(f"{args.out} is no folder.")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sections that are missing, and write results.json after each."""
    args = parse_args(argv)
    out = Path(args.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    if (out / "results.json").exists():
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for name, line in sections(args.size).items():
        if results.get(name, {}).get("done"):
            continue
        command = [word.format(out=out) for word in shlex.split(line)]
        results[name] = result = run_section(command, out / f"{name}.log")
        write_text(out / "results.json", to_json(results, indent=1) + "\n")
        sys.stdout.write(f"{name}: {'' if result['done'] else 'FAILED: '}{result['last_line']}\n")
        sys.stdout.flush()


def run_section(command: Sequence[str], path: Path) -> dict[str, Any]:
    """Run a section's command, with its output in a file; return whether it succeeded, and its last line."""
    with open(path, "w+", encoding="utf-8", errors="replace") as log:
        log.write(f"python {shlex.join(command)}\n")
        log.flush()
        try:
            words = [sys.executable, *command]
            status = subprocess.run(words, cwd=ROOT, stdout=log, stderr=log, timeout=LONGEST, check=False).returncode
        except subprocess.TimeoutExpired:
            return {"done": False, "last_line": f"not ended after {LONGEST} s"}
        log.seek(0)
        return {"done": status == 0, "last_line": [line.strip() for line in log if line.strip()][-1][:300]}


if __name__ == "__main__":
    run(main)
