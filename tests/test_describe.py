"""`describe.py` from the command line: which clips, which files, and what is left alone."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import describe
from clips.labels import read_labels
from describing import sentences
from pose.keypoints import read_pose
from temporal_alignment import DescriptionLoader

ROOT = Path(__file__).resolve().parents[1]


def run(line, *more):
    return describe.main([*shlex.split(line), *map(str, more)])


@pytest.fixture(autouse=True)
def lines(caplog):
    """What the program says."""
    caplog.set_level("INFO", logger="describe")
    return caplog


@pytest.fixture
def few_poses(corpus, tmp_path):
    """A folder with five pose files."""
    folder = tmp_path / "poses"
    folder.mkdir()
    for path in sorted(corpus.glob("dataset/*/pose_format/*.pkl"))[:5]:
        os.link(path, folder / path.name)
    return folder


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


def test_nothing_is_written_twice(few_poses, tmp_path, lines):
    out = tmp_path / "out"
    assert run("--language en --poses", few_poses, "--out", out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    gone = sorted(before)[0]
    gone.unlink(missing_ok=True)
    assert run("--language en --poses", few_poses, "--out", out) == 0
    after = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {path for path in after if after[path] == before[path]} == set(before) - {gone}
    assert "4 files there, made by these rules: skipped." in lines.text


def test_files_are_the_same_for_any_number_of_workers(corpus, tmp_path):
    names = "--splits dev --root"
    assert run(names, corpus, "--workers", 1, "--out", tmp_path / "a") == 0
    describe.BATCH, batch = 2, describe.BATCH
    try:
        assert run(names, corpus, "--workers", 3, "--out", tmp_path / "b") == 0
    finally:
        describe.BATCH = batch
    for path in (tmp_path / "a" / "dev").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "dev" / path.name).read_bytes()


def test_other_versions_are_named_and_others_files_kept(few_poses, tmp_path, lines, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(sentences, "VERSION", "0ld")
    assert run("--poses", few_poses, "--out", out) == 0
    monkeypatch.undo()
    mine, *_ = sorted(out.iterdir())
    mine.write_text('[{"filename": "000001.jpg", "description": "By hand."}]')
    assert run("--poses", few_poses, "--out", out) == 0
    assert "4 files there, made by rules 0ld zh: skipped." in lines.text
    assert "1 files there, made by someone else: kept." in lines.text
    assert run("--overwrite --poses", few_poses, "--out", out) == 0
    assert "By hand." in mine.read_text()
    made_by = [entry["made_by"] for path in sorted(out.iterdir())[1:] for entry in json.loads(path.read_text())]
    assert set(made_by) == {f"rules {sentences.VERSION} zh"}


@pytest.mark.parametrize(("content", "kept"), [("", False), ('[{"filename": "0.jpg", "descr', True), ("[]", False)])
def test_damaged_files_are_set_aside(few_poses, tmp_path, content, kept):
    out = tmp_path / "out"
    out.mkdir()
    name = sorted(few_poses.iterdir())[0].stem
    (out / f"{name}.json").write_text(content)
    assert run("--poses", few_poses, "--out", out) == 0
    assert DescriptionLoader(out).load(name)
    aside = out / f"{name}.json.damaged"
    assert (aside.read_text() if kept else aside.exists()) == (content if kept else False)


def test_a_bad_pose_does_not_stop_the_others(few_poses, tmp_path, lines):
    (few_poses / "bad.pkl").write_text("<html>")
    assert run("--poses", few_poses, "--out", tmp_path / "out") == 1
    assert len(list((tmp_path / "out").iterdir())) == 5
    assert "bad.pkl: not a readable pickle" in lines.text
    assert "5 files written" in lines.text


def test_hostile_poses(shared_real, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--workers 1 --poses", shared_real / "hostile", "--out", tmp_path / "out") == 1
    assert not list(tmp_path.rglob("PWNED*"))


def test_only_some_clips(few_poses, tmp_path):
    name = sorted(few_poses.iterdir())[2].stem
    assert run("--poses", few_poses, "--out", tmp_path / "out", "--clips", name) == 0
    assert [path.stem for path in (tmp_path / "out").iterdir()] == [name]
    with pytest.raises(ValueError, match="--clips: no clip is named 'nobody'"):
        run("--poses", few_poses, "--out", tmp_path / "out", "--clips", name, "nobody")


def test_two_files_of_one_clip_are_refused(few_poses, tmp_path):
    """Each would take the other's place."""
    path = sorted(few_poses.iterdir())[1]
    path.with_suffix(".npz").touch()
    with pytest.raises(ValueError, match=f"several pose files of the clip '{path.stem}'"):
        run("--poses", few_poses, "--out", tmp_path / "out")


