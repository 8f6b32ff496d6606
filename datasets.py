"""`S2T_Dataset`: one clip of a split as a sample."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from clips.batch import Sample
from clips.labels import cure_of, gloss, split_labels, target
from clips.packs import is_pack, open_descriptions, open_poses
from config import DatasetSpec
from pose.hand_crops import HandCrops
from pose.keypoints import part_keypoints
from system.disk import file_sizes, sha256
from system.distributed import is_main
from temporal_alignment import DescriptionLoader, TemporalAligner, sample_frames

logger = logging.getLogger(__name__)

HAND_FRAMES = 1  # separates the random stream for the hands' frames from that for the clip's frames
LOOKED_INTO = 50  # description files to inspect before concluding that a split has no usable text


class S2T_Dataset(Dataset[Sample]):
    """The clips of one split.

    Args:
        spec: the data set, with its paths resolved.
        split: train, dev or test.
        task: with CSLR the targets are glosses, with the others text.
        max_length: maximum number of frames; longer clips are subsampled.
        random_frames: sample frames at random (training) instead of evenly.
        use_descriptions: align each clip's descriptions with its frames.
        rgb_support: load crops of the hands from each clip's video.
        uni_sign_crops: handle crops at the image border as Uni-Sign does.
        seed: seed for random frames, combined with the epoch and the clip's index.
        max_bad_clips: the fraction of pose files (or videos) that may be missing.

    Raises:
        FileNotFoundError: labels, poses, videos or descriptions are missing.
        ValueError: labels are unusable, or there are none for this split or task.
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
        spec.check_task(task)
        if rgb_support and not spec.rgb_dir:
            raise ValueError(f"--rgb_support: the data set {spec.name} names no folder of videos; set its rgb_dir.")
        if faults := spec.absent(split, videos=rgb_support, descriptions=use_descriptions):
            raise FileNotFoundError(" ".join(faults))
        self.spec, self.split, self.task = spec, split, task
        places = spec.for_split(split)
        self.max_length, self.random_frames, self.seed = max_length, random_frames, seed
        self.epoch = 0
        self.labels = split_labels(spec, split)
        self.names = list(self.labels)
        self.pose_paths = {name: places.pose_path(label) for name, label in self.labels.items()}
        self._check_targets()
        self.poses = open_poses(places.pose_dir, self.labels)
        self.sizes = self.poses.sizes(list(self.pose_paths.values()))
        self._check_files("poses", self.pose_paths, self.sizes, max_bad_clips)
        # Lengths only serve to sort clips. File sizes do this nearly as well as frame counts, without reading any file.
        known = all("end" in label for label in self.labels.values())
        self.lengths = (
            np.array([label["end"] - label.get("start", 0) for label in self.labels.values()]) if known else self.sizes
        )
        # The size of a compressed file tells what it shows, too: a batch of clips of one size would hold few signs.
        kinds = {path.suffix.lower() for path in self.pose_paths.values()}
        self.lengths_tell_content = not known and ".npz" in kinds
        self.hand_crops = HandCrops(uni_sign_crops) if rgb_support else None
        if rgb_support:
            self.video_paths = {name: places.video_path(label) for name, label in self.labels.items()}
            sizes = np.array(file_sizes(self.video_paths.values()))
            self._check_files("videos", self.video_paths, sizes, max_bad_clips)
        self.descriptions: DescriptionLoader | None = None
        self.aligner = TemporalAligner()
        if use_descriptions:
            self.descriptions = open_descriptions(Path(spec.description_dir) / spec.folder(split), self.labels)
            self.text_sizes = self.descriptions.sizes(self.names)  # bytes; 0 where there is no file
            found = np.count_nonzero(self.text_sizes)
            share = 100 * found / len(self.names)
            logger.info("%s: %d of %d clips (%.1f %%) have a description file.", split, found, len(self.names), share)

    def why_no_text(self) -> str:
        """Inspect a sample of the description files; return why none has usable text, or "" if one does."""
        assert self.descriptions is not None
        folder = Path(self.spec.description_dir) / self.spec.folder(self.split)
        filed = [name for name, size in zip(self.names, self.text_sizes, strict=True) if size]
        if not filed:
            other = None if is_pack(folder) else next(folder.rglob("*.json"), None)
            seen = f"; {other.relative_to(folder)} is there, {self.names[0]}.json was looked for" if other else ""
            return f"no clip of {self.split} has a description file in {folder}{seen}"
        looker = self.descriptions.counting_anew()
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
            raise ValueError(
                f"{self.spec.labels[self.split]}: {len(missing)} clips have no {what}, the first is {missing[0]!r}; "
                f"{cure_of(self.labels[missing[0]], what)}. Fill it in, or remove them from the labels."
            )

    def _check_files(self, what: str, paths: Mapping[str, Path], sizes: np.ndarray, max_missing: float) -> None:
        """Warn of files that are missing, whose size is 0; FileNotFoundError if they are too many."""
        missing = [path for path, size in zip(paths.values(), sizes, strict=True) if not size]
        if not missing:
            return
        seen = f"{what}: {len(missing)} of {len(self)} files of the split {self.split!r} do not exist, the first is"
        if len(missing) > max_missing * len(self) or len(missing) == len(self):
            raise FileNotFoundError(f"{seen} {missing[0]}. Copy them there, or remove the clips from the labels.")
        if is_main():
            logger.warning("%s %s. They are left out.", seen, missing[0])

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.names)

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies this split's data: a hash of the labels, and of the other files' names and sizes."""
        found: dict[str, Any] = {"clips": len(self), "labels_sha256": sha256(self.spec.labels[self.split])}
        found |= {name: getattr(self.spec, name) for name in ("language", "text_unit", "bleu_tokenizer")}
        sizes = zip(self.names, self.sizes.tolist(), strict=True)
        found["poses_sha256"] = _digest(f"{name} {size}" for name, size in sizes)
        if self.descriptions is not None:
            sizes = zip(self.names, self.text_sizes.tolist(), strict=True)
            there = [f"{name} {size}" for name, size in sizes if size]
            found |= {"described": len(there), "descriptions_sha256": _digest(there)}
        return found

    def target(self, name: str) -> str:
        """Return a clip's target: its sentence or, for CSLR, its glosses."""
        return target(self.labels[name], self.task)

    def __getitem__(self, index: int) -> Sample:
        """Read one clip; ValueError if its pose file or video is unusable, or the two do not match."""
        name = self.names[index]
        pose = self.poses.read(self.pose_paths[name], self.labels[name])
        rng = np.random.default_rng([self.seed, self.epoch, index]) if self.random_frames else None
        frames = sample_frames(len(pose), self.max_length, rng)
        descriptions = has_description = None
        if self.descriptions is not None:
            texts = self.descriptions.load(name, pose.frames)
            descriptions, has_description = self.aligner.align(texts, frames + pose.start)
        rgb_dict = {}
        if self.hand_crops is not None:
            # In training, drawn anew in each epoch; otherwise by the clip alone, so that scores are reproducible.
            drawn = [self.seed, self.epoch, index, HAND_FRAMES]
            chooser = np.random.default_rng(drawn) if self.random_frames else None
            rgb_dict = self.hand_crops.load(self.video_paths[name], pose, frames, chooser)
        keypoints = part_keypoints(pose, frames)
        glosses = gloss(self.labels[name])
        return Sample(name, keypoints, self.target(name), glosses, rgb_dict, descriptions, has_description)

    def targets(self) -> list[str]:
        """Return the target of every clip, in order."""
        return [self.target(name) for name in self.names]

    def description_texts(self) -> set[str]:
        """Return all texts of all clips. Poses are not read, so texts of frames outside the clip are included."""
        if self.descriptions is None:
            return set()
        texts: set[str] = set()
        for name in self.names:
            texts.update(self.descriptions.load(name).values())
        return texts


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
