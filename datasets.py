"""`S2T_Dataset`: from label files to samples, and which clips make a batch."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from batch import BadClip, Sample, collate_fn
from config import DatasetSpec
from pose import part_keypoints, read_pose
from safe_pickle import MAX_BYTES, load_pickle
from temporal_alignment import DescriptionLoader, TemporalAligner, sample_frames

logger = logging.getLogger(__name__)


def read_labels(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read Uni-Sign's labels: a gzip pickle of {name: {"name", "gloss", "text", "video_path"}}.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the content is no label table, or a clip's path leaves the pose folder.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"labels: {path} does not exist. Put the label file there, or set --root or config.py.")
    labels = _read_news(path) if Path(path).suffix == ".json" else load_pickle(path, compressed=True)
    if not isinstance(labels, Mapping) or not labels:
        raise ValueError(f"{path}: holds a {type(labels).__name__}; wanted a dict of clips.")
    for name, label in labels.items():
        if not isinstance(label, Mapping) or "video_path" not in label:
            raise ValueError(f"{path}: clip {name!r} has no 'video_path'.")
        for place in (str(name), str(label["video_path"])):
            parts = PurePosixPath(place.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts:
                raise ValueError(f"{path}: clip {name!r} points out of the data folder: {place!r}.")
    return dict(labels)


def _read_news(path: str | Path) -> dict[str, dict[str, Any]]:
    """CSL-News' labels, as those of the other data sets: a list of {"video", "pose", "text"}."""
    if Path(path).stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES} bytes. This is no label file.")
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            Path(entry["video"]).stem: {
                "text": entry["text"],
                "gloss": [],
                "video_path": entry.get("pose", entry["video"]),
            }
            for entry in entries
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f'{path}: not a JSON list of {{"video", "pose", "text"}}: {type(error).__name__} {error}.'
        ) from None


class S2T_Dataset(Dataset[Sample]):
    """The clips of one split.

    Args:
        spec: the data set, with its paths resolved.
        split: train, dev or test.
        task: CSLR writes glosses, the others text.
        max_length: a longer clip is sampled down to this many frames.
        random_frames: sample them at random (training) rather than evenly.
        use_descriptions: align each clip's descriptions with its frames.
        seed: of the random frames, with the epoch and the clip.
        max_bad_clips: the share of pose files that may be missing.

    Raises:
        FileNotFoundError: labels, poses or descriptions are not where they should be.
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
        seed: int = 0,
        max_bad_clips: float = 0.0,
    ) -> None:
        if split not in spec.labels:
            raise ValueError(f"--dataset {spec.name}: has no labels for the split {split!r}.")
        if task not in spec.tasks:
            raise ValueError(f"--task {task}: the labels of {spec.name} allow {', '.join(spec.tasks)}.")
        self.spec, self.split, self.task = spec, split, task
        self.max_length, self.random_frames, self.seed = max_length, random_frames, seed
        self.epoch = 0
        self.labels = read_labels(spec.labels[split])
        self.names = self._own_clips(list(self.labels))
        self.pose_paths = {
            name: Path(spec.pose_dir) / Path(self.labels[name]["video_path"]).with_suffix(".pkl") for name in self.names
        }
        self._check_targets()
        self._check_poses(max_bad_clips)
        self.descriptions: DescriptionLoader | None = None
        self.aligner = TemporalAligner()
        if use_descriptions:
            self.descriptions = DescriptionLoader(Path(spec.description_dir) / split)
            found = sum((self.descriptions.directory / f"{name}.json").is_file() for name in self.names)
            share = 100 * found / len(self.names)
            logger.info("%s: %d of %d clips (%.1f %%) have a description file.", split, found, len(self.names), share)

    def _own_clips(self, names: list[str]) -> list[str]:
        """Of one file for train and dev, the part of this split."""
        if not self.spec.held_out or self.spec.labels.get("train") != self.spec.labels.get("dev"):
            return names
        n_train = len(names) - max(1, round(len(names) * self.spec.held_out))
        return {"train": names[:n_train], "dev": names[n_train:]}.get(self.split, names)

    def _check_targets(self) -> None:
        missing = [name for name in self.names if not self.target(name).strip()]
        if missing:
            what = "gloss" if self.task == "CSLR" else "text"
            raise ValueError(
                f"{self.spec.labels[self.split]}: {len(missing)} clips have no {what}, the first is {missing[0]!r}. "
                "Remove them from the labels."
            )

    def _check_poses(self, max_bad_clips: float) -> None:
        if not Path(self.spec.pose_dir).is_dir():
            raise FileNotFoundError(
                f"poses: {self.spec.pose_dir} does not exist. Put the pose files there, or set --root."
            )
        missing = [path for path in self.pose_paths.values() if not path.is_file()]
        if not missing:
            return
        seen = f"poses: {len(missing)} of {len(self)} files of the split {self.split!r} do not exist, the first is"
        if len(missing) > max_bad_clips * len(self) or len(missing) == len(self):
            raise FileNotFoundError(f"{seen} {missing[0]}. Copy them there, or remove the clips from the labels.")
        logger.warning("%s %s. The run goes on without them (--max_bad_clips %g).", seen, missing[0], max_bad_clips)

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
            ValueError: its pose file cannot be used.
        """
        name = self.names[index]
        pose = read_pose(self.pose_paths[name])
        rng = np.random.default_rng([self.seed, self.epoch, index]) if self.random_frames else None
        frames = sample_frames(len(pose), self.max_length, rng)
        descriptions = has_description = None
        if self.descriptions is not None:
            texts = self.descriptions.load(name, pose.start + len(pose))
            descriptions, has_description = self.aligner.align(texts, frames + pose.start)
        return Sample(
            name, part_keypoints(pose, frames), self.target(name), self.gloss(name), {}, descriptions, has_description
        )

    def description_texts(self, index: int) -> set[str]:
        """All texts that a clip may show; read without its pose, so frames beyond the clip count too."""
        assert self.descriptions is not None, "the data set was made without descriptions"
        return set(self.descriptions.load(self.names[index]).values())


class _Slots(Dataset[Sample | BadClip]):
    """A data set as a loader's workers see it: a clip that cannot be read does not end them."""

    def __init__(self, dataset: S2T_Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Sample | BadClip:
        try:
            return self.dataset[index]
        except (ValueError, OSError) as error:
            return BadClip(self.dataset.names[index], str(error), self.dataset.descriptions is not None)


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
