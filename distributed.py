"""Processes and the training engine: ranks, gathering, DeepSpeed.

A plain `python` process is a group of one; `torchrun` and `deepspeed` say through the environment which they are.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from heartbeat import Heartbeat

T = TypeVar("T")

_heart: list[Heartbeat] = []  # this process's, if there are others


def device() -> torch.device:
    """This process's device: its own GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def start() -> None:
    """Join the processes of this run.

    Without a launcher there is one process, which meets nobody: no port is opened, that another run could have taken.
    """
    backend = "gloo" if device().type == "cpu" else "nccl"
    if "RANK" not in os.environ:  # DeepSpeed would look for MPI
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if device().type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    else:
        torch.cuda.set_device(device())
    # DeepSpeed calls what torch 2.13 has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed

    # On a CPU it would compile a collective of its own at first use, which needs a C++ compiler; gloo has all we need.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    if world_size() > 1 and not _heart:
        _heart.append(Heartbeat(rank(), world_size()))


def stop() -> None:
    """Leave the group, all processes together."""
    if _heart:
        _heart.pop().stop()
        barrier()  # the first to leave may take the others' store with it
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def naming_the_lost() -> Iterator[None]:
    """When a collective fails since a process is gone, end with a line that names it."""
    try:
        yield
    except RuntimeError:
        if _heart:
            _heart[0].name_the_lost()
        raise


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the files and the log."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def gather(value: T) -> list[T]:
    """Every process's value, in the order of ranks, on every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """Rank 0's value, on every process."""
    return gather(value if is_main() else None)[0]


def any_process(*flags: bool) -> list[bool]:
    """For each flag: whether it is set on any process; the same answer on all of them."""
    if world_size() == 1:
        return list(flags)
    union = torch.tensor(flags, dtype=torch.int32, device=device())
    dist.all_reduce(union, dist.ReduceOp.MAX)
    return [bool(flag) for flag in union.tolist()]


def share(tensor: torch.Tensor) -> torch.Tensor:
    """Overwrite a tensor with rank 0's, in place."""
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def share_buffers(model: nn.Module) -> None:
    """Give every process rank 0's batch statistics: those that are saved.

    On several GPUs they are the same anyway; on CPUs each process has seen its own clips.
    """
    for buffer in model.buffers():
        share(buffer)


def share_weights(model: nn.Module) -> None:
    """Give every process rank 0's weights and buffers; the model is still on the CPU."""
    for value in model.state_dict().values():
        value.copy_(share(value.to(device())))


def total(n: int) -> int:
    """Sum of every process's number."""
    if world_size() == 1:
        return n
    numbers = torch.tensor(n, device=device())
    dist.all_reduce(numbers)
    return int(numbers)


def engine_config(args: argparse.Namespace) -> dict[str, Any]:
    """Make DeepSpeed's configuration from the command line.

    Parameters, their gradients' sums and batch statistics stay in fp32; matrix products run in bf16 or fp16 under
    autocast. (A model cast to bf16 as a whole would keep batch statistics in 8 bits of mantissa on a GPU, and fail on
    a CPU.)
    """
    zero: dict[str, Any] = {"stage": args.zero_stage}
    if args.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": args.pin_mem}
    dtypes = {"bf16": "bfloat16", "fp16": "float16"}
    return {
        "train_micro_batch_size_per_gpu": args.batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "gradient_clipping": args.gradient_clipping,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": args.dtype != "fp32", "dtype": dtypes.get(args.dtype, "bfloat16")},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def start_engine(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    args: argparse.Namespace,
) -> Any:
    """Wrap a model for training on all processes.

    Returns:
        DeepSpeed's engine; `engine.module` is the model.
    """
    import deepspeed

    if args.zero_stage == 0:
        _skip_non_finite(optimizer)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=engine_config(args), dist_init_required=False
    )
    if args.zero_stage and args.dtype == "fp16":
        _clip_scaled(engine.optimizer, args.gradient_clipping)
    return engine


def _clip_scaled(optimizer: Any, longest: float) -> None:
    """In fp16, let ZeRO 1 to 3 clip gradients at a norm that is multiplied like the gradients.

    DeepSpeed 0.19 clips them before its GradScaler divides: a gradient of norm 1 would be cut to 1 / 65536.
    """
    take_step = optimizer.step

    def step(*arguments: Any, **options: Any) -> Any:
        optimizer.clip_grad = longest * optimizer.torch_autocast_gradscaler.get_scale()
        return take_step(*arguments, **options)

    optimizer.step = step


def _skip_non_finite(optimizer: torch.optim.Optimizer) -> None:
    """Let a step do nothing when a gradient is not finite, as the optimizers of ZeRO 1 to 3 do.

    `overflow` is where the engine looks whether the step was taken. All processes have the same gradients by then.
    """
    take_step = optimizer.step
    seen_by_engine: Any = optimizer  # torch's type knows neither the attribute nor that a step can be replaced

    def step(*arguments: Any, **options: Any) -> Any:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)) if gradients else torch.zeros(1)
        seen_by_engine.overflow = not bool(torch.isfinite(norms).all())
        return None if seen_by_engine.overflow else take_step(*arguments, **options)

    seen_by_engine.step = step


def synchronised_batch_norm(model: nn.Module) -> nn.Module:
    """On several GPUs, let batch normalisation see the frames of all; elsewhere the model as it is."""
    if world_size() > 1 and device().type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


@contextlib.contextmanager
def autocast(dtype: str) -> Iterator[None]:
    """The precision of training, for what runs outside the engine."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    with torch.autocast(device().type, dtype=kinds.get(dtype, torch.bfloat16), enabled=dtype in kinds):
        yield
