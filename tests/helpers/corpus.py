"""Corpora to train on or to look at: a sample corpus with a smaller mT5, and clips whose content does not matter."""

import gzip
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

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


def write_tiny_corpus(folder: Path, counts: Mapping[str, int]) -> Path:
    """Write a corpus, and an mT5 in its folder `tiny`, so small that a run takes a second."""
    write_corpus(folder, counts)
    texts = ["我今天想在学校读书。", "妈妈晚上很累。", "the left hand is at the chin"] * 3
    write_small_mt5(folder / "tiny", texts, d_model=16, heads=2, d_kv=8, d_ff=16, layers=1, vocab_size=500)
    return folder


TEXT = "右手位于胸前。"
MIXED = json.dumps(  # three texts of ten frames, and every fault
    [
        {"filename": "000000.jpg", "description": TEXT},
        {"filename": "000002.jpg", "description": TEXT},
        {"filename": "000002.jpg", "description": "again"},
        {"filename": "000004.jpg", "description": "Error code: 429"},
        {"filename": "000005.jpg", "description": "  "},
        {"filename": "000006.jpg", "description": None},
        {"filename": "cover.jpg", "description": TEXT},
        {"filename": "000010.jpg", "description": TEXT},
        {"filename": "000009.jpg", "description": TEXT},
    ]
)


def write_split(root: Path, split: str, n_clips: int) -> tuple[Path, Path]:
    """Labels and ten-frame poses, and an empty folder for descriptions; returns both folders."""
    spec = config.DATASETS["CSL_Daily"].under(root)
    names = [f"{split}{i}" for i in range(n_clips)]
    labels = {name: {"name": name, "gloss": ["好"], "text": "好。", "video_path": f"{name}.mp4"} for name in names}
    poses, descriptions = Path(spec.pose_dir), Path(spec.description_dir) / split
    for place in (poses, descriptions, Path(spec.labels[split]).parent):
        place.mkdir(parents=True, exist_ok=True)
    Path(spec.labels[split]).write_bytes(gzip.compress(pickle.dumps(labels)))
    for name in names:
        pose = {"keypoints": [np.zeros((1, 133, 2))] * 10, "scores": [np.zeros((1, 133))] * 10}
        (poses / f"{name}.pkl").write_bytes(pickle.dumps(pose))
    return poses, descriptions
