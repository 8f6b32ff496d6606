"""The command line of inference: one clip, a folder, what it writes, what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import inference
from config import ModelConfig
from models import Uni_Sign, load_mt5
from text_fusion_modules import TextEncoder
from tokenizer import Tokenizer
from translator import Translator
from weights import save_weights

ROOT = Path(__file__).resolve().parents[1]
FAST = "--dtype fp32 --num_beams 2 --max_new_tokens 6 --device cpu".split()


@pytest.fixture(scope="module")
def checkpoint(small_mt5_folder, tmp_path_factory):
    """Of a random model with descriptions."""
    config = ModelConfig(hidden_dim=16, use_descriptions=True)
    encoder = TextEncoder(small_mt5_folder)
    model = Uni_Sign(config, load_mt5(small_mt5_folder), Tokenizer(small_mt5_folder), encoder)
    path = tmp_path_factory.mktemp("weights") / "best_checkpoint.pth"
    save_weights(path, model.state_dict(), config, mt5_path=str(small_mt5_folder), max_length=256)
    return path


@pytest.fixture(scope="module")
def plain_checkpoint(small_mt5_folder, tmp_path_factory):
    """Of a random model without."""
    config = ModelConfig(hidden_dim=16)
    model = Uni_Sign(config, load_mt5(small_mt5_folder), Tokenizer(small_mt5_folder))
    path = tmp_path_factory.mktemp("weights") / "plain.pth"
    save_weights(path, model.state_dict(), config, mt5_path=str(small_mt5_folder), max_length=256)
    return path


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


def test_one_clip(checkpoint, poses, capsys):
    status, (line,), err = call(capsys, poses / "a.npz", "--checkpoint", checkpoint)
    name, sentence = line.split("\t")
    translate = Translator.from_checkpoint(checkpoint, dtype="fp32", num_beams=2, max_new_tokens=6)
    assert (status, name, sentence, err) == (0, "a", " ".join(translate(poses / "a.npz").split()), "")
    assert sentence


@pytest.mark.parametrize("size", [1, 2, 8])
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


def test_n_best_with_scores(checkpoint, poses, tmp_path, capsys):
    out = tmp_path / "out.json"
    argv = (poses / "a.npz", "--checkpoint", checkpoint, "--n_best", 2, "--out", out)
    _, lines, _ = call(capsys, *argv)
    ((entry),) = json.loads(out.read_text(encoding="utf-8"))
    shown = [[name, float(score)] for name, score, _ in (line.split("\t") for line in lines)]
    assert shown == [["a", pytest.approx(c["score"], abs=1e-3)] for c in entry["candidates"]]
    assert len(shown) == 2
    assert entry["text"] == entry["candidates"][0]["text"]


def test_subtitles_stand_where_the_clips_do(checkpoint, poses, tmp_path, capsys):
    out = tmp_path / "out.srt"
    _, lines, _ = call(capsys, poses / "a.npz", "--checkpoint", checkpoint, "--out", out, "--fps", 4)
    number, time, text, *_ = out.read_text(encoding="utf-8").split("\n")
    assert (number, time) == ("1", "00:00:00,500 --> 00:00:02,500")
    assert " ".join(text.split()) == lines[0].split("\t")[1]
    late = inference.Clip("x", Path("x"), 93_600, 93_625, [inference_candidate("later")])
    assert "01:02:24,000 --> 01:02:25,000" in inference.subtitles([late], 25)


def inference_candidate(text):
    from translator import Candidate

    return Candidate(text, -1.0)


def test_descriptions_from_files_and_by_rules(checkpoint, poses, tmp_path, capsys, monkeypatch):
    seen = []
    sample = Translator.sample
    monkeypatch.setattr(Translator, "sample", lambda self, p, t, n: seen.append((n, t)) or sample(self, p, t, n))
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


def test_person(checkpoint, poses, capsys):
    status, lines, err = call(capsys, poses / "a.npz", "--checkpoint", checkpoint, "--person", 1)
    assert (status, lines) == (1, [])
    assert "no frame has more than 1 people; person 1 (from 0) is not there" in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--n_best 0", "--n_best 0: must be at least 1"),
        ("--num_beams 2 --n_best 3", "--num_beams 2: must be at least --n_best, which is 3"),
        ("--descriptions x --describe", "exclude each other"),
        ("--out x.txt", "must end in .json, .jsonl, .srt"),
        ("--out nowhere/x.json", "its folder does not exist"),
        ("--out x.srt", "needs --fps"),
        ("--person -1", "--person -1: must be at least 0"),
        ("--aspect 0", "--aspect 0.0: must be between"),
    ],
)
def test_flags_that_cannot_be(flags, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        inference.parse_args(["clip.pkl", "--checkpoint", "x.pth", *flags.split()])
    assert said in capsys.readouterr().err


def test_places_that_cannot_be(plain_checkpoint, poses, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="holds no pose files.*Videos are not read here yet"):
        call(capsys, tmp_path, "--checkpoint", plain_checkpoint)
    with pytest.raises(FileNotFoundError, match="--descriptions: .*nothing does not exist"):
        call(capsys, poses, "--checkpoint", plain_checkpoint, "--descriptions", tmp_path / "nothing")
    (tmp_path / "one.json").write_text("[]")
    with pytest.raises(ValueError, match="is one file for 3 clips; give a folder"):
        call(capsys, poses, "--checkpoint", plain_checkpoint, "--descriptions", tmp_path / "one.json")
    with pytest.raises(ValueError, match="was trained without descriptions; drop them"):
        call(capsys, poses, "--checkpoint", plain_checkpoint, "--describe")
    status, lines, err = call(capsys, "talk.mp4", "--checkpoint", plain_checkpoint)
    assert (status, lines) == (1, [])
    assert "A video is not read here yet: extract its poses first" in err


def test_as_a_program(tmp_path):
    """--help answers without torch, and a fault is one line."""
    code = "import sys, inference\ntry: inference.parse_args(['--help'])\nfinally: assert 'torch' not in sys.modules"
    help_ = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(word in help_.stdout for word in ("examples:", "--person", "Translator.from_checkpoint"))
    command = [sys.executable, "inference.py", str(tmp_path), "--checkpoint", "nothing.pth"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
