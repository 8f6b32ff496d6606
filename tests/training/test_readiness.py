"""What is said of data, weights and memory is what is there."""

import json
import re
import shutil
from pathlib import Path
from string import Formatter
from types import SimpleNamespace

import numpy as np
import pytest

import config
from pre_training_checklist import examine
from tests.helpers.corpus import MIXED, write_split
from training import readiness
from training.build import memory_settings
from training.findings import TEXTS, Report
from utils import parse_args


def test_an_error_ends_its_section_alone(capsys):
    report = Report()
    with report.section("data"):
        raise ValueError("no labels:\nnone")
    with report.section("weights"):
        raise KeyError("d_model")
    told = capsys.readouterr().out
    assert [line[:3] for line in told.splitlines()] == ["dat", "  ✗", "wei", "  ✗"]
    assert "no labels: none" in told
    assert "KeyError: 'd_model'" in told


def test_of_many_files_some_are_opened(tmp_path, capsys):
    _, descriptions = write_split(tmp_path, "train", 6)
    for i in (1, 2, 4):
        (descriptions / f"train{i}.json").write_text(MIXED, encoding="utf-8")
    spec = config.DATASETS["CSL_Daily"].under(tmp_path)
    look = readiness.look_at_split(Report(), spec, "train", 2)
    # Each of half of the clips has three texts.
    assert readiness.examine_descriptions(Report(), spec, "train", look, False) == pytest.approx(1.5)
    said = capsys.readouterr().out
    assert "with a text of their own: 50.0% of the clips, 15.0% of the frames" in said
    assert "estimated: 2 of 6 poses and 3 of 3 description files were opened; --full opens all" in said


def test_a_file_that_cannot_be_opened_does_not_end_the_look_at_a_split(tmp_path, capsys, monkeypatch):
    _, descriptions = write_split(tmp_path, "train", 4)
    (descriptions / "train0.json").write_text(MIXED, encoding="utf-8")
    (descriptions / "train1.json").touch()
    read = readiness.open_poses("", {}).__class__.read

    def refusing(self, path, label):
        if path.stem == "train2":
            raise PermissionError(13, "Permission denied", str(path))
        return read(self, path, label)

    monkeypatch.setattr("pose.keypoints.PoseFolder.read", refusing)
    spec = config.DATASETS["CSL_Daily"].under(tmp_path)
    look = readiness.look_at_split(Report(), spec, "train", 200)
    readiness.examine_descriptions(Report(), spec, "train", look, False)
    said = capsys.readouterr().out
    assert re.search(
        r"✗ poses: 4 found, 0 missing, 1 unreadable in .*; the first: .*Permission denied.*train2.pkl", said
    )
    assert "! descriptions: 2 found, 2 missing, 1 unreadable in" in said


def test_videos_are_compared_with_the_pose_files(write_video, tmp_path, capsys):
    write_split(tmp_path, "train", 4)
    spec = config.DATASETS["CSL_Daily"].under(tmp_path)
    for i, n_frames in enumerate((10, 9, 10)):
        write_video(Path(spec.rgb_dir) / f"train{i}.mp4", [np.zeros((32, 32, 3), np.uint8)] * n_frames)
    report = Report()
    readiness.examine_videos(report, spec, "train", 200)
    said = capsys.readouterr().out
    assert "✗ videos: 3 found, 1 missing, 1 do not fit in" in said
    assert "the first: train3.mp4 is missing" in said
    (Path(spec.rgb_dir) / "train3.mp4").write_bytes((Path(spec.rgb_dir) / "train0.mp4").read_bytes())
    readiness.examine_videos(report, spec, "train", 200)
    assert "train1.mp4: the video has 9 frames, its pose file 10." in capsys.readouterr().out
    shutil.copy(f"{spec.rgb_dir}/train0.mp4", f"{spec.rgb_dir}/train1.mp4")
    readiness.examine_videos(report, spec, "train", 200)
    assert "  ✓ videos: 4 found, 0 missing, 0 do not fit" in capsys.readouterr().out
    assert len(report.cures) == 1


# -- the verdict -----------------------------------------------------------------------------------------------------


@pytest.fixture
def verdict(tmp_path, corpus, capsys):
    """A function: what a run with these flags lacks on a copy of the corpus without some paths, and the last line."""
    shutil.copytree(corpus, tmp_path / "root")

    def conclude(removed, *flags, strict=False):
        for path in (tmp_path / "root").glob(removed) if removed else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        report = Report()
        examine(report, parse_args(["--root", str(tmp_path / "root"), *flags]), everything=True)
        ready = report.conclude(strict)
        return ready, capsys.readouterr().out.splitlines()[-1]

    return conclude


