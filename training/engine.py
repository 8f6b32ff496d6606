"""Set up the engine that trains, and gather and restore what ZeRO shards over the processes.

It is DeepSpeed's for `--offload`, and for several processes at `--zero_stage` 1 and 2; else torch trains alone.

Weights and optimizer state are gathered by name in fp32. They then depend neither on the engine, nor on the number of
processes or the ZeRO stage, so all may differ when a run is resumed.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from system.distributed import (
    autocast,
    broadcast,
    broadcast_weights,
    device,
    is_main,
    sum_over_processes,
    world_size,
)
from utils import needs_deepspeed


@dataclass(frozen=True)
class EngineConfig:
    """What DeepSpeed is told; names and values are those of the flags."""

    batch_size: int
    gradient_accumulation_steps: int
    gradient_clipping: float
    zero_stage: int
    offload: bool
    pin_mem: bool
    dtype: str


def deepspeed_config(config: EngineConfig) -> dict[str, Any]:
    """Return DeepSpeed's own configuration.

    Parameters, accumulated gradients and batch statistics stay in fp32. Matrix products run in bf16 or fp16 under
    autocast; gradients of linear layers are communicated in that precision. (Casting the whole model to bf16 would keep
    batch statistics with an 8-bit mantissa on a GPU, and fail on a CPU.)
    """
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.pin_mem}
    dtypes = {"bf16": "bfloat16", "fp16": "float16"}
    return {
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.gradient_clipping,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": config.dtype != "fp32", "dtype": dtypes.get(config.dtype, "bfloat16")},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def start_engine(
    model: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRScheduler, config: EngineConfig
) -> Any:
    """Wrap a model for training on all processes; on several GPUs they share batch statistics.

    Returns:
        DeepSpeed's engine, or a `TorchEngine` where nothing of it is needed; `engine.module` is the model.
    """
    if world_size() > 1 and device().type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if not needs_deepspeed(config.zero_stage, config.offload):
        return TorchEngine(model, optimizer, schedule, config)
    engine, *_ = _deepspeed().initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=deepspeed_config(config)
    )
    if config.dtype == "fp16":
        _clip_scaled(engine.optimizer, config.gradient_clipping)
    return engine


def _deepspeed() -> Any:
    """Import DeepSpeed, and start the process group that it needs even for a single process."""
    if device().type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed calls functions that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed

    # On a CPU it would compile its own collective at first use, which needs a C++ compiler; gloo is sufficient.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if sys.platform != "win32" and not dist.is_initialized():  # no port is opened, so runs cannot conflict
        # Without these, DeepSpeed looks for MPI.
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        backend = "gloo" if device().type == "cpu" else "nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return deepspeed


class TorchEngine:
    """Trains with torch alone: what is used here of DeepSpeed's engine, with its losses, and nothing sharded."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRScheduler, config: EngineConfig
    ) -> None:
        self.device = device()
        self.module, self.optimizer, self.lr_scheduler = model.to(self.device), optimizer, schedule
        self.config = config
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.dtype == "fp16")
        self._ends_step = self._stepped = False
        broadcast_weights(self.module)

    def __call__(self, *batch: Any) -> Any:
        """Run the model's forward pass."""
        with autocast(self.config.dtype, self.device):
            return self.module(*batch)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Say whether the micro-batch is the last of its step."""
        self._ends_step = is_boundary

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a micro-batch's loss."""
        self.scaler.scale(loss / self.config.gradient_accumulation_steps).backward()

    def step(self) -> None:
        """After a step's last micro-batch, clip the gradients and update the weights, if all gradients are finite."""
        if not self._ends_step:
            return
        if world_size() > 1:
            self._average_gradients()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.gradient_clipping or float("inf"))
        self._stepped = bool(torch.isfinite(norm))
        if self._stepped:
            self.scaler.step(self.optimizer)
            self.lr_scheduler.step()
        self.scaler.update()
        self.optimizer.zero_grad()

    def _average_gradients(self) -> None:
        """Give every process the mean of all gradients; a parameter that had none counts as 0."""
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = sum_over_processes(gradient / world_size())

    def was_step_applied(self) -> bool:
        """Return whether the last step has updated the weights."""
        return self._stepped


def _clip_scaled(optimizer: Any, longest: float) -> None:
    """With fp16 and ZeRO, multiply the maximum gradient norm by the loss scale.

    DeepSpeed 0.19 clips gradients before its GradScaler unscales them: a norm of 1 would be clipped to 1 / 65536.
    """
    take_step = optimizer.step

    def step(*arguments: Any, **options: Any) -> Any:
        optimizer.clip_grad = longest * optimizer.torch_autocast_gradscaler.get_scale()
        return take_step(*arguments, **options)

    optimizer.step = step


