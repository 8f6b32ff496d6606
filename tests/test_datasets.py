"""From label files to samples."""

import dataclasses
import gzip
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from clips.labels import read_labels
from config import DATASETS, DatasetSpec
from datasets import S2T_Dataset
from pose.keypoints import Pose, part_keypoints
from temporal_alignment import sample_frames


def spec_of(folder):
    return DATASETS["CSL_Daily"].under(folder)


@pytest.fixture
def spelling(shared_real):
    return DatasetSpec(
        name="fingerspelling",
        labels={s: f"fingerspelling/labels.{s}" for s in ("train", "dev", "test")},
        pose_dir="fingerspelling/pose_format",
        description_dir="descriptions",
    ).under(shared_real)


def write_labels(path, labels):
    with gzip.open(path, "wb") as file:
        pickle.dump(labels, file)
    return path


def test_sample_is_the_documented_tuple(corpus):
    dataset = S2T_Dataset(spec_of(corpus), "train", use_descriptions=True)
    sample = dataset[0]
    assert " ".join(sample._fields) == "name_sample pose_sample text gloss rgb_dict descriptions has_description"
    name, pose, text, gloss, rgb, descriptions, has_description = sample
    label = read_labels(spec_of(corpus).labels["train"])[name]
    assert (text, gloss, rgb) == (label["text"], " ".join(label["gloss"]), {})
    shapes = {part: x.shape[1:] for part, x in pose.items()}
    assert shapes == {"body": (9, 3), "left": (21, 3), "right": (21, 3), "face_all": (18, 3)}
    assert len(pose["body"]) == len(descriptions) == len(has_description)


def test_without_descriptions_the_fields_are_none(corpus):
    sample = S2T_Dataset(spec_of(corpus), "dev")[0]
    assert sample.descriptions is None
    assert sample.has_description is None


@pytest.fixture
def recording(tmp_path):
    """A recording of 120 frames of which the labels make three clips, with texts at every tenth frame."""
    rng = np.random.default_rng(0)
    pose = {"keypoints": rng.random((120, 133, 2)), "scores": np.ones((120, 133))}
    (tmp_path / "poses").mkdir()
    np.savez(tmp_path / "poses" / "v1.npz", **pose)
    rows = ["name,video,start,end,text", "a,v1.mp4,0,60,one", "b,v1.mp4,60,120,two", "c,v1.mp4,70,73,three"]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "texts" / "train").mkdir(parents=True)
    for name in "abc":
        texts = {str(frame): f"frame {frame}" for frame in range(0, 120, 10)}
        (tmp_path / "texts" / "train" / f"{name}.json").write_text(json.dumps(texts))
    spec = DatasetSpec("x", {"train": "labels.csv"}, "poses", "videos", "texts", pose_suffix=".npz").under(tmp_path)
    return spec, Pose(pose["keypoints"], pose["scores"])


def test_start_and_end_cut_clips_out_of_a_recording(recording):
    spec, whole = recording
    dataset = S2T_Dataset(spec, "train", use_descriptions=True)
    assert dataset.lengths.tolist() == [60, 60, 3]
    for index, (start, end) in enumerate([(0, 60), (60, 120), (70, 73)]):
        sample, expected = dataset[index], Pose(whole.keypoints[start:end], whole.scores[start:end])
        for part, values in part_keypoints(expected, np.arange(end - start)).items():
            assert torch.equal(sample.pose_sample[part], values)
        assert sample.has_description == [int(frame % 10 == 0) for frame in range(start, end)]
        assert sample.descriptions[0] == f"frame {start}"
    assert set(dataset[1].descriptions) == {f"frame {frame}" for frame in range(60, 120, 10)}
    sampled = S2T_Dataset(spec, "train", max_length=30, random_frames=True, use_descriptions=True)[1]
    frames = 60 + sample_frames(60, 30, np.random.default_rng([0, 0, 1]))
    assert sampled.has_description == [int(frame % 10 == 0) for frame in frames]
    assert all(sampled.descriptions[i] == f"frame {frames[i]}" for i, own in enumerate(sampled.has_description) if own)


@pytest.mark.parametrize(
    ("end", "frames", "said"),
    [
        (121, "", "v1.npz: holds the frames 0 to 120, the labels say 60 to 121. Count frames from 0"),
        (120, 61, "v1.npz: the clip has 60 frames, the labels say 61."),
    ],
)
def test_parts_that_a_recording_does_not_have(recording, end, frames, said):
    spec, _ = recording
    Path(spec.labels["train"]).write_text(f"name,video,start,end,frames,text\na,v1.mp4,60,{end},{frames},one\n")
    with pytest.raises(ValueError, match=re.escape(said)):
        S2T_Dataset(spec, "train")[0]


