"""A run's folder is read as far as it goes, and what is missing is said."""

import json
import shutil

import pytest

from pages.run_folder import RunFolder


@pytest.fixture
def run(two_runs, tmp_path):
    shutil.copytree(two_runs[1], tmp_path / "run")
    return tmp_path / "run"


def test_a_whole_run(two_runs, corpus):
    found = RunFolder.read(two_runs[1])
    assert found.left_out == []
    assert (found.task, found.text_unit, found.bleu_tokenizer) == ("SLT", "char", "13a")
    assert (len(found.epochs), len(found.steps), len(found.predictions["test"])) == (3, 60, 7)
    assert found.best_epoch()["epoch"] == 2  # as good as epoch 1, with a lower loss
    assert found.spec.pose_dir == str(corpus / "dataset/CSL_Daily/pose_format")
    assert found.weights == two_runs[1] / "best_checkpoint.pth"


def test_reading_changes_nothing(run):
    (run / "run.json").write_text("{")
    before = {path: path.read_bytes() for path in run.iterdir()}
    RunFolder.read(run)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b'{"id": "a", "starts": 3}', b"\xff\xfe", b"[" * 100_000, b'{"id":"a","starts":[5]}'],
)
def test_a_damaged_record_leaves_the_rest(run, content):
    (run / "run.json").write_bytes(content)
    found = RunFolder.read(run)
    assert found.spec is None
    assert len(found.epochs) == 3
    assert (found.task, found.text_unit) == ("SLT", "char")  # as the files look
    assert any("run.json" in line for line in found.left_out)


def test_damaged_curves_and_sentences(run):
    (run / "log.txt").write_text('{"epoch": 0, "loss": NaN, "nll": "x"}\n[3]\n{"epoch": 2, "loss"')
    (run / "steps.jsonl").write_bytes(b"\xff\n")
    rows = (run / "test_predictions.jsonl").read_text().splitlines()
    bad = [rows[0], json.dumps({"name": "x", "reference": " ", "hypothesis": ""}), '{"name": 3}', rows[1][:20]]
    (run / "test_predictions.jsonl").write_text("\n".join(bad))
    (run / "dev_metrics.json").write_text("[]")
    found = RunFolder.read(run)
    assert found.epochs == [{"epoch": 0, "loss": None}]
    assert found.steps == []
    assert len(found.predictions["test"]) == 1
    told = " ".join(found.left_out)
    assert "log.txt: 2 of 3 lines" in told
    assert "steps.jsonl: 1 of 1 lines" in told
    assert "test_predictions.jsonl: 3 of 4 lines" in told
    assert "dev_metrics.json cannot be read: it is no table" in told


def test_numbers_that_no_run_writes_are_none(run):
    odd = '"nll": 1e999, "dev_loss": 1e300, "lr": 1e-300, "seconds": 1%s, "waited": -1e13}' % ("0" * 400)
    (run / "log.txt").write_text(f'{{"epoch": 0, "loss": 1.5, {odd}\n{{"epoch": -7, "loss": 2}}\n')
    found = RunFolder.read(run)
    none = dict.fromkeys(("nll", "dev_loss", "lr", "seconds", "waited"))
    assert found.epochs == [{"epoch": 0, "loss": 1.5} | none]
    assert "log.txt: 1 of 2 lines cannot be read." in found.left_out


def test_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        RunFolder.read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds nothing of a run"):
        RunFolder.read(tmp_path)