def test_a_dev_that_is_the_test_split_is_described_once(world, tmp_path):
    line = f"--dataset How2Sign --root {world} --out {tmp_path}"
    clips, _ = describe.find_clips(describe.parse_args(line.split()))
    assert len(clips) == 6
    assert run(line) == 0
    assert {folder.name: len(list(folder.iterdir())) for folder in tmp_path.iterdir()} == {"train": 4, "test": 2}
    texts = next(iter(DescriptionLoader(tmp_path / "test").load("test_0").values()))
    assert "hand" in texts  # an English data set


def test_a_pose_that_is_missing_does_not_stop_the_others(corpus, tmp_path, lines):
    (tmp_path / "root").mkdir()
    for name in ("data", "dataset"):
        shutil.copytree(corpus / name, tmp_path / "root" / name)
    gone = sorted(read_labels(corpus / "data/CSL_Daily/labels.dev"))[0]
    (tmp_path / f"root/dataset/CSL_Daily/pose_format/{gone}.pkl").unlink()
    assert run("--splits dev --workers 1 --root", tmp_path / "root", "--out", tmp_path / "out") == 1
    assert "8 files written" in lines.text
    assert f"{gone}.pkl" in lines.text


def test_the_aspect_reaches_the_rules(few_poses, tmp_path):
    path = sorted(few_poses.iterdir())[0]
    assert run("--aspect 2 --poses", few_poses, "--out", tmp_path / "out", "--clips", path.stem) == 0
    texts = DescriptionLoader(tmp_path / "out").load(path.stem)
    assert texts == sentences.describe_pose(read_pose(path), "zh", 2.0)
    assert texts != sentences.describe_pose(read_pose(path), "zh")


def test_a_page_of_pictures(few_poses, tmp_path):
    pytest.importorskip("PIL", reason="pillow is not installed (requirements-rgb.txt)")
    assert run("--language en --poses", few_poses, "--preview", tmp_path / "look.html") == 0
    page = (tmp_path / "look.html").read_text()
    assert page.count("<h2>") == 5
    assert page.count("data:image/png;base64,") > 20
    text = next(iter(sentences.describe_pose(read_pose(sorted(few_poses.iterdir())[0]), "en").values()))
    assert text in page
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".json"] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--poses x", "--poses needs --out"),
        ("--videos x", "--videos goes with --poses"),
        ("--endpoint http://x", "--endpoint URL and --model NAME go together"),
        ("--model m", "--endpoint URL and --model NAME go together"),
        ("--max_cost 1", "--max_cost needs --price_in"),
        ("--segment 0", "--segment 0: must be positive"),
        ("--timeout nan", "--timeout nan: must be positive"),
        ("--retries -1", "--retries -1: must be at least 0"),
        ("--aspect 100", "--aspect 100.0: must be between"),
        ("--fields [1]", "wanted a JSON object"),
        ("--fields {", "wanted a JSON object"),
        ("--model m --segment 0", "--endpoint URL and --model NAME go together. --segment 0: must be positive."),
    ],
)
def test_wrong_flags(line, message, capsys):
    with pytest.raises(SystemExit):
        describe.parse_args(line.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--poses nowhere --out x", "--poses: nowhere is not a folder"),
        ("--root nowhere", "labels: .*labels.train does not exist"),
        ("--poses . --out x", "holds no pose files"),
        ("--dataset CSL_News --splits test", "^--splits test: CSL_News has train, dev alone"),
    ],
)
def test_wrong_places(line, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(line)


def test_as_a_program(tmp_path):
    """One line for what a user can mend, and a status; flags with hyphens too."""
    command = [sys.executable, ROOT / "describe.py", "--dataset-config", "missing.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: --dataset_config: missing.toml does not exist.\n"


def test_the_aspect_is_part_of_the_version():
    assert describe.made_by_rules("en", 1.0) == f"rules {sentences.VERSION} en"
    assert describe.made_by_rules("en", 4 / 3) == f"rules {sentences.VERSION} en aspect 1.33333"