def test_texts_before_the_start_are_of_another_clip(corpus, tmp_path):
    """Of one recording, cut into clips: what was described before frame 4 belongs to the clip before."""
    spec = dataclasses.replace(spec_of(corpus), pose_dir=str(tmp_path), description_dir=str(tmp_path))
    name, label = next(iter(read_labels(spec.labels["train"]).items()))
    pose = {"keypoints": np.full((10, 1, 133, 2), 0.5), "scores": np.ones((10, 1, 133)), "start": 4, "end": 8}
    path = spec.for_split("train").pose_path(label)
    path.write_bytes(pickle.dumps(pose))
    spec = dataclasses.replace(spec, labels={"train": str(write_labels(tmp_path / "one", {name: label}))})
    texts = {"0": "of the clip before", "3": "of the clip before", "8": "of the next"}
    (tmp_path / "train").mkdir()
    for own, wanted in (({}, [None] * 4), ({"6": "its own"}, ["its own"] * 4)):
        (tmp_path / "train" / f"{name}.json").write_text(json.dumps(texts | own))
        assert S2T_Dataset(spec, "train", use_descriptions=True)[0].descriptions == wanted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"thumbnail.jpg": "a text"}, r"1 description files of train hold no text that can be used \(.*1 bad frame\)"),
        ({"0.jpg": "出错: Error code: 429"}, r"1 error texts\), the first is .*train/.*\.json$"),
        ("no object", "1 files unreadable"),
        (None, r"no clip of train has a description file in .*train; other.json is there, .*\.json was looked for$"),
    ],
)
def test_descriptions_that_give_no_text_are_explained(corpus, tmp_path, content, words):
    spec = dataclasses.replace(spec_of(corpus), description_dir=str(tmp_path))
    (tmp_path / "train").mkdir()
    names = list(read_labels(spec.labels["train"]))

    def why() -> str:
        return S2T_Dataset(spec, "train", use_descriptions=True).why_no_text()

    if content is None:
        assert re.fullmatch(r"no clip of train has a description file in .*train", why())
    name = "other" if content is None else names[3]
    (tmp_path / "train" / f"{name}.json").write_text(json.dumps(content))
    assert re.search(words, why())
    (tmp_path / "train" / f"{names[5]}.json").write_text(json.dumps({"images0001.png": "The right hand."}))
    assert why() == ""


def test_an_empty_description_file_is_unreadable_and_not_missing(corpus, tmp_path, caplog):
    (tmp_path / "dev").mkdir()
    spec = dataclasses.replace(spec_of(corpus), description_dir=str(tmp_path))
    names = list(read_labels(spec.labels["dev"]))
    for name in names[1:]:
        (tmp_path / "dev" / f"{name}.json").write_bytes(b"")
    caplog.set_level("INFO")
    dataset = S2T_Dataset(spec, "dev", use_descriptions=True)
    assert "8 files unreadable" in dataset.why_no_text()
    assert "dev: 8 of 9 clips (88.9 %) have a description file." in caplog.text


def test_frames_of_long_clips(spelling):
    """Evaluation takes the same frames each time; training draws others each epoch, the same for the same seed."""
    even = S2T_Dataset(spelling, "train", max_length=8)
    assert np.array_equal(even[3].pose_sample["right"], even[3].pose_sample["right"])
    drawn = S2T_Dataset(spelling, "train", max_length=8, random_frames=True, seed=1)
    first = drawn[3].pose_sample["right"]
    drawn.epoch = 1
    second = drawn[3].pose_sample["right"]
    drawn.epoch = 0
    assert not np.array_equal(first, second)
    assert np.array_equal(first, drawn[3].pose_sample["right"])
    assert len(first) == 8


def test_cslr_writes_glosses(corpus):
    dataset = S2T_Dataset(spec_of(corpus), "dev", task="CSLR")
    assert dataset[0].text == dataset[0].gloss != ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, t: {"task": "ISLR"}, ["--task ISLR", "SLT"]),
        (lambda s, t: {"pose_dir": str(t / "nowhere")}, ["poses", "nowhere", "--root"]),
        (lambda s, t: {"pose_dir": str(t)}, ["poses", "24 of 24"]),
        (lambda s, t: {"labels": {"train": str(t / "none")}}, ["labels", "none"]),
        (lambda s, t: {"description_dir": str(t / "nothing")}, ["--use_descriptions", "nothing"]),
        (lambda s, t: {"description_dir": ""}, ["--use_descriptions"]),
    ],
)
def test_what_is_missing_is_named(corpus, tmp_path, change, words):
    values = change(spec_of(corpus), tmp_path)
    task = values.pop("task", "SLT")
    spec = dataclasses.replace(spec_of(corpus), **values)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        S2T_Dataset(spec, "train", task=task, use_descriptions=True)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_labels_without_text_are_refused(corpus, tmp_path):
    labels = read_labels(spec_of(corpus).labels["train"])
    labels[next(iter(labels))]["text"] = " "
    path = write_labels(tmp_path / "labels.train", labels)
    spec = dataclasses.replace(spec_of(corpus), labels={"train": str(path)})
    with pytest.raises(ValueError, match="1 clips have no text"):
        S2T_Dataset(spec, "train")


@pytest.mark.parametrize(("task", "what"), [("SLT", "text"), ("CSLR", "gloss")])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_labels_without_the_field_are_refused_by_their_fields(corpus, tmp_path, task, what, kind):
    path, names = tmp_path / f"labels.{kind}", read_labels(spec_of(corpus).labels["train"])
    lines = {
        "csv": ["name,sentence,glosses,split", *(f"{name},a b,A B,train" for name in names)],
        "jsonl": [json.dumps({"name": name, "sentence": "a b", "glosses": "A B", "split": "train"}) for name in names],
    }
    path.write_text("\n".join(lines[kind]), encoding="utf-8")
    spec = dataclasses.replace(spec_of(corpus), labels={"train": str(path)})
    with pytest.raises(ValueError, match=rf"labels.* \d+ clips have no {what}, the first is ") as error:
        S2T_Dataset(spec, "train", task=task)
    known, other = ("sentence", "glosses") if what == "text" else ("glosses", "sentence")
    assert f"rename {known!r} to {what!r}. Fill it in, or remove them" in str(error.value)
    assert f"'{other}' to" not in str(error.value)


def test_lengths_are_known_without_reading(corpus, monkeypatch):
    monkeypatch.setattr("pose.keypoints.read_pose", lambda *_: pytest.fail("a pose was read"))
    dataset = S2T_Dataset(spec_of(corpus), "train")
    monkeypatch.undo()
    frames = [len(dataset[i].pose_sample["body"]) for i in range(len(dataset))]
    assert np.array_equal(np.argsort(dataset.lengths, kind="stable"), np.argsort(frames, kind="stable"))
