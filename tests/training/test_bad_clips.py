"""Clips that cannot be read are left out, counted, listed, and too many end the run."""

import json
import os
import pickle
import shutil
from itertools import pairwise

import pytest
import torch

import fine_tuning
import utils
from clips.batch import BadClip, collate_fn, empty_sample
from config import DATASETS
from datasets import S2T_Dataset
from models import Uni_Sign
from pose.hand_crops import no_crops
from pose.keypoints import read_pose
from system.disk import read_lines
from temporal_alignment import read_descriptions
from tests.helpers.corpus import write_tiny_corpus
from tests.helpers.processes import Run
from training.guards import BadClips
from training.loader import BatchSampler, ClipLoader

SMALL = (
    "--hidden_dim 8 --epochs 1 --batch-size 2 --gradient-accumulation-steps 2 --dtype fp32 --num_workers 0 "
    "--num_beams 1 --max_new_tokens 4 --use_descriptions --mt5_path tiny"
).split()


def edit(path, change):
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content))


def nan(path):
    edit(path, lambda pose: pose["keypoints"][0].fill(float("nan")))


# How to damage a pose file, and what is said of it.
DAMAGE = [
    (lambda path: path.unlink(), "No such file"),
    (lambda path: path.write_bytes(path.read_bytes()[:500]), "not a readable pickle"),
    (nan, "NaN"),
    (lambda path: edit(path, lambda pose: pose.update(keypoints=[part[:, :17] for part in pose["keypoints"]])), "17"),
    (lambda path: edit(path, lambda pose: pose.update(keypoints=[], scores=[])), "frames 0 to 0"),
    (lambda path: edit(path, lambda pose: pose["scores"].pop()), "of scores"),
]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A corpus with six bad clips in train, which make three micro-batches as they are drawn, and one in dev."""
    counts = {"train": 14, "dev": 5, "test": 1}
    folder = write_tiny_corpus(tmp_path_factory.mktemp("damaged") / "corpus", counts)
    spec = DATASETS["CSL_Daily"].under(folder)
    train, dev = S2T_Dataset(spec, "train"), S2T_Dataset(spec, "dev")
    order = [clip for batch in BatchSampler(14, 2, 0, 1, seed=42).batches() for clip in batch]
    bad = {}
    for clip, (damage, words) in zip([*order[2:4], *order[6:10]], DAMAGE, strict=True):
        damage(train.pose_paths[train.names[clip]])
        bad[train.names[clip]] = words
    nan(dev.pose_paths[dev.names[1]])
    return folder, bad, dev.names[1]


def test_a_batch_without_its_bad_clips(damaged):
    folder, bad, _ = damaged
    dataset = S2T_Dataset(DATASETS["CSL_Daily"].under(folder), "train", use_descriptions=True, max_bad_clips=0.5)
    alone = ClipLoader(dataset, BatchSampler(len(dataset), 14, 0, 1), 2)
    ((src_input, tgt_input),) = alone.epoch()
    assert {clip.name for clip in src_input["bad_clips"]} == set(bad)
    for clip in src_input["bad_clips"]:
        assert bad[clip.name] in clip.reason
        assert "\n" not in clip.reason
    good = [name for name in dataset.names if name not in bad]
    assert src_input["name_batch"] == good
    assert tgt_input["gt_sentence"] == [dataset.target(name) for name in good]
    again, _ = collate_fn([dataset[dataset.names.index(name)] for name in good])
    assert all(torch.equal(value, src_input[key]) for key, value in again.items() if isinstance(value, torch.Tensor))


def test_a_batch_that_lost_all_its_clips_has_no_names():
    empty = empty_sample(described=True, rgb_dict=no_crops())
    src_input, tgt_input = collate_fn([BadClip("a", "why", empty), BadClip("b", "why", empty)])
    assert src_input["left_rgb_len"].tolist() == src_input["right_rgb_len"].tolist() == [1]
    assert src_input["name_batch"] == []
    assert src_input["attention_mask"].tolist() == [[1]]
    assert src_input["descriptions"] == [[None]]
    assert tgt_input["gt_sentence"] == [""]


def test_a_run_lists_them_and_goes_on(damaged, tmp_path):
    """On two processes too; and a clip that cannot be read scores as an empty sentence."""
    folder, bad, in_dev = damaged
    flags = ["--root", str(folder), *SMALL, "--max_bad_clips", "0.5"]
    runs = [
        Run(tmp_path / f"{n}.log", [*flags, "--output_dir", str(tmp_path / str(n)), *more], n_processes=n)
        for n, more in ((1, ()), (2, ("--batch-size", "1")))
    ]
    for n, run in zip((1, 2), runs, strict=True):
        text = run.finish()
        assert "1 of 14 files of the split 'train' do not exist" in text
        listed = read_lines(tmp_path / str(n) / "bad_clips.jsonl")
        assert len(listed) == 7
        reasons = {line["name"]: line["reason"] for line in listed if line["split"] == "train"}
        assert set(reasons) == set(bad)
        assert all(bad[name] in reason for name, reason in reasons.items())
        assert [line["name"] for line in listed if line["split"] == "dev"] == [in_dev]
        rows = {line["name"]: line for line in read_lines(tmp_path / str(n) / "dev_predictions.jsonl")}
        assert len(rows) == 5
        assert rows[in_dev]["hypothesis"] == ""
        assert "NaN" in rows[in_dev]["unreadable"]
        numbers = json.loads((tmp_path / str(n) / "dev_metrics.json").read_text())
        assert (numbers["clips"], numbers["unreadable"]) == (5, 1)
        assert len(read_lines(tmp_path / str(n) / "steps.jsonl")) == 4
        assert read_lines(tmp_path / str(n) / "log.txt")[0]["loss"] > 3  # a batch without clips adds no zero


def train(folder, out, *flags):
    fine_tuning.main(utils.parse_args(["--root", str(folder), *SMALL, "--output_dir", str(out), *flags]))


def test_a_batch_that_lost_all_its_clips_leaves_the_statistics_as_they_were(damaged, tmp_path, monkeypatch):
    folder, *_ = damaged
    seen = []  # of each batch: whether it had clips, and the model's buffers before it
    forward = Uni_Sign.forward

    def watched(self, src_input, tgt_input):
        if self.training:
            seen.append((bool(src_input["name_batch"]), [buffer.clone() for buffer in self.buffers()]))
        return forward(self, src_input, tgt_input)

    monkeypatch.setattr(Uni_Sign, "forward", watched)
    train(folder, tmp_path, "--max_bad_clips", "0.5", "--no_length_grouping")
    moved = {True: [], False: []}
    for (had_clips, before), (_, after) in pairwise(seen):
        moved[had_clips].append(not all(map(torch.equal, before, after)))
    assert moved == {True: [True] * 3, False: [False] * 3}


def test_too_many_end_the_run(damaged, tmp_path):
    folder, bad, _ = damaged
    with pytest.raises(FileNotFoundError, match=r"poses: 1 of 14 files .* do not exist"):
        train(folder, tmp_path / "a")
    with pytest.raises(ValueError, match=r"--max_bad_clips 0.2: 4 of 14 clips .* 'train' cannot be read") as error:
        train(folder, tmp_path / "b", "--max_bad_clips", "0.2")
    assert "\n" not in str(error.value)
    listed = {line["name"] for line in read_lines(tmp_path / "b" / "bad_clips.jsonl")}
    assert len(listed) == 4
    assert listed < set(bad)


def test_a_new_run_in_the_folder_lists_its_own(damaged, tmp_path, caplog):
    folder, bad, _ = damaged
    for _ in range(2):
        caplog.clear()
        train(folder, tmp_path, "--max_bad_clips", "0.5")
        assert "train: 6 clips cannot be read and are left out" in caplog.text
        assert {line["name"] for line in read_lines(tmp_path / "bad_clips.jsonl")} >= set(bad)


def test_all_missing_is_an_error_with_any_share(damaged, tmp_path):
    folder, *_ = damaged
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in (copy / "dataset" / "CSL_Daily" / "pose_format").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"poses: 14 of 14 files"):
        train(copy, tmp_path / "out", "--max_bad_clips", "1")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name on Windows")
def test_a_pipe_is_not_waited_for(tmp_path):
    """Opening one waits for somebody to write to it."""
    for name in ("a.pkl", "a.npz", "a.json"):
        os.mkfifo(tmp_path / name)
    for name in ("a.pkl", "a.npz"):
        with pytest.raises(ValueError, match="it is no regular file"):
            read_pose(tmp_path / name)
    assert read_descriptions(tmp_path / "a.json")[0] == {}


def test_each_is_listed_once(tmp_path):
    empty = empty_sample(described=False, rgb_dict={})
    src_input = {"bad_clips": [BadClip("a", "why", empty), BadClip("b", "why not", empty)]}
    for _ in range(2):  # a second run goes on in the same folder
        clips = BadClips(tmp_path, 0.5)
        for _ in range(2):
            clips.note(src_input, "train", 4)
            assert clips.settle("train", 4) == {"a": "why", "b": "why not"}
    assert [line["name"] for line in read_lines(tmp_path / "bad_clips.jsonl")] == ["a", "b"]
    assert clips.settle("train", 4) == {}  # an epoch in which they could be read
    with pytest.raises(ValueError, match="2 of 3 clips"):
        clips.note(src_input, "train", 3)