@pytest.mark.parametrize(
    ("removed", "lacking"),
    [
        ("data/CSL_Daily/labels.dev", "Labels"),
        ("dataset/CSL_Daily/pose_format", "Poses"),
        ("dataset/CSL_Daily/pose_format/S000001*", "Poses"),
        ("pretrained_weight", "mT5"),
    ],
)
def test_a_run_without_labels_poses_or_mt5_is_not_ready(verdict, removed, lacking):
    ready, line = verdict(removed)
    assert not ready
    assert re.fullmatch(rf"✗ Not ready\. {lacking} (is|are) missing( or damaged)?: .*", line)


def test_as_many_poses_may_be_missing_as_the_run_leaves_out(verdict):
    ready, line = verdict("dataset/CSL_Daily/pose_format/S000001*", "--max_bad_clips", "0.5")
    assert ready
    assert line.startswith("✓ Ready: the run can start. ")
    assert "Lines marked !: 1; --strict makes them errors." in line


def test_descriptions_are_missed_where_they_are_used(verdict):
    assert verdict("")[0]
    assert verdict("description")[0]
    assert not verdict("", strict=True)[0]
    ready, line = verdict("", "--use_descriptions")
    assert not ready
    assert line == (
        "✗ Not ready. Usable descriptions are missing: make them with python describe.py, or drop --use_descriptions."
    )


def test_both_languages_show_the_same_values():
    def values(text):
        return [(field, spec) for _, field, spec, _ in Formatter().parse(text) if field is not None]

    assert all(values(english) == values(chinese) for english, chinese in TEXTS.values())
    assert {name.removesuffix(".cure") for name in TEXTS if "." in name} - {"checks"} <= TEXTS.keys()


# -- weights and GPU -------------------------------------------------------------------------------------------------


def test_an_mt5_that_does_not_load_is_told(tmp_path, capsys, corpus):
    report, folder = Report(), tmp_path / "mt5"
    shutil.copytree(corpus / config.mt5_path, folder)
    assert readiness.examine_mt5(report, folder)["d_model"] == 64
    described = folder / "config.json"
    sizes = json.loads(described.read_text(encoding="utf-8"))
    for changes, words in (
        ({"num_decoder_layers": 0}, r"no pair; unknown: decoder\.block\.0\."),
        ({"vocab_size": 9}, r"spiece\.model has \d+ pieces, and the model beside it 9 tokens"),
    ):
        described.write_text(json.dumps(sizes | changes), encoding="utf-8")
        with report.section("weights"):
            readiness.examine_mt5(report, folder)
        assert re.search(words, capsys.readouterr().out)
    described.write_text(json.dumps(sizes), encoding="utf-8")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with report.section("weights"):
        readiness.examine_mt5(report, folder)
    assert "the weights are damaged" in capsys.readouterr().out
    assert not report.conclude(strict=False)


def needed(capsys, monkeypatch, *flags: str, memory: int = 24) -> tuple[float, float, str]:
    """Estimates in GiB for mt5-base: weights and optimizer, activations; and the line of a GPU."""
    import torch

    gpu = SimpleNamespace(name="Some GPU", total_memory=memory << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _number: gpu)
    readiness.examine_gpu(Report(), memory_settings(parse_args(flags)), {}, 256, 10.0)
    said = capsys.readouterr().out
    state, activations = re.search(r"estimate: (\S+) weights and optimizer, (\S+) for ", said).groups()
    return float(state), float(activations), said.splitlines()[-1]


def test_memory_is_compared_with_what_the_run_needs(capsys, monkeypatch):
    state, activations, line = needed(capsys, monkeypatch)
    assert state == pytest.approx(589.4e6 * 16 / 2**30, abs=0.06)
    assert line.startswith("  · GPU 0: Some GPU, 24.0 GiB") == (state + activations > 24)
    half = needed(capsys, monkeypatch, "--batch-size", "8")
    assert half[0] == state
    assert half[1] == pytest.approx(activations / 2, abs=0.1)
    assert half[2] == "  ✓ GPU 0: Some GPU, 24.0 GiB"
    assert ": try a smaller --batch-size" in needed(capsys, monkeypatch, memory=6)[2]

    # Of 256 frames 51 have a crop of a hand, counting both.
    crops = needed(capsys, monkeypatch, "--rgb_support")
    assert crops[0] - state == pytest.approx(5e6 * 16 / 2**30, abs=0.06)
    assert crops[1] - activations == pytest.approx(16 * 51.2 * 14 / 1024, abs=0.1)

    # The text encoder is a second encoder with its embedding, unless its features come from a cache.
    described = needed(capsys, monkeypatch, "--use_descriptions")
    assert described[0] - state == pytest.approx(277.0e6 * 16 / 2**30, abs=0.1)
    assert described[1] > activations
    frozen = needed(capsys, monkeypatch, "--use_descriptions", "--text_encoder_freeze")
    assert frozen[:2] == (state, activations)
    fusion = needed(capsys, monkeypatch, "--use_descriptions", "--text_encoder_freeze", "--finetune", "x")
    assert fusion[0] == pytest.approx(state / 4, abs=0.06)
