"""Files are whole or absent."""

import contextlib
import errno
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from system import disk

ROOT = Path(__file__).resolve().parents[2]


def test_a_file_is_written(tmp_path):
    disk.write_whole(tmp_path / "a", lambda file: [file.write(b"ab"), file.write(memoryview(b"c"))])
    assert (tmp_path / "a").read_bytes() == b"abc"
    assert disk.sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    tensor = torch.randn(3, 4).T
    disk.write_whole(tmp_path / "a.pt", lambda file: torch.save(tensor, file))
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True), tensor)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")

    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)) as raised:
        disk.write_whole(path, write)
    assert isinstance(error, KeyboardInterrupt) or str(path) in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


def test_an_error_is_not_taken_for_one_that_came_before(tmp_path):
    """A state is also saved after something went wrong."""

    def write(_):
        raise RuntimeError("of torch")

    try:
        raise ValueError("before")
    except ValueError:
        with pytest.raises(RuntimeError, match="of torch"):
            disk.write_whole(tmp_path / "a", write)


@pytest.mark.parametrize("fails", [False, True])
def test_two_processes_write_the_same_file(tmp_path, fails):
    """Each writes all of its own, the last one stays, and neither leaves anything behind."""
    path = tmp_path / "a"
    other = "import sys; from system import disk; disk.write_whole(sys.argv[1], lambda file: file.write(b'other'))"

    def write(file):
        file.write(b"mi")
        file.flush()
        subprocess.run([sys.executable, "-c", other, path], cwd=ROOT, check=True)
        assert path.read_bytes() == b"other"
        if fails:
            raise OSError("full")
        file.write(b"ne")

    with pytest.raises(OSError, match="full") if fails else contextlib.nullcontext():
        disk.write_whole(path, write)
    assert path.read_bytes() == (b"other" if fails else b"mine")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_a_kill_left_can_be_removed(tmp_path):
    code = "import os, sys; from system import disk; disk.write_whole(sys.argv[1], lambda file: os._exit(1))"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a"], cwd=ROOT, check=False)
    assert [p.suffix for p in tmp_path.iterdir()] == [".unfinished"]
    (tmp_path / "b").touch()
    disk.remove_unfinished(tmp_path, hours=24)
    assert len(list(tmp_path.iterdir())) == 2
    os.utime(next(tmp_path.glob("a.*")), (0, 0))
    disk.remove_unfinished(tmp_path, hours=24)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    folder = tmp_path / "in" / "state"
    for content in ("1", "2", "fails"):
        with contextlib.suppress(ValueError), disk.new_folder(folder) as unfinished:
            (unfinished / "a").write_text(content)
            assert folder.exists() == (content != "1")
            if content == "fails":
                raise ValueError
        assert (folder / "a").read_text() == ("2" if content == "fails" else content)
    assert [path.name for path in folder.parent.iterdir()] == ["state"]


def test_two_write_one_folder_and_the_last_wins(tmp_path):
    """Two packings with one --out: neither takes the other's half."""
    folder = tmp_path / "train"
    with disk.new_folder(folder) as first:
        (first / "a").write_text("first")
        with disk.new_folder(folder) as second:
            (second / "a").write_text("second")
        assert (folder / "a").read_text() == "second"
    assert (folder / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_folder_that_appears_in_between_is_replaced(tmp_path, monkeypatch):
    folder, set_aside, others = tmp_path / "train", disk._set_aside, ["other"]

    def overtaken(folder):
        going = set_aside(folder)
        if others:
            folder.mkdir()
            (folder / others.pop()).touch()
        return going

    monkeypatch.setattr(disk, "_set_aside", overtaken)
    with disk.new_folder(folder) as unfinished:
        (unfinished / "a").touch()
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_old_leftovers_of_a_folder_are_removed(tmp_path):
    """Of this one alone, and none that somebody may be filling."""
    names = ("0123abcd_train", "removal_0123abcd_train", "0123abcd_my_train", "thesis_train", "4567abcd_train")
    for name in names:
        (left := tmp_path / f"unfinished_{name}").mkdir()
        (left / "pack.zip").touch()
        if name != "4567abcd_train":
            os.utime(left / "pack.zip", (0, 0))
        os.utime(left, (0, 0))
    with disk.new_folder(tmp_path / "train"):
        pass
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"train", *(f"unfinished_{name}" for name in names[2:])}


