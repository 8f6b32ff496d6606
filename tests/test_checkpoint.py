"""Weights and states on disk."""

import json

import pytest
import torch
from torch import nn

import checkpoint
import utils
from checkpoint import TrainState
from config import ModelConfig
from disk import sha256


def test_weights_survive_the_round_trip(tmp_path):
    state = {"a.weight": torch.randn(3, 2), "b.bias": torch.zeros(4)}
    checkpoint.save_weights(tmp_path / "w.pth", state, ModelConfig(hidden_dim=32), epoch=3, score=1.5)
    weights, facts = checkpoint.read_weights(tmp_path / "w.pth", "--finetune")
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)
    assert (facts["epoch"], facts["score"], facts["config"]["hidden_dim"]) == (3, 1.5, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    checkpoint.save_weights(path, {"a": torch.ones(1)}, ModelConfig())

    def fail(content, file):
        file.write(b"half")
        raise OSError("No space left on device")

    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_weights(path, {"a": torch.zeros(1)}, ModelConfig())
    assert torch.equal(checkpoint.read_weights(path, "--finetune")[0]["a"], torch.ones(1))


def test_safetensors_and_bare_state_dicts_load(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "bare.pth")
    for name in ("w.safetensors", "bare.pth"):
        weights, facts = checkpoint.read_weights(tmp_path / name, "--finetune")
        assert torch.equal(weights["a"], torch.ones(2))
        assert facts == {}


@pytest.mark.parametrize("name", ["checkpoint_plain_pickle.pth", "checkpoint_zip.pth"])
def test_hostile_checkpoints_run_nothing(shared_real, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"--finetune: .*{name}") as error:
        checkpoint.read_weights(shared_real / "hostile" / name, "--finetune")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut short"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="--finetune: .*w.pth holds no weights"):
        checkpoint.read_weights(path, "--finetune")


def test_other_contents_are_refused(tmp_path):
    torch.save({"model": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(ValueError, match="no state dict"):
        checkpoint.read_weights(tmp_path / "list.pth", "--finetune")
    with pytest.raises(FileNotFoundError, match="--finetune: .*none.pth"):
        checkpoint.read_weights(tmp_path / "none.pth", "--finetune")


class Model(nn.Module):
    """Names as in the real one, sizes not."""

    def __init__(self, fusion: bool = True, encoder: bool = True) -> None:
        super().__init__()
        self.pose_proj = nn.Linear(2, 3)
        if encoder:
            self.text_encoder = nn.Linear(3, 3)
        if fusion:
            self.gating_fusion = nn.Linear(3, 1)


def save(model, path, config):
    checkpoint.save_weights(path, model.state_dict(), config)
    return path


def test_a_base_without_text_loads_into_a_model_with_it(tmp_path, caplog):
    caplog.set_level("INFO")
    base, model = Model(fusion=False, encoder=False), Model()
    path = save(base, tmp_path / "base.pth", ModelConfig())
    checkpoint.load_finetune(model, path, ModelConfig(use_descriptions=True))
    assert torch.equal(model.pose_proj.weight, base.pose_proj.weight)
    assert "2 tensors loaded, new is text_encoder (2 tensors), gating_fusion (2 tensors)." in caplog.text
    path = save(model, tmp_path / "fusion.pth", ModelConfig(use_descriptions=True))
    checkpoint.load_finetune(model, path, ModelConfig(use_descriptions=True))
    assert "6 tensors loaded, new is nothing." in caplog.text


def test_a_text_branch_is_never_dropped_in_silence(tmp_path):
    path = save(Model(), tmp_path / "fusion.pth", ModelConfig(use_descriptions=True))
    with pytest.raises(ValueError, match="was trained with descriptions; add --use_descriptions"):
        checkpoint.load_finetune(Model(fusion=False, encoder=False), path, ModelConfig())


def test_a_mapper_is_never_dropped_in_silence(tmp_path):
    model = Model()
    model.description_mapper = nn.Linear(3, 3)
    path = save(model, tmp_path / "mapped.pth", ModelConfig(use_descriptions=True, missing_text="mapper"))
    with pytest.raises(ValueError, match="holds a mapper from poses to texts. Add --missing_text mapper"):
        checkpoint.load_finetune(Model(), path, ModelConfig(use_descriptions=True))
    assert len(checkpoint.fusion_weights(model.state_dict())) == 4
    new = checkpoint.load_finetune(model, path, ModelConfig(use_descriptions=True, description_alignment=0.1))
    assert not new


def test_a_trained_encoder_is_not_replaced_by_a_cache(tmp_path):
    """Its features were learnt with the rest; the cache would hold those of the encoder as it was before."""
    path = save(Model(), tmp_path / "fusion.pth", ModelConfig(use_descriptions=True))
    with pytest.raises(ValueError, match="--text_encoder_freeze"):
        checkpoint.load_finetune(Model(encoder=False), path, ModelConfig(use_descriptions=True))


def test_another_text_encoder_is_named(tmp_path):
    path = save(Model(), tmp_path / "fusion.pth", ModelConfig(use_descriptions=True, text_encoder="bert"))
    with pytest.raises(ValueError, match=r"--text_encoder bert; this run has \(none\)"):
        checkpoint.load_finetune(Model(), path, ModelConfig(use_descriptions=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("pose_proj.bias"), "1 weights are missing (first pose_proj.bias)"),
        (lambda s: s.update(extra=torch.ones(1)), "1 are unknown (first extra)"),
        (lambda s: s.update({"pose_proj.bias": torch.ones(7)}), "(first pose_proj.bias: (7,) for (3,))"),
    ],
)
def test_weights_that_do_not_fit_are_refused_whole(tmp_path, change, words):
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = dict(Model().state_dict())
    change(state)
    torch.save({"model": state}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not fit this model") as error:
        checkpoint.load_finetune(model, tmp_path / "w.pth", ModelConfig(use_descriptions=True))
    assert words in str(error.value)
    causes = ("another mT5 (--mt5_path)", "another --hidden_dim", "no Uni-Sign checkpoint at all")
    assert all(cause in str(error.value) for cause in causes)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_fusion_weights_load_alone(tmp_path):
    source, model = Model(), Model()
    path = tmp_path / "best_fusion.pth"
    checkpoint.save_weights(path, checkpoint.fusion_weights(source.state_dict()), ModelConfig())
    kept = model.pose_proj.weight.clone()
    checkpoint.load_fusion(model, path)
    assert torch.equal(model.gating_fusion.weight, source.gating_fusion.weight)
    assert torch.equal(model.pose_proj.weight, kept)
    with pytest.raises(ValueError, match="--fusion_checkpoint: .* does not hold"):
        checkpoint.load_fusion(model, save(Model(fusion=False), tmp_path / "none.pth", ModelConfig()))


def state_folder(output_dir, step, whole=True):
    folder = output_dir / "resume" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    if whole:
        (folder / "weights.pt").write_bytes(b"weights")
        checkpoint.write_progress(folder, TrainState(step=step, digests={"weights.pt": sha256(folder / "weights.pt")}))
    return folder


def test_auto_finds_the_newest_whole_state(tmp_path, caplog):
    assert checkpoint.find_state("auto", tmp_path) is None
    state_folder(tmp_path, 90)
    newest = state_folder(tmp_path, 100)
    state_folder(tmp_path, 110, whole=False)
    (tmp_path / "resume" / "unfinished_00000120").mkdir()
    assert checkpoint.find_state("auto", tmp_path)[0] == newest
    assert "step_00000110/state.json is damaged" in caplog.text
    assert checkpoint.find_state(str(newest), tmp_path)[1].step == 100
    with pytest.raises(FileNotFoundError, match="--resume"):
        checkpoint.find_state(str(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "weights.pt").write_bytes(b"weightz"), "weights.pt is damaged"),
        (lambda folder: (folder / "weights.pt").write_bytes(b"wei"), "weights.pt is damaged"),
        (lambda folder: (folder / "weights.pt").unlink(), "weights.pt cannot be read"),
        (lambda folder: (folder / "state.json").write_text("{"), "state.json is damaged"),
        (lambda folder: (folder / "state.json").write_text("[" * 100_000), "state.json is damaged"),
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


def test_curves_are_cut_to_where_the_state_stands(tmp_path):
    (tmp_path / "log.txt").write_text("".join(json.dumps({"epoch": n}) + "\n" for n in range(3)))
    (tmp_path / "steps.jsonl").write_text(
        "".join(json.dumps({"step": n}) + "\n" for n in range(1, 9)) + '{"step": 9, "l'
    )
    checkpoint.trim_curves(tmp_path, TrainState(epoch=1, step=5))
    assert (tmp_path / "log.txt").read_text() == '{"epoch": 0}\n'
    assert [json.loads(line)["step"] for line in (tmp_path / "steps.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]


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
    now = {**ARGUMENTS, "batch_size": batch_size, "gradient_accumulation_steps": steps, "zero_stage": 3}
    assert checkpoint.check_resumable(tmp_path, state, now, n_batches).micro_batch == after


def test_another_global_batch_is_refused(tmp_path):
    state = TrainState(arguments=ARGUMENTS, n_processes=2)
    with pytest.raises(ValueError, match=r"global batch of 48 = 4 x 6 x 2.*this run has 24 = 4 x 6 x 1"):
        checkpoint.check_resumable(tmp_path, state, ARGUMENTS, 10)


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 10]), (1, [10]), (2, [2, 10]), (9, [1, 2, 10])])
def test_newest_checkpoints_are_kept(tmp_path, keep, left):
    for epoch in (1, 2, 10):
        (tmp_path / f"checkpoint_{epoch}.pth").touch()
    (tmp_path / "checkpoint_mine.pth").touch()
    checkpoint.forget_checkpoints(tmp_path, keep)
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint_{n}.pth" for n in left} | {"checkpoint_mine.pth"}
