"""Write the sample corpus: a made-up sign language and a small mT5.

python -m tools.sample_data --out sample
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import config
from utils import Parser, run


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sample corpus from the command line."""
    what = "Write the sample corpus: a made-up sign language and a small mT5."
    parser = Parser(prog="python -m tools.sample_data", description=what)
    parser.add_argument("--out", default="sample", help="folder to write (default: sample)")
    parser.add_argument("--seed", type=int, default=0)
    default = tuple(config.SAMPLE_CLIPS.values())
    parser.add_argument("--clips", type=int, nargs=3, default=default, metavar=config.SPLITS)
    args = parser.parse_args(arguments)
    from synthetic.corpus import SIGNS, minimal_pairs, write_corpus  # after --help and wrong flags

    write_corpus(args.out, dict(zip(config.SPLITS, args.clips, strict=True)), args.seed)
    sys.stdout.write(
        f"{args.out}: {sum(args.clips)} clips of {len(SIGNS)} signs, {len(minimal_pairs())} pairs of which only "
        "descriptions tell apart\n"
        f"next: python fine_tuning.py --root {args.out} --use_descriptions --text_encoder_freeze {config.SMALL_MODEL}\n"
    )


if __name__ == "__main__":
    run(main)
