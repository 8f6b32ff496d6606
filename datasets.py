"""`S2T_Dataset`: from label files to samples, and which clips make a batch."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from batch import BadClip, Sample, SrcInput, TgtInput, collate_fn, empty_sample
from config import DatasetSpec
from disk import file_sizes, sha256
from labels import check_column, gloss, split_labels, target
from packed import DescriptionPack, is_pack, open_descriptions, open_poses
from pose import part_keypoints
from rgb_fusion import HandCrops, no_crops
from temporal_alignment import DescriptionLoader, TemporalAligner, sample_frames

logger = logging.getLogger(__name__)

HAND_FRAMES = 1  # sets the random numbers of the hands' frames apart from those of the clip's
SEARCHED = 4  # times the training batch are searched together: nothing is kept for a backward pass, and steps are few
LOOKED_INTO = 50  # description files, before a run believes that there are none to be used
POOL = 256  # clips that are sorted by length together, where an optimizer step has fewer


class S2T_Dataset(Dataset[Sample]):
    """The clips of one split.

    Args:
        spec: the data set, with its paths resolved.
        split: train, dev or test.
        task: CSLR writes glosses, the others text.
        max_length: a longer clip is sampled down to this many frames.
        random_frames: sample them at random (training) rather than evenly.
        use_descriptions: align each clip's descriptions with its frames.
        rgb_support: cut crops of the hands out of each clip's video.
        uni_sign_crops: cut them at the border of a picture as Uni-Sign does.
        seed: of the random frames, with the epoch and the clip.
        max_bad_clips: the share of pose files (or of videos) that may be missing.
        without_them: what the program does then, a sentence for the warning.

    Raises:
        FileNotFoundError: labels, poses, videos or descriptions are not where they should be.
        ValueError: labels that cannot be used.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        split: str,
        *,
        task: str = "SLT",
        max_length: int = 256,
        random_frames: bool = False,
        use_descriptions: bool = False,
        rgb_support: bool = False,
        uni_sign_crops: bool = False,
        seed: int = 0,
        max_bad_clips: float = 0.0,
        without_them: str = "",
    ) -> None:
        if split not in spec.labels:
            raise ValueError(f"--dataset {spec.name}: has no labels for the split {split!r}.")
        if task not in spec.tasks:
            raise ValueError(f"--task {task}: the labels of {spec.name} allow {', '.join(spec.tasks)}.")
        self.spec, self.split, self.task = spec, split, task
        places = spec.for_split(split)
        self.max_length, self.random_frames, self.seed = max_length, random_frames, seed
        self.epoch, self.without_them = 0, without_them
        self.labels = split_labels(spec, split)
        self.names = list(self.labels)
        self.pose_paths = {name: places.pose_path(label) for name, label in self.labels.items()}
        self._check_targets()
        # For the order of clips by length alone: bytes are nearly as good as frames, and nothing has to be read.
        self.poses = open_poses(places.pose_dir)
        sizes = self.poses.sizes(list(self.pose_paths.values()))
        self.lengths = self._check_files("poses", places.pose_dir, self.pose_paths, sizes, max_bad_clips)
        self.hand_crops = HandCrops(uni_sign_crops) if rgb_support else None
        self.video_paths = {name: places.video_path(label) for name, label in self.labels.items()}
        if rgb_support:
            if not spec.rgb_dir:
                raise ValueError(f"--rgb_support: the data set {spec.name} names no folder of videos; set its rgb_dir.")
            sizes = file_sizes(self.video_paths.values())
            self._check_files("videos", places.rgb_dir, self.video_paths, sizes, max_bad_clips)
        self.descriptions: DescriptionLoader | DescriptionPack | None = None
        self.aligner = TemporalAligner()
        if use_descriptions:
            self.descriptions = open_descriptions(Path(spec.description_dir) / spec.folder(split))
            found = np.count_nonzero(self.descriptions.sizes(self.names))
            share = 100 * found / len(self.names)
            logger.info("%s: %d of %d clips (%.1f %%) have a description file.", split, found, len(self.names), share)

    def why_no_text(self) -> str:
        """Look into some of the description files; why none of them gives a text, or "" if one does."""
        assert self.descriptions is not None
        folder = Path(self.spec.description_dir) / self.spec.folder(self.split)
        sizes = self.descriptions.sizes(self.names)
        filed = [name for name, size in zip(self.names, sizes, strict=True) if size]
        if not filed:
            other = None if is_pack(folder) else next(folder.rglob("*.json"), None)
            seen = f"; {other.relative_to(folder)} is there, {self.names[0]}.json was looked for" if other else ""
            return f"no clip of {self.split} has a description file in {folder}{seen}"
        looker = open_descriptions(folder)
        looked = filed[:: max(1, len(filed) // LOOKED_INTO)]
        if any(looker.load(name) for name in looked):
            return ""
        return (
            f"{len(looked)} description files of {self.split} hold no text that can be used ({looker.counts}), the "
            f"first is {folder / looked[0]}.json"
        )

    def _check_targets(self) -> None:
        missing = [name for name in self.names if not self.target(name).strip()]
        if missing:
            what = "gloss" if self.task == "CSLR" else "text"
            check_column(self.spec.labels[self.split], what)
            raise ValueError(
                f"{self.spec.labels[self.split]}: {len(missing)} clips have no {what}, the first is {missing[0]!r}. "
                "Remove them from the labels."
            )

    def _check_files(
        self, what: str, folder: str, paths: Mapping[str, Path], sizes: np.ndarray, max_missing: float
    ) -> np.ndarray:
        """The sizes, which are 0 for a file that is missing; too many of those are an error."""
        if not Path(folder).is_dir():
            beside = Path(folder).with_name("val")
            cure = f"Rename {beside} to that" if self.split == "dev" and beside.is_dir() else f"Put the {what} there"
            raise FileNotFoundError(f"{what}: {folder} does not exist. {cure}, or set --root.")
        missing = [path for path, size in zip(paths.values(), sizes, strict=True) if not size]
        if not missing:
            return sizes
        seen = f"{what}: {len(missing)} of {len(self)} files of the split {self.split!r} do not exist, the first is"
        if len(missing) > max_missing * len(self) or len(missing) == len(self):
            raise FileNotFoundError(f"{seen} {missing[0]}. Copy them there, or remove the clips from the labels.")
        logger.warning("%s %s.%s", seen, missing[0], f" {self.without_them}" if self.without_them else "")
        return sizes

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.names)

    def fingerprint(self) -> dict[str, Any]:
        """What tells this split's data from others: the labels' content, and the other files' names and sizes."""
        found: dict[str, Any] = {"clips": len(self), "labels_sha256": sha256(self.spec.labels[self.split])}
        sizes = zip(self.names, self.lengths.tolist(), strict=True)
        found["poses_sha256"] = _digest(f"{name} {size}" for name, size in sizes)
        if self.descriptions is not None:
            sizes = zip(self.names, self.descriptions.sizes(self.names).tolist(), strict=True)
            there = [f"{name} {size}" for name, size in sizes if size]
            found |= {"described": len(there), "descriptions_sha256": _digest(there)}
        return found

    def target(self, name: str) -> str:
        """The sentence (or, for CSLR, the glosses) that the model should write."""
        return target(self.labels[name], self.task)

    def __getitem__(self, index: int) -> Sample:
        """Read one clip.

        Raises:
            ValueError: its pose file or its video cannot be used, or they do not belong together.
        """
        name = self.names[index]
        pose = self.poses.read(self.pose_paths[name], self.labels[name].get("frames"))
        rng = np.random.default_rng([self.seed, self.epoch, index]) if self.random_frames else None
        frames = sample_frames(len(pose), self.max_length, rng)
        descriptions = has_description = None
        if self.descriptions is not None:
            texts = self.descriptions.load(name, pose.frames)
            descriptions, has_description = self.aligner.align(texts, frames + pose.start)
        rgb_dict = {}
        if self.hand_crops is not None:
            # Drawn anew in each epoch of training; otherwise the same for any seed, so that scores repeat.
            drawn = [self.seed, self.epoch, index] if self.random_frames else [index]
            chooser = np.random.default_rng([*drawn, HAND_FRAMES])
            rgb_dict = self.hand_crops.load(self.video_paths[name], pose, frames, chooser)
        keypoints = part_keypoints(pose, frames)
        glosses = gloss(self.labels[name])
        return Sample(name, keypoints, self.target(name), glosses, rgb_dict, descriptions, has_description)

    def targets(self) -> list[str]:
        """What the model should write, clip by clip."""
        return [self.target(name) for name in self.names]

    def description_texts(self) -> set[str]:
        """All texts that a clip may show; read without its pose, so frames beyond the clip count too."""
        if self.descriptions is None:
            return set()
        return set().union(*(self.descriptions.load(name).values() for name in self.names))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Slots(Dataset[Sample | BadClip]):
    """A data set as a loader's workers see it.

    Clips are asked for by epoch and number, since workers outlive an epoch and must know which it is. One that cannot
    be read does not end them.
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
    """Which clips make each micro-batch of this process.

    In training each epoch has an order of its own, drawn from the seed, the same for any number of processes and
    workers; the processes take turns, and up to `world_size - 1` clips that do not divide among them sit the epoch out.
    In evaluation each clip comes once, and the batches are the same whoever computes them.

    Clips of like length share a batch where lengths are given, so that little of it is padding. In training this
    sorts the clips of one optimizer step, or of `POOL` clips where a step has fewer; then whole steps are shuffled.

    Args:
        n_clips: of the data set.
        batch_size: clips a micro-batch.
        rank: this process.
        world_size: number of processes.
        seed: of the order in training; None for evaluation.
        lengths: of the clips, in any unit; None leaves them as drawn or, in evaluation, in the data set's order.
        accumulation: micro-batches of an optimizer step.
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
        """All micro-batches of an epoch for this process; every process has as many."""
        if self.seed is None:
            # The longest come first: what does not fit into memory shows at once.
            order = np.arange(self.n_clips) if self.lengths is None else np.argsort(-self.lengths, kind="stable")
            batches = _chunks(order, self.batch_size)
            mine = batches[self.rank :: self.world_size]
            # Under ZeRO-3 all must compute in every round: who has no batch left computes the first one for nothing.
            return mine if len(mine) == math.ceil(len(batches) / self.world_size) else [*mine, batches[0]]
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.n_clips)
        share = self.n_clips // self.world_size
        order = order[: share * self.world_size]
        if self.lengths is not None:
            order = self._grouped(order, rng)
        return _chunks(order[self.rank :: self.world_size], self.batch_size)

    def _grouped(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sort by length within pools of whole steps, and shuffle the steps of each pool.

        Only the global batch counts here: the order is the same however it is divided into micro-batches.
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
        """In evaluation: how many of the batches are this process's to report."""
        return len(range(self.rank, math.ceil(self.n_clips / self.batch_size), self.world_size))


def _chunks(indices: np.ndarray, size: int) -> list[list[int]]:
    return [indices[i : i + size].tolist() for i in range(0, len(indices), size)]


def _leave_signals_to_the_run(_: int) -> None:
    """A signal to all processes of a job must not end those that load data before the run has finished its step."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # kept for the thread, which sees who sent it
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    """End on the run's own SIGTERM: a Python that leaves with an error sends it, and waits until it is obeyed."""
    run = multiprocessing.parent_process()
    while run and signal.sigwaitinfo({signal.SIGTERM}).si_pid != run.pid:
        pass
    os._exit(0)


@functools.cache  # said once, not for every split
def _within_cores(num_workers: int) -> int:
    """At most as many processes as cores that this one may use; more would wait for each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_workers > cores:
        text = "--num_workers %d: this process may use %d of the CPU cores; at most as many processes load data."
        logger.info(text, num_workers, cores)
    return min(num_workers, cores)


class ClipLoader:
    """Batches of a data set, epoch by epoch.

    Args:
        dataset: the clips.
        sampler: which of them make each batch of this process.
        num_workers: processes that load, at most one per core; they are started once.
        pin_memory: of the batches, for the GPU.
    """

    def __init__(self, dataset: S2T_Dataset, sampler: BatchSampler, num_workers: int, pin_memory: bool) -> None:
        self.dataset, self.sampler = dataset, sampler
        self.waited = 0.0
        self._places: list[list[tuple[int, int]]] = []  # what the loader is to fetch next
        num_workers = _within_cores(num_workers)
        self._loader = DataLoader(
            _Slots(dataset),
            batch_sampler=self._places,
            collate_fn=collate_fn,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=_leave_signals_to_the_run,
            pin_memory=pin_memory and torch.cuda.is_available(),
            generator=torch.Generator(),  # or it would draw from the one that dropout uses, once more after a resume
        )

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        return len(self.sampler.batches())

    def epoch(self, number: int = 0, first: int = 0) -> Iterator[tuple[SrcInput, TgtInput]]:
        """The batches of an epoch, without the `first` ones that an earlier run has done.

        `waited` counts the seconds since the epoch's beginning in which nothing was there to be computed.
        """
        self._places[:] = [[(number, clip) for clip in batch] for batch in self.sampler.batches(number)[first:]]
        self.waited, asked = 0.0, time.monotonic()
        for batch in self._loader:
            self.waited += time.monotonic() - asked
            yield batch
            asked = time.monotonic()
