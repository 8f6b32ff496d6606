"""`S2T_Dataset`: from label files to samples, and which clips make a batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from batch import BadClip, Sample, collate_fn, empty_sample
from config import DatasetSpec
from labels import split_labels
from pose import part_keypoints, read_pose
from rgb_fusion import HandCrops, no_crops
from temporal_alignment import DescriptionLoader, TemporalAligner, sample_frames

logger = logging.getLogger(__name__)

HAND_FRAMES = 1  # sets the random numbers of the hands' frames apart from those of the clip's


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
    ) -> None:
        if split not in spec.labels:
            raise ValueError(f"--dataset {spec.name}: has no labels for the split {split!r}.")
        if task not in spec.tasks:
            raise ValueError(f"--task {task}: the labels of {spec.name} allow {', '.join(spec.tasks)}.")
        self.spec, self.split, self.task = spec.for_split(split), split, task
        self.max_length, self.random_frames, self.seed = max_length, random_frames, seed
        self.epoch = 0
        self.labels = split_labels(spec, split)
        self.names = list(self.labels)
        self.pose_paths = {name: self.spec.pose_path(label) for name, label in self.labels.items()}
        self._check_targets()
        self._check_files("poses", self.spec.pose_dir, self.pose_paths, max_bad_clips)
        self.hand_crops = HandCrops(uni_sign_crops) if rgb_support else None
        self.video_paths = {name: self.spec.video_path(label) for name, label in self.labels.items()}
        if rgb_support:
            if not spec.rgb_dir:
                raise ValueError(f"--rgb_support: the data set {spec.name} names no folder of videos; set its rgb_dir.")
            self._check_files("videos", self.spec.rgb_dir, self.video_paths, max_bad_clips)
        self.descriptions: DescriptionLoader | None = None
        self.aligner = TemporalAligner()
        if use_descriptions:
            self.descriptions = DescriptionLoader(Path(spec.description_dir) / spec.folder(split))
            found = sum((self.descriptions.directory / f"{name}.json").is_file() for name in self.names)
            share = 100 * found / len(self.names)
            logger.info("%s: %d of %d clips (%.1f %%) have a description file.", split, found, len(self.names), share)

    def _check_targets(self) -> None:
        missing = [name for name in self.names if not self.target(name).strip()]
        if missing:
            what = "gloss" if self.task == "CSLR" else "text"
            raise ValueError(
                f"{self.spec.labels[self.split]}: {len(missing)} clips have no {what}, the first is {missing[0]!r}. "
                "Remove them from the labels."
            )

    def _check_files(self, what: str, folder: str, paths: Mapping[str, Path], max_missing: float) -> None:
        if not Path(folder).is_dir():
            beside = Path(folder).with_name("val")
            cure = f"Rename {beside} to that" if self.split == "dev" and beside.is_dir() else f"Put the {what} there"
            raise FileNotFoundError(f"{what}: {folder} does not exist. {cure}, or set --root.")
        missing = [path for path in paths.values() if not path.is_file()]
        if not missing:
            return
        seen = f"{what}: {len(missing)} of {len(self)} files of the split {self.split!r} do not exist, the first is"
        if len(missing) > max_missing * len(self) or len(missing) == len(self):
            raise FileNotFoundError(f"{seen} {missing[0]}. Copy them there, or remove the clips from the labels.")
        logger.warning("%s %s. The run goes on without them (--max_bad_clips %g).", seen, missing[0], max_missing)

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.names)

    def target(self, name: str) -> str:
        """The sentence (or, for CSLR, the glosses) that the model should write."""
        return self.gloss(name) if self.task == "CSLR" else str(self.labels[name].get("text") or "")

    def gloss(self, name: str) -> str:
        """A clip's glosses joined by spaces; "" where there are none."""
        gloss = self.labels[name].get("gloss") or ""
        return gloss if isinstance(gloss, str) else " ".join(map(str, gloss))

    def __getitem__(self, index: int) -> Sample:
        """Read one clip.

        Raises:
            ValueError: its pose file or its video cannot be used, or they do not belong together.
        """
        name = self.names[index]
        pose = read_pose(self.pose_paths[name], self.labels[name].get("frames"))
        rng = np.random.default_rng([self.seed, self.epoch, index]) if self.random_frames else None
        frames = sample_frames(len(pose), self.max_length, rng)
        descriptions = has_description = None
        if self.descriptions is not None:
            texts = self.descriptions.load(name, pose.start + len(pose))
            descriptions, has_description = self.aligner.align(texts, frames + pose.start)
        rgb_dict = {}
        if self.hand_crops is not None:
            # Drawn anew in each epoch of training; otherwise the same for any seed, so that scores repeat.
            drawn = [self.seed, self.epoch, index] if self.random_frames else [index]
            chooser = np.random.default_rng([*drawn, HAND_FRAMES])
            rgb_dict = self.hand_crops.load(self.video_paths[name], pose, frames, chooser)
        keypoints = part_keypoints(pose, frames)
        return Sample(name, keypoints, self.target(name), self.gloss(name), rgb_dict, descriptions, has_description)

    def description_texts(self, index: int) -> set[str]:
        """All texts that a clip may show; read without its pose, so frames beyond the clip count too."""
        assert self.descriptions is not None, "the data set was made without descriptions"
        return set(self.descriptions.load(self.names[index]).values())


