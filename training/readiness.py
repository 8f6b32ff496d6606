"""Examine what a run needs: the data of every split, the weights, and GPU memory compared with an estimate."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from clips.labels import split_labels, target
from clips.packs import open_descriptions, open_poses
from config import DatasetSpec, under_root
from network.vocabulary import Tokenizer, choose
from pose.hand_crops import HandCrops
from pose.video import check_n_frames, count_frames
from training import build
from training.memory import estimate, mt5_parameters
from utils import progress

SAMPLE = 200  # number of files to open (up to twice as many), unless all are opened


@dataclasses.dataclass
class Report:
    """Prints findings and counts what is missing or damaged."""

    missing: int = 0

    def say(self, mark: str, text: str) -> None:
        """Print a line; the mark "!" counts as a problem."""
        self.missing += mark == "!"
        print(f"  {mark} {text}", flush=True)

    @contextlib.contextmanager
    def section(self, title: str) -> Iterator[None]:
        """Print a title; an error in the `with` block is printed as a problem, and what follows is still examined."""
        print(title, flush=True)
        try:
            yield
        except (OSError, ValueError) as error:
            self.say("!", " ".join(str(error).split()))
        except Exception as error:  # noqa: BLE001 -- whatever is broken here, the rest is worth reading
            self.say("!", f"not examined: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def examine(args: argparse.Namespace, everything: bool) -> int:
    """Print findings on a run's folders; return the number of problems.

    Args:
        args: the command line of the run.
        everything: open every file instead of a sample.
    """
    report = Report()
    longest, texts = 0, 0.0
    sizes: dict[str, Any] = {}
    with report.section("data"):
        longest, texts = examine_data(report, args, sys.maxsize if everything else SAMPLE)
    with report.section("weights"):
        sizes = examine_weights(report, args)
    if args.finetune or args.fusion_checkpoint:
        with report.section("checkpoint"):
            examine_checkpoints(report, args)
    with report.section("GPU"):
        examine_gpu(report, args, sizes, longest, texts)
    return report.missing


def examine_data(report: Report, args: argparse.Namespace, limit: int) -> tuple[int, float]:
    """Examine every split; return the result of `examine_split` for train, zeros if there is none."""
    spec = build.dataset_spec(args)
    results = {}
    for split in spec.labels:
        with report.section(f"{spec.name} {split}"):
            results[split] = examine_split(report, spec, split, limit)
    for split in spec.labels if args.rgb_support else ():
        with report.section(f"{spec.name} {split}, videos"):
            examine_videos(report, spec, split, limit)
    return results.get("train", (0, 0.0))


def examine_split(report: Report, spec: DatasetSpec, split: str, limit: int) -> tuple[int, float]:
    """Check that all label, pose and description files exist, and open about `limit` of each.

    Returns:
        The frames of the longest clip, and the mean number of texts per clip.
    """
    labels, spec = split_labels(spec, split), spec.for_split(split)
    report.say("✓", f"labels: {len(labels)} clips in {spec.labels[split]}")
    poses = {name: spec.pose_path(label) for name, label in labels.items()}
    source = open_poses(spec.pose_dir)
    missing = {name for name, size in zip(poses, source.sizes(list(poses.values())), strict=True) if not size}
    faults = [f"{path.name} is missing" for name, path in poses.items() if name in missing]
    n_missing = len(faults)
    directory = Path(spec.description_dir) / spec.folder(split)
    loader = open_descriptions(directory) if spec.description_dir and directory.is_dir() else None
    filed = [name for name, size in zip(labels, loader.sizes([*labels]), strict=True) if size] if loader else []
    to_measure, to_read = (dict.fromkeys(names[:: max(1, len(names) // limit)]) for names in ([*labels], filed))
    lengths: dict[str, int] = {}
    texts: dict[str, int] = {}  # number of texts
    for name in progress(to_measure | to_read, split):
        own = None
        if name not in missing:
            try:
                pose = source.read(poses[name], labels[name].get("frames"))
                lengths[name], own = len(pose), pose.frames
            except (ValueError, OSError) as error:
                faults.append(str(error))
        if loader and name in to_read:
            texts[name] = len(loader.load(name, own))

    numbers = f"{len(labels) - n_missing} found, {n_missing} missing, {len(faults) - n_missing} unreadable"
    first = f"; the first: {faults[0]}" if faults else ""
    report.say("!" if faults else "✓", f"poses: {numbers} in {spec.pose_dir}{first}")
    longest = max(lengths.values(), default=0)
    if loader is None:
        lacking = f"{directory} does not exist" if spec.description_dir else "the record has no description_dir"
        report.say("!" if spec.description_dir else "·", f"descriptions: {lacking}; --use_descriptions needs it")
        return longest, 0.0
    counts = vars(loader.counts)
    numbers = f"{len(filed)} found, {len(labels) - len(filed)} missing, {counts['files_unreadable']} unreadable"
    refused = " (training refuses that)" if split == "train" else ""
    useless = "" if any(texts.values()) else f"; not one text that can be used{refused}"
    good = not useless and not counts["files_unreadable"]
    report.say("✓" if good else "!", f"descriptions: {numbers} in {directory}{useless}")
    kinds = [f"{n} {kind.replace('_', ' ')}" for kind, n in counts.items() if kind[:5] not in ("files", "entri")]
    report.say("·", f"entries: {counts['entries']} = {', '.join(kinds)}")
    # Extrapolate from the opened files: from clips with a description file, and from all clips.
    share = len(filed) / len(labels) / max(1, len(to_read))
    per_clip = share * sum(n for name, n in texts.items() if name in lengths)
    frames = sum(lengths.get(name, 0) for name in to_measure) / len(to_measure)
    of_clips, of_frames = share * sum(map(bool, texts.values())), per_clip / max(1, frames)
    report.say("·", f"with a text of their own: {of_clips:.1%} of the clips, {of_frames:.1%} of the frames")
    if len(to_measure) < len(labels):
        opened = f"{len(to_measure)} of {len(labels)} poses and {len(to_read)} of {len(filed)} description files"
        report.say("·", f"estimated: {opened} were opened; --full opens all")
    return longest, per_clip


def examine_videos(report: Report, spec: DatasetSpec, split: str, limit: int) -> None:
    """Check that all videos exist, and compare about `limit` of them with their pose files."""
    HandCrops()  # raises if a package is missing
    labels, spec = split_labels(spec, split), spec.for_split(split)
    poses = open_poses(spec.pose_dir)
    videos = {name: spec.video_path(label) for name, label in labels.items()}
    faults = [f"{path.name} is missing" for path in videos.values() if not path.is_file()]
    n_missing = len(faults)
    found = [name for name, path in videos.items() if path.is_file()]
    opened = found[:: max(1, len(found) // limit)]
    for name in progress(opened, split):
        try:
            pose = poses.read(spec.pose_path(labels[name]), labels[name].get("frames"))
            check_n_frames(videos[name], count_frames(videos[name]), pose.n_recorded)
        except (ValueError, OSError) as error:
            faults.append(str(error))
    numbers = f"{len(found)} found, {n_missing} missing; of {len(opened)} opened {len(faults) - n_missing} do not fit"
    first = f"; the first: {faults[0]}" if faults else ""
    report.say("!" if faults else "✓", f"videos: {numbers} in {spec.rgb_dir}{first}")


def examine_weights(report: Report, args: argparse.Namespace) -> dict[str, Any]:
    """Examine mT5; return the sizes in its config, {} if it is not there."""
    folder = Path(under_root(args.root, args.mt5_path))
    if lacking := [name for name in ("config.json", "spiece.model") if not (folder / name).is_file()]:
        report.say("!", f"mT5: {folder} has no {', no '.join(lacking)}. Put google/mt5-base there, or set --mt5_path.")
        return {}
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    n_parameters = sum(mt5_parameters(**sizes))
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    what = f"d_model {sizes['d_model']}, {sizes['num_layers']} layers, about {n_parameters / 1e6:.1f} M parameters"
    whole = size > 1.9 * n_parameters  # otherwise under two bytes each: perhaps a Git LFS pointer
    cure = "" if whole else ": too small, get the weights again"
    report.say("✓" if whole else "!", f"mT5: {folder}: {what}, {size / 1e9:.3f} GB{cure}")
    if args.trim_vocab:
        labels = split_labels(build.dataset_spec(args), "train")
        kept = choose(Tokenizer(folder), [target(label, args.task) for label in labels.values()])
        sizes["vocab_size"] = len(kept)
        n_parameters = sum(mt5_parameters(**sizes))
        what = f"{len(kept)} tokens for the sentences of train: about {n_parameters / 1e6:.1f} M parameters"
        report.say("·", f"--trim_vocab keeps {what}; descriptions may need some more")
    return sizes


def examine_checkpoints(report: Report, args: argparse.Namespace) -> None:
    """Load mT5 and the checkpoints like a run."""
    config = build.model_config(args, build.dataset_spec(args))
    # With a frozen text encoder this would fill the cache.
    build.build_model(argparse.Namespace(**{**vars(args), "text_encoder_freeze": False}), config, {})
    report.say("✓", f"{' and '.join(filter(None, (args.finetune, args.fusion_checkpoint)))}: readable, and fits")


def examine_gpu(report: Report, args: argparse.Namespace, sizes: dict[str, Any], longest: int, texts: float) -> None:
    """Compare the memory of the GPUs with an estimate of what training needs."""
    run = build.memory_settings(args)
    frames = min(args.max_length, longest or args.max_length)
    state, activations = estimate(run, sizes, frames, texts, max(1, torch.cuda.device_count()))
    batch = f"{args.batch_size} clips of {frames} frames" + (f" and {texts:.0f} texts" if run.encodes_texts else "")
    parts = f"{state:.1f} weights and optimizer, {activations:.1f} for {batch}"
    report.say("·", f"training needs about {state + activations:.1f} GiB a GPU, an estimate: {parts}")
    if not torch.cuda.is_available():
        report.say("·", "no GPU: a CPU run is possible, and slow")
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        memory = gpu.total_memory / 2**30
        cure = "" if memory > state + activations else ": try a smaller --batch-size or --max_length, or --offload"
        report.say("·" if cure else "✓", f"GPU {number}: {gpu.name}, {memory:.1f} GiB{cure}")
