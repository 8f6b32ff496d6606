"""Audit description files: their coverage and faults; optionally write a cleaned copy."""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import config
from describing.files import Clip, clips_of, write_descriptions
from system.disk import check_name
from system.faults import CLIP_FAULTS, in_one_line, printable
from temporal_alignment import DescriptionCounts, numbered_from_one, read_descriptions

logger = logging.getLogger(__name__)

MANY_FRAMES, MOST = 8, 0.5  # suspicious: one text on at least so many frames and more than this fraction of them
NEED_CLIPS = ("files_missing", "pose_unreadable", "out_of_range")  # need known clips
UNKNOWN = "?: cannot be known without --dataset or --dataset_config, which name the clips and their poses."


@dataclass
class FileReport:
    """The findings for one clip's file."""

    name: str
    counts: DescriptionCounts
    n_frames: int | None  # of the clip; None if unknown
    damage: str  # why it cannot be read
    pose_damage: str  # why the clip's pose cannot be read
    texts: Counter[str]  # text -> number of frames with it
    made_by: Counter[str]  # maker, "" if unknown -> number of frames
    numbers: tuple[int, Collection[int]] | None  # frames of the recording, and the described ones, as written

    def faults(self) -> list[str]:
        """Return the names of the file's faults, as in `FAULTS`."""
        found = [name for name in FAULTS if getattr(self.counts, name, 0)]
        if self.pose_damage:
            found.append("pose_unreadable")
        if self.damage:
            found.append("unreadable")
        elif self.counts.files_found and not self.counts.frames:
            found.append("no_text")
        most = max(self.texts.values(), default=0)
        if most >= MANY_FRAMES and most > MOST * self.counts.frames:
            found.append("one_text")
        return found


FAULTS = {
    "files_missing": "clips without a file",
    "pose_unreadable": "clips whose pose cannot be read",
    "unreadable": "files that cannot be read",
    "no_text": "files without one valid text",
    "error_texts": "API errors and refusals in place of texts",
    "blank": "empty or blank texts",
    "not_text": "null, numbers or lists in place of texts",
    "bad_frame": "entries without a frame number",
    "out_of_range": "frames outside the clip",
    "duplicates": "second texts of a frame",
    "one_text": f"files with one text at {MANY_FRAMES} frames or more, and at most of them",
}


@dataclass
class SplitReport:
    """The findings for all files of one split."""

    name: str
    files: list[FileReport]
    knows_clips: bool  # whether the clips and their lengths are known

    def texts(self) -> Counter[str]:
        """Return text -> number of frames with it."""
        total = Counter[str]()
        for report in self.files:
            total.update(report.texts)
        return total

    def from_one(self) -> bool:
        """Return whether frames are numbered from 1, which only known clips can show."""
        return numbered_from_one(report.numbers for report in self.files if report.numbers)

    def measured(self) -> list[tuple[int, int]]:
        """Return (frames, described frames) of each clip of known length."""
        return [(report.n_frames, report.counts.frames) for report in self.files if report.n_frames is not None]

    def coverage(self) -> str:
        """Return the percentage of described frames, with the number of clips if not all lengths are known."""
        lengths = self.measured()
        n_frames, described = map(sum, zip(*lengths, strict=True)) if lengths else (0, 0)
        share = f"{100 * described / n_frames:.1f} %" if n_frames else "?"
        return share if len(lengths) in (0, len(self.files)) else f"{share} of {len(lengths)} clips"

    def row(self) -> dict[str, str]:
        """Return the split's values in the table."""
        texts, total = self.texts(), DescriptionCounts()
        for report in self.files:
            total += report.counts
        faulty = Counter(fault for report in self.files for fault in report.faults())  # files, the others are entries
        lengths = sorted(map(len, texts.elements()))
        languages = Counter[str]()
        for text, count in texts.items():
            languages[language_of(text)] += count
        silent = sum(not report.counts.frames for report in self.files)
        frames = sum(length for length, _ in self.measured())
        row = {
            "clips": f"{len(self.files)}" if self.knows_clips else "?",
            "files": f"{len(self.files) - total.files_missing}",
            "clips without a text": f"{silent}" if self.knows_clips else "?",
            "numbered from": f"{int(self.from_one())}" if frames else "?",
            "frames": f"{frames}" if frames else "?",
            "described": f"{total.frames}",
            "coverage": self.coverage(),
            "distinct texts": f"{len(texts)}",
            "characters (5 %, median, 95 %)": ", ".join(
                str(lengths[int(share * (len(lengths) - 1))]) for share in (0.05, 0.5, 0.95)
            )
            if lengths
            else "-",
            "languages": ", ".join(f"{name} {count}" for name, count in languages.most_common()) or "-",
        }
        unknown = () if self.knows_clips else NEED_CLIPS
        counts = {fault: getattr(total, fault, faulty[fault]) for fault in FAULTS}
        return row | {title: "?" if fault in unknown else f"{counts[fault]}" for fault, title in FAULTS.items()}


# -- looking ---------------------------------------------------------------------------------------------------------


