"""Audit description files: their coverage and faults; optionally write a cleaned copy."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import config
from describing.files import Clip, clips_of, write_descriptions
from system.disk import check_name
from system.faults import CLIP_FAULTS, in_one_line, printable
from temporal_alignment import DescriptionCounts, numbered_from_one, read_descriptions

logger = logging.getLogger(__name__)

MANY_FRAMES, MOST = 8, 0.5  # suspicious: one text on at least so many frames and more than this fraction of them
SHOWN = 3  # files of a fault, and frequent texts, that are named
NEED_CLIPS = ("files_missing", "pose_unreadable", "out_of_range")  # need known clips
UNKNOWN = "?: cannot be known without --dataset or --dataset_config, which name the clips and their poses."
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
class FileReport:
    """The findings for one clip's file."""

    name: str
    path: Path
    counts: DescriptionCounts
    frames: range | None  # of the clip, in the recording; None if unknown
    faults: dict[str, str]  # keys of `FAULTS` -> why the file or the pose cannot be read, "" for other faults
    keys: np.ndarray  # uint64, one for each distinct text: the texts of half a million files would fill the memory
    lengths: np.ndarray  # uint32, characters of each described frame's text
    languages: Counter[str]  # language -> number of frames
    made_by: Counter[str]  # maker, "" if unknown -> number of frames
    numbers: tuple[int, Collection[int]] | None  # frames of the recording; the first and last described, as written


