"""A run's folder is read, and what it lacks is said."""

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
    assert (found.task, found.spec.text_unit, found.spec.bleu_tokenizer) == ("SLT", "char", "13a")
    assert (len(found.epochs), len(found.steps), len(found.predictions["test"])) == (3, 60, 7)
    assert found.best_epoch()["epoch"] == 2  # as good as epoch 1, with a lower loss
    assert found.spec.pose_dir == str(corpus / "dataset/CSL_Daily/pose_format")
    assert found.weights == two_runs[1] / "best_checkpoint.pth"


@pytest.mark.parametrize("name", ["run.json", "test_predictions.jsonl"])
@pytest.mark.parametrize(
    "content", [b"{", b"null", b'{"id": "a", "starts": 3}', b"\xff\xfe", b"[" * 100_000, b'{"id":"a","starts":[5]}']
)
def test_a_damaged_record_or_list_of_sentences_is_one_line(run, name, content):
    (run / name).write_bytes(content)
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(ValueError, match="damaged") as error:
        RunFolder.read(run)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_curves_are_read_up_to_a_line_that_was_cut(run):
    (run / "log.txt").write_text('{"epoch": 0, "loss": null}\n{"epoch": 2, "loss"')
    (run / "steps.jsonl").write_bytes(b"\xff\n")
    found = RunFolder.read(run)
    assert (found.epochs, found.steps) == ([{"epoch": 0, "loss": None}], [])
    assert found.left_out == ["steps.jsonl holds nothing that can be read."]


def test_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        RunFolder.read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no run.json of a run"):
        RunFolder.read(tmp_path)
