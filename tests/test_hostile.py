"""Every bad or malicious file that is at hand: one clear line, and nothing happens."""

import gzip
import io
import json
import os
import pickle
import resource
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from clips.labels import read_labels
from config import POSE_SUFFIXES, DatasetSpec
from datasets import S2T_Dataset
from pose.keypoints import read_pose
from system.safe_pickle import load_pickle
from tests.helpers.poses import write_pose
from training.weight_files import read_weights

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = ROOT.parent / "shared" / "real" / "hostile"
INDEX = json.loads((HOSTILE / "INDEX.json").read_text(encoding="utf-8")) if HOSTILE.is_dir() else {}

# What each file's message must say beside the file's name; None: the file is legal.
WORDS: dict[str, str | None] = {
    "exec_open.pkl": "open",
    "exec_system.pkl": "system",
    "exec_eval.pkl": "eval",
    "exec_numpy_runstring.pkl": "runstring",
    "exec_dotted_name.pkl": "testing.runstring",
    "checkpoint_plain_pickle.pth": "read safely",
    "checkpoint_zip.pth": "read safely",
    "labels.exec": "asks for",
    "truncated.pkl": "cut short",
    "empty_file.pkl": "empty",
    "not_a_pickle.pkl": "not a readable pickle",
    "nan_inf.pkl": "6 frames hold NaN or infinite",
    "all_nan.pkl": "NaN",
    "joints17.pkl": "(1, 17, 2)",
    "zero_frames.pkl": "frames 0 to 0",
    "length_mismatch.pkl": "12 frames of keypoints, but 9 of scores",
    "length_mismatch_keypoints.pkl": "9 frames of keypoints, but 12 of scores",
    "no_scores_key.pkl": "'scores'",
    "no_person_axis.pkl": "(133, 2)",
    "two_persons.pkl": None,
    "empty_person_frame.pkl": None,
    "all_scores_zero.pkl": None,
    "start_after_end.pkl": "frames 8 to 4",
    "end_beyond.pkl": "frames 5 to 400 of 12",
    "pixel_coordinates.pkl": "pixels",
    "list_pickle.pkl": "a list",
    "labels.not_gzip": "not packed with gzip",
    "labels.text": "not packed with gzip",
    "labels.truncated_gzip": "cannot be read",
    "labels.traversal": "points out of the data folder",
    "labels.missing_fields": "2 clips have no text",
}


def read_split(path: Path) -> S2T_Dataset:
    """Labels as a run reads them."""
    spec = DatasetSpec(name="hostile", labels={"train": str(path)}, pose_dir=str(path.parent), description_dir="")
    read_labels(path)
    return S2T_Dataset(spec, "train")


READERS = {"pose": read_pose, "labels": read_split, "checkpoint": lambda path: read_weights(path, "--finetune")}


@pytest.mark.skipif(not INDEX, reason=f"{HOSTILE} is not here: the hostile files are no part of the project")
def test_every_file_is_looked_at():
    assert set(WORDS) == set(INDEX)


@pytest.mark.parametrize("name", sorted(INDEX))
def test_one_clear_line_and_no_side_effect(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in HOSTILE.iterdir()}
    environment, read = dict(os.environ), READERS[INDEX[name]["kind"]]
    if WORDS[name] is None:
        read(HOSTILE / name)
    else:
        with pytest.raises(ValueError, match=name) as error:
            read(HOSTILE / name)
        message = str(error.value)
        assert len(message.splitlines()) == 1
        assert WORDS[name] in message
        assert "\x1b" not in message
        assert "weights_only" not in message  # torch advises to execute the file
    assert not list(tmp_path.iterdir())
    assert {path: path.stat().st_mtime_ns for path in HOSTILE.iterdir()} == before
    assert dict(os.environ) == environment
    assert not any(capfd.readouterr())


# -- files that cost memory ------------------------------------------------------------------------------------------

