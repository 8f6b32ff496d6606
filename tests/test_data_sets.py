"""Every data set of config.py in its own layout, with each task and input."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fine_tuning
import utils
from config import DATASETS, DatasetSpec
from pose.keypoints import read_pose
from tests.helpers.poses import write_pose
from training import guards as survival
from training import metrics, readiness
from training.run_folder import Results

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "--hidden_dim 16 --epochs 1 --batch-size 2 --gradient-accumulation-steps 1 --dtype fp32 --num_workers 0 "
    "--num_beams 1 --max_new_tokens 4"
).split()
INPUTS = {"poses": [], "descriptions": ["--use_descriptions"], "RGB": ["--rgb_support"]}


def run(root, out, *flags):
    args = utils.parse_args(["--root", str(root), *SMALL, "--output_dir", str(out), *map(str, flags)])
    fine_tuning.main(args)
    return out


def logged(out):
    return [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "task", "kind"),
    [
        pytest.param(name, task, kind, marks=[] if kind == "poses" else pytest.mark.slow)
        for name, spec in DATASETS.items()
        for task in spec.tasks
        for kind in INPUTS
    ],
)
def test_every_data_set_task_and_input(world, tmp_path, request, name, task, kind):
    if kind == "RGB":
        request.getfixturevalue("filmed_world")
    flags = ("--dataset", name, "--task", task, *INPUTS[kind])
    out = run(world, tmp_path / "run", *flags)
    (line,) = logged(out)
    assert f"dev_{metrics.MAIN_METRIC[task][0]}" in line
    best = torch.load(out / "best_checkpoint.pth", weights_only=True)
    assert best["score"] == line[f"dev_{metrics.MAIN_METRIC[task][0]}"]
    assert best["config"]["language"] == DATASETS[name].language
    run(world, out, *flags, "--eval", "--finetune", out / "best_checkpoint.pth")
    splits = {path.name.removesuffix("_metrics.json") for path in out.glob("*_metrics.json")}
    assert splits == set(DATASETS[name].labels) - {"train"}


def test_how2sign_says_that_it_is_chosen_on_test(world, tmp_path, caplog):
    run(world, tmp_path, "--dataset", "How2Sign")
    assert "How2Sign has no dev split: the best checkpoint is chosen on test," in caplog.text
    weights = tmp_path / "checkpoint_0.pth"
    again = run(world, tmp_path / "again", "--dataset", "How2Sign", "--eval", "--finetune", weights)
    assert [path.name for path in again.glob("*_metrics.json")] == ["test_metrics.json"]  # decoded once


# -- tasks: which checkpoint is the best -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task", "key", "scores", "nlls", "best"),
    [
        ("CSL_Daily", "SLT", "bleu4", [1.0, 3.0, 2.0], [1.0, 3.0, 0.5], 1),
        ("WLASL", "ISLR", "top1_per_instance", [50.0, 25.0, 50.0], [1.0, 1.0, 1.0], 0),  # the earlier of equals
        ("CSL_Daily", "SLT", "bleu4", [0.0, 0.0, 0.0], [3.0, 1.0, 2.0], 1),  # of equal scores, the smallest nll
        ("CSL_Daily", "CSLR", "wer", [80.0, 90.0, 70.0], [1.0, 1.0, 1.0], 2),  # fewer errors are better
    ],
)
def test_the_best_checkpoint(world, tmp_path, monkeypatch, name, task, key, scores, nlls, best):
    planned = iter(zip(scores, nlls, strict=True))

    def evaluate(_model, loader, *_):
        score, nll = next(planned)
        dataset, texts = loader.dataset, loader.dataset.targets()
        values = {"top1_per_class": 0.0, key: score} if task == "ISLR" else {key: score}
        return Results(task, dataset, texts, texts, metrics.Scores(values, {}), {"loss": 1.0, "nll": nll}, {})

    monkeypatch.setattr(fine_tuning, "evaluate", evaluate)
    out = run(world, tmp_path, "--dataset", name, "--task", task, "--epochs", "3", "--no_test")
    assert [line[f"dev_{key}"] for line in logged(out)] == scores
    chosen = torch.load(out / "best_checkpoint.pth", weights_only=True)
    assert (chosen["epoch"], chosen["score"]) == (best, scores[best])


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("CSL_Daily", "SLT", {"bleu1": 100.0, "bleu4": 100.0}),
        ("WLASL", "ISLR", {"top1_per_instance": 50.0, "top1_per_class": 50.0}),
        ("CSL_Daily", "CSLR", {"wer": 50.0, "wer_del": 50.0}),
    ],
)
def test_the_metric_of_a_task(world, tmp_path, monkeypatch, name, task, expected):
    """What the model would write decides the score: here the sentence, one of two signs, one of two glosses."""
    written = {"SLT": "今天很高兴。", "ISLR": "book", "CSLR": "今天"}[task]
    monkeypatch.setattr(fine_tuning.Uni_Sign, "sentences", lambda _model, ids: [written] * len(ids))
    out = run(world, tmp_path, "--dataset", name, "--task", task)
    (line,) = logged(out)
    for key, value in expected.items():
        assert line[f"dev_{key}"] == pytest.approx(value)
    scored = " ".join(written) if task == "SLT" else written  # glosses are not split into characters
    first = (out / "dev_tmp_pres.txt").read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(f"sample: [^,]+, prediction: {scored}", first)


# -- pre-training ------------------------------------------------------------------------------------------------------


def test_pre_training_starts_stage_3(world, tmp_path, caplog):
    """CSL-News, saved within the epoch; the weights of there start CSL-Daily, the state of there goes on."""
    caplog.set_level("INFO")
    flags = ("--dataset", "CSL_News", "--batch-size", "1", "--gradient-accumulation-steps", "2", "--quick_break", "3")
    out = run(world, tmp_path / "stage1", *flags)
    # 5 clips: steps after the micro-batches 2, 4 and 5. The third is among those of the second step.
    assert sorted(path.name for path in (out / "resume").iterdir()) == ["step_00000002", "step_00000003"]
    within, end = (
        torch.load(out / f"{name}.pth", weights_only=True)["model"] for name in ("checkpoint", "checkpoint_0")
    )
    assert within.keys() == end.keys()
    assert any(not torch.equal(within[name], end[name]) for name in end)
    state = torch.load(out / "resume/step_00000002/weights.pt", weights_only=True)
    assert all(torch.equal(within[name], state[name]) for name in within)

    run(world, tmp_path / "stage1", *flags, "--resume", out / "resume/step_00000002")
    again = torch.load(out / "checkpoint_0.pth", weights_only=True)["model"]
    assert all(torch.equal(again[name], end[name]) for name in end)

    run(world, tmp_path / "stage3", "--finetune", out / "checkpoint.pth", "--lr", "1e-12", "--min-lr", "0")
    assert f"{len(within)} tensors loaded, new is nothing" in caplog.text
    tuned = torch.load(tmp_path / "stage3" / "checkpoint_0.pth", weights_only=True)["model"]
    weights = [name for name in tuned if "running_" not in name and "num_batches" not in name]
    assert all(torch.allclose(tuned[name], within[name], atol=1e-6) for name in weights)


def test_quick_break_counts_micro_batches(monkeypatch):
    """As Uni-Sign: the multiples of N, here at the step that each of them belongs to."""
    saved = []
    monkeypatch.setattr(fine_tuning, "save", lambda _engine, state, *_: saved.append(state.micro_batch))
    for name in ("full_state_dict", "weights_facts", "save_weights"):
        monkeypatch.setattr(fine_tuning, name, lambda *_, **__: {})
    for n, group, expected in ((3, 2, [4, 6, 10]), (4, 4, [4, 8]), (1, 4, [4, 8]), (5, 1, [5, 10]), (0, 1, [])):
        saved.clear()
        args = utils.parse_args(["--quick_break", str(n), "--gradient-accumulation-steps", str(group)])
        for micro_batch in range(group, 11, group):
            state = fine_tuning.TrainState(micro_batch=micro_batch)
            engine = type("Engine", (), {"module": type("Module", (), {"config": None})})
            guards = type("Guards", (), {"saves": survival.Saves()})
            fine_tuning.save_within_epoch(engine, state, group, False, guards, args)
        assert saved == expected


# -- a data set of one's own -------------------------------------------------------------------------------------------


def own_corpus(folder, shared_real, kind):
    """Real clips as somebody would have them: poses of one kind, one table of labels with a column of splits."""
    names = ("hands_84322c38", "hands_7731febd", "hands_6fb01565", "sgg_kinder", "sgg_kleine", "sgg_pizza")
    (folder / "poses").mkdir(parents=True)
    rows = []
    for number, name in enumerate(names):
        pose = read_pose(shared_real / f"isolated/pose_format/{name}.pkl")
        if kind == ".npz":
            np.savez_compressed(folder / f"poses/{name}.npz", keypoints=pose.keypoints, scores=pose.scores)
        else:
            points = {"BODY": 23, "FACE": 68, "LEFT_HAND": 21, "RIGHT_HAND": 21}
            components = {part: [str(i) for i in range(count)] for part, count in points.items()}
            pixels = (pose.keypoints * 1000).astype(np.float32)
            write_pose(folder / f"poses/{name}.pose", components, pixels[:, None], pose.scores[:, None], (1000, 1000))
        split = ("train", "train", "train", "train", "dev", "test")[number]
        rows.append({"name": name, "text": "Die Kinder essen.", "frames": len(pose), "split": split})
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


@pytest.mark.parametrize("kind", [".npz", ".pose"])
def test_a_table_and_other_pose_files(shared_real, world, tmp_path, kind, caplog):
    if kind == ".pose":
        pytest.importorskip("pose_format", reason="needs the extra pose")
    own_corpus(tmp_path / "mine", shared_real, kind)
    toml = (ROOT / "examples/own_table.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(toml.replace(".npz", kind), encoding="utf-8")
    flags = ("--dataset_config", tmp_path / "mine.toml", "--mt5_path", world / "pretrained_weight/mt5-base")
    out = run(tmp_path / "mine", tmp_path / "out", *flags)
    assert logged(out)[0]["loss"] > 0
    assert "chosen on test" not in caplog.text  # one file, but it tells dev from test
    run(tmp_path / "mine", out, *flags, "--eval", "--finetune", out / "best_checkpoint.pth")
    assert "tok:intl" in json.loads((out / "test_metrics.json").read_text())["signatures"]["bleu"]


def test_the_checklist_finds_wrong_frame_counts(shared_real, tmp_path, capsys):
    rows = own_corpus(tmp_path, shared_real, ".npz")
    content = (tmp_path / "labels.csv").read_text().replace(f"{rows[0]['frames']},train", "9,train")
    (tmp_path / "labels.csv").write_text(content)
    spec = DatasetSpec.from_toml(ROOT / "examples/own_table.toml").under(tmp_path)
    report = readiness.Report()
    look = readiness.look_at_split(report, spec, "train", 10**9)
    readiness.examine_descriptions(report, spec, "train", look, needed=False)
    said = capsys.readouterr().out
    assert "poses: 4 found, 0 missing, 1 unreadable" in said
    assert "the clip has 47 frames, the labels say 9" in said
    assert "descriptions: description_dir does not exist" in said
