"""Small random models."""

from pathlib import Path
from typing import Any

import torch
from transformers import MT5ForConditionalGeneration

from config import ModelConfig
from models import Uni_Sign
from network.mt5 import MT5, load_mt5
from network.rgb_branch import MBConv
from network.vocabulary import Tokenizer
from text_fusion_modules import TextEncoder
from training.weight_files import save_weights


def as_in_transformers(mt5: MT5ForConditionalGeneration) -> MT5ForConditionalGeneration:
    """A copy of a model's mT5 that runs as transformers runs it."""
    copy = MT5(mt5.config).train(mt5.training)
    copy.load_state_dict(mt5.state_dict())
    copy.generation_config = mt5.generation_config
    return copy


def without_drop(model: Uni_Sign) -> Uni_Sign:
    """Take stochastic depth of the hand backbone out: it was off in the recordings."""
    for module in model.modules():
        if isinstance(module, MBConv):
            module.drop = 0.0
    return model.train()


def read_texts(model: Uni_Sign) -> None:
    """Let texts matter in a new model, as after the first steps of training."""
    with torch.no_grad():
        model.text_adapter.layers[-1].weight.normal_(std=0.1)
        model.text_adapter.n_batches.fill_(1)


def new_model(folder: Path, kept: torch.Tensor | None = None, **changes: Any) -> Uni_Sign:
    """A model whose sentences depend on poses and texts; the same weights whatever tokens are kept."""
    torch.manual_seed(2)
    config = ModelConfig(hidden_dim=16, **changes)
    texts = TextEncoder(folder, kept=kept) if config.use_descriptions else None
    model = Uni_Sign(config, load_mt5(folder, kept=kept), Tokenizer(folder, kept), texts).eval()
    with torch.no_grad():
        model.pose_proj.weight *= 10
    if config.use_descriptions:
        read_texts(model)
    return model


def save_model(model: Uni_Sign, path: Path, mt5_folder: Path, max_length: int = 256) -> Path:
    """Write a checkpoint of a model that was made with `new_model`."""
    save_weights(path, model.state_dict(), model.config, mt5_path=str(mt5_folder), max_length=max_length)
    return path
