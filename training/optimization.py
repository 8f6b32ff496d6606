"""Optimizer, weight decay and learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from training.weights import TEXT_ENCODER_PREFIX

# The text encoder's share of the learning rate. At the full rate its features change faster than the rest of the model
# learns to read them.
ENCODER_RATE = 0.1


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and the schedule of its learning rate; names and values are those of the flags."""

    opt: str = "adamw"
    opt_betas: tuple[float, float] | None = None
    opt_eps: float = 1e-9
    weight_decay: float = 1e-4
    sched: str = "cosine"
    lr: float = 1e-3
    min_lr: float = 1e-8
    epochs: int = 20
    warmup_epochs: float = 0


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Group parameters for weight decay and learning rate.

    Matrices decay, vectors (biases, norms) do not. The text encoder has `ENCODER_RATE` of the learning rate.

    Returns:
        The group without decay, the group with decay, then the same two for the text encoder, without empty groups;
        frozen parameters are in none. "rate" is a group's share of the learning rate.

    Source: the first two are those of `create_optimizer` of timm 0.8, as Uni-Sign uses it.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = []
    for of_encoder, rate in ((False, 1.0), (True, ENCODER_RATE)):
        own = [parameter for name, parameter in trained if name.startswith(TEXT_ENCODER_PREFIX) == of_encoder]
        vectors, matrices = ([p for p in own if (p.ndim > 1) == decays] for decays in (False, True))
        groups.append({"params": vectors, "weight_decay": 0.0, "rate": rate})
        groups.append({"params": matrices, "weight_decay": weight_decay, "rate": rate})
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer.

    Raises:
        ValueError: no parameter is trainable.
    """
    groups = parameter_groups(model, config.weight_decay)
    if not groups:
        raise ValueError("--trainable: no parameter is left to train.")
    if config.opt == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    kind = torch.optim.AdamW if config.opt == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.opt_betas or (0.9, 0.999), eps=config.opt_eps, fused=True)


def lr_lambda(name: str, warmup_steps: int, total_steps: int, floor: float = 0.0) -> Callable[[int], float]:
    """Return the function from the number of steps taken to the next step's learning rate, as a fraction of `--lr`.

    >>> factor = lr_lambda("cosine", warmup_steps=0, total_steps=20)
    >>> [round(factor(step), 3) for step in (0, 10, 20)]
    [1.0, 0.5, 0.0]

    Source: the cosine is `get_cosine_schedule_with_warmup` of transformers, as Uni-Sign uses it.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[name]
        return max(shape, floor)

    return factor


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the learning rate's schedule, per optimizer step."""
    factor = lr_lambda(
        config.sched,
        warmup_steps=int(config.warmup_epochs * steps_per_epoch),
        total_steps=config.epochs * steps_per_epoch,
        floor=config.min_lr / config.lr,
    )

    def share(rate: float) -> Callable[[int], float]:
        return lambda step: rate * factor(step)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, [share(group["rate"]) for group in optimizer.param_groups])
