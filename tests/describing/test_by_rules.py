"""Descriptions by rules: which files are written, and which are left alone."""

import json

import pytest

from config import POSE_SUFFIXES
from describing import sentences
from describing.by_rules import by_rules, made_by_rules
from describing.files import Clip
from temporal_alignment import read_descriptions


def describe(poses, out, language="zh", overwrite=False):
    paths = sorted(path for path in poses.iterdir() if path.suffix in POSE_SUFFIXES)
    clips = [Clip(path.stem, path, None, out / f"{path.stem}.json") for path in paths]
    return by_rules(clips, language, 1.0, 1, overwrite)


def test_nothing_is_written_twice(poses, tmp_path, lines):
    out = tmp_path / "out"
    assert describe(poses, out, "en") == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    gone = sorted(before)[0]
    gone.unlink()
    assert describe(poses, out, "en") == 0
    after = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {path for path in after if after[path] == before[path]} == set(before) - {gone}
    assert "4 files there, made by these rules: skipped." in lines.text


@pytest.mark.parametrize("overwrite", [False, True])
def test_each_file_is_read_once(poses, tmp_path, monkeypatch, overwrite):
    """A corpus may have half a million of them; whether one is kept is found out where it would be written."""
    read = []
    monkeypatch.setattr(
        "describing.by_rules.read_descriptions", lambda path: read.append(path) or read_descriptions(path)
    )
    for _ in range(2):
        read.clear()
        assert describe(poses, tmp_path / "out", overwrite=overwrite) == 0
        assert sorted(read) == sorted((tmp_path / "out").iterdir())


def test_other_versions_are_named_and_others_files_kept(poses, tmp_path, lines, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(sentences, "VERSION", "0ld")
    assert describe(poses, out) == 0
    monkeypatch.undo()
    mine, *_ = sorted(out.iterdir())
    mine.write_text('[{"filename": "000001.jpg", "description": "By hand."}]')
    assert describe(poses, out) == 0
    assert "4 files there, made by rules 0ld zh: skipped." in lines.text
    assert "1 files there, made by someone else: kept." in lines.text
    assert describe(poses, out, overwrite=True) == 0
    assert "By hand." in mine.read_text()
    made_by = [entry["made_by"] for path in sorted(out.iterdir())[1:] for entry in json.loads(path.read_text())]
    assert set(made_by) == {f"rules {sentences.VERSION} zh"}


@pytest.mark.parametrize(("content", "kept"), [("", False), ('[{"filename": "0.jpg", "descr', True), ("[]", False)])
def test_damaged_files_are_set_aside(poses, tmp_path, content, kept):
    out = tmp_path / "out"
    out.mkdir()
    path = out / f"{sorted(poses.iterdir())[0].stem}.json"
    path.write_text(content)
    assert describe(poses, out) == 0
    assert read_descriptions(path)[0]
    aside = out / f"{path.name}.damaged"
    assert (aside.read_text() if kept else aside.exists()) == (content if kept else False)


def test_a_bad_pose_does_not_stop_the_others(poses, tmp_path, lines):
    (poses / "bad.pkl").write_text("<html>")
    (poses / "gone.pkl").symlink_to("nowhere")
    assert describe(poses, tmp_path / "out") == 2
    assert len(list((tmp_path / "out").iterdir())) == 5
    assert "bad.pkl: not a readable pickle" in lines.text
    assert "No such file" in lines.text
    assert "5 files written" in lines.text


def test_the_aspect_is_part_of_the_version():
    assert made_by_rules("en", 1.0) == f"rules {sentences.VERSION} en"
    assert made_by_rules("en", 4 / 3) == f"rules {sentences.VERSION} en aspect 1.33333"
