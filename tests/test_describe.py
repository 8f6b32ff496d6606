"""`describe.py` from the command line: which clips, and which files."""

import errno
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

import describe
from clips.labels import read_labels
from describing import sentences
from pose.keypoints import cut_clip, read_pose
from temporal_alignment import DescriptionLoader


def run(line, *more):
    return describe.main([*shlex.split(line), *map(str, more)])


def test_every_clip_of_a_data_set(corpus, tmp_path):
    assert run("--workers 2 --root", corpus, "--out", tmp_path) == 0
    for split in ("train", "dev", "test"):
        labels = read_labels(corpus / "data" / "CSL_Daily" / f"labels.{split}")
        assert {path.stem for path in (tmp_path / split).iterdir()} == set(labels)
        loader = DescriptionLoader(tmp_path / split)
        for name in labels:
            pose = read_pose(corpus / "dataset" / "CSL_Daily" / "pose_format" / f"{name}.pkl")
            assert loader.load(name, pose.frames) == sentences.describe_pose(pose, "zh")
        assert loader.counts.frames == loader.counts.entries > 50


def test_parts_of_a_recording(poses, tmp_path):
    """Of each clip its own frames are described, under their numbers in the recording."""
    path = sorted(poses.iterdir())[0]
    whole = read_pose(path)
    rows = [f"{name},{path.stem},{start},{end},t" for name, start, end in (("a", 0, 9), ("b", 9, len(whole)))]
    (tmp_path / "labels.csv").write_text("\n".join(["name,video,start,end,text", *rows]))
    (tmp_path / "own.toml").write_text(
        'name = "x"\npose_dir = "poses"\ndescription_dir = "texts"\nlabels = {train = "labels.csv"}\n'
    )
    assert run("--workers 1 --root", tmp_path, "--dataset_config", tmp_path / "own.toml") == 0
    for name, start, end in (("a", 0, 9), ("b", 9, len(whole))):
        texts = DescriptionLoader(tmp_path / "texts" / "train").load(name)
        assert texts == sentences.describe_pose(cut_clip(path, whole, {"start": start, "end": end}), "en")
        assert set(texts) <= set(range(start, end))
    assert run("audit", tmp_path / "texts", "--dataset_config", tmp_path / "own.toml", "--root", tmp_path) == 0


def test_a_name_that_is_too_long_costs_its_clip_alone(poses, tmp_path, lines):
    """Files of 255 bytes can be read; with .json and the ending of a temporary file they would be longer."""
    path = sorted(poses.iterdir())[0]
    long = [f"{'a' * length}.pkl" for length in (230, 231, 250)]
    for name in long:
        shutil.copy(path, poses / name)
    for left in (6, 0):
        lines.clear()
        assert run("--workers 1 --poses", poses, "--out", tmp_path / "out") == 1
        assert f"{left} files written" in lines.text
        assert "2 failed" in lines.text
        assert f"{'a' * 250}.json: the name has 255 bytes; wanted up to 235. Rename the clip." in lines.text
    assert len(list((tmp_path / "out").iterdir())) == 6


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_ends_the_run_at_once(poses, tmp_path, monkeypatch, reason):
    tries = []

    def replace(source, target):
        tries.append(target)
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match=re.escape(os.strerror(reason))) as error:
        run("--workers 1 --poses", poses, "--out", tmp_path / "out")
    assert error.value.filename == str(tmp_path / "out" / f"{sorted(poses.iterdir())[0].stem}.json")
    assert len(tries) == 1


def test_only_some_clips(poses, tmp_path):
    name = sorted(poses.iterdir())[2].stem
    assert run("--poses", poses, "--out", tmp_path / "out", "--clips", name) == 0
    assert [path.stem for path in (tmp_path / "out").iterdir()] == [name]
    with pytest.raises(ValueError, match="--clips: no clip is named 'nobody'"):
        run("--poses", poses, "--out", tmp_path / "out", "--clips", name, "nobody")


def test_parts_are_what_one_run_is(poses, tmp_path):
    assert run("--poses", poses, "--out", tmp_path / "whole") == 0
    parts = []
    for i in (3, 1, 2):
        before = {*(tmp_path / "parts").glob("*")}
        assert run("--poses", poses, "--out", tmp_path / "parts", "--shard", f"{i}/3") == 0
        parts.append(len({*(tmp_path / "parts").glob("*")} - before))
    assert sum(parts) == 5 > max(parts)
    whole, parts = ({file.name: file.read_bytes() for file in (tmp_path / of).iterdir()} for of in ("whole", "parts"))
    assert whole == parts


