"""The processes of a run: ranks, devices, collectives.

A plain `python` process is alone; `torchrun` and `deepspeed` set each process's rank in the environment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from system.heartbeat import Heartbeat

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # of a collective: a process may have saving or scoring to do before it joins
_heart: list[Heartbeat] = []  # this process's heartbeat, if there are several processes


def device() -> torch.device:
    """Return this process's device: its own GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device; from the CPU to a GPU without waiting, which works from pinned memory only."""
    pinned = x.pin_memory() if x.device.type == "cpu" and device.type == "cuda" else x
    return pinned.to(device, non_blocking=True)


def start() -> None:
    """Join the process group of this run, if a launcher has started several processes."""
    if device().type == "cuda":
        torch.cuda.set_device(device())
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo" if device().type == "cpu" else "nccl", timeout=TIMEOUT)
        _heart.append(Heartbeat(rank(), world_size()))


def stop() -> None:
    """Leave the process group; all processes must call this."""
    if _heart:
        _heart.pop().stop()
        barrier()  # the process that owns the store must not leave first
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def naming_the_lost() -> Iterator[None]:
    """If a collective fails because a process is lost, exit with a line that names it."""
    try:
        yield
    except RuntimeError:
        if _heart:
            _heart[0].name_the_lost()
        raise


def rank() -> int:
    """Return this process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is rank 0, which writes the files and the log."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def all_gather(value: T) -> list[T]:
    """Return every process's value, in the order of ranks, on every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value on every process."""
    return all_gather(value if is_main() else None)[0]


def any_process(flag: bool) -> bool:
    """Return whether a flag is set on any process; the same result on every process."""
    return bool(sum_over_processes(torch.tensor(int(flag), device=device())))


def require_same(facts: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the ranks and what differs, unless all processes have the same; all must call this."""
    everyone = all_gather(dict(facts))
    usual = max(everyone, key=everyone.count)
    odd = [number for number, one in enumerate(everyone) if one != usual]
    if odd:
        names = sorted({name for one in everyone for name in one | usual if one.get(name) != usual.get(name)})
        raise ValueError(
            f"rank {', '.join(map(str, odd))} of {len(everyone)} reads other files than the others; different are: "
            f"{', '.join(names)}. Give every machine the same."
        )


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """Overwrite a tensor with rank 0's, in place."""
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process rank 0's batch statistics, which are those that are saved.

    On several GPUs they are equal anyway; on CPUs each process has seen different clips.
    """
    for buffer in model.buffers():
        broadcast(buffer)


def broadcast_weights(model: nn.Module) -> None:
    """Give every process rank 0's weights and buffers; the model is still on the CPU."""
    for value in model.state_dict().values():
        value.copy_(broadcast(value.to(device())))


def check_dtype(dtype: str, device: torch.device) -> None:
    """Raise ValueError for fp16 on a CPU."""
    if dtype == "fp16" and device.type == "cpu":
        raise ValueError("--dtype fp16 needs a GPU; on a CPU use bf16 or fp32.")


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """Return an autocast context for code outside the engine; dtype is "bf16", "fp16" or "fp32"."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtype=kinds.get(dtype, torch.bfloat16), enabled=dtype in kinds)
