"""The ablation: its texts, its table, and that it runs."""

import json
import shutil
import time
from dataclasses import replace

import pytest

import ablate
from ablate import ARMS, BASE, TEXTS, Runner, constant_texts, markdown, shuffled_texts, summarise, to_toml
from config import DATASETS, DatasetSpec
from description_files import write_descriptions
from metrics import score
from temporal_alignment import DescriptionLoader, is_error_text
from utils import parse_args

CLIPS = {
    "a": {2: "one", 4: "two", 9: "three"},
    "b": {0: "four"},
    "c": {},
    "d": {5: "five", 6: "five", 7: "one"},
}


def test_shuffled_texts_are_of_another_clip_at_the_same_frames():
    made = shuffled_texts(CLIPS, 0)
    assert {name: list(texts) for name, texts in made.items()} == {name: list(CLIPS[name]) for name in "abd"}
    sources = [
        {other for other in "abd" if set(texts.values()) <= set(CLIPS[other].values())} for texts in made.values()
    ]
    assert all(source and name not in source for name, source in zip(made, sources, strict=True))
    assert shuffled_texts(CLIPS, 0) == made


def test_one_text_for_all():
    assert constant_texts(CLIPS, 0) == {"a": dict.fromkeys((2, 4, 9), "five"), "b": {0: "five"}, "c": {}} | {
        "d": dict.fromkeys((5, 6, 7), "five")
    }
    assert constant_texts({"a": {}}, 0) == {"a": {}}


def test_the_record_of_a_data_set_survives(tmp_path):
    for spec in DATASETS.values():
        spec = spec.under(tmp_path)
        (tmp_path / "record.toml").write_text(to_toml(spec, tmp_path / "texts"))
        again = DatasetSpec.from_toml(tmp_path / "record.toml")
        assert again.description_dir == str(tmp_path / "texts")
        assert (again.language, again.labels, again.pose_dir) == (spec.language, dict(spec.labels), spec.pose_dir)
        assert again.dev_is_test == spec.dev_is_test


def test_arms_are_whole():
    rows = [test.name for arm in ARMS.values() for test in arm.tests]
    assert len(rows) == len(set(rows))
    assert BASE in rows
    for arm in ARMS.values():
        assert {arm.texts, *(test.texts for test in arm.tests)} <= set(TEXTS)
        parse_args(arm.flags)


def test_a_share_of_the_clips_keeps_its_texts():
    clips = {f"clip{number:03d}": {3: f"text {number}"} for number in range(200)} | {"none": {}}
    kept = ablate.some_texts(10, clips, 0)
    assert len(kept) == 20
    assert kept.items() <= clips.items()
    assert list(kept) == sorted(kept) != sorted(clips)[:20]
    assert len(ablate.some_texts(1000, clips, 0)) == 1


def test_error_texts_differ_and_pass_for_descriptions():
    made = ablate.error_texts(CLIPS, 0)
    texts = [text for by_frame in made.values() for text in by_frame.values()]
    assert {name: list(frames) for name, frames in made.items()} == {n: list(frames) for n, frames in CLIPS.items()}
    assert len(set(texts)) == len(texts) == 7
    assert not any(is_error_text(text) for text in texts)


def lines(*hypotheses):
    references = ["the cat sat on the mat today", "a dog runs in the green park", "we read a long book at home"]
    return [{"hypothesis": ours, "reference": theirs} for ours, theirs in zip(hypotheses, references, strict=True)]


def test_the_table():
    good = lines("the cat sat on the mat today", "a dog runs in the green park", "we read a long book at home")
    bad = lines("the cat sat on the mat", "dogs", "books")
    table = summarise({BASE: {1: bad, 2: bad}, "own texts": {1: good, 2: bad}}, DATASETS["How2Sign"])
    base, own = table
    assert own["each"] == [pytest.approx(100), base["bleu4"]]
    assert own["difference"] == pytest.approx((100 - base["bleu4"]) / 2)
    assert "difference" not in base
    text = markdown(table)
    assert len({line.count("|") for line in text.splitlines()}) == 1
    assert f"| own texts | {own['bleu4']:.1f} | 100.0, {base['bleu4']:.1f} | +" in text


