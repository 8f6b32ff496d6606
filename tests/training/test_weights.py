"""Weights that start a run."""

import pytest
import torch
from torch import nn

from config import ModelConfig
from text_fusion_modules import TextAdapter
from training import weights
from training.weight_files import save_weights


class Model(nn.Module):
    """Names as in the real one, sizes not."""

    def __init__(self, fusion: bool = True, encoder: bool = True) -> None:
        super().__init__()
        self.pose_proj = nn.Linear(2, 3)
        if encoder:
            self.text_encoder = nn.Linear(3, 3)
        if fusion:
            self.gating_fusion = nn.Linear(3, 1)
            self.text_adapter = TextAdapter(2, 3)


def save(model, path, config):
    save_weights(path, model.state_dict(), config)
    return path


def load(function, model, path, config, files=None, **how):
    """Load into a model of this config, which reads these files beside its weights."""
    model.config, model.files = config, files or {}
    return function(model, path, **how)


@pytest.fixture(autouse=True)
def files_beside(monkeypatch):
    monkeypatch.setattr(weights, "files_beside", lambda model: model.files)


def test_a_base_without_text_loads_into_a_model_with_it(tmp_path, caplog):
    caplog.set_level("INFO")
    base, model = Model(fusion=False, encoder=False), Model()
    path = save(base, tmp_path / "base.pth", ModelConfig())
    load(weights.load_finetune, model, path, ModelConfig(use_descriptions=True))
    assert torch.equal(model.pose_proj.weight, base.pose_proj.weight)
    assert (
        "2 tensors loaded, new is text_encoder (2 tensors), gating_fusion (2 tensors), text_adapter (6 tensors)."
        in caplog.text
    )
    path = save(model, tmp_path / "fusion.pth", ModelConfig(use_descriptions=True))
    load(weights.load_finetune, model, path, ModelConfig(use_descriptions=True))
    assert "12 tensors loaded, new is nothing." in caplog.text


def test_nothing_is_dropped_in_silence(tmp_path):
    """All flags that differ are told at once."""
    model = Model()
    model.rgb_proj = nn.Linear(3, 3)
    path = save(model, tmp_path / "w.pth", ModelConfig(use_descriptions=True))
    with pytest.raises(ValueError, match="--finetune: .*w.pth was trained with descriptions") as error:
        load(weights.load_finetune, Model(fusion=False, encoder=False), path, ModelConfig())
    assert "add --use_descriptions. It" in str(error.value)
    assert "add --rgb_support." in str(error.value)


def test_a_mapper_is_never_dropped_in_silence(tmp_path):
    model = Model()
    model.description_mapper = nn.Linear(3, 3)
    path = save(model, tmp_path / "mapped.pth", ModelConfig(use_descriptions=True, description_alignment=0.3))
    with pytest.raises(ValueError, match="holds a mapper from poses to texts; drop --description_alignment 0"):
        load(weights.load_finetune, Model(), path, ModelConfig(use_descriptions=True, description_alignment=0))
    assert len(weights.fusion_weights(model.state_dict())) == 10
    new = load(weights.load_finetune, model, path, ModelConfig(use_descriptions=True, description_alignment=0.1))
    assert not new


def test_fusion_modules_without_an_adapter_are_refused(tmp_path):
    model = Model()
    del model.text_adapter
    path = save(model, tmp_path / "earlier.pth", ModelConfig(use_descriptions=True))
    with pytest.raises(ValueError, match="--finetune: .*earlier.pth has fusion modules without a text adapter"):
        load(weights.load_finetune, Model(), path, ModelConfig(use_descriptions=True))
    with pytest.raises(ValueError, match=r"missing: text_adapter\."):
        load(weights.load_fusion, Model(), path, ModelConfig(use_descriptions=True))


