"""Whatever one clip raises is that clip's reason, and messages are printable."""

import json
import logging
import lzma
import struct
import zipfile
import zlib
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

import inference
import utils
from describing.audit import examine
from describing.by_model import Outcome, describe_clip
from describing.by_rules import _describe
from describing.files import Clip
from system.disk import Lines, read_lines, write_text
from tools import extract_poses
from training.loader import load_batch


def fails(*_, **__):
    raise MemoryError


class Bad(Clip):
    read_pose = fails


def in_training(_):
    kind = type("Fails", (SimpleNamespace,), {"__getitem__": fails})
    src_input, _ = load_batch(kind(hand_crops=None, descriptions=None, names=["a"]), 0, [0])
    return [bad.reason for bad in src_input["bad_clips"]]


def by_model(folder):
    outcome = Outcome()
    assert describe_clip(Bad("a", folder, None, folder), None, None, outcome) == 0
    return [failure["reason"] for failure in outcome.failures]


def translating(_):
    clips = [inference.Clip("a", Path("a"))]
    list(inference.translate(None, clips, None, Namespace(batch_size=1)))
    return [clips[0].fault]


SITES = {
    "training": in_training,
    "by rules": lambda folder: [_describe((Bad("a", folder, None, folder), "en", 1.0, "", False))[1]],
    "by a model": by_model,
    "audit": lambda folder: [examine(Bad("a", folder, None, folder)).faults["pose_unreadable"]],
    "extraction": lambda folder: [
        extract_poses.extract(
            Namespace(extractor="", models="", device="", person=0),
            extract_poses.Video(folder / "a", folder / "b", None),
        ).fault
    ],
    "translation": translating,
}


@pytest.mark.parametrize("site", SITES)
def test_what_one_clip_raises_is_its_reason(site, tmp_path, monkeypatch):
    (tmp_path / "a.pkl").touch()
    for name in ("inference.read_clip", "pose.extraction.extract_pose"):
        monkeypatch.setattr(name, fails)
    monkeypatch.setattr(extract_poses, "_extractor", lambda *_: None)
    assert SITES[site](tmp_path) == ["MemoryError"]


@pytest.mark.parametrize("kind", [AssertionError, lzma.LZMAError, struct.error, zipfile.BadZipFile, zlib.error])
def test_what_libraries_raise_is_a_clips_reason_too(kind, monkeypatch):
    def damaged(*_):
        raise kind("cut\nshort")

    monkeypatch.setattr(inference, "read_clip", damaged)
    assert translating(None) == ["AssertionError: cut short" if kind is AssertionError else "cut short"]


def test_half_a_character_can_be_written(tmp_path):
    write_text(tmp_path / "a.json", json.dumps("\ud83d", ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == "\ud83d"
    Lines(tmp_path / "b.jsonl").add({"a": "\ud83d"})
    assert read_lines(tmp_path / "b.jsonl") == [{"a": "\ud83d"}]


def test_no_escape_sequence_reaches_the_terminal(tmp_path, capfd):
    utils.start_log(tmp_path, is_main=True)
    logging.getLogger("x").warning("%s", "\x1b[2J.pkl")
    with pytest.raises(SystemExit):
        utils.run(lambda: (_ for _ in ()).throw(FileNotFoundError("\x9b2J\u202e.pkl")))
    written = "".join(capfd.readouterr()) + (tmp_path / "train.log").read_text(encoding="utf-8")
    assert "\\x1b[2J.pkl" in written
    assert "\\x9b2J\\u202e.pkl" in written
    assert not {"\x1b", "\x9b", "\u202e"} & set(written)