def full_state_dict(engine: Any) -> dict[str, torch.Tensor]:
    """Copy the whole model's weights to rank 0's CPU; {} elsewhere."""
    full: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}  # one copy of shared weights
    for name, value in engine.module.state_dict(keep_vars=True).items() if is_main() else ():
        if id(value) not in copies:
            copies[id(value)] = value.detach().to("cpu", copy=True)
        full[name] = copies[id(value)]
    return full


def optimizer_tensors(engine: Any) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Gather the optimizer state of every trained parameter; all processes must iterate to the end.

    Yields:
        The kind ("exp_avg", ...) and {name: fp32 tensor} on rank 0's CPU; empty dicts on other ranks.
    """
    _link(engine)
    state = _inner_optimizer(engine).state
    values = [pair for held in state.values() for pair in held.items()]
    kinds = sorted({kind for kind, value in values if isinstance(value, torch.Tensor) and value.ndim})  # not "step"
    for kind in kinds:
        tensors = {}
        for name, parameter in _trained(engine):
            if isinstance(engine, TorchEngine):
                value = state.get(parameter, {}).get(kind, torch.zeros_like(parameter))  # zeros: it had no gradient yet
            else:
                import deepspeed

                value = deepspeed.utils.safe_get_full_optimizer_state(parameter, kind)
            if is_main() and value is not None:
                tensors[name] = value.detach().to("cpu", copy=True)
        yield kind, tensors


def optimizer_numbers(engine: Any) -> dict[str, Any]:
    """Return the non-tensor state of optimizer, schedule and gradient scaler."""
    steps = [float(held["step"]) for held in _inner_optimizer(engine).state.values() if "step" in held]
    scaler = _gradient_scaler(engine)
    return {
        "step": max(steps, default=None),
        "schedule": engine.lr_scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler else {},
    }


def restore_optimizer(engine: Any, numbers: dict[str, Any], kinds: list[str], read: Callable[[str], dict]) -> None:
    """Restore the optimizer from the results of the two functions above; all processes must call this.

    The engine is new and has its weights; `read`, called on rank 0 only, maps a kind to {name: tensor}.
    """
    _make_room(engine, kinds, numbers["step"])
    inner = _inner_optimizer(engine)
    for kind in kinds:
        tensors = read(kind) if is_main() else {}
        for name, parameter in _trained(engine):
            value = broadcast(tensors[name].to(engine.device) if is_main() else torch.empty_like(parameter))
            if isinstance(engine, TorchEngine):
                inner.state[parameter][kind] = value
            else:
                import deepspeed

                deepspeed.utils.safe_set_full_optimizer_state(parameter, value, kind)
    engine.lr_scheduler.load_state_dict(numbers["schedule"])
    for group, lr in zip(inner.param_groups, numbers["schedule"]["_last_lr"], strict=True):
        group["lr"] = lr
    if (scaler := _gradient_scaler(engine)) and numbers["scaler"]:
        scaler.load_state_dict(numbers["scaler"])


def lower_gradient_scale(engine: Any) -> bool:
    """Lower the loss scale after an fp16 overflow, which ZeRO optimizers fail to do; return whether this may help."""
    scaler = _gradient_scaler(engine)
    if scaler is None:
        return False
    if not isinstance(engine, TorchEngine):
        scaler.update(scaler.get_scale() / 2)
    return scaler.get_scale() >= 1


def _make_room(engine: Any, kinds: list[str], step: float | None) -> None:
    """Allocate the state that the optimizer would allocate in its first step."""
    inner = _inner_optimizer(engine)
    if isinstance(engine, TorchEngine):
        held = [parameter for _, parameter in _trained(engine)]
    else:
        held = engine.optimizer.single_partition_of_fp32_groups
    for flat in held:
        inner.state[flat] = {kind: torch.zeros_like(flat) for kind in kinds}
        if step is not None:
            inner.state[flat]["step"] = torch.tensor(step, device=flat.device)  # on the device, for a fused optimizer
    _link(engine)


def _link(engine: Any) -> None:
    """Link each parameter to its part of DeepSpeed's flat state tensors.

    DeepSpeed links them only after the first parameter group has stepped, and never for the other groups.
    """
    if not isinstance(engine, TorchEngine):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _trained(engine: Any) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def _inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer if isinstance(engine, TorchEngine) else engine.optimizer.optimizer


def _gradient_scaler(engine: Any) -> Any:
    """Return the fp16 GradScaler, or None for other dtypes."""
    if isinstance(engine, TorchEngine):
        return engine.scaler if engine.scaler.is_enabled() else None
    return getattr(engine.optimizer, "torch_autocast_gradscaler", None)
