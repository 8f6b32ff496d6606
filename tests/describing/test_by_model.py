"""Descriptions by a model: which frames are asked about, what is stored, and how a run goes on."""

import base64
import io
import json
import shlex
import shutil

import numpy as np
import pytest

from tests.helpers.vlm_server import GOOD, at_random, server, slowly

pytest.importorskip("PIL", reason="pillow is not installed (the extra rgb)")

import describe
from describing import vlm_client
from describing.by_model import GrowingFile, Segment, segments
from describing.files import Clip
from pose.keypoints import read_pose
from temporal_alignment import DescriptionLoader

FAST = "--language en --images skeleton --timeout 5 --picture_height 48 --model some-model"


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(vlm_client, "BACKOFF", 0.01)
    monkeypatch.setattr(vlm_client, "RETRIES", 2)


def run(httpd, poses, out, line=""):
    return describe.main(
        [*shlex.split(f"{FAST} {line}"), "--endpoint", httpd.url, "--poses", str(poses), "--out", str(out)]
    )


def wanted(poses, length=16):
    """Clip -> frames that have a text when all is done."""
    return {
        path.stem: {frame for segment in segments(len(read_pose(path)), length) for frame in segment}
        for path in poses.iterdir()
    }


def n_segments(poses):
    return sum(len(segments(len(read_pose(path)), 16)) for path in poses.iterdir())


def stored(out):
    loader = DescriptionLoader(out)
    return {path.stem: set(loader.load(path.stem)) for path in out.glob("*.json")}


def failures(out):
    return [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]


def test_segments_cover_the_clip():
    for n_frames in (1, 15, 16, 17, 100):
        cut = segments(n_frames, 16)
        assert [frame for first, last in cut for frame in range(first, last + 1)] == list(range(n_frames))
    assert Segment(0, 15).shown(4) == [0, 5, 10, 15]
    assert Segment(0, 2).shown(16) == [0, 1, 2]
    assert len(segments(160, 16)) == len(segments(160, 1)) / 16


def test_all_is_described(poses, tmp_path):
    with server(lambda h, _: h.answer()) as httpd:
        assert run(httpd, poses, tmp_path / "out") == 0
        assert stored(tmp_path / "out") == wanted(poses)
        assert len(httpd.requests) == n_segments(poses)
        content = httpd.requests[0]["body"]["messages"][0]["content"]
        assert "打手语" not in content[0]["text"]
        assert "signing" in content[0]["text"]
        assert len(content) == 1 + 4
        from PIL import Image

        picture = Image.open(io.BytesIO(base64.b64decode(content[1]["image_url"]["url"].partition(",")[2])))
        assert (picture.format, picture.height) == ("PNG", 48)
        assert run(httpd, poses, tmp_path / "out") == 0
        assert len(httpd.requests) == n_segments(poses)
    entries = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert {entry["made_by"].rsplit(" ", 1)[0] for entry in entries} == {"some-model, skeleton x16, prompt"}
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_a_name_that_is_too_long_is_not_asked_for(poses, tmp_path):
    """What is paid for can be stored."""
    shutil.copy(sorted(poses.iterdir())[0], poses / f"{'a' * 245}.pkl")
    with server(lambda h, _: h.answer()) as httpd:
        assert run(httpd, poses, tmp_path / "out") == 1
        (failure,) = failures(tmp_path / "out")
        assert (failure["clip"], failure["frames"]) == ("a" * 245, [])
        assert failure["reason"].endswith("the name has 250 bytes; wanted up to 235. Rename the clip.")
        assert sum(map(len, stored(tmp_path / "out").values())) == sum(
            len(frames) for name, frames in wanted(poses).items() if name != "a" * 245
        )
        assert len(httpd.requests) == n_segments(poses) - len(segments(len(read_pose(poses / f"{'a' * 245}.pkl")), 16))