BOMBS = {
    "memo number": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "memo number as text": b"Np2000000000\n.",
    "long text": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"abc.",
    "long bytes": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"abc.",
    "long bytearray": b"\x80\x05\x96" + (1 << 33).to_bytes(8, "little") + b"abc.",
    "number of 5,000 digits": pickle.dumps(10**5000),
    "long number": b"\x80\x02\x8b" + (1 << 30).to_bytes(4, "little") + b"abc.",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_few_bytes_cannot_ask_for_gigabytes(kind, tmp_path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(BOMBS[kind])
    with pytest.raises(ValueError, match="more memory than its size can need"):
        load_pickle(path)


def test_a_packed_checkpoint_is_not_unpacked(tmp_path):
    """torch writes its archives unpacked; one that grows when it is read was made by somebody else."""
    plain, packed = io.BytesIO(), tmp_path / "bomb.pth"
    torch.save({"model": {"a": torch.zeros(1 << 20)}}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    assert packed.stat().st_size < 100_000
    with pytest.raises(ValueError, match="--finetune: .*bomb.pth.*packed"):
        read_weights(packed, "--finetune")


def npz(folder, keypoints, **more):
    np.savez_compressed(folder / "a.npz", keypoints=keypoints, scores=keypoints[..., 0], **more)


def npz_that_claims(folder, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(folder / "a.npz", "w") as file:
        file.writestr("keypoints.npy", header.getvalue())


def pose(folder, frames, people=1):
    path = write_pose(folder / "a.pose", {"BODY": []}, np.zeros((1, people, 0, 2)), np.zeros((1, people, 0)))
    data = path.read_bytes()
    at = len(data) - 6  # frames (4 bytes) and people (2) come last
    path.write_bytes(data[:at] + frames.to_bytes(4, "little") + data[at + 4 :])


def rows(folder, kind, start, repeated, end, n=1 << 27):
    with gzip.open(folder / f"a.{kind}.gz", "wb", 1) as file:
        file.write(start)
        for _ in range(0, n, 1 << 20):
            file.write(repeated * ((1 << 20) // len(repeated)))
        file.write(end)


def sheet(folder):
    with zipfile.ZipFile(folder / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("xl/worksheets/sheet1.xml", bytes(1 << 27))


FRAME = {"keypoints": [np.ones((1, 133, 2))], "scores": [np.ones((1, 133))]}


def twice_in(value):
    """Lists of ten times the next, which have 10^8 items for whoever shows them."""
    for _ in range(8):
        value = [value] * 10
    return value


def encoded_again_and_again(folder):
    text = b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20)
    calls = b"](" + b"h\x00h\x01N\x86R" * 10_000 + b"e."
    (folder / "a.pkl").write_bytes(b"\x80\x02c_codecs\nencode\nq\x000" + text + b"q\x010" + calls)


class Swapped:
    """An array whose bytes numpy has to copy, to turn their order around."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        make, values, _ = np.zeros(1).__reduce__()
        return make, values, (1, (len(self.data) // 8,), np.dtype(">f8"), False, self.data)


def parts_of_one_name(folder):
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for _ in range(2000):
            file.writestr("keypoints.npy", b"")
        file.writestr("keypoints.npy", bytes(60_000_000))


SMALL = {
    "frames of nobody": lambda folder: npz(folder, np.zeros((5_000_000, 0, 133, 2), np.float32)),
    "a shape without content": lambda folder: npz_that_claims(folder, (1 << 33, 133, 2)),
    "packed zeros": lambda folder: npz(folder, np.zeros((1 << 16, 133, 2), np.float32)),
    "frames of a .pose": lambda folder: pose(folder, (1 << 32) - 1),
    "frames of nobody of a .pose": lambda folder: pose(folder, (1 << 32) - 1, 0),
    "frames that are None": lambda folder: (folder / "a.pkl").write_bytes(
        pickle.dumps({"keypoints": [None] * 1_000_000, "scores": [None] * 1_000_000})
    ),
    "lists of lists": lambda folder: (folder / "a.pkl").write_bytes(pickle.dumps(FRAME | {"start": twice_in("a")})),
    "labels of lists of lists": lambda folder: (folder / "labels.train").write_bytes(
        gzip.compress(pickle.dumps({"a": {"text": twice_in("a"), "video_path": "a.mp4"}}))
    ),
    "one text, again and again": encoded_again_and_again,
    "one array, again and again": lambda folder: (folder / "a.pkl").write_bytes(
        pickle.dumps([Swapped(data) for data in [bytes(1 << 20)] * 1000])
    ),
    "parts of one name": parts_of_one_name,
    "packed labels": lambda folder: rows(folder, "json", b"[", b"[],", b"[]]"),
    "a packed table": lambda folder: rows(folder, "csv", b"name\n", b"a\n", b""),
    "a spreadsheet": sheet,
    "a pipe": lambda folder: os.mkfifo(folder / "a.pkl"),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory as Linux does")
@pytest.mark.parametrize("kind", SMALL)
def test_small_files_ask_for_little(kind, tmp_path):
    if "pose" in kind:
        pytest.importorskip("pose_format", reason="needs the extra pose")
    SMALL[kind](tmp_path)
    (path,) = tmp_path.iterdir()
    read = read_pose if path.suffix in POSE_SUFFIXES else read_labels
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ValueError, OSError), match=path.name):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB


@pytest.mark.skipif(not INDEX, reason=f"{HOSTILE} is not here: malicious files, which this repository does not hold")
@pytest.mark.parametrize("name", ["checkpoint_plain_pickle.pth", "exec_eval.pkl"])
def test_the_trap_works(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with open(HOSTILE / name, "rb") as file:
        pickle.load(file)
    assert (tmp_path / "PWNED").exists()
