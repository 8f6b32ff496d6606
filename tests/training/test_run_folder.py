"""What a run leaves in its folder, and how the next one clears it."""

import json
from types import SimpleNamespace

import pytest

from training import run_folder
from training.metrics import Scores


def test_curves_are_cut_to_where_the_state_stands(tmp_path):
    (tmp_path / "log.txt").write_text("".join(json.dumps({"epoch": n}) + "\n" for n in range(3)))
    (tmp_path / "steps.jsonl").write_text(
        "".join(json.dumps({"step": n}) + "\n" for n in range(1, 9)) + '{"step": 9, "l'
    )
    run_folder.trim_curves(tmp_path, epochs=1, steps=5)
    assert (tmp_path / "log.txt").read_text() == '{"epoch": 0}\n'
    assert [json.loads(line)["step"] for line in (tmp_path / "steps.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_a_loss_that_is_no_number_is_null(tmp_path):
    class Dataset(list):
        split, names, spec = "dev", ("a",), SimpleNamespace(text_unit="word")

    scores = Scores({"bleu4": 0.0}, {"bleu": "x"})
    results = run_folder.Results("SLT", Dataset("a"), ["hi"], ["ho"], scores, {"loss": float("nan"), "nll": 2.0}, {})
    run_folder.write_predictions(tmp_path, results)

    def refuse(word):
        raise AssertionError(word)

    found = json.loads((tmp_path / "dev_metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert (found["loss"], found["nll"], found["bleu4"]) == (None, 2.0, 0.0)


@pytest.mark.parametrize(("keep", "left"), [(0, [8, 9, 10, 17]), (1, [10, 17]), (2, [9, 10, 17]), (9, [8, 9, 10, 17])])
def test_newest_checkpoints_are_kept(tmp_path, keep, left):
    for epoch in (8, 9, 10, 17):
        (tmp_path / f"checkpoint_{epoch}.pth").touch()
    (tmp_path / "checkpoint_mine.pth").touch()
    run_folder.forget_checkpoints(tmp_path, 10, keep)
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint_{n}.pth" for n in left} | {"checkpoint_mine.pth"}