def test_parts_ask_for_what_one_run_asks_for(poses, tmp_path):
    """Each part lists its own failures; one whose clips are all done asks nothing."""
    bad = sorted(poses.iterdir())[0]
    content = bad.read_bytes()
    bad.write_bytes(b"")
    with server(lambda h, _: h.answer()) as httpd:
        assert sorted(run(httpd, poses, tmp_path / "out", f"--shard {i}/2") for i in (2, 1)) == [0, 1]
        (listed,) = (tmp_path / "out").glob("failures_[12]_of_2.jsonl")
        bad.write_bytes(content)
        assert [run(httpd, poses, tmp_path / "out", f"--shard {i}/2") for i in (2, 1)] == [0, 0]
    assert not listed.exists()
    assert stored(tmp_path / "out") == wanted(poses)
    assert len(httpd.requests) == n_segments(poses)


def test_each_frame_alone(poses, tmp_path):
    one = sorted(poses.iterdir())[0]
    with server(lambda h, _: h.answer()) as httpd:
        assert run(httpd, poses, tmp_path / "out", f"--segment 1 --clips {one.stem}") == 0
        assert len(httpd.requests) == len(read_pose(one))
        assert {len(request["body"]["messages"][0]["content"]) for request in httpd.requests} == {2}
    assert stored(tmp_path / "out")[one.stem] == set(range(len(read_pose(one))))


def test_a_bad_day(poses, tmp_path):
    """Whatever happens: what is stored is right, what failed is listed, and further runs complete it."""
    out = tmp_path / "out"
    with server(at_random(0)) as httpd:
        for _ in range(12):
            status = run(httpd, poses, out, "--timeout 0.3")
            for name, frames in stored(out).items():
                assert set(DescriptionLoader(out).load(name).values()) == {GOOD}
                assert frames <= wanted(poses)[name]
            if status == 0:
                break
            open_frames = {(name, frame) for name, frames in wanted(poses).items() for frame in frames}
            open_frames -= {(name, frame) for name, frames in stored(out).items() for frame in frames}
            assert {(entry["clip"], frame) for entry in failures(out) for frame in entry["frames"]} == open_frames
            assert all(entry["reason"] for entry in failures(out))
    assert status == 0
    assert stored(out) == wanted(poses)
    assert not (out / "failures.jsonl").exists()
    assert all("Error" not in path.read_text() for path in out.glob("*.json"))


def test_no_more_than_so_many_at_a_time(poses, tmp_path):
    with server(slowly) as httpd:
        assert run(httpd, poses, tmp_path / "out", "--concurrency 3 --timeout 5") == 0
        assert 2 <= httpd.most_running <= 3


def test_a_limit_stops_and_the_next_run_goes_on(poses, tmp_path, lines):
    out = tmp_path / "out"
    with server(lambda h, _: h.answer()) as httpd:
        assert run(httpd, poses, out, "--max_requests 3") == 1
        assert len(httpd.requests) == 3
        assert "stopped by --max_requests 3; the same command goes on from here" in lines.text
        assert run(httpd, poses, out) == 0
        assert len(httpd.requests) == n_segments(poses)
    assert stored(out) == wanted(poses)


