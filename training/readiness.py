"""Examine what a run needs: the data of every split, the weights, and GPU memory compared with an estimate."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from clips.labels import split_labels, target
from clips.packs import open_descriptions, open_poses
from config import DatasetSpec, under_root
from network.mt5 import load_mt5
from network.vocabulary import Tokenizer, choose, folder_config
from pose.hand_crops import HandCrops
from pose.video import check_n_frames, count_frames
from training import build
from training.findings import Report
from training.memory import estimate, mt5_parameters
from utils import progress

SAMPLE = 200  # number of files to open (up to twice as many), unless all are opened


def examine(report: Report, args: argparse.Namespace, everything: bool) -> None:
    """Report on the folders, weights and GPU of a run.

    Args:
        report: where findings go.
        args: the command line of the run.
        everything: open every file instead of a sample.

    Raises:
        FileNotFoundError, ValueError: see `build.dataset_spec`.
    """
    spec = build.dataset_spec(args)
    limit = sys.maxsize if everything else SAMPLE
    train = sizes = None
    for split in spec.labels:
        with report.section(f"{spec.name} {split}"):
            clips = examine_split(
                report, spec, split, limit, described=args.use_descriptions, max_bad_clips=args.max_bad_clips
            )
            train = clips if split == "train" else train
            if clips and args.rgb_support:
                examine_videos(report, spec, split, limit, args.max_bad_clips)
    with report.section(report.text("weights")):
        folder = Path(under_root(args.root, args.mt5_path))
        sizes = examine_mt5(report, folder)
        if sizes and train and args.trim_vocab:
            sentences = [target(label, args.task) for label in split_labels(spec, "train").values()]
            sizes["vocab_size"] = len(choose(Tokenizer(folder), sentences))
            report.say("·", "trim_vocab", sizes["vocab_size"], sum(mt5_parameters(**sizes)) / 1e6)
    if sizes and (args.finetune or args.fusion_checkpoint):
        with report.section(report.text("checkpoint")):
            # With a frozen text encoder this would fill the cache.
            unfrozen = argparse.Namespace(**{**vars(args), "text_encoder_freeze": False})
            build.build_model(unfrozen, build.model_config(args, spec), {})
            report.say("✓", "fits", ", ".join(filter(None, (args.finetune, args.fusion_checkpoint))))
    with report.section("GPU"):
        examine_gpu(report, args, sizes or {}, *(train or (0, 0.0)))


def examine_split(
    report: Report, spec: DatasetSpec, split: str, limit: int, *, described: bool = False, max_bad_clips: float = 0.0
) -> tuple[int, float] | None:
    """Check that all label, pose and description files exist, and open about `limit` of each.

    With `described` the run needs descriptions; `max_bad_clips` is the share of clips that it may leave out.

    Returns:
        The frames of the longest clip, and the mean number of texts per clip; None without labels.
    """
    if not Path(spec.labels[split]).is_file():
        report.say("✗", "no_labels", spec.labels[split])
        return None
    labels, spec = split_labels(spec, split), spec.for_split(split)
    report.say("✓", "labels", len(labels), spec.labels[split])
    poses = {name: spec.pose_path(label) for name, label in labels.items()}
    source = open_poses(spec.pose_dir)
    missing = {name for name, size in zip(poses, source.sizes(list(poses.values())), strict=True) if not size}
    faults = [report.text("missing", path.name) for name, path in poses.items() if name in missing]
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

    say_files(report, "poses", spec.pose_dir, faults, (len(labels), len(missing), len(to_measure)), max_bad_clips)
    longest = max(lengths.values(), default=0)
    if loader is None:
        mark = "✗" if described else "!" if spec.description_dir else "·"
        report.say(mark, "no_descriptions" if spec.description_dir else "no_description_dir", directory)
        return longest, 0.0
    counts = vars(loader.counts)
    useless = not any(texts.values())
    mark = "!" if useless or counts["files_unreadable"] else "✓"
    numbers = len(filed), len(labels) - len(filed), counts["files_unreadable"]
    refused = useless and described and split == "train"
    report.say("✗" if refused else mark, "descriptions", *numbers, directory, report.text("useless") if useless else "")
    kinds = [report.text(kind, n) for kind, n in counts.items() if kind[:5] not in ("files", "entri")]
    report.say("·", "entries", counts["entries"], ", ".join(kinds))
    # Extrapolate from the opened files: from clips with a description file, and from all clips.
    share = len(filed) / len(labels) / max(1, len(to_read))
    per_clip = share * sum(n for name, n in texts.items() if name in lengths)
    frames = sum(lengths.get(name, 0) for name in to_measure) / len(to_measure)
    report.say("·", "coverage", share * sum(map(bool, texts.values())), per_clip / max(1, frames))
    if len(to_measure) < len(labels):
        report.say("·", "estimated", len(to_measure), len(labels), len(to_read), len(filed))
    return longest, per_clip


def examine_videos(report: Report, spec: DatasetSpec, split: str, limit: int, max_bad_clips: float = 0.0) -> None:
    """Check that all videos exist, and compare about `limit` of them with their pose files."""
    HandCrops()  # raises if a package is missing
    labels, spec = split_labels(spec, split), spec.for_split(split)
    poses = open_poses(spec.pose_dir)
    videos = {name: spec.video_path(label) for name, label in labels.items()}
    found = [name for name, path in videos.items() if path.is_file()]
    faults = [report.text("missing", path.name) for name, path in videos.items() if not path.is_file()]
    opened = found[:: max(1, len(found) // limit)]
    for name in progress(opened, split):
        try:
            pose = poses.read(spec.pose_path(labels[name]), labels[name].get("frames"))
            check_n_frames(videos[name], count_frames(videos[name]), pose.n_recorded)
        except (ValueError, OSError) as error:
            faults.append(str(error))
    numbers = len(labels), len(labels) - len(found), len(opened)
    say_files(report, "videos", spec.rgb_dir, faults, numbers, max_bad_clips)


def say_files(
    report: Report, kind: str, folder: str, faults: list[str], numbers: tuple[int, int, int], max_bad_clips: float
) -> None:
    """Say what was found, of `numbers` = (clips, missing files, opened files), and the first of the faults."""
    n_clips, n_missing, n_opened = numbers
    n_damaged = len(faults) - n_missing
    bad = n_missing / n_clips + n_damaged / max(1, n_opened)
    mark = "✗" if bad > max_bad_clips or n_missing == n_clips else "!" if faults else "✓"
    first = report.text("first", faults[0]) if faults else ""
    report.say(mark, kind, n_clips - n_missing, n_missing, n_damaged, folder, first)


def examine_mt5(report: Report, folder: Path) -> dict[str, Any] | None:
    """Load mT5 and its tokenizer; return the sizes in its config, None if files are missing.

    Raises:
        FileNotFoundError, ValueError: see `load_mt5` and `Tokenizer`.
    """
    if lacking := [name for name in ("config.json", "spiece.model") if not (folder / name).is_file()]:
        report.say("✗", "no_mt5", folder, ", ".join(lacking))
        return None
    Tokenizer(folder)
    n_parameters = sum(parameter.numel() for parameter in load_mt5(folder).parameters())
    sizes = folder_config(folder)
    report.say("✓", "mt5", folder, sizes["d_model"], sizes["num_layers"], n_parameters / 1e6)
    return sizes


def examine_gpu(report: Report, args: argparse.Namespace, sizes: dict[str, Any], longest: int, texts: float) -> None:
    """Compare the memory of the GPUs with an estimate of what training needs."""
    run = build.memory_settings(args)
    frames = min(args.max_length, longest or args.max_length)
    state, activations = estimate(run, sizes, frames, texts, max(1, torch.cuda.device_count()))
    described = report.text("texts", texts) if run.encodes_texts else ""
    report.say("·", "memory", state + activations, state, activations, args.batch_size, frames, described)
    if not torch.cuda.is_available():
        report.say("·", "no_gpu")
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        memory = gpu.total_memory / 2**30
        fits = memory > state + activations
        report.say("✓" if fits else "·", "gpu", number, gpu.name, memory, "" if fits else report.text("save_memory"))
