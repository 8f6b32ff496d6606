"""A folder of videos to pose files: mirrored, resumed, compared; what fails is named and costs no other."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pose import extraction
from pose.keypoints import read_pose
from tools import extract_poses

av = pytest.importorskip("av", reason="needs the extra rgb")

ROOT = Path(__file__).resolve().parents[2]
KEEPS_DYING = 211  # brightness of a picture that kills the process which looks at it


class Brightness:
    """Stands in for a model: one person, as far to the right as the picture is bright; nobody where it is black."""

    label = "stand-in"

    def start(self):
        pass

    def __call__(self, picture):
        grey = float(picture.mean())
        if abs(grey - KEEPS_DYING) < 2:
            os._exit(1)  # as a decoder or a full memory ends a process
        n = int(grey > 20)
        return np.full((n, 133, 2), grey / 255), np.ones((n, 133))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """In processes that begin as copies of this one, and so with the stand-in."""
    monkeypatch.setattr(extract_poses, "START", "fork")
    monkeypatch.setattr(extraction, "load_extractor", lambda name, models, device: Brightness())


@pytest.fixture
def videos(write_video, tmp_path):
    folder = tmp_path / "videos"
    for name, n_frames, grey in (("a.mp4", 5, 60), ("deep/er/b.MP4", 7, 100), ("c.avi", 6, 140)):
        write_video(folder / name, [np.full((32, 48, 3), grey, np.uint8)] * n_frames)
    (folder / "notes.txt").write_text("no video")
    return folder


def call(capsys, *argv):
    """Exit status, and the lines on the terminal."""
    status = extract_poses.main(extract_poses.parse_args([*map(str, argv), "--num_workers", "2"]))
    captured = capsys.readouterr()
    assert captured.out == ""
    return status, captured.err.splitlines()


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_is_mirrored(videos, tmp_path, capsys):
    out = tmp_path / "out"
    status, lines = call(capsys, videos, "--out", out, "--look", tmp_path / "look")
    assert (status, lines) == (
        0,
        ["pose files: 3 made.", "18 frames, body in 100%, left hand in 100%, right hand in 100%."],
    )
    assert files(out) == ["a.pkl", "c.pkl", "deep/er/b.pkl", "extractor.txt"]
    pose = read_pose(out / "deep" / "er" / "b.pkl")
    np.testing.assert_allclose(pose.keypoints, 100 / 255, atol=0.01)
    assert len(pose) == 7
    assert files(tmp_path / "look") == ["a.jpg", "c.jpg", "deep/er/b.jpg"]


def test_parts_are_what_one_run_is(videos, tmp_path, capsys):
    call(capsys, videos, "--out", tmp_path / "whole")
    said = [call(capsys, videos, "--out", tmp_path / "parts", "--shard", f"{i}/3")[1][0] for i in (3, 1, 2, 3)]
    made = ["pose files: 1 made.", "pose files: 2 made.", "pose files: none to make.", "pose files: 1 there already."]
    assert said == made
    whole, parts = (
        [(tmp_path / of / name).read_bytes() for name in files(tmp_path / "whole")] for of in ("whole", "parts")
    )
    assert whole == parts


def test_one_video(videos, tmp_path, capsys):
    assert call(capsys, videos / "deep" / "er" / "b.MP4", "--out", tmp_path / "out")[0] == 0
    assert files(tmp_path / "out") == ["b.pkl", "extractor.txt"]


def test_what_is_there_is_not_made_again(videos, tmp_path, capsys):
    out = tmp_path / "out"
    call(capsys, videos, "--out", out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.pkl")}
    (out / "c.pkl").unlink()
    status, lines = call(capsys, videos, "--out", out)
    assert status == 0
    assert lines[0] == "pose files: 1 made, 2 there already."
    assert {path: path.stat().st_mtime_ns for path in before if path.name != "c.pkl"} == {
        path: time for path, time in before.items() if path.name != "c.pkl"
    }
    assert files(out) == ["a.pkl", "c.pkl", "deep/er/b.pkl", "extractor.txt"]
    assert call(capsys, videos, "--out", out, "--overwrite")[1][0] == "pose files: 3 made."


def test_poses_of_another_length_are_named(videos, tmp_path, capsys):
    out = tmp_path / "out"
    call(capsys, videos, "--out", out)
    shutil.copy(out / "a.pkl", out / "c.pkl")
    (out / "deep" / "er" / "b.pkl").unlink()
    status, lines = call(capsys, videos, "--out", out, "--check")
    assert status == 1
    assert lines[0].startswith(f"failed: {out}/deep/er/b.pkl: is not there, for {videos}/deep/er/b.MP4.")
    assert lines[1].startswith(f"failed: {videos}/c.avi: the video has 6 frames, its pose file 5.")
    assert lines[2] == "pose files: 1 there already, 1 of another video, 1 missing."
    assert not (out / "deep" / "er" / "b.pkl").exists()
    status, lines = call(capsys, videos, "--out", out)  # what is missing is made, what differs stays as it is
    assert status == 1
    assert lines[1] == "pose files: 1 made, 1 there already, 1 of another video."
    assert len(read_pose(out / "c.pkl")) == 5


def test_damaged_videos_are_listed_and_cost_no_other(videos, write_video, shared_real, tmp_path, capsys):
    real = (shared_real / "video" / "test_video.mp4").read_bytes()
    (videos / "0_text.mp4").write_text("<html>")
    (videos / "0_empty.mp4").touch()
    (videos / "0_cut.mp4").write_bytes(real[:150_000])
    write_video(videos / "0_black.mp4", [np.zeros((32, 48, 3), np.uint8)] * 4)
    out = tmp_path / "out"
    status, lines = call(capsys, videos, "--out", out)
    assert status == 1
    assert files(out) == ["a.pkl", "c.pkl", "deep/er/b.pkl", "extractor.txt"]
    said = [line.removeprefix(f"failed: {videos}/") for line in lines if line.startswith("failed: ")]
    assert said == [
        "0_black.mp4: nobody is found in any of its 4 frames.",
        "0_cut.mp4: the video is cut short or damaged: Invalid data found when processing input.",
        "0_empty.mp4: the video cannot be read: Invalid data found when processing input.",
        "0_text.mp4: the video cannot be read: Invalid data found when processing input.",
    ]
    assert lines[4] == "pose files: 3 made, 4 failed."


def test_names_too_long_to_be_written(videos, tmp_path, capsys):
    """Each costs its video alone."""
    shutil.copy(videos / "a.mp4", videos / f"{'a' * 232}.mp4")
    for done in ("3 made", "3 there already"):
        status, lines = call(capsys, videos, "--out", tmp_path / "out", "--look", tmp_path / "pictures")
        assert status == 1
        assert f"{'a' * 232}.pkl: the name has 236 bytes; wanted up to 235. Rename the clip." in lines[0]
        assert lines[1] == f"pose files: {done}, 1 failed."


def test_a_full_disk_ends_the_extraction(videos, tmp_path, capsys, monkeypatch):
    """It concerns all videos: hours of work on the others could not be kept either."""
    (tmp_path / "out").mkdir()
    replace = os.replace

    def full(source, target):
        if str(target).endswith(".pkl"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left") as error:
        call(capsys, videos, "--out", tmp_path / "out")
    assert Path(error.value.filename).suffix == ".pkl"


def test_a_process_that_dies_costs_one_video(videos, write_video, tmp_path, capsys):
    for i in range(2):
        write_video(videos / f"0_{i}.mp4", [np.full((32, 48, 3), KEEPS_DYING, np.uint8)] * 3)
    for i in range(6):
        write_video(videos / f"d{i}.mp4", [np.full((32, 48, 3), 90, np.uint8)] * 3)
    out = tmp_path / "out"
    status, lines = call(capsys, videos, "--out", out)
    assert status == 1
    assert lines[:2] == [f"failed: {videos}/0_{i}.mp4: the process that worked on it died." for i in range(2)]
    assert lines[2] == "pose files: 9 made, 2 failed."
    assert len(list(out.rglob("*.pkl"))) == 9


def test_poses_of_two_models_are_not_mixed(videos, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    call(capsys, videos / "a.mp4", "--out", out)
    monkeypatch.setattr(Brightness, "label", "another")
    with pytest.raises(ValueError, match="its poses were made by stand-in, person 0, not by another, person 0. Name"):
        call(capsys, videos, "--out", out)
    (out / "extractor.txt").unlink()
    with pytest.raises(ValueError, match="its poses were made by somebody else, not by another"):
        call(capsys, videos, "--out", out, "--overwrite")


def test_two_videos_of_one_name(videos, write_video, tmp_path, capsys):
    write_video(videos / "a.mkv", [np.zeros((32, 48, 3), np.uint8)])
    with pytest.raises(ValueError, match=r"a\.mkv and .*a\.mp4 would both become .*a\.pkl. Rename"):
        call(capsys, videos, "--out", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"nothing: no video there \(.mp4,"):
        call(capsys, tmp_path / "nothing", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--num_workers 0", "--num_workers 0: must be at least 1"),
        ("--shard 0/8", "--shard: 0/8 is no part I/N, with I from 1 to N (sbatch --array=1-N)"),
        ("--person -1", "--person -1: must be at least 0"),
        ("--extractor mediapipe --person 1", "MediaPipe finds one person only"),
        ("--extractor mediapipe --device cuda", "MediaPipe computes on the CPU"),
        ("--check --overwrite", "exclude each other"),
        ("--num_workers 0 --person -1", "--num_workers 0: must be at least 1. --person -1: must be at least 0."),
    ],
)
def test_flags_that_cannot_be(flags, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        extract_poses.parse_args(["videos", "--out", "x", *flags.split()])
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_video_with_mediapipe(shared_real, tmp_path):
    """In new processes, as users have them."""
    pytest.importorskip("mediapipe", reason="needs the extra mediapipe")
    command = f"-m tools.extract_poses {shared_real / 'video'} --out {tmp_path} --extractor mediapipe --num_workers 2"
    run = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert run.stderr.startswith("pose files: 1 made.\n58 frames, body in 100%, left hand in 0%, right hand")
    assert len(read_pose(tmp_path / "test_video.pkl")) == 58
