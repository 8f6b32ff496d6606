"""A sample corpus whose mT5 is smaller than its own: many tests train it."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import config
from synthetic.corpus import write_corpus
from synthetic.small_mt5 import read_texts, write_small_mt5

TEXTS = ("data/CSL_Daily/labels.train", "description/CSL-Daily/split_data/train")


def write_small_corpus(folder: Path, counts: Mapping[str, int]) -> Path:
    """Write a corpus with so many clips in each split."""
    write_corpus(folder, counts)
    shutil.rmtree(folder / config.mt5_path)
    texts = [text for source in TEXTS for text in read_texts(folder / source)]
    write_small_mt5(folder / config.mt5_path, texts, d_model=64, layers=1, heads=2, d_kv=16, d_ff=96)
    return folder