@pytest.mark.parametrize("tokenizer", ["13a", "char"])
def test_the_difference_is_that_of_the_scores(tokenizer):
    good, bad = lines("the cat sat on a mat today", "a dog runs", "we read"), lines("the cat sat on the mat", "x", "y")
    spec = replace(DATASETS["How2Sign"], bleu_tokenizer=tokenizer)
    base, own = summarise({BASE: {1: bad}, "own texts": {1: good}}, spec)
    texts = [[line[key] for line in good] for key in ("hypothesis", "reference")]
    assert own["bleu4"] == pytest.approx(score("SLT", *texts, spec.text_unit, tokenizer).values["bleu4"])
    assert own["difference"] == pytest.approx(own["bleu4"] - base["bleu4"])


def test_clips_in_folders_get_their_texts(tmp_path):
    spec = replace(DATASETS["How2Sign"], labels={"train": "labels.train"}, description_dir=str(tmp_path / "own"))
    for name, text in (("a/one", "up"), ("b/two", "down"), ("flat", "left")):
        write_descriptions(tmp_path / "own" / "train" / f"{name}.json", {0: text}, {0: "somebody"})
    ablate.write_texts(spec, "shuffled", tmp_path / "shuffled")
    loader = DescriptionLoader(tmp_path / "shuffled" / "train")
    found = [loader.load(name)[0] for name in ("a/one", "b/two", "flat")]
    assert sorted(found) == ["down", "left", "up"]
    assert found != ["up", "down", "left"]


@pytest.fixture
def tiny(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "sample")
    return tmp_path / "sample"


@pytest.mark.slow
def test_it_runs_and_goes_on(tiny, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    line = ["--root", str(tiny), "--quick", "--seeds", "1", "--out", str(tmp_path / "out"), "--jobs", "2"]
    ablate.main(line)
    table = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [entry["row"] for entry in table] == [test.name for arm in ARMS.values() for test in arm.tests]
    assert capsys.readouterr().out == (tmp_path / "out" / "ablation.md").read_text()
    for kind in ("shuffled", "constant", "rules"):
        folder = tmp_path / "out" / "texts" / kind / "dev"
        assert sum(len(DescriptionLoader(folder).load(path.stem)) for path in folder.glob("*.json")) > 20
    assert not list((tmp_path / "out" / "texts" / "none" / "dev").iterdir())
    caplog.clear()
    ablate.main(line)
    assert not caplog.records  # nothing was run again
    with pytest.raises(ValueError, match="was made by another command"):
        ablate.main([*line, "--", "--lr", "1e-4"])


def test_a_command_that_fails_is_shown(tiny, tmp_path):
    args = ablate.parse_args(["--root", str(tiny), "--out", str(tmp_path / "out"), "--", "--hidden_dim", "30"])
    runner = Runner(args, DATASETS["CSL_Daily"].under(tiny))
    with pytest.raises(ValueError, match=r"status 1 of: python .*--hidden_dim 30"):
        runner.arm("pose", 1)
    assert "must be a positive multiple of 4" in (tmp_path / "out" / "runs" / "pose-seed1" / "output.txt").read_text()


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_is_started_after_a_failure(tmp_path, monkeypatch, jobs):
    begun = []

    def arm(self, name, seed):
        begun.append(name)
        time.sleep(0.1)
        raise ValueError("status 1")

    monkeypatch.setattr(Runner, "arm", arm)
    monkeypatch.setattr(Runner, "record", lambda self, kind: None)
    line = ["--root", str(tmp_path), "--out", str(tmp_path / "out"), "--jobs", str(jobs)]
    with pytest.raises(ValueError, match="status 1"):
        ablate.main(line)
    assert len(begun) < len(ARMS)


def test_jobs_divide_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(ablate.os, "cpu_count", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    args = ablate.parse_args(["--out", str(tmp_path), "--jobs", "4"])
    runner = Runner(args, DATASETS["CSL_Daily"])
    assert runner._environment()["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert runner._environment()["OMP_NUM_THREADS"] == "3"