class _Slots(Dataset[Sample | BadClip]):
    """A data set as a loader's workers see it: a clip that cannot be read does not end them."""

    def __init__(self, dataset: S2T_Dataset) -> None:
        self.dataset = dataset
        rgb_dict = no_crops() if dataset.hand_crops is not None else {}
        self.empty = empty_sample(dataset.descriptions is not None, rgb_dict)

    def __getitem__(self, index: int) -> Sample | BadClip:
        try:
            return self.dataset[index]
        except (ValueError, OSError) as error:
            return BadClip(self.dataset.names[index], str(error), self.empty)


class BatchSampler:
    """Which clips make each micro-batch of this process.

    In training each epoch has an order of its own, drawn from the seed, the same for any number of processes and
    workers; the processes take turns, and up to `world_size - 1` clips that do not divide among them sit the epoch out.
    In evaluation the batches follow the data set's order, whoever computes them, and each clip comes once.

    Args:
        n_clips: of the data set.
        batch_size: clips a micro-batch.
        rank: this process.
        world_size: number of processes.
        seed: of the order in training; None for evaluation.
    """

    def __init__(self, n_clips: int, batch_size: int, rank: int, world_size: int, seed: int | None = None) -> None:
        self.n_clips, self.batch_size, self.rank, self.world_size = n_clips, batch_size, rank, world_size
        self.seed = seed

    def batches(self, epoch: int = 0) -> list[list[int]]:
        """All micro-batches of an epoch for this process; every process has as many."""
        if self.seed is None:
            batches = _chunks(np.arange(self.n_clips), self.batch_size)
            mine = batches[self.rank :: self.world_size]
            # Under ZeRO-3 all must compute in every round: who has no batch left computes the first one for nothing.
            return mine if len(mine) == math.ceil(len(batches) / self.world_size) else [*mine, batches[0]]
        order = np.random.default_rng([self.seed, epoch]).permutation(self.n_clips)
        share = self.n_clips // self.world_size
        return _chunks(order[: share * self.world_size][self.rank :: self.world_size], self.batch_size)

    @property
    def n_own(self) -> int:
        """In evaluation: how many of the batches are this process's to report."""
        return len(range(self.rank, math.ceil(self.n_clips / self.batch_size), self.world_size))


def _chunks(indices: np.ndarray, size: int) -> list[list[int]]:
    return [indices[i : i + size].tolist() for i in range(0, len(indices), size)]


class ClipLoader:
    """Batches of a data set, epoch by epoch.

    Args:
        dataset: the clips.
        sampler: which of them make each batch of this process.
        num_workers: processes that load; started anew each epoch, so that they know its number.
        pin_memory: of the batches, for the GPU.
    """

    def __init__(self, dataset: S2T_Dataset, sampler: BatchSampler, num_workers: int, pin_memory: bool) -> None:
        self.dataset, self.sampler, self.num_workers = dataset, sampler, num_workers
        self.pin_memory = pin_memory and torch.cuda.is_available()

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        return len(self.sampler.batches())

    def epoch(self, number: int = 0, first: int = 0) -> DataLoader:
        """The batches of an epoch, without the `first` ones that an earlier run has done."""
        self.dataset.epoch = number
        return DataLoader(
            _Slots(self.dataset),
            batch_sampler=self.sampler.batches(number)[first:],
            collate_fn=collate_fn,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # or it would draw from the one that dropout uses, once more after a resume
        )