def test_clips_in_sub_folders(poses, tmp_path, capsys):
    """tools.extract_poses keeps the folders of the videos; they are part of a clip's name."""
    path = sorted(poses.iterdir())[0]
    for name in ("monday/slow", "tuesday/slow"):
        (poses / name).parent.mkdir()
        shutil.copy(path, poses / f"{name}.pkl")
    out = tmp_path / "out"
    line = f"--workers 1 --poses {poses} --out {out}"
    clips, *_ = describe.find_clips(describe.parse_args([*line.split(), "--videos", "videos"]))
    assert {clip.video for clip in clips} >= {Path("videos/monday/slow.mp4"), Path("videos/tuesday/slow.mp4")}
    assert run(line) == 0
    loader = DescriptionLoader(out)
    assert loader.load("monday/slow") == loader.load("tuesday/slow") == loader.load(path.stem) != {}
    assert run("audit --workers 1", out, "--repair", tmp_path / "clean") == 0
    assert re.search(r"^files +7$", capsys.readouterr().out, re.MULTILINE)
    assert len(list((tmp_path / "clean").rglob("*.json"))) == 7
    assert (tmp_path / "clean/monday/slow.json").is_file()
    (tmp_path / "splits").mkdir()
    (out / "monday").rename(tmp_path / "splits" / "train")
    (tmp_path / "splits" / "train" / "deep").mkdir()
    shutil.copy(tmp_path / "splits/train/slow.json", tmp_path / "splits/train/deep/slow.json")
    assert run("audit --workers 1", tmp_path / "splits") == 0
    assert re.search(r"^files +2$", capsys.readouterr().out, re.MULTILINE)


def test_failures_are_listed_beside_the_splits(poses, tmp_path):
    """A clip's name may have folders, so that its file does not tell where the splits are."""
    (tmp_path / "labels.csv").write_text("name,video,text\na/b,a/b.mp4,t\n")
    (tmp_path / "own.toml").write_text(
        'name = "x"\npose_dir = "poses"\ndescription_dir = "texts"\nlabels = {train = "labels.csv"}\n'
    )
    flags = ["--root", str(tmp_path), "--dataset_config", str(tmp_path / "own.toml")]
    clips, _, out = describe.find_clips(describe.parse_args(flags))
    assert [clip.out for clip in clips] == [tmp_path / "texts/train/a/b.json"]
    assert out == tmp_path / "texts"


def test_two_files_of_one_clip_are_refused(poses, tmp_path):
    """Each would take the other's place."""
    path = sorted(poses.iterdir())[1]
    path.with_suffix(".npz").touch()
    with pytest.raises(ValueError, match=f"several pose files of the clip '{path.stem}'"):
        run("--poses", poses, "--out", tmp_path / "out")


def test_a_dev_that_is_the_test_split_is_described_once(world, tmp_path):
    line = f"--dataset How2Sign --root {world} --out {tmp_path}"
    clips, *_ = describe.find_clips(describe.parse_args(line.split()))
    assert len(clips) == 6
    assert run(line) == 0
    assert {folder.name: len(list(folder.iterdir())) for folder in tmp_path.iterdir()} == {"train": 4, "test": 2}
    texts = next(iter(DescriptionLoader(tmp_path / "test").load("test_0").values()))
    assert "hand" in texts  # an English data set


def test_flags_reach_the_rules(poses, tmp_path):
    path = sorted(poses.iterdir())[0]
    line = f"--poses {poses} --out {tmp_path / 'out'} --clips {path.stem}"
    assert run(line) == 0
    assert run(f"{line} --aspect 2") == 0  # a file of the rules is there: skipped
    pose, loader = read_pose(path), DescriptionLoader(tmp_path / "out")
    assert loader.load(path.stem) == sentences.describe_pose(pose, "zh")
    assert run(f"{line} --aspect 2 --overwrite") == 0
    assert loader.load(path.stem) == sentences.describe_pose(pose, "zh", 2.0) != sentences.describe_pose(pose, "zh")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--poses x", "--poses needs --out"),
        ("--videos x", "--videos goes with --poses"),
        ("--endpoint http://x", "--endpoint URL and --model NAME go together"),
        ("--model m", "--endpoint URL and --model NAME go together"),
        ("--segment 0 --pictures 0", "--segment 0: must be at least 1. --pictures 0: must be at least 1."),
        ("--timeout nan", "--timeout nan: must be between 0.1 and 86400"),
        ("--aspect 100", "--aspect 100.0: must be between"),
        ("--fields [1]", "--fields: invalid json_object value: '[1]'"),
        ("--fields {", "--fields: invalid json_object value: '{'"),
    ],
)
def test_wrong_flags(line, message, capsys):
    with pytest.raises(SystemExit):
        describe.parse_args(line.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--poses . --out x", "holds no pose files"),
        ("--dataset CSL_News --splits test", "^--splits test: CSL_News has train, dev alone"),
    ],
)
def test_wrong_places(line, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(line)
