"""Write a small mT5 with random weights and its tokenizer.

python -m tools.small_mt5 --out DIR --texts FILE [FILE ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from utils import Parser, run


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a small mT5 from the command line."""
    what = "Write a small mT5 with random weights and its tokenizer."
    parser = Parser(prog="python -m tools.small_mt5", description=what)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--texts", required=True, nargs="+", help="label files, description folders or .txt files")
    parser.add_argument("--vocab_size", type=int, default=2000, help="the most pieces (default 2000)")
    args = parser.parse_args(arguments)
    from synthetic.small_mt5 import read_texts, write_small_mt5

    texts = [text for source in args.texts for text in read_texts(source)]
    pieces = write_small_mt5(args.out, texts, vocab_size=args.vocab_size)
    sys.stdout.write(f"{args.out}: a small random mT5, {pieces} pieces from {len(texts)} texts\n")


if __name__ == "__main__":
    run(main)
