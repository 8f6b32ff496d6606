"""run.json says what is needed to repeat a run, and boards get the numbers of the files."""

import dataclasses
import json
import shutil
import sys
from unittest.mock import Mock, call

import pytest
import torch

import fine_tuning
import utils
from config import DATASETS
from datasets import S2T_Dataset
from system.disk import read_lines
from tools import pack_dataset
from training import tracking
from training.run_folder import set_aside

SMALL = "--hidden_dim 16 --epochs 1 --batch-size 8 --gradient-accumulation-steps 1 --dtype fp32 --num_workers 0 "
SMALL += "--num_beams 1 --max_new_tokens 3"


def arguments(corpus, out, *flags):
    return utils.parse_args([*f"--root {corpus} --output_dir {out} {SMALL}".split(), *flags])


def tracker_of(corpus, out):
    return tracking.Tracker(out, vars(arguments(corpus, out)))


def record(out):
    return json.loads((out / "run.json").read_text())


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A run that was trained, resumed and evaluated."""
    out = tmp_path_factory.mktemp("tracking") / "out"
    fine_tuning.main(arguments(corpus, out, "--use_descriptions"))
    fine_tuning.main(arguments(corpus, out, "--use_descriptions", "--resume", "auto"))
    fine_tuning.main(
        arguments(corpus, out, "--use_descriptions", "--eval", "--finetune", str(out / "best_checkpoint.pth"))
    )
    return out


def test_every_start_is_kept(trained, corpus):
    starts = record(trained)["starts"]
    assert [(start["what"], start["from_step"]) for start in starts] == [
        ("training", 0),
        ("training", 3),
        ("evaluation", None),
    ]
    first, resumed, evaluated = starts
    assert first["arguments"] == vars(arguments(corpus, trained, "--use_descriptions"))
    assert resumed["arguments"]["resume"] == "auto"
    assert (first["processes"], first["global_batch"]) == (1, 8)
    assert first["revision"] == utils.git_revision()
    assert first["versions"]["torch"] == torch.__version__  # with the CUDA version that it was built for
    assert [start["engine"] for start in starts] == ["torch", "torch", None]
    assert first["dataset"]["text_unit"] == "char"
    assert set(first["data"]) == {"train", "dev", "test"}
    assert set(evaluated["data"]) == {"dev", "test"}
    assert first["data"] == resumed["data"]
    assert first["data"]["train"]["clips"] == 24


def test_a_new_run_in_the_folder_has_a_new_record(corpus, tmp_path):
    tmp_path.joinpath("run.json").write_text(json.dumps({"id": "old", "starts": []}))
    tmp_path.joinpath("best_checkpoint.pth").write_text("old")
    set_aside(tmp_path)
    set_aside(tmp_path)  # nothing is there any more
    tracker_of(corpus, tmp_path).start(DATASETS["CSL_Daily"], {}, 0)
    assert len(record(tmp_path)["starts"]) == 1
    assert record(tmp_path / "earlier")["id"] == "old"
    assert record(tmp_path)["id"] != "old"
    set_aside(tmp_path)
    assert record(tmp_path / "earlier")["id"] == "old" != record(tmp_path / "earlier_2")["id"]
    assert (tmp_path / "earlier" / "best_checkpoint.pth").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier", "earlier_2"]


def test_fingerprints_change_with_the_data(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "copy")
    spec = DATASETS["CSL_Daily"].under(tmp_path / "copy")

    def fingerprint():
        return S2T_Dataset(spec, "dev", use_descriptions=True).fingerprint

    before = fingerprint()
    pack_dataset.main(["--root", str(corpus), "--out", str(tmp_path / "packs")])
    places = {"pose_dir": f"{tmp_path}/packs/poses/{{split}}", "description_dir": f"{tmp_path}/packs/descriptions"}
    packed = S2T_Dataset(dataclasses.replace(spec, **places), "dev", use_descriptions=True).fingerprint
    assert packed == before
    assert before == S2T_Dataset(DATASETS["CSL_Daily"].under(corpus), "dev", use_descriptions=True).fingerprint
    name = S2T_Dataset(spec, "dev").names[0]
    with open(tmp_path / f"copy/dataset/CSL_Daily/pose_format/{name}.pkl", "ab") as file:
        file.write(b" ")
    changed = {key for key, value in fingerprint().items() if value != before[key]}
    assert changed == {"poses_sha256"}
    next((tmp_path / "copy/description/CSL-Daily/split_data/dev").glob("*.json")).unlink()
    changed = {key for key, value in fingerprint().items() if value != before[key]}
    assert changed == {"poses_sha256", "described", "descriptions_sha256"}


def test_a_damaged_record_is_named(corpus, tmp_path):
    (tmp_path / "run.json").write_text('{"id": ')
    with pytest.raises(ValueError, match=r"run.json is damaged \(.*\)\. Remove it, or put it back\."):
        tracker_of(corpus, tmp_path).start(DATASETS["CSL_Daily"], {}, 5)


def test_boards_get_the_numbers_of_the_files(corpus, tmp_path, caplog):
    tracker = tracker_of(corpus, tmp_path)
    tracker._run, tracker._writer = run, writer = Mock(), Mock()

    def run_until_stopped():
        with tracker:
            tracker.step({"step": 7, "epoch": 0, "loss": None, "lr": 0.1, "skipped": True})
            tracker.epoch(8, {"epoch": 0, "loss": 2.0, "dev_bleu4": 1.5})
            sys.exit(75)

    with pytest.raises(SystemExit):
        run_until_stopped()
    drawn = [
        call({"step": 7, "train/lr": 0.1}),
        call({"step": 8, "epoch/epoch": 0, "epoch/loss": 2.0, "dev/bleu4": 1.5}),
    ]
    assert run.log.mock_calls == drawn
    assert writer.add_scalar.mock_calls[0] == call("train/lr", 0.1, 7)
    assert run.finish.mock_calls == [call(exit_code=1)]
    writer.add_scalar.side_effect = OSError(28, "No space left on device")
    for step in (9, 10):
        tracker.step({"step": step, "epoch": 1, "loss": 1.0, "lr": 0.1})
    assert caplog.text.count("The plots stop here, the run goes on") == 1
    assert [line["step"] for line in read_lines(tmp_path / "steps.jsonl")] == [7, 9, 10]
    assert json.loads((tmp_path / "log.txt").read_text())["dev_bleu4"] == 1.5


def test_tensorboard_for_real(corpus, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tracking")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fine_tuning.main(arguments(corpus, tmp_path, "--tensorboard"))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    drawn = [(event.step, pytest.approx(event.value)) for event in events.Scalars("train/loss")]
    assert [(line["step"], line["loss"]) for line in steps] == drawn
    assert [event.step for event in events.Scalars("dev/bleu4")] == [steps[-1]["step"]]


def test_wandb_offline_for_real(corpus, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra tracking")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fine_tuning.main(arguments(corpus, tmp_path, "--wandb"))
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert folder.name.endswith(record(tmp_path)["id"])
    assert list(folder.glob("*.wandb"))


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_line(package, tmp_path, monkeypatch, capsys):
    """A mere folder of that name, which a run of wandb leaves, is none."""
    (tmp_path / package).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(SystemExit):
        utils.parse_args([f"--{package}"])
    assert f'--{package} needs a package: pip install -e ".[tracking]"' in capsys.readouterr().err