def test_a_folder_that_cannot_be_removed_costs_neither_it_nor_the_new_one(tmp_path, monkeypatch):
    """As on NFS while somebody reads a file of it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("old")
    removed = []

    def rmtree(path, ignore_errors=False):
        removed.append(path)
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    monkeypatch.setattr(disk.shutil, "rmtree", rmtree)
    with disk.new_folder(folder) as unfinished:
        (unfinished / "a").write_text("new")
    assert (folder / "a").read_text() == "new"
    assert (removed[-1] / "a").read_text() == "old"


def test_a_new_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("old")
    rename = os.rename

    def refuse(old, new):
        if "removal" not in old.name and new == folder:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        rename(old, new)

    monkeypatch.setattr(disk.os, "rename", refuse)
    with pytest.raises(OSError, match="Permission denied"), disk.new_folder(folder) as unfinished:
        (unfinished / "a").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "a").read_text() == "old"


def test_lines_wait_until_they_can_be_written(tmp_path, caplog):
    path = tmp_path / "later" / "steps.jsonl"
    lines = disk.Lines(path)
    for step in (1, 2):
        lines.add({"step": step})
    assert caplog.text.count(f"{path} cannot be written: No such file or directory; ") == 1
    assert " MB are free there." in caplog.text
    path.parent.mkdir()
    lines.add({"step": 3})
    assert disk.read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_disk_that_is_gone_does_not_end_what_goes_on(tmp_path, monkeypatch, caplog):
    def gone(_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(disk.shutil, "disk_usage", gone)
    disk.Lines(tmp_path / "later" / "steps.jsonl").add({"step": 1})
    assert "steps.jsonl cannot be written: No such file or directory. What it should hold" in caplog.text
    monkeypatch.setattr(Path, "is_dir", gone)
    assert disk.explain(OSError("no"), tmp_path / "a").endswith("a cannot be written: no.")


def test_half_a_line_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "steps.jsonl"
    lines = disk.Lines(path)
    lines.add({"step": 1})

    class Full(io.FileIO):
        def write(self, data):
            return super().write(bytes(data)[:5])

    monkeypatch.setattr(disk, "open", lambda path, mode, **_: Full(path, mode), raising=False)
    lines.add({"step": 2})
    assert path.read_text() == '{"step": 1}\n'
    monkeypatch.undo()
    lines.add({"step": 3})
    assert [line["step"] for line in disk.read_lines(path)] == [1, 2, 3]


def test_what_is_no_number_is_null(tmp_path):
    """JSON has no NaN: other readers would refuse the file."""
    content = {"loss": float("nan"), "best": [1.5, (float("inf"), -float("inf"))], "n": {"clips": 3, "text": "好"}}
    disk.Lines(tmp_path / "log.txt").add(content)
    line = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert line == '{"loss": null, "best": [1.5, [null, null]], "n": {"clips": 3, "text": "好"}}\n'


def test_a_line_ends_at_its_end_alone(tmp_path):
    """A sentence may hold what Unicode calls a line's end: a model that writes bytes writes anything."""
    rows = [{"hypothesis": "a\u2028b\x85c\x0bd"}, {"hypothesis": "e"}]
    lines = disk.Lines(tmp_path / "rows.jsonl")
    for row in rows:
        lines.add(row)
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('{"hypothesis": "cut by a ki')
    assert disk.read_lines(tmp_path / "rows.jsonl") == rows
    assert disk.read_lines(tmp_path / "none") == []


def test_an_error_of_a_full_disk_names_the_file(tmp_path, monkeypatch):
    """Closing the file tries to write once more what is left, which fails again."""
    monkeypatch.setattr(disk, "open", lambda *_: open("/dev/full", "ab"), raising=False)  # noqa: SIM115 -- used so
    with pytest.raises(OSError, match="No space left on device: .*a.pt"):
        disk.write_whole(tmp_path / "a.pt", lambda file: torch.save(torch.zeros(10**6), file))
