"""The look at the data: what is measured is what was written, and only what is wrong is marked so."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

import config
from clips.labels import split_labels
from config import SPLITS, DatasetSpec
from network.vocabulary import Tokenizer
from pose.keypoints import PART_JOINTS, Pose, PoseFolder
from synthetic.small_mt5 import write_small_mt5
from training.build import build_loaders, build_model, model_config
from training.findings import Report
from training.look import (
    ClipLook,
    Line,
    log_look,
    look_at_files,
    look_at_pose,
    look_at_splits,
    look_at_texts,
)
from utils import parse_args


def look_at(folder, poses, texts=None, limit=200):
    """Write (keypoints, scores) of each clip, and descriptions; look at the files."""
    for name, (keypoints, scores) in poses.items():
        np.savez(folder / f"{name}.npz", keypoints=keypoints, scores=scores)
    for name, numbers in (texts or {}).items():
        entries = [{"filename": f"{number}.jpg", "description": "A hand."} for number in numbers]
        (folder / f"{name}.json").write_text(json.dumps(entries))
    paths = {name: folder / f"{name}.npz" for name in poses}
    sizes = PoseFolder().sizes(list(paths.values()))
    return look_at_files("x", {name: {} for name in poses}, paths, sizes, PoseFolder(), texts and folder, limit)


def clip(n_frames, score=0.9):
    return np.random.default_rng(n_frames).uniform(0.1, 0.9, (n_frames, 133, 2)), np.full((n_frames, 133), score)


def marked(lines, mark="!"):
    return [line.name for line in lines if line.mark == mark]


def test_a_pose_is_measured_part_by_part():
    keypoints, scores = np.full((2, 133, 2), 0.5), np.full((2, 133), 0.3)  # not above the threshold
    scores[:, PART_JOINTS["body"]] = 0.31
    scores[0, PART_JOINTS["left"]] = 2
    scores[1, 112:119] = 0.9
    scores[0, 91:94] = 0
    look = look_at_pose(Pose(keypoints, scores))
    good = {"body": 1, "left": pytest.approx(18 / 42), "right": pytest.approx(7 / 42), "face_all": 0}
    assert look == ClipLook(2, 2, pytest.approx(18 / 266), good, 0.5)


def test_numbers_of_a_split_are_those_of_its_frames(tmp_path):
    poses = {"a": clip(10), "b": clip(30), "c": clip(20)}
    poses["b"][1][:, PART_JOINTS["left"]] = 0.1
    (line,) = look_at(tmp_path, poses).lines()
    assert line == Line("·", "seen", (10, 30, 20.0, 1, pytest.approx(0.5), 1, 1))


def test_a_part_that_is_never_seen(tmp_path):
    keypoints, scores = clip(30)
    scores[:, 23:] = 0
    found = look_at(tmp_path, {"a": (keypoints, scores)}).lines()
    assert marked(found) == ["unseen_left", "unseen_right"]
    assert marked(found, "·") == ["seen", "unseen_face_all"]  # some extractors have none
    scores[:] = 0.3
    assert marked(look_at(tmp_path, {"a": (keypoints, scores)}).lines())[0] == "unseen_body"
    scores[0, PART_JOINTS["left"]] = scores[:, PART_JOINTS["body"]] = scores[:, PART_JOINTS["right"]] = 0.31
    assert marked(look_at(tmp_path, {"a": (keypoints, scores)}).lines()) == []  # a hand that is seen once


@pytest.mark.parametrize(("n_lost", "found"), [(15, []), (16, ["few_hands"])])
def test_hands_that_are_seldom_found(tmp_path, n_lost, found):
    keypoints, scores = clip(30)
    scores[1:, PART_JOINTS["left"]] = 0.1
    scores[1 : n_lost + 1, PART_JOINTS["right"]] = 0.1
    assert marked(look_at(tmp_path, {"a": (keypoints, scores)}).lines()) == found


def test_scores_above_one_and_clips_too_short_to_be_signing(tmp_path):
    assert marked(look_at(tmp_path, {"a": clip(10, 7.0), "b": clip(10, 0.9)}).lines()) == []
    found = look_at(tmp_path, {"a": clip(11, 7.0), "b": clip(4), "c": clip(1), "d": clip(5)}).lines()
    assert found[1:] == [Line("!", "above_one", (7.0,)), Line("!", "short", (2, 5, "b"))]


@pytest.mark.parametrize(
    ("numbers", "wrong"),
    [
        ([range(1, 11)] * 4, True),
        ([range(10)] * 4, False),
        ([range(1, 11)] * 3 + [range(10)], False),
        ([range(2, 11, 2)] * 3 + [range(1, 10, 2)], True),
        ([range(3, 10)] * 4, False),
        ([[1, 10], [2, 10], [1, 5], [3]], False),  # such slips occur in good folders
        ([[]] * 4, False),
    ],
)
def test_descriptions_numbered_from_one(tmp_path, numbers, wrong):
    texts = dict(zip("abcd", numbers, strict=True))
    look = look_at(tmp_path, {name: clip(10) for name in texts}, texts)
    assert marked(look.lines()) == ["from_one"] * wrong
    assert [line.values for line in look.lines("mend it") if line.name == "from_one"] == [("mend it",)] * wrong
    assert look.counts.out_of_range == sum(10 in of for of in numbers)


def test_files_that_are_missing_or_damaged(tmp_path):
    (tmp_path / "c.npz").write_bytes(b"none")
    look = look_at(tmp_path, {"a": clip(10), "b": clip(10)})
    labels = dict.fromkeys("abcd", {})
    paths = {name: tmp_path / f"{name}.npz" for name in labels}
    look = look_at_files("x", labels, paths, np.array([1, 1, 1, 0]), PoseFolder(), None, 9)
    assert (list(look.clips), look.missing, look.chosen) == (["a", "b"], ["d"], list("abcd"))
    assert "c.npz: not a readable .npz file" in look.faults[0]
    assert look_at_files("x", {}, {}, np.zeros(0), PoseFolder(), None, 9).lines() == []


# -- texts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mt5")
    texts = ["今天下午我想和朋友一起去学校读书！", "妈妈晚上很累，她不想做饭了。"]
    write_small_mt5(folder, texts * 20, d_model=16, layers=1, heads=2, d_kv=8, d_ff=16)
    return Tokenizer(folder)


def test_what_the_tokenizer_makes_of_texts(tokenizer):
    targets = {"a": "妈妈晚上很累，她不想做饭了。", "b": "今天下午我想和朋友一起去学校。"}
    spec = DatasetSpec("x", {}, "p", text_unit="char")
    (line,) = look_at_texts(tokenizer, targets, spec, "SLT", 50)
    changed, example, metric, score, cut, limit, longest = line.values
    assert (line.mark, changed, metric, score, cut, limit) == ("·", 0.5, "bleu4", pytest.approx(100), 0, 50)
    assert example == ": '妈妈晚上很累，她不想做饭了。' > '妈妈晚上很累,她不想做饭了。'"
    assert longest == max(len(tokenizer.encode(text, 99)) for text in targets.values())

    # Without spaces a sentence is one word, and no four words stand in a row.
    lines = look_at_texts(tokenizer, targets, replace(spec, text_unit="word"), "SLT", 50)
    assert lines[1] == Line("!", "unspaced", ())
    for task, metric, best in (("CSLR", "wer", 0), ("ISLR", "top1_per_instance", 100)):
        (line,) = look_at_texts(tokenizer, {"a": "妈妈", "b": "今天 朋友"}, DatasetSpec("x", {}, "p"), task, 50)
        assert line.values[2:4] == (metric, best)
    for few, unit in (({"a": "妈妈"}, "char"), ({"a": "Mama", "b": "not today"}, "word")):
        lines = look_at_texts(tokenizer, few, replace(spec, text_unit=unit), "SLT", 50)
        assert lines[1:] == [Line("!", f"few_{unit}s", ())]


def test_targets_that_are_cut(tokenizer):
    targets = {"a": "妈妈。", "b": "今天下午我想和朋友一起去学校读书。"}
    longest = len(tokenizer.encode(targets["b"], 99))
    kept = tokenizer.decode(tokenizer.encode(targets["b"], longest - 1))
    lines = look_at_texts(tokenizer, targets, DatasetSpec("x", {}, "p", text_unit="char"), "SLT", longest - 1)
    assert lines[0].values[4:] == (0.5, longest - 1, longest)
    assert Line("!", "cut", (1, 2, longest - 1, "b", kept[-20:], longest)) in lines
    assert lines[0].values[3] < 100


# -- whole corpora ---------------------------------------------------------------------------------------------------


def test_splits_that_share_clips(tmp_path):
    clips = {
        "train": [{"name": "a", "pose": "1.pkl", "text": "One."}, {"name": "b", "pose": "2.pkl", "text": "Two."}],
        "test": [{"name": "a", "pose": "2.pkl", "text": "One."}, {"name": "c", "pose": "3.pkl", "text": "Three."}],
    }
    for split, entries in clips.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(entries))
    spec = DatasetSpec("x", {split: str(tmp_path / f"{split}.json") for split in SPLITS}, "p")
    assert look_at_splits(spec, "SLT") == [
        Line("!", "shared_names", (1, 2, "test", "train", "a")),
        Line("!", "shared_poses", (1, 2, "test", "train", "a")),
        Line("·", "shared_texts", (1, 2, "test", "train", "a")),
    ]
    assert marked(look_at_splits(spec, "ISLR"), "·") == []
    spec = DatasetSpec("x", {"train": spec.labels["train"]}, "p")
    assert look_at_splits(spec, "SLT") == []


def test_nothing_is_marked_in_real_data(shared_real, tokenizer):
    labels = {split: f"{shared_real}/fingerspelling/labels.{split}" for split in SPLITS}
    spec = DatasetSpec("fs", labels, f"{shared_real}/fingerspelling/pose_format", description_dir="x")
    found = look_at_splits(spec, "SLT")
    for split in SPLITS:
        labels = split_labels(spec, split)
        paths = {name: spec.pose_path(label) for name, label in labels.items()}
        look = look_at_files(
            split, labels, paths, np.ones(len(labels)), PoseFolder(), shared_real / "descriptions" / split, 40
        )
        found += look.lines()
        assert len(look.clips) >= 40
    isolated = {path.stem: path for path in (shared_real / "isolated/pose_format").iterdir()}
    found += look_at_files("x", dict.fromkeys(isolated, {}), isolated, np.ones(14), PoseFolder(), None, 40).lines()
    assert len(found) >= 7
    assert marked(found) == []


def test_a_run_says_what_its_data_hold(corpus, tmp_path, caplog, monkeypatch):
    flags = "--use_descriptions --hidden_dim 32 --num_workers 0 --no-pin-mem --batch-size 4"
    args = parse_args([*flags.split(), "--root", str(corpus), "--output_dir", str(tmp_path)])
    spec = config.DATASETS["CSL_Daily"].under(corpus)
    loaders = build_loaders(args, spec)
    model = build_model(args, model_config(args, spec), loaders)
    monkeypatch.setattr("training.look.SAMPLE", 2)  # with descriptions, else AT_START
    opened = []
    read = PoseFolder.read
    monkeypatch.setattr(PoseFolder, "read", lambda *values: opened.append(values) or read(*values))
    caplog.clear()
    caplog.set_level(logging.INFO)
    log_look(loaders, model, "")
    lines = [record.message for record in caplog.records]
    titles = ["CSL_Daily train", "CSL_Daily dev", "CSL_Daily test", "splits"]
    assert [line for line in lines if line[0] != " "] == titles
    assert lines[4].startswith("  · clips of ")
    assert "a perfect model gets bleu4 100.0" in lines[5]
    assert len(lines) < 16
    assert not [line for line in lines if "!" in line[:4]]
    assert 6 <= len(opened) < 24  # of 40 clips


def test_a_report_keeps_what_it_said():
    written = []
    report = Report("zh", written.append)
    with report.section("\nfirst"):
        report.say_all([Line("!", "above_one", (7.25,)), Line("·", "shared_texts", (1, 2, "dev", "train", "a"))])
    assert report.warnings == 1
    assert report.said["first"][1] == ("·", "1/2 个 dev 片段与 train 文本相同，例如 a")
    assert written[1] == f"  ! {report.said['first'][0][1]}"
    assert "7.25" in written[1]
