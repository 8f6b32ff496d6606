"""The ablation: its arms, its table, and that it runs."""

import json
import shutil
import time
from dataclasses import replace

import pytest

from config import DATASETS
from describing.control_texts import CONTROLS
from temporal_alignment import DescriptionLoader
from tools import ablate
from tools.ablate import ARMS, BASE, markdown, summarise
from training.experiments import Experiments
from training.metrics import score
from utils import parse_args


def test_arms_are_whole():
    rows = [row for arm in ARMS.values() for row in arm.tests]
    assert len(rows) == len(set(rows))
    assert BASE in rows
    for arm in ARMS.values():
        assert {arm.texts, *arm.tests.values()} <= {"own", "rules", *CONTROLS}
        parse_args(arm.flags)


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


@pytest.fixture
def tiny(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "sample")
    return tmp_path / "sample"


@pytest.mark.slow
def test_it_runs_and_goes_on(tiny, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    line = ["--root", str(tiny), "--seeds", "1", "--out", str(tmp_path / "out"), "--jobs", "2", "--"]
    line += ["--epochs", "1", "--num_beams", "1", "--max_new_tokens", "5", "--hidden_dim", "16"]
    ablate.main(line)
    table = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [entry["row"] for entry in table] == [row for arm in ARMS.values() for row in arm.tests]
    assert capsys.readouterr().out == (tmp_path / "out" / "ablation.md").read_text()
    for kind in ("shuffled", "constant", "rules"):
        folder = tmp_path / "out" / "texts" / kind / "dev"
        assert sum(len(DescriptionLoader(folder).load(path.stem)) for path in folder.glob("*.json")) > 20
    assert not list((tmp_path / "out" / "texts" / "none" / "dev").iterdir())
    caplog.clear()
    ablate.main(line)
    assert not caplog.records  # nothing was run again
    with pytest.raises(ValueError, match="was made by another command"):
        ablate.main([*line, "--lr", "1e-4"])


@pytest.mark.parametrize("dataset", ["How2Sign", "CSL_News"])
def test_without_a_test_split_nothing_is_trained(dataset, tmp_path):
    with pytest.raises(ValueError, match=f"{dataset} has no test split beside dev"):
        ablate.main(["--root", str(tmp_path), "--dataset", dataset, "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_is_started_after_a_failure(tmp_path, monkeypatch, jobs):
    begun = []

    def train(self, texts, flags, folder):
        begun.append(folder)
        time.sleep(0.1)
        raise ValueError("status 1")

    monkeypatch.setattr(Experiments, "train", train)
    monkeypatch.setattr(Experiments, "prepare", lambda self, texts: None)
    line = ["--root", str(tmp_path), "--out", str(tmp_path / "out"), "--jobs", str(jobs)]
    with pytest.raises(ValueError, match="status 1"):
        ablate.main(line)
    assert len(begun) < len(ARMS)
