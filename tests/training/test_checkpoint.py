"""States on disk."""

import dataclasses
from unittest.mock import Mock

import pytest
import torch
from torch import nn

import utils
from config import ModelConfig
from system.disk import sha256
from training import checkpoint
from training.checkpoint import TrainState

FILES = ("weights.pt", "optimizer.pt", "processes.pt")


def state_folder(output_dir, number, whole=True):
    folder = output_dir / "resume" / f"step_{number:08d}"
    folder.mkdir(parents=True)
    if whole:
        for name in FILES:
            (folder / name).write_bytes(b"content")
        digests = {name: sha256(folder / name) for name in FILES}
        checkpoint.write_progress(folder, TrainState(step=number, digests=digests))
    return folder


def test_no_flag_that_makes_the_model_or_its_training_is_free():
    flags = vars(utils.parse_args([])).keys()
    assert flags >= checkpoint.FREE_FLAGS
    switches = {field.name for field in dataclasses.fields(ModelConfig)} & flags
    assert len(switches) >= 10
    training = {"lr", "seed", "opt", "epochs", "finetune", "trainable", "length_grouping", "dtype"}
    assert not checkpoint.FREE_FLAGS & (switches | training)


def test_a_state_of_another_mt5_is_refused(tmp_path):
    """Its folder may be another one in a resumed run, with the same files."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    torch.save(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"--resume: .* does not fit.*: of another shape: .*0\.bias \(4,\) for"):
        checkpoint.load_model_state(model, tmp_path)
    wanted = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).state_dict()
    torch.save(wanted, tmp_path / "weights.pt")
    checkpoint.load_model_state(model, tmp_path)
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("file", "kept", "said"),
    [
        ({"score": 7.5, "epoch": 1}, True, ""),
        ({"score": 7.5, "epoch": 3}, False, ""),  # killed right after it had saved a better one
        ({"score": 7.5, "epoch": 4}, False, "is not the best checkpoint so far, whose score was 7.5"),
        ({"score": 9.0, "epoch": 1}, False, "is not the best checkpoint so far"),
        (None, False, "is not the best checkpoint so far"),
    ],
)
def test_a_best_checkpoint_of_another_course_does_not_count(tmp_path, caplog, file, kept, said):
    best = tmp_path / "best_checkpoint.pth"
    if file:
        torch.save({"model": {"a": torch.ones(1)}, **file}, best)
    state = TrainState(epoch=3, best=[7.5, 2.0])
    assert checkpoint.best_on_disk(state, best, epochs=5) == ([7.5, 2.0] if kept else None)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)
    assert checkpoint.best_on_disk(TrainState(epoch=3), best, epochs=3) is None
    if not kept:
        with pytest.raises(ValueError, match=r"best_checkpoint.pth is not .* no epoch is left"):
            checkpoint.best_on_disk(state, best, epochs=3)


def test_auto_finds_the_newest_whole_state(tmp_path, caplog):
    assert checkpoint.find_state("auto", tmp_path) is None
    state_folder(tmp_path, 90)
    newest = state_folder(tmp_path, 100)
    state_folder(tmp_path, 110, whole=False)
    (tmp_path / "resume" / "unfinished_00000120").mkdir()
    (tmp_path / "resume" / "step_00000120 (copy)").mkdir()
    assert checkpoint.find_state("auto", tmp_path)[0] == newest
    assert "step_00000110/state.json is damaged" in caplog.text
    assert checkpoint.find_state(str(newest), tmp_path)[1].step == 100
    with pytest.raises(ValueError, match=r"--resume: .*state\.json is damaged \(FileNotFoundError"):
        checkpoint.find_state(str(tmp_path), tmp_path)


def test_a_state_that_cannot_be_removed_is_no_failed_save(tmp_path, monkeypatch, caplog):
    for name, value in (("full_state_dict", {}), ("optimizer_tensors", ()), ("optimizer_numbers", {})):
        monkeypatch.setattr(checkpoint, name, Mock(return_value=value))
    monkeypatch.setattr(checkpoint, "remove_folder", Mock(side_effect=OSError(39, "Directory not empty")))
    (tmp_path / "step_00000001").mkdir()
    (tmp_path / "unfinished_business").touch()
    checkpoint.state_writer(None, TrainState(step=2), tmp_path / "step_00000002", keep_last=1)()
    assert checkpoint.read_progress(tmp_path / "step_00000002").step == 2
    assert "step_00000001 cannot be removed: Directory not empty" in caplog.text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "weights.pt").write_bytes(b"weightz"), "weights.pt is damaged"),
        (lambda folder: (folder / "weights.pt").unlink(), "weights.pt cannot be read"),
        (lambda folder: (folder / "state.json").write_text("{"), "state.json is damaged"),
        (lambda folder: (folder / "state.json").write_text("[1]"), "state.json is damaged"),
        (lambda folder: (folder / "state.json").write_text('{"sha256": "0", "step": 3}'), "state.json is damaged"),
        (
            lambda folder: (folder / "state.json").write_text(
                (folder / "state.json").read_text().replace('"step": 100', '"step": 101')
            ),
            "state.json is damaged",
        ),
    ],
)
def test_a_damaged_state_is_named(tmp_path, damage, words):
    folder = state_folder(tmp_path, 100)
    damage(folder)
    with pytest.raises(ValueError, match=f"--resume: .*{words}") as error:
        checkpoint.find_state(str(folder), tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="--resume auto: all 1 states .* are damaged"):
        checkpoint.find_state("auto", tmp_path)


ARGUMENTS = vars(utils.parse_args(["--batch-size", "4", "--gradient-accumulation-steps", "6"]))


@pytest.mark.parametrize(
    ("batch_size", "steps", "before", "n_batches", "after"),
    [
        (4, 6, 12, 50, 12),
        (8, 3, 12, 25, 6),
        (2, 12, 12, 100, 24),
        (24, 1, 12, 9, 2),
        (8, 3, 50, 25, 25),  # at the end of the epoch
        (8, 3, 49, 25, 25),  # at the end of an epoch of an odd number
    ],
)
def test_the_place_in_the_epoch_is_counted_in_clips(tmp_path, batch_size, steps, before, n_batches, after):
    state = TrainState(micro_batch=before, arguments=ARGUMENTS)
    now = {**ARGUMENTS, "batch_size": batch_size, "gradient_accumulation_steps": steps, "zero_stage": 1}
    assert checkpoint.check_resumable(tmp_path, state, now, n_batches).micro_batch == after


def test_another_global_batch_is_refused(tmp_path):
    state = TrainState(arguments=ARGUMENTS, n_processes=2)
    with pytest.raises(ValueError, match=r"global batch of 48 = 4 x 6 x 2.*this run has 24 = 4 x 6 x 1"):
        checkpoint.check_resumable(tmp_path, state, ARGUMENTS, 10)
