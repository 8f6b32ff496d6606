"""Batches of a data set: which clips share one (`BatchSampler`), and the processes that read them (`ClipLoader`)."""

from __future__ import annotations

import logging
import math
import multiprocessing
import multiprocessing.util
import os
import pickle
import queue
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clips.batch import BadClip, Sample, SrcInput, TgtInput, collate_fn, empty_sample
from datasets import S2T_Dataset
from pose.hand_crops import no_crops
from system import distributed
from system.faults import CLIP_FAULTS, in_one_line
from system.processes import cores, end_with_parent, kill_children

logger = logging.getLogger(__name__)

SEARCHED = 4  # evaluation batch / training batch: no backward pass, and larger batches decode faster
POOL = 256  # minimum number of clips that are sorted by length together
AHEAD = 2  # batches that a data worker loads in advance
DEADLINE = 600.0  # seconds to wait for a batch; twice this must be less than `distributed.TIMEOUT` of the other ranks
SHARED = Path("/dev/shm")  # where Linux keeps the batches that data workers hand over
FRAME_BYTES, HAND_BYTES = 840, 30_200  # of a frame: 69 joints and a mask; crops of two hands in every tenth


@dataclass(eq=False)
class BatchSampler:
    """Chooses the clips of each micro-batch of this process.

    In training, each epoch has its own random order, which depends only on the seed, not on the number of processes or
    workers: the micro-batches that N processes take side by side are those that one takes one after the other with N
    times the accumulation. Up to `world_size - 1` left-over clips are dropped in that epoch.
    In evaluation, each clip occurs once, and the composition of batches does not depend on the number of processes.

    If lengths are given, clips of similar length share a batch, to reduce padding. In training, clips are sorted within
    pools of whole optimizer steps with at least `POOL` clips; then the steps of each pool are shuffled.
    """

    n_clips: int  # in the data set
    batch_size: int  # clips per micro-batch
    rank: int  # of this process
    world_size: int  # how many there are
    seed: int | None = None  # None for evaluation
    lengths: np.ndarray | None = None  # (n_clips,), in any unit; None for no sorting by length
    accumulation: int = 1  # micro-batches per optimizer step

    def __post_init__(self) -> None:
        """Raise ValueError if a process would have no clip to train on."""
        if self.seed is not None and self.n_clips < self.world_size:
            raise ValueError(
                f"{self.n_clips} clips to train on, and {self.world_size} processes: each needs one. Start fewer."
            )

    def batches(self, epoch: int = 0) -> list[list[int]]:
        """Return this process's micro-batches for an epoch; all processes have the same number."""
        if self.seed is None:
            # Longest clips first, so that an out-of-memory error occurs at once.
            order = np.arange(self.n_clips) if self.lengths is None else np.argsort(-self.lengths, kind="stable")
            batches = _chunks(order, self.batch_size)
            mine = batches[self.rank :: self.world_size]
            # All processes must ask in every round whether to stop: one without a batch left recomputes the first.
            return mine if len(mine) == math.ceil(len(batches) / self.world_size) else [*mine, batches[0]]
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.n_clips)
        share = self.n_clips // self.world_size
        order = order[: share * self.world_size]
        if self.lengths is not None:
            order = self._grouped(order, rng)
        whole, rest = np.split(order, [len(order) - len(order) % (self.batch_size * self.world_size)])
        mine = _chunks(whole, self.batch_size)[self.rank :: self.world_size]
        return mine + _chunks(rest[self.rank :: self.world_size], self.batch_size)

    def _grouped(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sort clips by length within pools of whole optimizer steps, and shuffle the steps of each pool.

        The order depends on the global batch size only, not on how it is divided into micro-batches.
        """
        assert self.lengths is not None
        step = self.batch_size * self.accumulation * self.world_size
        pool = step * math.ceil(POOL / step)
        grouped = []
        for clips in (order[i : i + pool] for i in range(0, len(order), pool)):
            ordered = clips[np.argsort(self.lengths[clips], kind="stable")]
            n_steps = len(ordered) // step
            whole, rest = np.split(ordered, [n_steps * step])
            grouped += [*rng.permutation(whole.reshape(n_steps, step)), rest]
        return np.concatenate(grouped)

    @property
    def n_own(self) -> int:
        """Return how many batches this process has to report in evaluation (`batches` may append one as padding)."""
        return len(range(self.rank, math.ceil(self.n_clips / self.batch_size), self.world_size))


def _chunks(indices: np.ndarray, size: int) -> list[list[int]]:
    return [indices[i : i + size].tolist() for i in range(0, len(indices), size)]


class _Worker:
    """A process that loads batches, and a thread that waits for it, since whatever waits for a process may hang."""

    def __init__(self, dataset: S2T_Dataset) -> None:
        self.clip = ""  # which it reads
        self._jobs: queue.SimpleQueue[tuple[Future, int, Sequence[int]] | None] = queue.SimpleQueue()
        self._pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_serve, args=(dataset, theirs), daemon=True)
        self.process.start()
        theirs.close()
        threading.Thread(target=self._fetch, daemon=True).start()

    def load(self, epoch: int, clips: Sequence[int]) -> Future:
        """Ask for a batch."""
        future: Future = Future()
        self._jobs.put((future, epoch, clips))
        return future

    def _fetch(self) -> None:
        while self._answer(self._jobs.get()):  # keeps no batch while it waits
            pass

    def _answer(self, job: tuple[Future, int, Sequence[int]] | None) -> bool:
        if job is None:
            return False
        future, *asked = job
        try:
            self._pipe.send_bytes(pickle.dumps(asked))  # `send` would leave a note of Python 3.13 if this fails
            while isinstance(answer := self._pipe.recv(), str):
                self.clip = answer
            if isinstance(answer, OSError):
                raise answer
            future.set_result(answer)
        except (EOFError, OSError, RuntimeError, MemoryError, pickle.UnpicklingError) as error:
            future.set_exception(error)  # RuntimeError when torch cannot open what it was handed
        return True

    def end(self) -> None:
        """End the process at once, whatever it is doing."""
        self._jobs.put(None)
        self.process.kill()
        self.process.join(1)


def _serve(dataset: S2T_Dataset, pipe: Any) -> None:
    """Load batches for the run until it ends; signals to the whole job are left to the run."""
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    end_with_parent()
    while True:
        epoch, clips = pipe.recv()
        batch = load_batch(dataset, epoch, clips, pipe.send)
        try:
            pipe.send(batch)
        except (OSError, RuntimeError) as error:  # no shared memory is left, or too many files are open
            pipe.send(OSError(f"it cannot hand over its batch: {error}"))


def load_batch(
    dataset: S2T_Dataset, epoch: int, clips: Sequence[int], note: Callable[[str], object] = id
) -> tuple[SrcInput, TgtInput]:
    """Read the clips of these indices; one that cannot be read is a `BadClip`. `note` is told each name beforehand."""
    dataset.epoch = epoch
    rgb_dict = no_crops() if dataset.hand_crops is not None else {}
    empty = empty_sample(dataset.descriptions is not None, rgb_dict)
    slots: list[Sample | BadClip] = []
    for clip in clips:
        note(dataset.names[clip])
        try:
            slots.append(dataset[clip])
        except CLIP_FAULTS as error:
            slots.append(BadClip(dataset.names[clip], in_one_line(error), empty))
    return collate_fn(slots)


def within_cores(num_workers: int) -> int:
    """Limit `num_workers` to the CPU cores available to this process; more workers would compete for them."""
    if num_workers > cores():
        text = "--num_workers %d: this process may use %d of the CPU cores; at most as many processes load data."
        logger.info(text, num_workers, cores())
    return min(num_workers, cores())


def _within_shared_memory(num_workers: int, n_bytes: int) -> int:
    """Limit `num_workers` to those whose batches, of up to so many bytes, fit into the shared memory that is free."""
    if not SHARED.is_dir():
        return num_workers
    free = shutil.disk_usage(SHARED).free // int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
    fitting = free // (AHEAD * n_bytes)
    if fitting < num_workers:
        logger.warning(
            "--num_workers %d: %s has %.0f MB for this process, and a batch can take %.0f MB: %d processes load data. "
            "Give a container more with --shm-size.",
            num_workers, SHARED, free / 1e6, n_bytes / 1e6, fitting,
        )  # fmt: skip
    return min(num_workers, fitting)


class ClipLoader:
    """Batches of a data set, epoch by epoch, by processes that are started once; without any, by the run itself."""

    def __init__(self, dataset: S2T_Dataset, sampler: BatchSampler, num_workers: int) -> None:
        self.dataset, self.sampler = dataset, sampler
        self.num_workers = num_workers
        self.waited = 0.0
        self._workers: list[_Worker] = []

    def __len__(self) -> int:
        """Return the number of micro-batches in an epoch."""
        return len(self.sampler.batches())

    def __del__(self) -> None:
        """End the workers."""
        self._end_workers()

    def start(self) -> list[_Worker]:
        """Start the data workers, unless they are there, and return them; none if there is no memory to share."""
        if not self._workers:
            multiprocessing.util.Finalize(None, kill_children, exitpriority=0)  # at exit, before Python waits for them
            frame = FRAME_BYTES + (HAND_BYTES if self.dataset.hand_crops is not None else 0)
            number = _within_shared_memory(self.num_workers, self.sampler.batch_size * self.dataset.max_length * frame)
            self._workers = [_Worker(self.dataset) for _ in range(number)]
        return self._workers

    def epoch(self, number: int = 0, first: int = 0) -> Iterator[tuple[SrcInput, TgtInput]]:
        """Yield the batches of an epoch, without the `first` ones that an earlier run has processed.

        `waited` accumulates the seconds spent waiting for batches since the epoch began. OSError, which names worker
        and clip, if the same batch twice could not be loaded, or not in time.
        """
        batches = self.sampler.batches(number)[first:]
        self.waited, asked = 0.0, time.monotonic()
        for batch in self._load(number, batches):
            self.waited += time.monotonic() - asked
            yield batch
            asked = time.monotonic()

    def _load(self, epoch: int, batches: list[list[int]]) -> Iterator[tuple[SrcInput, TgtInput]]:
        workers = self.start()
        ahead: deque[Future] = deque()
        n, failed = 0, -1  # the batch to yield next; the last that failed
        while n < len(batches):
            if not workers:
                yield load_batch(self.dataset, epoch, batches[n])
                n += 1
                continue
            while len(ahead) < AHEAD * len(workers) and n + len(ahead) < len(batches):
                place = n + len(ahead)
                ahead.append(workers[place % len(workers)].load(epoch, batches[place]))
            try:
                batch = ahead.popleft().result(DEADLINE)
            except (EOFError, OSError, RuntimeError, MemoryError, pickle.UnpicklingError) as error:
                why = self._fault(workers[n % len(workers)], error)
                self._end_workers()
                if n == failed:
                    raise OSError(f"{why}, for the second time. Mend the cause, then --resume auto.") from None
                logger.warning("%s. New data workers start at the same batch.", why)
                workers, failed = self.start(), n
                ahead.clear()
            else:
                n += 1
                yield batch

    def _fault(self, worker: _Worker, error: Exception) -> str:
        worker.process.join(0 if isinstance(error, TimeoutError) else 1)
        if (code := worker.process.exitcode) is not None:
            how = f"has ended with {code}{', perhaps for want of memory,' if code == -9 else ''}"
        else:
            how = f"has not answered for {DEADLINE:g} s" if isinstance(error, TimeoutError) else f"failed: {error},"
        return f"{self.dataset.split}: data worker {worker.process.pid} {how} at the clip {worker.clip or '(none)'}"

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []
