"""The sample corpus has the real layout, repeats to the byte, and its rules hold."""

import hashlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import config
import utils
from clips.error_texts import is_error_text
from pose.keypoints import read_pose
from synthetic import corpus as sample_data
from synthetic.corpus import FAULTS, SIGNS, SPLIT_SIGNERS, minimal_pairs, plan_clips, sentence_text, write_corpus
from synthetic.signer import Signer, record
from synthetic.small_mt5 import MADE_BY
from system.safe_pickle import load_pickle
from tools.sample_data import main

COUNTS = {"train": 12, "dev": 4, "test": 4}
FULL_COUNTS = {"train": 400, "dev": 60, "test": 60}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "sample"
    write_corpus(out, COUNTS)
    return out


def labels_of(corpus: Path, split: str) -> dict:
    return load_pickle(config.DATASETS["CSL_Daily"].under(corpus).labels[split], compressed=True)


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_summary_and_the_next_step(tmp_path, capfd):
    main(["--out", str(tmp_path / "sample"), "--clips", "2", "1", "1"])
    out, err = capfd.readouterr()
    summary, printed = out.splitlines()
    assert ("4 clips of 60 signs, 6 pairs" in summary, err) == (True, "")
    args = utils.parse_args(shlex.split(printed.removeprefix("next: python fine_tuning.py ")))
    assert (args.root, args.use_descriptions, args.hidden_dim) == (str(tmp_path / "sample"), True, 16)


def test_files_lie_where_root_looks_for_them(corpus):
    names = {split: set(labels_of(corpus, split)) for split in config.SPLITS}
    assert {split: len(found) for split, found in names.items()} == COUNTS
    assert (corpus / "data/CSL_Daily/labels.train").is_file()
    poses = {path.name for path in (corpus / "dataset/CSL_Daily/pose_format").iterdir()}
    assert poses == {f"{name}.pkl" for found in names.values() for name in found}
    for split in config.SPLITS:
        folder = corpus / "description/CSL-Daily/split_data" / split
        assert {path.stem for path in folder.iterdir()} <= names[split]
    assert (corpus / "pretrained_weight/mt5-base/spiece.model").is_file()


def test_labels_have_the_real_types(corpus, shared_real):
    real = next(iter(load_pickle(shared_real / "fingerspelling/labels.train", compressed=True).values()))
    for split in config.SPLITS:
        for name, entry in labels_of(corpus, split).items():
            assert {key: type(value) for key, value in entry.items()} == {key: type(v) for key, v in real.items()}
            assert re.fullmatch(r"S\d{6}_P\d{4}_T\d{2}", name)
            assert (entry["name"], entry["video_path"]) == (name, f"{name}.mp4")
            assert entry["text"] == sentence_text(entry["gloss"])
            assert 3 <= len(entry["gloss"]) <= 7


def test_poses_have_the_real_types(corpus, shared_real):
    real_file = next((shared_real / "fingerspelling/pose_format").iterdir())
    real = load_pickle(real_file)
    for path in (corpus / "dataset/CSL_Daily/pose_format").iterdir():
        data = path.read_bytes()
        assert data[:2] == b"\x80\x04"  # protocol 4
        pose = load_pickle(path)
        assert list(pose) == list(real) == ["keypoints", "scores"]
        assert 20 <= len(pose["keypoints"]) == len(pose["scores"]) <= 60
        for key, shape in (("keypoints", (1, 133, 2)), ("scores", (1, 133))):
            assert type(pose[key]) is type(real[key]) is list
            assert {frame.shape for frame in pose[key]} == {real[key][0].shape} == {shape}
            assert {frame.dtype for frame in pose[key]} == {np.dtype("float32")}
            values = np.stack(pose[key])
            assert values.min() >= 0
            assert values.max() <= 1
        assert len(read_pose(path)) == len(pose["keypoints"])


def test_what_is_said_is_as_ever(corpus):
    """Sentences, glosses and descriptions, to the letter: published results rest on them."""
    said = json.dumps([labels_of(corpus, split) for split in config.SPLITS], ensure_ascii=False).encode()
    for path in sorted((corpus / "description").rglob("*.json")):
        said += path.read_bytes()
    assert hashlib.blake2b(said, digest_size=4).hexdigest() == "4ebfd4a5"


def test_some_descriptions_are_missing_and_few_are_faulty(tmp_path):
    write_corpus(tmp_path / "s", {"train": 60, "dev": 30, "test": 30})
    files = list((tmp_path / "s/description").rglob("*.json"))
    texts = [entry["description"] for path in files for entry in json.loads(path.read_text(encoding="utf-8"))]
    assert len(list((tmp_path / "s").rglob("*.pkl"))) == 120
    assert 0.8 * 120 < len(files) < 120
    assert 0 < sum(text in FAULTS for text in texts) < 0.1 * len(texts)


def test_faults_count_as_missing_and_descriptions_do_not(corpus):
    assert all(not text or is_error_text(text) for text in FAULTS)
    good = [text for sign in SIGNS.values() for text in described(sign.gloss)]
    assert not any(is_error_text(text) for text in good)


