"""Set up the engine that trains, and gather and restore what ZeRO shards over the processes.

It is DeepSpeed's for several processes, `--offload` and `--zero_stage` 1 or 3; else one process trains with torch
alone.

Weights and optimizer state are gathered by name in fp32. They then depend neither on the engine, nor on the number of
processes or the ZeRO stage, so all may differ when a run is resumed.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from system.distributed import autocast, broadcast, device, is_main, rank, world_size
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
    """Wrap a model for training on all processes.

    Returns:
        DeepSpeed's engine, or a `TorchEngine` where one process needs nothing of it; `engine.module` is the model.
    """
    if not needs_deepspeed(config.zero_stage, config.offload):
        return TorchEngine(model, optimizer, schedule, config)
    deepspeed = _deepspeed()
    if config.zero_stage == 0:
        _skip_non_finite(optimizer)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=deepspeed_config(config)
    )
    if config.zero_stage and config.dtype == "fp16":
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
    """Trains in one process with torch alone: what is used here of DeepSpeed's engine, with its losses without ZeRO."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRScheduler, config: EngineConfig
    ) -> None:
        self.device = device()
        self.module, self.optimizer, self.lr_scheduler = model.to(self.device), optimizer, schedule
        self.config = config
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.dtype == "fp16")
        self._ends_step = self._stepped = False

    def __call__(self, *batch: Any) -> Any:
        """Run the model's forward pass."""
        with autocast(self.config.dtype, self.device):
            return self.module(*batch)

    def train(self) -> None:
        """Switch the model to training."""
        self.module.train()

    def eval(self) -> None:
        """Switch the model to evaluation."""
        self.module.eval()

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
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.gradient_clipping or float("inf"))
        self._stepped = bool(torch.isfinite(norm))
        if self._stepped:
            self.scaler.step(self.optimizer)
            self.lr_scheduler.step()
        self.scaler.update()
        self.optimizer.zero_grad()

    def was_step_applied(self) -> bool:
        """Return whether the last step has updated the weights."""
        return self._stepped

    def get_lr(self) -> list[float]:
        """Return the learning rates of the parameter groups."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def zero_optimization_stage(self) -> int:
        """Return 0: nothing is sharded."""
        return 0


def _clip_scaled(optimizer: Any, longest: float) -> None:
    """With fp16 and ZeRO 1 to 3, multiply the maximum gradient norm by the loss scale.

    DeepSpeed 0.19 clips gradients before its GradScaler unscales them: a norm of 1 would be clipped to 1 / 65536.
    """
    take_step = optimizer.step

    def step(*arguments: Any, **options: Any) -> Any:
        optimizer.clip_grad = longest * optimizer.torch_autocast_gradscaler.get_scale()
        return take_step(*arguments, **options)

    optimizer.step = step


def _skip_non_finite(optimizer: torch.optim.Optimizer) -> None:
    """Skip steps with non-finite gradients, as the optimizers of ZeRO 1 to 3 do.

    The engine reads `overflow` to see whether a step was taken. At that point all processes have the same gradients.
    """
    take_step = optimizer.step
    seen_by_engine: Any = optimizer  # Any, because torch's type has no `overflow` and a fixed `step`

    def step(*arguments: Any, **options: Any) -> Any:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)) if gradients else torch.zeros(1)
        seen_by_engine.overflow = not bool(torch.isfinite(norms).all())
        return None if seen_by_engine.overflow else take_step(*arguments, **options)

    seen_by_engine.step = step


def synchronised_batch_norm(model: nn.Module) -> nn.Module:
    """Convert to synchronised batch normalisation on several GPUs; otherwise return the model unchanged."""
    if world_size() > 1 and device().type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def full_state_dict(engine: Any) -> dict[str, torch.Tensor]:
    """Gather the whole model's weights on rank 0's CPU, at any ZeRO stage; {} elsewhere. All processes must call it."""
    full: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}  # one copy of shared weights
    for name, value in engine.module.state_dict(keep_vars=True).items():
        if id(value) not in copies:
            # DeepSpeed's own gathering would round to autocast's dtype.
            whole = _join(value.ds_tensor, value.ds_shape) if hasattr(value, "ds_id") else value
            copies[id(value)] = whole.detach().to("cpu", copy=True) if is_main() else torch.empty(0)
        if is_main():
            full[name] = copies[id(value)]
    return full


def load_full_state_dict(engine: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Overwrite the whole model's weights with rank 0's, at any ZeRO stage; all processes must call this.

    The optimizer's own copies of the weights stay as they are, so the engine must not train any further.
    """
    for name, value in engine.module.state_dict(keep_vars=True).items():
        shape = getattr(value, "ds_shape", value.shape)
        whole = torch.empty(shape, dtype=value.dtype, device=engine.device)
        whole = broadcast(whole.copy_(weights[name]) if is_main() else whole)
        if hasattr(value, "ds_id"):
            value.ds_tensor.copy_(_own_part(whole, value.ds_tensor))
        if value.shape == shape:  # ZeRO-3 keeps small parameters whole as well
            value.detach().copy_(whole)