def language_of(text: str) -> str:
    """Classify a text as Chinese or English by its letters.

    >>> [language_of(text) for text in ("右手在胸前。", "OK手势，右手", "Right hand.", "右手 index finger", "12")]
    ['zh', 'zh', 'en', 'mixed', 'other']
    """
    chinese, latin = len(re.findall("[\u4e00-\u9fff]", text)), len(re.findall("[A-Za-z]", text))
    if not chinese + latin:
        return "other"
    # One Chinese character counts as three letters.
    share = 3 * chinese / (3 * chinese + latin)
    return "zh" if share > 0.8 else "en" if share < 0.2 else "mixed"


def examine(clip: Clip) -> FileReport:
    """Audit a clip's file."""
    pose, numbers, damage = None, None, ""
    try:
        pose = clip.read_pose() if clip.pose else None
    except CLIP_FAULTS as error:
        damage = in_one_line(error)
    found = read_descriptions(clip.out, pose.frames if pose else None)
    if pose:
        numbers = pose.n_recorded, list(read_descriptions(clip.out).texts)
    n_frames = len(pose) if pose else None
    texts, made_by = Counter(found.texts.values()), Counter(found.made_by.values())
    return FileReport(clip.name, found.counts, n_frames, found.damage, damage, texts, made_by, numbers)


def find_files(folder: Path, spec: config.DatasetSpec | None = None) -> dict[str, list[Clip]]:
    """Return split ("" for none) -> clips to audit, those of `spec` if it is known; FileNotFoundError without any."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder. Name the one that holds train, dev and test, or the files.")
    if spec is not None:
        splits = [split for split in spec.labels if (folder / split).is_dir()]
        if not splits:
            raise FileNotFoundError(f"{folder} has none of the folders {', '.join(spec.labels)}.")
        if faults := spec.absent(*splits):
            raise FileNotFoundError(" ".join(faults))
        clips = {split: clips_of(spec, split, folder / split) for split in splits}
        for split, known in clips.items():
            if stray := {clip.name for clip in _clips_in(folder / split)} - {clip.name for clip in known}:
                logger.warning("%s: %d files of no clip, such as %s.json", split, len(stray), min(stray))
        return clips
    clips = {path.name: _clips_in(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    clips = {split: of_split for split, of_split in clips.items() if of_split}
    if beside := sorted(path.name for path in folder.glob("*.json")):
        if clips.keys().isdisjoint(config.SPLITS):  # the folders are parts of the clips' names
            return {"": _clips_in(folder)}
        logger.warning("%s: %d files beside the folders are left out, such as %s", folder, len(beside), beside[0])
    if not clips:
        raise FileNotFoundError(f"{folder} holds no .json files, nor folders of them.")
    order = {split: number for number, split in enumerate(config.SPLITS)}
    return dict(sorted(clips.items(), key=lambda item: order.get(item[0], len(order))))


def _clips_in(folder: Path) -> list[Clip]:
    """Return a clip for each file in a folder; the name of one in a sub-folder is its path, as in label files."""
    paths = sorted(folder.rglob("*.json"))
    return [Clip(path.relative_to(folder).with_suffix("").as_posix(), None, None, path) for path in paths]


# -- showing ---------------------------------------------------------------------------------------------------------


def table(splits: Sequence[SplitReport]) -> str:
    """Format all splits as a text table, one line per property."""
    rows = [split.row() for split in splits]
    width = max(map(len, rows[0]))
    names = [printable(split.name, kept="") or "all" for split in splits]
    columns = [max(len(name), *map(len, row.values())) for name, row in zip(names, rows, strict=True)]
    head = [name.rjust(column) for name, column in zip(names, columns, strict=True)]
    lines = ["  ".join([" " * width, *head])]
    for key in rows[0]:
        cells = [row[key].rjust(column) for row, column in zip(rows, columns, strict=True)]
        lines.append("  ".join([key.ljust(width), *cells]))
    return "\n".join(lines + [UNKNOWN] * any(not split.knows_clips for split in splits))


# -- cleaning --------------------------------------------------------------------------------------------------------


def repair(clips: Mapping[str, list[Clip]], reports: Sequence[SplitReport], target: Path) -> int:
    """Write the valid texts of every file to another folder, numbered from 0; return the number of files written."""
    written = 0
    for split in reports:
        shift = int(split.from_one())
        for clip, report in zip(clips[split.name], split.files, strict=True):
            # Which texts are the clip's shows only now, since `shift` was not known when the file was examined.
            pose = clip.read_pose() if clip.pose and not report.pose_damage else None
            frames = range(pose.start + shift, pose.frames.stop + shift) if pose else range(shift, sys.maxsize)
            found = read_descriptions(clip.out, frames)
            if not found.texts:
                continue
            texts, made_by = ({n - shift: of[n] for n in of} for of in (found.texts, found.made_by))
            path = target / split.name / f"{clip.name}.json"
            try:
                check_name(path)
            except ValueError as error:
                logger.warning("left out: %s", error)
                continue
            write_descriptions(path, texts, made_by)
            written += 1
    return written
