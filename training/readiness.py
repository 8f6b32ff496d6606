"""Examine what a run needs: the data of every split, the weights, and GPU memory compared with an estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clips.labels import split_labels
from clips.packs import open_poses
from config import DatasetSpec
from network.mt5 import load_mt5
from network.vocabulary import Tokenizer, folder_config
from pose.hand_crops import HandCrops
from pose.video import check_n_frames, count_frames
from system.disk import file_sizes
from system.faults import CLIP_FAULTS, in_one_line
from training.findings import Report
from training.look import SplitLook, every, look_at_files
from training.memory import MemorySettings, estimate
from utils import progress


def look_at_split(
    report: Report, spec: DatasetSpec, split: str, limit: int, max_bad_clips: float = 0.0, renumber: str = ""
) -> SplitLook | None:
    """Check that labels and poses exist, and open about `limit` poses and descriptions; None without labels.

    `max_bad_clips` is the share of clips that the run may leave out; `renumber` is as for `SplitLook.lines`.
    """
    if not Path(spec.labels[split]).is_file():
        report.say("✗", "no_labels", spec.labels[split])
        return None
    labels, spec = split_labels(spec, split), spec.for_split(split)
    report.say("✓", "labels", len(labels), spec.labels[split])
    paths = {name: spec.pose_path(label) for name, label in labels.items()}
    poses, folder = open_poses(spec.pose_dir, labels), Path(spec.description_dir) / spec.folder(split)
    there = folder if spec.description_dir and folder.is_dir() else None
    look = look_at_files(split, labels, paths, poses.sizes([*paths.values()]), poses, there, limit)
    faults = [report.text("missing", paths[name].name) for name in look.missing] + look.faults
    numbers = len(labels), len(look.missing), len(look.chosen)
    say_files(report, "poses", spec.pose_dir, faults, numbers, max_bad_clips)
    report.say_all(look.lines(renumber))
    return look


def examine_descriptions(report: Report, spec: DatasetSpec, split: str, look: SplitLook, needed: bool) -> float:
    """Say what description files hold, and whether the run lacks them; return the mean number of texts per clip."""
    folder = Path(spec.description_dir) / spec.folder(split) if spec.description_dir else "description_dir"
    if look.counts is None:
        report.say("✗" if needed else "!" if spec.description_dir else "·", "no_descriptions", folder)
        return 0.0
    counts, n_clips, n_filed, n_read = vars(look.counts), len(look.labels), len(look.filed), len(look.texts)
    useless = not any(look.texts.values())
    refused = useless and needed and split == "train"
    mark = "✗" if refused else "!" if useless or counts["files_unreadable"] else "✓"
    numbers = n_filed, n_clips - n_filed, counts["files_unreadable"]
    report.say(mark, "descriptions", *numbers, folder, report.text("useless") if useless else "")
    kinds = [report.text(kind, n) for kind, n in counts.items() if kind[:5] not in ("files", "entri")]
    report.say("·", "entries", counts["entries"], ", ".join(kinds))
    # Extrapolate from the opened files: from clips with a description file, and from all clips.
    share = n_filed / n_clips / max(1, n_read)
    per_clip = share * sum(n for name, n in look.texts.items() if name in look.clips)
    frames = sum(look.clips[name].n_frames for name in look.chosen if name in look.clips) / len(look.chosen)
    report.say("·", "coverage", share * sum(map(bool, look.texts.values())), per_clip / max(1, frames))
    if len(look.chosen) < n_clips:
        report.say("·", "estimated", len(look.chosen), n_clips, n_read, n_filed)
    return per_clip


def examine_videos(report: Report, spec: DatasetSpec, split: str, limit: int, max_bad_clips: float = 0.0) -> None:
    """Check that all videos exist, and compare about `limit` of them with their pose files."""
    HandCrops()  # raises if a package is missing
    labels, spec = split_labels(spec, split), spec.for_split(split)
    poses = open_poses(spec.pose_dir, labels)
    videos = {name: spec.video_path(label) for name, label in labels.items()}
    sizes = file_sizes(videos.values())
    found = [name for name, size in zip(videos, sizes, strict=True) if size]
    faults = [report.text("missing", path.name) for path, size in zip(videos.values(), sizes, strict=True) if not size]
    opened = every(found, limit)
    for name in progress(opened, split):
        try:
            pose = poses.read(spec.pose_path(labels[name]), labels[name])
            check_n_frames(videos[name], count_frames(videos[name]), pose.n_recorded)
        except CLIP_FAULTS as error:
            faults.append(in_one_line(error))
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
    """Load mT5 and its tokenizer, which may raise; return the sizes in its config, None if files are missing."""
    if lacking := [name for name in ("config.json", "spiece.model") if not (folder / name).is_file()]:
        report.say("✗", "no_mt5", folder, ", ".join(lacking))
        return None
    Tokenizer(folder)
    n_parameters = sum(parameter.numel() for parameter in load_mt5(folder).parameters())
    sizes = folder_config(folder)
    report.say("✓", "mt5", folder, sizes["d_model"], sizes["num_layers"], n_parameters / 1e6)
    return sizes


def examine_gpu(report: Report, run: MemorySettings, sizes: dict[str, Any], frames: int, texts: float) -> None:
    """Compare the memory of the GPUs with an estimate of what training needs, for clips of so many frames and texts."""
    state, activations = estimate(run, sizes, frames, texts, max(1, torch.cuda.device_count()))
    described = report.text("texts", texts) if run.encodes_texts else ""
    report.say("·", "memory", state + activations, state, activations, run.batch_size, frames, described)
    if not torch.cuda.is_available():
        report.say("·", "no_gpu")
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        memory = gpu.total_memory / 2**30
        fits = memory > state + activations
        report.say("✓" if fits else "·", "gpu", number, gpu.name, memory, "" if fits else report.text("save_memory"))