def _own_part(whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this process holds, padded at the end; `part` has its shape."""
    own = torch.zeros_like(part)
    values = whole.flatten()[own.numel() * rank() : own.numel() * (rank() + 1)]
    own[: len(values)] = values
    return own


def _join(part: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Gather a tensor of which each process holds an equal part, padded at the end."""
    parts = [torch.empty_like(part) for _ in range(world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)[: shape.numel()].view(shape)


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
            if engine.zero_optimization_stage():
                import deepspeed

                value = deepspeed.utils.safe_get_full_optimizer_state(parameter, kind)
            else:
                value = state.get(parameter, {}).get(kind, torch.zeros_like(parameter))  # zeros: it had no gradient yet
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
    for kind in kinds:
        tensors = read(kind) if is_main() else {}
        for name, parameter in _trained(engine):
            shape = getattr(parameter, "ds_shape", parameter.shape)
            value = tensors[name].to(engine.device) if is_main() else torch.empty(shape, device=engine.device)
            _set_memory(engine, parameter, kind, broadcast(value))
    inner = _inner_optimizer(engine)
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
    if engine.zero_optimization_stage():
        scaler.update(scaler.get_scale() / 2)
    return scaler.get_scale() >= 1


def _make_room(engine: Any, kinds: list[str], step: float | None) -> None:
    """Allocate the state that the optimizer would allocate in its first step."""
    inner, stage = _inner_optimizer(engine), engine.zero_optimization_stage()
    if stage == 0:
        held = [parameter for _, parameter in _trained(engine)]
    elif stage == 3:
        held = engine.optimizer.fp32_partitioned_groups_flat
    else:
        held = engine.optimizer.single_partition_of_fp32_groups
    for flat in held:
        inner.state[flat] = {kind: torch.zeros_like(flat) for kind in kinds}
        if step is not None:
            inner.state[flat]["step"] = torch.tensor(step, device=flat.device)  # on the device, for a fused optimizer
    _link(engine)


def _link(engine: Any) -> None:
    """Link each parameter to its part of DeepSpeed's flat state tensors.

    ZeRO 1 and 2 link them only after the first parameter group has stepped, and never for the other groups.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _set_memory(engine: Any, parameter: Any, kind: str, value: torch.Tensor) -> None:
    stage = engine.zero_optimization_stage()
    if stage == 0:
        engine.optimizer.state[parameter][kind].copy_(value)
        return
    import deepspeed

    if stage == 3:  # setting the whole tensor fails if its size is not a multiple of the number of processes
        deepspeed.utils.safe_set_local_optimizer_state(parameter, _own_part(value, parameter.ds_tensor), kind)
    else:
        deepspeed.utils.safe_set_full_optimizer_state(parameter, value, kind)


def _trained(engine: Any) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def _inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer


def _gradient_scaler(engine: Any) -> Any:
    """Return the fp16 GradScaler, or None for other dtypes."""
    if isinstance(engine, TorchEngine):
        return engine.scaler if engine.scaler.is_enabled() else None
    return getattr(engine.optimizer, "torch_autocast_gradscaler", None) or engine.torch_autocast_z0_gradscaler
