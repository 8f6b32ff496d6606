"""Batches of a data set: which clips share one (`BatchSampler`), and the processes that read them (`ClipLoader`)."""

from __future__ import annotations

import functools
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from clips.batch import BadClip, Sample, SrcInput, TgtInput, collate_fn, empty_sample
from datasets import S2T_Dataset
from pose.hand_crops import no_crops

logger = logging.getLogger(__name__)

SEARCHED = 4  # evaluation batch / training batch: no backward pass, and larger batches decode faster
POOL = 256  # minimum number of clips that are sorted by length together


class _Slots(Dataset[Sample | BadClip]):
    """Adapts a data set to the workers of a loader.

    Clips are requested by (epoch, index), since workers persist over epochs and must know the current one. A clip that
    cannot be read becomes a `BadClip` instead of ending the worker.
    """

    def __init__(self, dataset: S2T_Dataset) -> None:
        self.dataset = dataset
        rgb_dict = no_crops() if dataset.hand_crops is not None else {}
        self.empty = empty_sample(dataset.descriptions is not None, rgb_dict)

    def __getitem__(self, place: tuple[int, int]) -> Sample | BadClip:
        self.dataset.epoch, index = place
        try:
            return self.dataset[index]
        except (ValueError, OSError) as error:
            return BadClip(self.dataset.names[index], str(error), self.empty)


class BatchSampler:
    """Chooses the clips of each micro-batch of this process.

    In training, each epoch has its own random order, which depends only on the seed, not on the number of processes or
    workers: the micro-batches that N processes take side by side are those that one takes one after the other with N
    times the accumulation. Up to `world_size - 1` left-over clips are dropped in that epoch.
    In evaluation, each clip occurs once, and the composition of batches does not depend on the number of processes.

    If lengths are given, clips of similar length share a batch, to reduce padding. In training, clips are sorted within
    pools of whole optimizer steps with at least `POOL` clips; then the steps of each pool are shuffled.

    Args:
        n_clips: number of clips in the data set.
        batch_size: clips per micro-batch.
        rank: rank of this process.
        world_size: number of processes.
        seed: seed of the random order in training; None for evaluation.
        lengths: (n_clips,), the clips' lengths in any unit; None for no sorting by length.
        accumulation: micro-batches per optimizer step.
    """

    def __init__(
        self,
        n_clips: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int | None = None,
        lengths: np.ndarray | None = None,
        accumulation: int = 1,
    ) -> None:
        if seed is not None and n_clips < world_size:
            raise ValueError(f"{n_clips} clips to train on, and {world_size} processes: each needs one. Start fewer.")
        self.n_clips, self.batch_size, self.rank, self.world_size = n_clips, batch_size, rank, world_size
        self.seed, self.lengths = seed, lengths
        self.global_batch = batch_size * accumulation * world_size

    def batches(self, epoch: int = 0) -> list[list[int]]:
        """Return this process's micro-batches for an epoch; all processes have the same number."""
        if self.seed is None:
            # Longest clips first, so that an out-of-memory error occurs at once.
            order = np.arange(self.n_clips) if self.lengths is None else np.argsort(-self.lengths, kind="stable")
            batches = _chunks(order, self.batch_size)
            mine = batches[self.rank :: self.world_size]
            # Under ZeRO-3 all processes must compute in every round: one without a batch left recomputes the first.
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
        pool = self.global_batch * math.ceil(POOL / self.global_batch)
        grouped = []
        for clips in (order[i : i + pool] for i in range(0, len(order), pool)):
            ordered = clips[np.argsort(self.lengths[clips], kind="stable")]
            n_steps = len(ordered) // self.global_batch
            whole, rest = np.split(ordered, [n_steps * self.global_batch])
            grouped += [*rng.permutation(whole.reshape(n_steps, self.global_batch)), rest]
        return np.concatenate(grouped)

    @property
    def n_own(self) -> int:
        """Return how many batches this process has to report in evaluation (`batches` may append one as padding)."""
        return len(range(self.rank, math.ceil(self.n_clips / self.batch_size), self.world_size))


def _chunks(indices: np.ndarray, size: int) -> list[list[int]]:
    return [indices[i : i + size].tolist() for i in range(0, len(indices), size)]


def _leave_signals_to_the_run(_: int) -> None:
    """Ignore signals sent to the whole job, so that data workers do not end before the run has finished its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # the others have no job scheduler that sends these, and do not tell the sender
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # left to the thread, which can see the sender
        threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    """End on a SIGTERM from the run itself: Python sends one when it exits with an error, and waits for the worker."""
    run = multiprocessing.parent_process()
    while sys.platform == "linux" and run and signal.sigwaitinfo({signal.SIGTERM}).si_pid != run.pid:
        pass
    os._exit(0)


@functools.cache  # so that it logs once, not for every split
def _within_cores(num_workers: int) -> int:
    """Limit `num_workers` to the CPU cores available to this process; more workers would compete for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_workers > cores:
        text = "--num_workers %d: this process may use %d of the CPU cores; at most as many processes load data."
        logger.info(text, num_workers, cores)
    return min(num_workers, cores)


class ClipLoader:
    """Batches of a data set, epoch by epoch.

    Args:
        dataset: the clips.
        sampler: chooses the clips of each batch of this process.
        num_workers: number of loading processes, at most one per core; they are started once.
        pin_memory: whether to pin batches in memory for faster transfer to the GPU.
    """

    def __init__(self, dataset: S2T_Dataset, sampler: BatchSampler, num_workers: int, pin_memory: bool) -> None:
        self.dataset, self.sampler = dataset, sampler
        self.waited = 0.0
        self._places: list[list[tuple[int, int]]] = []  # (epoch, clip index) of each batch to load
        num_workers = _within_cores(num_workers)
        self._loader = DataLoader(
            _Slots(dataset),
            batch_sampler=self._places,
            collate_fn=collate_fn,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=_leave_signals_to_the_run,
            pin_memory=pin_memory and torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise it draws from dropout's generator, once more after a resume
        )

    def __len__(self) -> int:
        """Return the number of micro-batches in an epoch."""
        return len(self.sampler.batches())

    def epoch(self, number: int = 0, first: int = 0) -> Iterator[tuple[SrcInput, TgtInput]]:
        """Yield the batches of an epoch, without the `first` ones that an earlier run has processed.

        `waited` accumulates the seconds spent waiting for batches since the epoch began.
        """
        self._places[:] = [[(number, clip) for clip in batch] for batch in self.sampler.batches(number)[first:]]
        self.waited, asked = 0.0, time.monotonic()
        for batch in self._loader:
            self.waited += time.monotonic() - asked
            yield batch
            asked = time.monotonic()
