"""Work shared among several processes, in order; and their end."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

MOST = 61 if sys.platform == "win32" else 1 << 16  # processes that can be waited for


def cores() -> int:
    """Return how many CPU cores this process may use, which on a cluster are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(function: Callable[[S], T], jobs: Sequence[S], workers: int, chunk: int = 1) -> Iterator[T]:
    """Yield function(job) for each job, in order, computed by several processes; OSError if one of them dies."""
    if workers == 1 or len(jobs) <= chunk:
        yield from map(function, jobs)
        return
    workers = min(workers, -(-len(jobs) // chunk), MOST)
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        try:
            yield from pool.map(function, jobs, chunksize=chunk)
        except BrokenProcessPool:
            raise OSError(
                f"one of {workers} processes died, perhaps for want of memory. Give fewer --workers."
            ) from None


def end_with_parent() -> None:
    """Let this process end with the one that made it, also if a scheduler kills that one."""

    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def kill_children() -> None:
    """End this process's own processes at once, whatever they are doing, so that nobody has to wait for them."""
    for child in multiprocessing.active_children():
        child.kill()