def test_same_seed_same_bytes_in_another_process(corpus, tmp_path):
    first = all_files(corpus)
    clips = [str(COUNTS[split]) for split in config.SPLITS]
    subprocess.run(  # another hash seed, another order of sets
        [sys.executable, "-m", "tools.sample_data", "--out", str(tmp_path / "again"), "--clips", *clips],
        check=True,
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert all_files(tmp_path / "again") == first
    write_corpus(tmp_path / "other", COUNTS, seed=1)
    other = all_files(tmp_path / "other")
    assert other["data/CSL_Daily/labels.train"] != first["data/CSL_Daily/labels.train"]


def test_an_older_corpus_is_replaced(tmp_path):
    write_corpus(tmp_path / "s", {"train": 6, "dev": 2, "test": 2}, seed=1)
    (tmp_path / "s/notes.txt").write_text("mine", encoding="utf-8")
    write_corpus(tmp_path / "s", {"train": 4, "dev": 1, "test": 1})
    write_corpus(tmp_path / "fresh", {"train": 4, "dev": 1, "test": 1})
    files = all_files(tmp_path / "s")
    assert files.pop("notes.txt") == b"mine"
    assert files == all_files(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (lambda out: (out / "thesis.tex").write_text("x"), [], "not empty, and no sample corpus"),
        (lambda out: None, ["--clips", "4", "0", "1"], "--clips: dev would be empty"),
        (lambda out: None, ["--seed", "-1"], "--seed -1"),
        (lambda out: out.rmdir() or out.write_text("x"), [], "not empty, and no sample corpus"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(tmp_path, prepare, arguments, message):
    out = tmp_path / "out"
    out.mkdir()
    prepare(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message) as stop:
        main(["--out", str(out), *arguments])
    assert "\n" not in str(stop.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_real_mt5_in_the_corpus_is_kept(tmp_path):
    counts = {"train": 2, "dev": 1, "test": 1}
    write_corpus(tmp_path / "s", counts)
    model_config = tmp_path / "s" / config.mt5_path / "config.json"
    model_config.write_text(model_config.read_text(encoding="utf-8").replace(MADE_BY, "google"), encoding="utf-8")
    before = all_files(tmp_path / "s")
    with pytest.raises(ValueError, match="holds something else than a small mT5"):
        write_corpus(tmp_path / "s", counts, seed=1)
    assert all_files(tmp_path / "s") == before


# The language


def described(gloss: str) -> set[str]:
    """Many of the ways to describe a sign."""
    rng = np.random.default_rng(0)
    texts = {sample_data.describe_frame(SIGNS[gloss], True, rng) for _ in range(40)}
    return texts | {sample_data.describe_frame(SIGNS[gloss], False, rng)}


def test_sixty_signs_a_fifth_of_them_in_pairs():
    paired = list(itertools.chain(*minimal_pairs()))
    assert len(SIGNS) == 60
    assert len(paired) == len(set(paired)) == 12
    for a, b in minimal_pairs():
        assert (SIGNS[a].role, SIGNS[a].takes) == (SIGNS[b].role, SIGNS[b].takes)
        assert SIGNS[a].detail != SIGNS[b].detail


def test_paired_signs_have_the_same_keypoints_and_other_descriptions():
    signer = Signer.draw(np.random.default_rng(0))
    for a, b in minimal_pairs():
        first, second = (
            record([SIGNS[gloss].form for gloss in ("昨天", it, "跑步")], signer, np.random.default_rng(5))
            for it in (a, b)
        )
        np.testing.assert_array_equal(first.keypoints, second.keypoints)
        np.testing.assert_array_equal(first.scores, second.scores)
        told = [
            {text for text in described(gloss) if sample_data.DETAIL_WORDS[SIGNS[gloss].detail] in text}
            for gloss in (a, b)
        ]
        assert told[0]
        assert told[1]
        assert not told[0] & told[1]


def test_descriptions_never_give_a_word_away():
    for gloss in SIGNS:
        for text in described(gloss):
            assert not [word for word in SIGNS if word in text], text


def test_no_sentence_stands_twice_in_the_plan():
    plan = plan_clips(FULL_COUNTS, seed=0)
    sentences = {split: {clip.glosses for clip in clips} for split, clips in plan.items()}
    assert {split: len(clips) for split, clips in plan.items()} == FULL_COUNTS
    assert {split: len(found) for split, found in sentences.items()} == {"train": 200, "dev": 60, "test": 60}
    for a, b in itertools.combinations(config.SPLITS, 2):
        assert not sentences[a] & sentences[b]
    names = [clip.name for clips in plan.values() for clip in clips]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_train_knows_every_sign(seed):
    plan = plan_clips(FULL_COUNTS, seed)
    assert {gloss for clip in plan["train"] for gloss in clip.glosses} == set(SIGNS)
    for split, clips in plan.items():
        assert {clip.signer for clip in clips} == set(SPLIT_SIGNERS[split])


def test_absolute_paths_in_config_are_left_alone(tmp_path, monkeypatch):
    """Somebody's real data lies where config.py says; a sample corpus must not be written over it."""
    import dataclasses

    real = tmp_path / "real"
    real.mkdir()
    (real / "S000020_P0000_T00.pkl").write_bytes(b"precious")
    spec = dataclasses.replace(config.DATASETS["CSL_Daily"], pose_dir=str(real))
    monkeypatch.setitem(config.DATASETS, "CSL_Daily", spec)
    with pytest.raises(ValueError, match="outside of it"):
        write_corpus(tmp_path / "sample", {"train": 2, "dev": 1, "test": 1})
    assert (real / "S000020_P0000_T00.pkl").read_bytes() == b"precious"
