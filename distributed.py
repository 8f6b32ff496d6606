"""The processes of a run: ranks, devices, collectives.

A plain `python` process is a group of one; `torchrun` and `deepspeed` say through the environment which they are.
"""

from __future__ import annotations

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


def all_gather(value: T) -> list[T]:
    """Every process's value, in the order of ranks, on every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every process."""
    return all_gather(value if is_main() else None)[0]


def any_process(*flags: bool) -> list[bool]:
    """For each flag: whether it is set on any process; the same answer on all of them."""
    if world_size() == 1:
        return list(flags)
    union = torch.tensor(flags, dtype=torch.int32, device=device())
    dist.all_reduce(union, dist.ReduceOp.MAX)
    return [bool(flag) for flag in union.tolist()]


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """Overwrite a tensor with rank 0's, in place."""
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process rank 0's batch statistics: those that are saved.

    On several GPUs they are the same anyway; on CPUs each process has seen its own clips.
    """
    for buffer in model.buffers():
        broadcast(buffer)


def broadcast_weights(model: nn.Module) -> None:
    """Give every process rank 0's weights and buffers; the model is still on the CPU."""
    for value in model.state_dict().values():
        value.copy_(broadcast(value.to(device())))


def all_reduce_sum(n: int) -> int:
    """Sum of every process's number."""
    if world_size() == 1:
        return n
    numbers = torch.tensor(n, device=device())
    dist.all_reduce(numbers)
    return int(numbers)


def check_dtype(dtype: str, device: torch.device) -> None:
    """Refuse the precision that a device does not have.

    Raises:
        ValueError: fp16 on a CPU.
    """
    if dtype == "fp16" and device.type == "cpu":
        raise ValueError("--dtype fp16 needs a GPU; on a CPU use bf16 or fp32.")


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """The precision of matrix products, outside the engine: "bf16", "fp16" or "fp32"."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtype=kinds.get(dtype, torch.bfloat16), enabled=dtype in kinds)