def test_another_kind_of_text_encoder_is_named(tmp_path):
    path = save(Model(), tmp_path / "fusion.pth", ModelConfig(use_descriptions=True, text_encoder="bert"))
    with pytest.raises(ValueError, match=r"--text_encoder bert; this run has \(none\)"):
        load(weights.load_finetune, Model(), path, ModelConfig(use_descriptions=True))
    load(weights.load_finetune, Model(), path, ModelConfig(use_descriptions=True, text_encoder="/elsewhere/bert"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("pose_proj.bias"), "missing: pose_proj.bias."),
        (lambda s: s.update(extra=torch.ones(1)), "unknown: extra."),
        (lambda s: s.update({"pose_proj.bias": torch.ones(7)}), "of another shape: pose_proj.bias (7,) for (3,)."),
    ],
)
def test_weights_that_do_not_fit_are_refused_whole(tmp_path, change, words):
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = dict(Model().state_dict())
    change(state)
    torch.save({"model": state}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not fit this model") as error:
        load(weights.load_finetune, model, tmp_path / "w.pth", ModelConfig(use_descriptions=True))
    assert words in str(error.value)
    causes = ("another mT5 (--mt5_path)", "another --hidden_dim", "no Uni-Sign checkpoint at all")
    assert all(cause in str(error.value) for cause in causes)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_fusion_weights_load_alone(tmp_path):
    source, model = Model(), Model()
    path = tmp_path / "best_fusion.pth"
    save_weights(path, weights.fusion_weights(source.state_dict()), ModelConfig())
    kept = model.pose_proj.weight.clone()
    load(weights.load_fusion, model, path, ModelConfig(use_descriptions=True))
    assert torch.equal(model.gating_fusion.weight, source.gating_fusion.weight)
    assert torch.equal(model.pose_proj.weight, kept)
    with pytest.raises(ValueError, match="--fusion_checkpoint: .* does not hold"):
        load(weights.load_fusion, model, save(Model(fusion=False), tmp_path / "none.pth", ModelConfig()), ModelConfig())


def test_fusion_modules_belong_to_their_text_encoder(tmp_path, caplog):
    """Other encoders are as wide: shapes do not tell."""
    path, config = tmp_path / "best_fusion.pth", ModelConfig(use_descriptions=True, text_encoder="bert")
    modules, frozen = weights.fusion_weights(Model().state_dict()), {weights.FROZEN_ENCODER: "a"}

    def said(config, files, **how):
        caplog.clear()
        load(weights.load_fusion, Model(), path, config, files, **how)
        return caplog.text

    save_weights(path, modules, config, files=frozen)
    with pytest.raises(
        ValueError, match=r"best_fusion.pth was trained with --text_encoder bert; this run has \(none\)"
    ):
        said(ModelConfig(use_descriptions=True), frozen)
    with pytest.raises(ValueError, match="--text_max_tokens 128; this run has 64"):
        said(ModelConfig(use_descriptions=True, text_encoder="bert", text_max_tokens=64), frozen)
    assert "WARNING" not in said(config, frozen, evaluated=True)
    assert "was trained with other files; different are: the frozen text" in said(config, {weights.FROZEN_ENCODER: "b"})
    with pytest.raises(ValueError, match="was trained with other files"):
        said(config, {weights.FROZEN_ENCODER: "b"}, evaluated=True)

    save_weights(path, modules, ModelConfig(use_descriptions=True), files={})
    assert "was trained together with its text encoder" in said(ModelConfig(use_descriptions=True), frozen)
    with pytest.raises(
        ValueError, match="was trained together with its text encoder, which is in the whole checkpoint"
    ):
        said(ModelConfig(use_descriptions=True), frozen, evaluated=True)
    assert "WARNING" not in said(ModelConfig(use_descriptions=True), {}, evaluated=True, encoder_loaded=True)


def test_a_small_file_cannot_ask_for_a_large_model():
    held = {"part_para": torch.zeros(4 * 20000)}
    with pytest.raises(ValueError, match="--finetune: w.pth says hidden_dim 20000, but its weights have another width"):
        weights.Checkpoint("--finetune: w.pth", held, {"config": {"hidden_dim": 20000}}).config()