def test_a_disk_that_takes_nothing_stops_at_once(poses, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("describing.by_model.write_descriptions", full)
    with server(lambda h, _: h.answer()) as httpd:
        with pytest.raises(OSError, match="no space left"):
            run(httpd, poses, tmp_path / "out", "--concurrency 1")
        assert len(httpd.requests) == 1


def test_a_run_that_is_stopped_says_what_it_has(poses, tmp_path, monkeypatch, lines):
    def interrupted(counts, *_, **__):
        yield next(counts)
        raise KeyboardInterrupt

    monkeypatch.setattr("describing.by_model.progress", interrupted)
    with server(lambda h, _: h.answer()) as httpd, pytest.raises(KeyboardInterrupt):
        run(httpd, poses, tmp_path / "out", "--concurrency 1")
    first = min(poses.iterdir())
    assert f" requests, {len(segments(len(read_pose(first)), 16))} texts stored, 0 failed; " in lines.text


def test_a_wrong_key_stops_at_once(poses, tmp_path, monkeypatch, lines):
    monkeypatch.setenv("MY_KEY", "sk-0123456789")
    with server(lambda h, _: h.send(401, b"Incorrect API key: sk-0123456789")) as httpd:
        with pytest.raises(ValueError, match=r"--endpoint: HTTP 401 .*Incorrect API key: \*\*\*"):
            run(httpd, poses, tmp_path / "out", "--api_key_env MY_KEY --concurrency 1")
        assert len(httpd.requests) == 1
        assert httpd.requests[0]["key"] == "Bearer sk-0123456789"
    files = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert "sk-0123456789" not in files + lines.text


def test_a_file_in_a_folder_of_its_own_grows(tmp_path):
    """Names may hold a folder; texts that were paid for must not be written over."""
    clip = Clip("a/nested", tmp_path, None, tmp_path / "train" / "a" / "nested.json")
    clip.out.parent.mkdir(parents=True)
    GrowingFile(clip, "a model").add((0, 15), "A hand.")
    again = GrowingFile(clip, "a model")
    assert again.texts == {0: "A hand.", 15: "A hand."}
    again.add((16,), "Another hand.")
    assert DescriptionLoader(tmp_path / "train").load("a/nested").keys() == {0, 15, 16}


def test_a_file_that_is_there_keeps_its_texts(poses, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    name = sorted(poses.iterdir())[0].stem
    before = [
        {"filename": "000000.jpg", "description": "The left hand, by hand."},
        {"filename": "000003.jpg", "description": "出错: Error code: 429"},
    ]
    (out / f"{name}.json").write_text(json.dumps(before))
    with server(lambda h, _: h.answer()) as httpd:
        assert run(httpd, poses, out, f"--clips {name}") == 0
    texts = DescriptionLoader(out).load(name)
    assert texts[0] == "The left hand, by hand."
    assert set(texts) == wanted(poses)[name]
    assert set(texts.values()) == {"The left hand, by hand.", GOOD}
    assert json.loads((out / f"{name}.json.original").read_text()) == before
    assert "made_by" not in json.loads((out / f"{name}.json").read_text())[0]


def test_frames_of_a_video(shared_real, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed (the extra rgb)")
    (tmp_path / "poses").mkdir()
    pose = read_pose(shared_real / "isolated" / "pose_format" / "sgg_essen.pkl")
    with server(lambda h, _: h.answer()) as httpd:
        line = f"--images video --segment 29 --videos {shared_real / 'video'}"
        for n_frames, status in ((57, 1), (58, 0)):  # the video has 58 frames
            arrays = {"keypoints": pose.keypoints[:n_frames], "scores": pose.scores[:n_frames]}
            np.savez(tmp_path / "poses" / "test_video.npz", **arrays)
            assert run(httpd, tmp_path / "poses", tmp_path / "out", line) == status
            if status:
                assert "has 58 frames, its pose file 57" in failures(tmp_path / "out")[0]["reason"]
                assert not httpd.requests
        first = httpd.requests[0]["body"]["messages"][0]["content"][1]["image_url"]["url"]
    assert first.startswith("data:image/jpeg;base64,/9j/")
    assert stored(tmp_path / "out") == {"test_video": {0, 28, 29, 57}}


def test_what_is_missing_is_said_before_anything_is_asked(poses, tmp_path):
    with server(lambda h, _: h.answer()) as httpd:
        with pytest.raises(FileNotFoundError, match="--images video: there is no folder of videos"):
            run(httpd, poses, tmp_path / "out", "--images video")
        with pytest.raises(FileNotFoundError, match=r"--prompt: nowhere\.txt does not exist"):
            run(httpd, poses, tmp_path / "out", "--prompt nowhere.txt")
        (tmp_path / "gbk.txt").write_bytes("描述右手".encode("gbk"))
        with pytest.raises(ValueError, match=r"gbk\.txt: is not UTF-8 text"):
            run(httpd, poses, tmp_path / "out", f"--prompt {tmp_path / 'gbk.txt'}")
        assert not httpd.requests


def test_a_prompt_of_ones_own(poses, tmp_path):
    (tmp_path / "prompt.txt").write_text("What does the hand do?\n")
    with server(lambda h, _: h.answer()) as httpd:
        assert run(httpd, poses, tmp_path / "out", f"--prompt {tmp_path / 'prompt.txt'} --pictures 2") == 0
        content = httpd.requests[0]["body"]["messages"][0]["content"]
    assert content[0]["text"] == "What does the hand do?"
    assert len(content) == 3
