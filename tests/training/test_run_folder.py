"""What a run leaves in its folder, and how the next one clears it."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest

from system.disk import to_json
from training import metrics, run_folder
from training.metrics import Scores


def test_curves_are_cut_to_where_the_state_stands(tmp_path):
    (tmp_path / "log.txt").write_text("".join(json.dumps({"epoch": n}) + "\n" for n in range(3)) + '{"note": 1}\n[2]\n')
    (tmp_path / "steps.jsonl").write_text(
        "".join(json.dumps({"step": n}) + "\n" for n in range(1, 9)) + '{"step": 9, "l'
    )
    run_folder.trim_curves(tmp_path, epochs=1, steps=5)
    assert (tmp_path / "log.txt").read_text() == '{"epoch": 0}\n{"note": 1}\n'
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


def test_an_evaluation_writes_beside_the_weights(tmp_path):
    best, epoch = tmp_path / "best_checkpoint.pth", tmp_path / "checkpoint_3.pth"
    assert run_folder.results_folder(best, "How2Sign") == tmp_path
    assert run_folder.results_folder(epoch, "How2Sign") == tmp_path / "checkpoint_3"
    (tmp_path / "exported_v1.5").mkdir()
    assert run_folder.results_folder(tmp_path / "exported_v1.5", "How2Sign") == tmp_path / "exported_v1.5"
    starts = [{"what": what, "dataset": {"name": name}} for what, name in (("training", "A"), ("evaluation", "B"))]
    (tmp_path / "run.json").write_text(json.dumps({"id": "x", "starts": starts}))
    assert run_folder.results_folder(best, "A") == tmp_path
    with pytest.raises(ValueError, match=r"best_checkpoint.pth was trained on A, not on B.*--output_dir"):
        run_folder.results_folder(best, "B")


def results(hypotheses, references, task="SLT", unit="word"):
    spec = SimpleNamespace(split="dev", spec=SimpleNamespace(text_unit=unit, bleu_tokenizer="13a"))
    scores = metrics.score(task, hypotheses, references, unit)
    return run_folder.Results(task, spec, hypotheses, references, scores, {"loss": 3.0, "nll": 2.0}, {})


WORDS = [f"the cat number {n} sat on the mat" for n in range(20)]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (results(WORDS, WORDS), ""),
        (results(["the cat sat on the mat"] * 10 + WORDS[:10], WORDS), "10 of 20 sentences are the same, 'the cat sat"),
        (results(["the cat sat on the mat"] * 9 + WORDS[:11], WORDS), ""),
        (results(["all are the same"] * 20, ["all are the same"] * 20), ""),  # so are the labels
        (
            results(["thank you"] * 9, ["thank you very"] * 9),
            "dev: no sentence has 4 words, so BLEU-4 measures nothing",
        ),
        (
            results(["谢谢"] * 9, ["你好。"] * 9, unit="char"),
            "dev: no sentence has 4 characters, so BLEU-4 measures nothing",
        ),
        (results(["ドア"] * 9, ["ドアを開けてください"] * 9), 'text_unit = "char"'),
        (results([f"dogs {n}" for n in range(20)], WORDS), "bleu4 is 0. What usually helps"),
        (results([f"我很{n}" for n in range(9)], [f"你很{n}。" for n in range(9)]), 'text_unit = "char"'),
        (results(["book", "car"], ["car", "book"], "ISLR"), "top1_per_instance is 0. What usually helps"),
        (results(["a b", "c d"], ["c d", "a b"], "CSLR"), "wer is 100. What usually helps"),
        (results(["a b", "c x"], ["a b", "c d"], "CSLR"), ""),
    ],
)
def test_a_model_that_has_learnt_nothing_is_said(found, words):
    complaint = found.complaint()
    assert words in complaint
    assert bool(words) == bool(complaint)
    assert "\n" not in complaint


def test_what_orders_epochs():
    found = results(WORDS, WORDS)
    assert found.rank == (pytest.approx(100), 2.0)
    assert found.numbers("dev_")["dev_bleu4"] == pytest.approx(100)
    assert found.numbers()["nll"] == 2.0
    (no_number,) = json.loads(to_json([dataclasses.replace(found, losses={"nll": math.nan}).rank]))
    assert metrics.is_better("SLT", found.rank, no_number)
    assert not metrics.is_better("SLT", no_number, found.rank)