@dataclass
class SplitReport:
    """The findings for all files of one split."""

    name: str
    files: list[FileReport]
    knows_clips: bool  # whether the clips and their lengths are known

    def clips_of_texts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the key of each distinct text, and the number of clips that have it."""
        return np.unique(np.concatenate([report.keys for report in self.files]), return_counts=True)

    def from_one(self) -> bool:
        """Return whether frames are numbered from 1, which only known clips can show."""
        return numbered_from_one(report.numbers for report in self.files if report.numbers)

    def row(self) -> dict[str, str]:
        """Return the split's values in the table."""
        total, languages = DescriptionCounts(), Counter[str]()
        for report in self.files:
            total += report.counts
            languages += report.languages
        faulty = Counter(fault for report in self.files for fault in report.faults)  # files, the others are entries
        lengths = np.concatenate([report.lengths for report in self.files])
        characters = np.quantile(lengths, (0.05, 0.5, 0.95), method="lower") if lengths.size else []
        silent = sum(not report.counts.frames for report in self.files)
        measured = [(len(report.frames), report.counts.frames) for report in self.files if report.frames is not None]
        frames, described = map(sum, zip(*measured, strict=True)) if measured else (0, 0)
        coverage = f"{100 * described / frames:.1f} %" if frames else "?"
        row = {
            "clips": f"{len(self.files)}" if self.knows_clips else "?",
            "files": f"{len(self.files) - total.files_missing}",
            "clips without a text": f"{silent}" if self.knows_clips else "?",
            "numbered from": f"{int(self.from_one())}" if frames else "?",
            "frames": f"{frames}" if frames else "?",
            "described": f"{total.frames}",
            "coverage": coverage + (f" of {len(measured)} clips" if 0 < len(measured) < len(self.files) else ""),
            "distinct texts": f"{len(self.clips_of_texts()[0])}",
            "characters (5 %, median, 95 %)": ", ".join(map(str, characters)) or "-",
            "languages": ", ".join(f"{name} {count}" for name, count in languages.most_common()) or "-",
        }
        unknown = () if self.knows_clips else NEED_CLIPS
        counts = {fault: getattr(total, fault, faulty[fault]) for fault in FAULTS}
        return row | {title: "?" if fault in unknown else f"{counts[fault]}" for fault, title in FAULTS.items()}

    def details(self) -> Iterator[str]:
        """Yield lines that say who made the texts, which texts the most clips have, and which files have faults."""
        made_by = sum((report.made_by for report in self.files), Counter[str]())
        listed = {"made by": [f"{name or 'unknown'} ({count} frames)" for name, count in made_by.most_common()]}
        keys, counts = self.clips_of_texts()
        shared = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts > 1)]
        frequent = [f"{self._text(keys[i])} ({counts[i]} clips)" for i in shared[:SHOWN]]
        listed["texts of several clips"] = frequent + [f"{len(shared) - SHOWN} more"] * (len(shared) > SHOWN)
        for fault, title in FAULTS.items():
            having = [report for report in self.files if fault in report.faults]
            why = [report.name + f": {report.faults[fault]}" * bool(report.faults[fault]) for report in having[:SHOWN]]
            listed[title] = why + [f"{len(having) - SHOWN} more"] * (len(having) > SHOWN)
        for title, parts in listed.items():
            if parts:
                yield printable(f"{self.name or 'all'}, {title}: {'; '.join(parts)}", kept="")

    def _text(self, key: int) -> str:
        """Return the text of a key, read once more."""
        path = next(report.path for report in self.files if key in report.keys)
        return next((text for text in read_descriptions(path).texts.values() if _key(text) == key), "?")


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
    pose, numbers, faults = None, None, {}
    try:
        pose = clip.read_pose() if clip.pose else None
    except CLIP_FAULTS as error:
        faults["pose_unreadable"] = in_one_line(error)
    found = read_descriptions(clip.out, pose.frames if pose else None)
    if pose:
        written = read_descriptions(clip.out).texts if found.counts.out_of_range else found.texts
        numbers = pose.n_recorded, (min(written), max(written)) if written else ()
    texts = Counter(found.texts.values())
    most = max(texts.values(), default=0)
    faults |= {fault: "" for fault in FAULTS if getattr(found.counts, fault, 0)}
    if found.damage:
        faults["unreadable"] = found.damage
    elif found.counts.files_found and not texts:
        faults["no_text"] = ""
    if most >= MANY_FRAMES and most > MOST * found.counts.frames:
        faults["one_text"] = ""
    return FileReport(
        clip.name, clip.out, found.counts, pose.frames if pose else None, faults,
        np.array([_key(text) for text in texts], np.uint64), np.array([*map(len, texts.elements())], np.uint32),
        Counter(map(language_of, texts.elements())), Counter(found.made_by.values()), numbers,
    )  # fmt: skip


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


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
    """Format all splits as a text table, one line per property, with details below."""
    rows = [split.row() for split in splits]
    width = max(map(len, rows[0]))
    names = [printable(split.name, kept="") or "all" for split in splits]
    columns = [max(len(name), *map(len, row.values())) for name, row in zip(names, rows, strict=True)]
    head = [name.rjust(column) for name, column in zip(names, columns, strict=True)]
    lines = ["  ".join([" " * width, *head])]
    for key in rows[0]:
        cells = [row[key].rjust(column) for row, column in zip(rows, columns, strict=True)]
        lines.append("  ".join([key.ljust(width), *cells]))
    lines += [UNKNOWN] * any(not split.knows_clips for split in splits)
    return "\n".join([*lines, "", *(line for split in splits for line in split.details())]).rstrip("\n")


# -- cleaning --------------------------------------------------------------------------------------------------------


def repair(reports: Sequence[SplitReport], target: Path) -> int:
    """Write the valid texts of every file to another folder, numbered from 0; return the number of files written."""
    written = 0
    for split in reports:
        shift = int(split.from_one())
        for report in split.files:
            # Which texts are the clip's shows only now, since `shift` was not known when the file was examined.
            of_clip = report.frames or range(sys.maxsize)
            found = read_descriptions(report.path, range(of_clip.start + shift, of_clip.stop + shift))
            if not found.texts:
                continue
            texts, made_by = ({n - shift: of[n] for n in of} for of in (found.texts, found.made_by))
            path = target / split.name / f"{report.name}.json"
            try:
                check_name(path)
            except ValueError as error:
                logger.warning("left out: %s", error)
                continue
            write_descriptions(path, texts, made_by)
            written += 1
    return written
