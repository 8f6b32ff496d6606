"""Write an HTML report on one run, or two side by side: see `pages/report.py`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import config
from system.disk import write_text
from utils import Parser, cannot_be_written, log_to_terminal, run

logger = logging.getLogger("report")

EXAMPLES = """examples:
  python -m tools.report output_multimodal
  python -m tools.report output_baseline output_multimodal --out compared.html
  python -m tools.report output_multimodal --clips 10
  python -m tools.report output_multimodal --clips S000317_P0009_T00 S000318_P0008_T00
  python -m tools.report output_multimodal --clips 0        no clips: neither data nor weights are read

RUN_DIR is the --output_dir of a training or an evaluation. The page is one file that needs no network. What is missing
in the folder, or has moved away (data, weights), is left out, and the page says so. Two runs are compared on
the clips that both have written. Exit status: 0 when the page is written."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and reject invalid values, before any slow import."""
    what = "Write one HTML page about a run, or two runs side by side."
    parser = Parser(prog="python -m tools.report", description=what, epilog=EXAMPLES)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN_DIR", help="one run, or two to compare")
    add("--out", default="", metavar="FILE", help="default: report.html in the last RUN_DIR")
    add("--split", default="", choices=("train", "dev", "test"), help="whose sentences; default: test, or else dev")
    clips = "clips to look at: so many, from the best to the worst (of two runs: from the most gained to the most lost)"
    add("--clips", nargs="+", default=["3"], metavar="N|NAME", help=f"{clips}, or by name; default: 3")
    add("--aspect", type=float, default=1.0, metavar="W/H", help="width of the videos / their height; default: 1")
    add("--device", default="", choices=("cpu", "cuda"), help="for new translations; default: cuda if there is one")
    args = parser.parse_args(argv)
    if len(args.runs) > 2:
        parser.error(f"{len(args.runs)} runs: a page has one, or compares two.")
    parser.check(args, cannot_be_written("--out", args.out, ".html"), aspect=config.ASPECTS)
    args.out = args.out or str(Path(args.runs[-1]) / "report.html")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    args = parse_args(argv)
    log_to_terminal()
    from pages.report import build  # after --help and wrong flags: it imports torch

    write_text(args.out, build(args.runs, args.split, args.clips, args.aspect, args.device))
    logger.info("%s written.", args.out)


if __name__ == "__main__":
    run(main)
