"""The command line of inference: one clip, a folder, what it writes, what it refuses."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import inference
from describing import sentences
from pose import extraction, video
from pose.keypoints import Pose, read_pose
from pose.video import read_pictures
from system.faults import printable
from tests.clips.test_segments import cut
from tests.clips.test_segments import talk as talking
from tests.helpers.models import new_model, save_model
from translator import Candidate, Explained, Translator

ROOT = Path(__file__).resolve().parents[1]
FAST = "--dtype fp32 --num_beams 2 --max_new_tokens 6 --device cpu".split()


@pytest.fixture(scope="module")
def checkpoint(small_mt5_folder, tmp_path_factory):
    """Of a random model with descriptions."""
    path = tmp_path_factory.mktemp("weights") / "best_checkpoint.pth"
    return save_model(new_model(small_mt5_folder, use_descriptions=True), path, small_mt5_folder)


@pytest.fixture(scope="module")
def plain_checkpoint(small_mt5_folder, tmp_path_factory):
    """Of a random model without."""
    return save_model(new_model(small_mt5_folder), tmp_path_factory.mktemp("weights") / "plain.pth", small_mt5_folder)


@pytest.fixture(scope="module")
def poses(tmp_path_factory):
    """A folder with three clips, one of them in a folder of its own, and a file that is no clip."""
    folder = tmp_path_factory.mktemp("poses")
    rng = np.random.default_rng(0)
    (folder / "b").mkdir()
    for number, name in enumerate(["a", "b/c", "d"]):
        frames = 10 + number
        content = {"keypoints": rng.random((frames, 133, 2)), "scores": np.ones((frames, 133))}
        np.savez(folder / f"{name}.npz", **content, start=np.array(2), end=np.array(frames))
    (folder / "notes.txt").write_text("no clip")
    return folder


def call(capsys, *argv):
    """Exit status, lines of stdout, stderr."""
    status = inference.main(inference.parse_args([*map(str, argv), *FAST]))
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_one_clip(checkpoint, poses, capsys, monkeypatch):
    """Without a look for its video, for which a large folder is listed: this model takes no crops of the hands."""
    monkeypatch.setattr("translator.video_of", lambda path: pytest.fail(f"looked beside {path}"))
    status, (line,), err = call(capsys, poses / "a.npz", "--checkpoint", checkpoint)
    name, sentence = line.split("\t")
    translate = Translator.from_checkpoint(checkpoint, dtype="fp32", num_beams=2, max_new_tokens=6)
    assert (status, name, sentence, err) == (0, "a", printable(" ".join(translate(poses / "a.npz").split())), "")
    assert sentence


@pytest.mark.parametrize("size", [1, 2])
def test_a_folder_with_a_bad_clip_goes_on(checkpoint, poses, tmp_path, capsys, size):
    folder = tmp_path / "poses"
    shutil.copytree(poses, folder)
    (folder / "b" / "bad.pkl").write_bytes(b"\x80\x04damaged")
    out = tmp_path / "out.jsonl"
    status, lines, err = call(capsys, folder, "--checkpoint", checkpoint, "--out", out, "--batch-size", size)
    assert status == 1
    assert [line.split("\t")[0] for line in lines] == ["a", "b/c", "d"]
    said = err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"left out: {folder}/b/bad.pkl: not a readable pickle")
    assert said[1] == "1 of 4 clips could not be read."
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["name"] for line in written] == ["a", "b/bad", "b/c", "d"]
    assert [line.get("frames") for line in written] == [8, None, 9, 10]
    assert written[1].keys() == {"name", "unreadable"}
    alone = call(capsys, folder / "d.npz", "--checkpoint", checkpoint)[1]
    assert alone == lines[2:]


def test_names_too_long_for_a_description_file(checkpoint, poses, tmp_path, capsys):
    folder, texts = tmp_path / "poses", tmp_path / "texts"
    folder.mkdir()
    texts.mkdir()
    shutil.copy(poses / "a.npz", folder / f"{'a' * 251}.npz")
    status, lines, err = call(capsys, folder, "--checkpoint", checkpoint, "--descriptions", texts)
    assert (status, err) == (0, "0 of 1 clips have a description file.\n")
    assert lines[0].startswith(f"{'a' * 251}\t")


def test_a_name_forges_no_line(checkpoint, poses, tmp_path, capsys):
    """The file of the results holds it as it is: JSON has an end of a line written out."""
    shutil.copy(poses / "a.npz", tmp_path / "x\nS1\tforged\x1b[2J.npz")
    shutil.copy(poses / "d.npz", tmp_path / "y.npz")
    out = tmp_path / "out.jsonl"
    _, lines, _ = call(capsys, tmp_path, "--checkpoint", checkpoint, "--out", out)
    assert [line.split("\t")[0] for line in lines] == [r"x\nS1\tforged\x1b[2J", "y"]
    assert json.loads(out.read_text().splitlines()[0])["name"] == "x\nS1\tforged\x1b[2J"


ENTRIES = {"json": json.loads, "jsonl": str.splitlines, "srt": lambda text: text.split("\n\n")[:-1]}


@pytest.mark.parametrize(
    ("suffix", "error"),
    [("json", ValueError("out of memory")), ("jsonl", KeyboardInterrupt()), ("srt", signal.SIGTERM)],
)
def test_what_is_done_survives_the_end(plain_checkpoint, poses, tmp_path, capsys, monkeypatch, suffix, error):
    argv = [poses, "--checkpoint", plain_checkpoint, "--batch-size", 1, "--fps", 25, "--out"]
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    call(capsys, *argv, whole)
    cut.write_text("of an earlier run")
    explain, seen = Translator.explain, []

    def ended(self, samples, n_best):
        seen.append(cut.read_text(encoding="utf-8"))
        if len(seen) in (1, 4):
            if error is signal.SIGTERM:
                signal.raise_signal(error)
            raise error
        return explain(self, samples, n_best)

    monkeypatch.setattr(Translator, "explain", ended)
    before = signal.getsignal(signal.SIGTERM)
    for left in (0, 2):  # clips
        with pytest.raises(KeyboardInterrupt if error is signal.SIGTERM else type(error)):
            call(capsys, *argv, cut)
        assert signal.getsignal(signal.SIGTERM) == before
        text = cut.read_text(encoding="utf-8")
        if left:
            assert ENTRIES[suffix](text) == ENTRIES[suffix](whole.read_text(encoding="utf-8"))[:left]
        else:
            assert text == "of an earlier run"
    assert sorted(path.name for path in tmp_path.iterdir()) == [cut.name, whole.name]


def test_what_is_done_survives_a_kill(plain_checkpoint, poses, tmp_path, capsys, monkeypatch):
    """Which leaves no time to write: the file grows while the run goes on."""
    out = tmp_path / "out.jsonl"
    explain, seen = Translator.explain, []

    def watched(self, samples, n_best):
        seen.append(len(out.read_text(encoding="utf-8").splitlines()) if out.exists() else 0)
        return explain(self, samples, n_best)

    monkeypatch.setattr(Translator, "explain", watched)
    call(capsys, poses, "--checkpoint", plain_checkpoint, "--batch-size", 1, "--out", out)
    assert seen == [0, 1, 2]


def test_a_full_disk_cuts_no_line(tmp_path, caplog):
    resource = pytest.importorskip("resource", reason="this system limits no file's size")
    out, clips = tmp_path / "out.jsonl", [inference.Clip(name, Path(), fault="x" * 40) for name in "abc"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def until_full(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with inference.Results(str(out)) as results:
                for clip in clips:
                    results.add(clip)
                whole = out.read_text(encoding="utf-8")
                if size == 101:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))  # there is room again
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return whole

    line = json.dumps(clips[0].as_json()) + "\n"
    assert until_full(101) == line
    assert [json.loads(line)["name"] for line in out.read_text(encoding="utf-8").splitlines()] == ["a", "b", "c"]
    with pytest.raises(OSError, match=r"out\.jsonl cannot be written: .* MB are free there\."):
        until_full(100)
    assert out.read_text(encoding="utf-8") == line
    assert caplog.text.count(f"{out} cannot be written") == 2  # once a run


def test_a_name_that_is_not_utf_8_costs_nothing_else(plain_checkpoint, poses, tmp_path, capsys):
    """As archives made under Windows in China unpack here."""
    shutil.copytree(poses, folder := tmp_path / "poses")
    for name in (b"\xc4\xe3.npz", b"\xba\xc3.pkl"):
        (folder / os.fsdecode(name)).write_bytes((poses / "a.npz").read_bytes())  # of which one is no pickle
    out = tmp_path / "out.jsonl"
    status, lines, err = call(capsys, folder, "--checkpoint", plain_checkpoint, "--out", out)
    assert (status, len(lines)) == (1, 4)
    assert "not a readable pickle" in err
    names = [json.loads(line)["name"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert sorted(map(os.fsencode, names)) == [b"a", b"b/c", b"d", b"\xba\xc3", b"\xc4\xe3"]


def test_n_best_with_scores(checkpoint, poses, tmp_path, capsys):
    out = tmp_path / "out.json"
    argv = (poses / "a.npz", "--checkpoint", checkpoint, "--n_best", 2, "--out", out)
    _, lines, _ = call(capsys, *argv)
    ((entry),) = json.loads(out.read_text(encoding="utf-8"))
    shown = [[name, float(score)] for name, score, _ in (line.split("\t") for line in lines)]
    assert shown == [["a", pytest.approx(c["score"], abs=1e-3)] for c in entry["candidates"]]
    assert len(shown) == 2
    assert entry["text"] == entry["candidates"][0]["text"]
    assert "".join(word["text"] for word in entry["words"]) == "".join(entry["text"].split())
    assert {len(word["frames"]) for word in entry["words"]} == {entry["frames"]}


def test_subtitles_stand_where_the_clips_do(checkpoint, poses, tmp_path, capsys):
    out = tmp_path / "out.srt"
    _, lines, _ = call(capsys, poses / "a.npz", "--checkpoint", checkpoint, "--out", out, "--fps", 4)
    number, time, text, *_ = out.read_text(encoding="utf-8").split("\n")
    assert (number, time) == ("1", "00:00:00,500 --> 00:00:02,500")
    assert " ".join(text.split()) == lines[0].split("\t")[1]
    late = inference.Clip("x", Path("x"), 93_600, 93_625, 25, Explained([Candidate("later", -1.0)], None, []))
    assert "01:02:24,000 --> 01:02:25,000" in inference.subtitles([late])


def test_descriptions_from_files_and_by_rules(checkpoint, poses, tmp_path, capsys, monkeypatch):
    seen = []
    sample = Translator.sample
    monkeypatch.setattr(Translator, "sample", lambda self, p, t, n, v: seen.append((n, t)) or sample(self, p, t, n, v))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.json").write_text(json.dumps([{"filename": "000003.jpg", "description": "up"}]))
    status, _, err = call(capsys, poses, "--checkpoint", checkpoint, "--descriptions", tmp_path)
    assert (status, err) == (0, "1 of 3 clips have a description file.\n")
    assert seen == [("a", {}), ("b/c", {3: "up"}), ("d", {})]
    seen.clear()
    call(capsys, poses / "b" / "c.npz", "--checkpoint", checkpoint, "--descriptions", tmp_path / "b" / "c.json")
    assert seen == [("c", {3: "up"})]
    seen.clear()
    call(capsys, poses / "a.npz", "--checkpoint", checkpoint, "--describe")
    ((_, texts),) = seen
    assert texts
    assert min(texts) >= 2
    assert "手" in "".join(texts.values())  # the language of the model


# -- videos and cameras ------------------------------------------------------------------------------------------------


class Extractor:
    """Stands in for a model: a signer who waves differently in bright and in dark pictures, and somebody small."""

    label = "stand-in"

    def start(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, picture):
        signer = 0.2 + 0.6 * self.rng.random((133, 2)) * picture.mean() / 255
        return np.stack([signer * 0.05, signer]), np.ones((2, 133))


@pytest.fixture
def extractor(monkeypatch):
    monkeypatch.setattr(extraction, "load_extractor", lambda name, models, device: Extractor())
    return Extractor()


@pytest.fixture
def talk(write_video, tmp_path):
    """12 frames, 25 in a second, twice as wide as high."""
    pytest.importorskip("av", reason="needs the extra rgb")
    return write_video(tmp_path / "videos" / "talk.MP4", [np.full((32, 64, 3), 200, np.uint8)] * 12)


def test_a_video_is_translated_as_its_poses_are(checkpoint, extractor, talk, tmp_path, capsys):
    out = tmp_path / "talk.srt"
    status, lines, err = call(capsys, talk, "--checkpoint", checkpoint, "--out", out, "--n_best", 2)
    assert status == 0
    assert err == (
        "talk: 12 frames, 25 per second; body in 12, left hand in 12, right hand in 12; "
        "up to 2 people, --person 0 is taken\n"
    )
    assert out.read_text(encoding="utf-8").startswith("1\n00:00:00,000 --> 00:00:00,480\n")
    found = extraction.extract_pose(read_pictures(talk), extractor)
    extraction.write_pose(tmp_path / "talk.pkl", found.pose)
    assert lines == call(capsys, tmp_path / "talk.pkl", "--checkpoint", checkpoint, "--n_best", 2)[1]
    translate = Translator.from_checkpoint(checkpoint, dtype="fp32", num_beams=2, max_new_tokens=6)
    assert printable(" ".join(translate(talk, extractor=extractor).split())) == lines[0].split("\t")[2]
    other = call(capsys, talk, "--checkpoint", checkpoint, "--person", 1)
    assert other[0] == 0
    assert "--person 1 is taken" in other[2]
    slow = tmp_path / "slow.srt"
    call(capsys, talk, "--checkpoint", checkpoint, "--out", slow, "--fps", 12)  # what the user says counts
    assert "--> 00:00:01,000" in slow.read_text(encoding="utf-8")


def test_subtitles_of_a_video_that_does_not_say_its_rate(checkpoint, extractor, talk, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(video, "read_facts", lambda _: video.Facts(64, 32, 0.0))
    status, _, err = call(capsys, talk, "--checkpoint", checkpoint, "--out", tmp_path / "talk.srt")
    assert status == 1
    assert "talk.MP4 does not say how many frames a second has; .srt needs it: give --fps." in err


def test_videos_and_poses_in_a_folder(checkpoint, extractor, talk, poses, tmp_path, capsys):
    """A video whose poses lie beside it is not read; a damaged one is left out."""
    shutil.copytree(poses, talk.parent, dirs_exist_ok=True)
    (talk.parent / "a.mp4").write_text("not read, since a.npz is there")
    (talk.parent / "b" / "bad.mp4").write_text("<html>")
    status, lines, err = call(capsys, talk.parent, "--checkpoint", checkpoint)
    assert status == 1
    assert [line.split("\t")[0] for line in lines] == ["a", "b/c", "d", "talk"]
    assert f"left out: {talk.parent}/b/bad.mp4: the video cannot be read" in err
    assert "1 of 5 clips could not be read." in err
    with pytest.raises(ValueError, match="the subtitles of one recording; translate several videos one by one"):
        call(capsys, talk.parent, "--checkpoint", checkpoint, "--out", tmp_path / "x.srt", "--fps", 25)


@pytest.mark.parametrize(("flags", "aspect"), [((), 2.0), (("--aspect", 1.5), 1.5)])
def test_rules_know_the_aspect_of_a_video(checkpoint, extractor, talk, capsys, monkeypatch, flags, aspect):
    seen = []
    monkeypatch.setattr(sentences, "describe_pose", lambda pose, language, aspect: seen.append(aspect) or {})
    assert call(capsys, talk, "--checkpoint", checkpoint, "--describe", *flags)[0] == 0
    assert seen == [aspect]


# -- live --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talked(tmp_path_factory):
    """A pose file of two sentences, with rests."""
    keypoints, scores, _ = talking(2)
    extraction.write_pose(path := tmp_path_factory.mktemp("talk") / "talk.pkl", Pose(keypoints, scores))
    return path


def test_live_sentences_are_those_of_the_same_segments(checkpoint, talked, tmp_path, capsys):
    out = tmp_path / "live.srt"
    argv = (talked, "--checkpoint", checkpoint, "--live", "--fps", 50, "--describe", "--out", out)
    status, lines, err = call(capsys, *argv)
    translate = Translator.from_checkpoint(checkpoint, dtype="fp32", num_beams=2, max_new_tokens=6)
    pose, finals, subtitles = read_pose(talked), [line for line in lines if not line.endswith(" ...")], ""
    for number, (start, end) in enumerate(cut(pose.keypoints, pose.scores, 50), 1):
        part = slice(round(start * 50), round(end * 50) + 1)
        segment = Pose(pose.keypoints[part], pose.scores[part])
        text = translate(segment, sentences.describe_pose(segment, "zh", 1))
        assert finals[number - 1] == f"00:{start:04.1f}\t{printable(' '.join(text.split()))}"
        subtitles += f"{number}\n00:00:0{start:.3f} --> 00:00:0{end:.3f}\n{text}\n\n".replace(".", ",")
    assert (status, number, len(finals)) == (0, 2, 2)
    assert out.read_text(encoding="utf-8").replace(".", ",") == subtitles
    assert "\n0 of" in err


def test_ctrl_c_loses_no_finished_segment(plain_checkpoint, talked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("translator.DRAFT_EVERY", 100)
    explain, calls = Translator.explain, []

    def interrupted(self, samples):
        calls.append(samples)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return explain(self, samples)

    monkeypatch.setattr(Translator, "explain", interrupted)
    argv = (talked, "--checkpoint", plain_checkpoint, "--live", "--fps", 50, "--out", tmp_path / "live.srt")
    with pytest.raises(KeyboardInterrupt):
        call(capsys, *argv)
    assert len(ENTRIES["srt"]((tmp_path / "live.srt").read_text(encoding="utf-8"))) == 1
    assert len(calls) == 2


def test_live_goes_on_when_the_disk_is_full(plain_checkpoint, talked, tmp_path, capsys, monkeypatch):
    out, write, calls = tmp_path / "live.srt", inference.write_text, []

    def full_at_first(path, text, **options):
        calls.append(text)
        if len(calls) <= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, text, **options)

    monkeypatch.setattr(inference, "write_text", full_at_first)
    argv = (talked, "--checkpoint", plain_checkpoint, "--live", "--fps", 50, "--out", out)
    status, _, err = call(capsys, *argv)
    assert (status, len(calls)) == (0, 3)
    assert err.count(f"{out} cannot be written: {os.strerror(errno.ENOSPC)}; ") == 1
    assert len(ENTRIES["srt"](out.read_text(encoding="utf-8"))) == 2


def test_a_file_that_cannot_be_played_loses_nothing_that_was_signed_before(
    plain_checkpoint, talked, tmp_path, capsys, shared_real
):
    keypoints, scores, _ = talking(1)
    extraction.write_pose(tmp_path / "poses" / "1.pkl", Pose(keypoints[:80], scores[:80]))  # no rest at its end
    shutil.copy(shared_real / "hostile" / "truncated.pkl", tmp_path / "poses" / "2.pkl")
    out = tmp_path / "live.srt"
    argv = (tmp_path / "poses", "--checkpoint", plain_checkpoint, "--live", "--fps", 50, "--out", out)
    with pytest.raises(ValueError, match="2.pkl"):
        call(capsys, *argv)
    assert len(ENTRIES["srt"](out.read_text(encoding="utf-8"))) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--live --out x.json", "--out x.json: --live writes subtitles; name a .srt file"),
        ("--live --person 1", "--live goes without --descriptions, --person and --n_best"),
        ("--n_best 0", "--n_best 0: must be at least 1"),
        ("--num_beams 2 --n_best 3", "--num_beams 2: must be at least --n_best, which is 3"),
        ("--descriptions x --describe", "exclude each other"),
        ("--out x.SRT", "must end in .json, .jsonl, .srt"),
        ("--out x.txt", "must end in .json, .jsonl, .srt"),
        ("--out nowhere/x.json", "its folder does not exist"),
        ("--out nowhere/x.txt --fps -1", ".srt. --out nowhere/x.txt: its folder does not exist. --fps -1.0: must be"),
        ("--descriptions x.json --out x.json", "--out x.json: would replace what --descriptions names"),
        ("--descriptions . --out x.json", "--out x.json: would replace what --descriptions names"),
        ("--fps -1", "--fps -1.0: must be positive"),
        ("--fps nan", "--fps nan: must be positive"),
        ("--person 1 --extractor mediapipe", "MediaPipe finds one person only"),
        ("--person -1", "--person -1: must be at least 0"),
        ("--aspect 0", "--aspect 0.0: must be between"),
    ],
)
def test_flags_that_cannot_be(flags, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        inference.parse_args(["clip.pkl", "--checkpoint", "x.pth", *flags.split()])
    assert said in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        inference.parse_args(["0", "--checkpoint", "x.pth"])
    assert "0: a camera is translated with --live." in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--checkpoint", "--mt5_path", "--text_encoder"])
def test_results_replace_no_file_of_a_model(flag, tmp_path, capsys):
    model, kept = tmp_path / "model", tmp_path / "model" / "mt5" / "config.json"
    kept.parent.mkdir(parents=True)
    argv = ["x.npz", "--checkpoint", "x.pth", flag, str(model), "--out"]
    assert inference.parse_args([*argv, str(tmp_path / "model.json")])
    for out in (model / "model.json", kept):
        with pytest.raises(SystemExit):
            inference.parse_args([*argv, str(out)])
        said = f"--out {out}: lies in the model's folder {model}, of {flag}. Name a file elsewhere."
        assert said in capsys.readouterr().err


def test_places_that_cannot_be(plain_checkpoint, poses, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"holds no pose files and no videos \(.pkl.*.mp4"):
        call(capsys, tmp_path, "--checkpoint", plain_checkpoint)
    with pytest.raises(FileNotFoundError, match="--descriptions: .*nothing does not exist"):
        call(capsys, poses, "--checkpoint", plain_checkpoint, "--descriptions", tmp_path / "nothing")
    (tmp_path / "one.json").write_text("[]")
    with pytest.raises(ValueError, match="is one file for 3 clips; give a folder"):
        call(capsys, poses, "--checkpoint", plain_checkpoint, "--descriptions", tmp_path / "one.json")
    with pytest.raises(ValueError, match="was trained without descriptions; drop them"):
        call(capsys, poses, "--checkpoint", plain_checkpoint, "--describe")
    with pytest.raises(ValueError, match="--out FILE.srt needs --fps for pose files"):
        call(capsys, poses, "--checkpoint", plain_checkpoint, "--out", tmp_path / "x.srt")
    with pytest.raises(ValueError, match="--live needs --fps for pose files"):
        call(capsys, poses, "--checkpoint", plain_checkpoint, "--live")
    (tmp_path / "talk.mp4").touch()
    shutil.copy(next(poses.rglob("*.*")), tmp_path)
    with pytest.raises(ValueError, match="--live plays videos or pose files, not both"):
        call(capsys, tmp_path, "--checkpoint", plain_checkpoint, "--live")
    with pytest.raises(FileNotFoundError, match="--models: nowhere does not exist"):
        call(capsys, tmp_path / "talk.mp4", "--checkpoint", plain_checkpoint, "--models", "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nobody.mp4 does not exist. Name a pose file, a video"):
        call(capsys, tmp_path / "nobody.mp4", "--checkpoint", plain_checkpoint)
