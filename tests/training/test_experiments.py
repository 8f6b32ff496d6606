"""Commands that run once, and the data sets they are given."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from config import DATASETS
from training import experiments
from training.experiments import Experiments


def made(tmp_path, **options):
    return Experiments(DATASETS["CSL_Daily"].under(tmp_path), str(tmp_path), tmp_path / "out", **options)


def test_a_command_that_fails_is_shown(corpus, tmp_path):
    runs = Experiments(DATASETS["CSL_Daily"].under(corpus), str(corpus), tmp_path, flags=("--hidden_dim", "30"))
    runs.prepare("none")
    with pytest.raises(ValueError, match=r"status 1 of: python .*--hidden_dim 30"):
        runs.train("none", ["--seed", "1"], tmp_path / "arm")
    assert "must be a positive multiple of 4" in (tmp_path / "arm" / "output.txt").read_text()
    assert not (tmp_path / "arm" / "trained.json").exists()


def test_kinds_of_texts_need_no_others(corpus, tmp_path):
    """Texts by rules, and none at all, also of a data set that has no descriptions."""
    spec = replace(DATASETS["CSL_Daily"].under(corpus), description_dir="")
    runs = Experiments(spec, str(corpus), tmp_path / "out")
    runs.prepare("none")
    assert not any(runs.descriptions("none").glob("*/*.json"))
    runs = Experiments(replace(spec, description_dir=str(tmp_path / "none")), str(corpus), tmp_path / "out2")
    runs.prepare("rules")
    assert any(runs.descriptions("rules").glob("*/*.json"))


def test_a_command_runs_once(tmp_path):
    runs, done = made(tmp_path), tmp_path / "arm" / "done.json"
    count = ["-c", f"open({str(tmp_path / 'count')!r}, 'a').write('x')"]
    for _ in range(2):
        runs.once(done, count)
    assert (tmp_path / "count").read_text() == "x"
    assert json.loads(done.read_text()) == count
    with pytest.raises(ValueError, match="arm was made by another command. Name another folder, or remove it"):
        runs.once(done, ["-c", "pass"])


def test_jobs_divide_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "cores", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    show = ["-c", "import os; print(os.environ['OMP_NUM_THREADS'])"]
    made(tmp_path, jobs=4).once(tmp_path / "a" / "done.json", show)
    assert (tmp_path / "a" / "output.txt").read_text() == "2\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    made(tmp_path, jobs=4).once(tmp_path / "b" / "done.json", show)
    assert (tmp_path / "b" / "output.txt").read_text() == "3\n"


def test_results_of_other_labels_or_descriptions_are_not_taken(corpus, tmp_path):
    """The commands are the same, for they name the same files."""
    shutil.copytree(corpus, tmp_path / "corpus")
    spec = DATASETS["CSL_Daily"].under(tmp_path / "corpus")

    def prepare():
        Experiments(spec, "", tmp_path / "out").prepare("own")

    prepare()
    prepare()
    for changed in (Path(spec.labels["test"]), next(Path(spec.description_dir).rglob("*.json"))):
        before = changed.read_bytes()
        changed.write_bytes(before + b" ")
        with pytest.raises(ValueError, match="out holds results of another data set, other labels or other desc"):
            prepare()
        changed.write_bytes(before)
    prepare()
