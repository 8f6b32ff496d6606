"""Temporal alignment: choose the frames of a clip to keep, and assign each of them a description.

F is the number of frames of the original clip, T that of sampled frames. Frame numbers always refer to the original
clip, from 0.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple, Self

import numpy as np

from clips.error_texts import is_error_text
from config import CURES
from system.disk import file_sizes, regular_size

MAX_BYTES = 64 << 20  # maximum size of a description file; real ones have some hundred KB

# "000012.jpg", "clip/12.PNG", "12", "frame_12.jpg", "images0012.png". An extension begins with a letter: "12.5" is not
# a frame. Eighteen digits fit int64.
_FRAME_NAME = re.compile(r"(?:.*[/\\])?(?:[^\d/\\]*[^\W\d_][_-]?)?([0-9]{1,18})(?:\.[A-Za-z][^./\\]*)?", re.DOTALL)
_MAX_FRAME = 10**18

# Invisible characters, and lone surrogates (a tokenizer fails on them): NUL, surrogates, zero-width space, word
# joiner, BOM.
_INVISIBLE = re.compile("[\x00\ud800-\udfff\u200b\u2060\ufeff]")
_LETTER = re.compile(r"[^\W\d_]")  # of any script


class Descriptions(NamedTuple):
    """What a description file holds; nothing, if it is missing or unreadable."""

    texts: dict[int, str]  # {frame number: valid text}, sorted by frame
    made_by: dict[int, str]  # {frame number: maker} of these texts, "" for an unknown one
    counts: DescriptionCounts
    damage: str = ""  # why the file cannot be read; "" if it can, or is missing


class Alignment(NamedTuple):
    """The description assigned to each sampled frame."""

    descriptions: list[str | None]  # T texts; None where the clip has no description at all
    has_description: list[int]  # T values: 1 if the text is this frame's own, 0 if it is a neighbour's or None


@dataclass
class DescriptionCounts:
    """Counts of what description files contain; `a += b` adds two of them.

    Each file that is read adds 1 to exactly one of the three file counts. Each entry of a file that was read is
    counted as exactly one of: error text, blank, not text, bad frame, out of range, duplicate, frame.
    """

    files_found: int = 0
    files_missing: int = 0
    files_unreadable: int = 0  # or too large, or no JSON array or object
    entries: int = 0  # described frames, valid or not, in the files that were read
    error_texts: int = 0  # API errors, refusals and words for "nothing", see `is_error_text`
    blank: int = 0  # texts without any letter: empty, white space, "..."
    not_text: int = 0  # null, a number, a list, or a missing description
    bad_frame: int = 0  # entries without a valid frame number
    out_of_range: int = 0  # entries for frames before the clip's start or after its end
    duplicates: int = 0  # further valid texts of a frame that already has one
    frames: int = 0  # with a valid description

    def __str__(self) -> str:
        """List the non-zero counts."""
        return ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in vars(self).items() if n)

    def __iadd__(self, other: DescriptionCounts) -> DescriptionCounts:
        """Add another count, field by field."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self


def sample_frames(n_frames: int, max_length: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Choose the frames of a clip that the model sees, at most `max_length`.

    Args:
        n_frames: F.
        max_length: maximum number of frames to keep.
        rng: samples a longer clip at random (training); None takes evenly spaced frames from the first to the last,
            always the same (evaluation).

    Returns:
        int64 (T,) with T = min(F, max_length), sorted, distinct, in [0, F).

    Source: Uni-Sign's official code; it samples at random in evaluation, too.

    >>> sample_frames(4, 256).tolist(), sample_frames(10, 4).tolist()
    ([0, 1, 2, 3], [0, 3, 6, 9])
    """
    if n_frames <= max_length:
        return np.arange(n_frames, dtype=np.int64)
    if rng is not None:
        return np.sort(rng.choice(n_frames, size=max_length, replace=False)).astype(np.int64)
    # i (F - 1) / (T - 1), rounded with integer arithmetic, so that the result is the same on every machine.
    gaps = max(max_length - 1, 1)
    return (np.arange(max_length, dtype=np.int64) * (n_frames - 1) + gaps // 2) // gaps


class DescriptionLoader:
    """Reads the JSON description files of one split, NAME.json in a folder; FileNotFoundError if that is missing."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.counts = DescriptionCounts()  # over all calls of `load`; each worker of a data loader keeps its own
        if not self.directory.is_dir():
            raise FileNotFoundError(f"--use_descriptions: folder {directory} not found. {CURES['--use_descriptions']}")

    def sizes(self, names: Sequence[str]) -> np.ndarray:
        """Return the size of each clip's file in bytes: 0 if it is missing, 1 if it exists but is empty."""
        paths = [self.directory / f"{name}.json" for name in names]
        return np.array([size or path.is_file() for path, size in zip(paths, file_sizes(paths), strict=True)], int)

    def counting_anew(self) -> Self:
        """Return a loader of the same folder with counts of its own; to open a large pack takes many seconds."""
        other = copy.copy(self)
        other.counts = DescriptionCounts()
        return other

    def content(self, name: str) -> bytes | None:
        """Return the content of a clip's file, if it need not be read from disk."""
        return None

    def load(self, name: str, frames: range | None = None) -> dict[int, str]:
        """Return the valid texts in NAME.json, and add to the counts; ValueError if NAME leaves the folder."""
        # Label files may come from strangers. PureWindowsPath splits at both kinds of slash.
        path = PureWindowsPath(name)
        if not path.name or path.anchor or ".." in path.parts or "\0" in name:
            raise ValueError(f"clip name {name!r} leaves {self.directory}. Mend the name in the label file.")
        found = read_descriptions(self.directory / f"{name}.json", frames, self.content(name))
        self.counts += found.counts
        return found.texts


def read_descriptions(path: str | Path, frames: range | None = None, data: bytes | None = None) -> Descriptions:
    """Read the valid descriptions of one file; invalid entries are skipped and counted.

    So are entries for frames that are not the clip's, which `frames` are, `Pose.frames`; None keeps all. `data` is what
    the file holds, if it has been read already.
    """
    texts: dict[int, str] = {}
    made_by: dict[int, str] = {}
    try:
        document = _parse(path, data)
    except FileNotFoundError:
        return Descriptions(texts, made_by, DescriptionCounts(files_missing=1))
    except (OSError, ValueError, RecursionError) as error:
        return Descriptions(texts, made_by, DescriptionCounts(files_unreadable=1), str(error))
    counts = DescriptionCounts(files_found=1)
    for frame, value, maker in _entries(document):
        counts.entries += 1
        if frame is None:
            counts.bad_frame += 1
        elif not isinstance(value, str):
            counts.not_text += 1
        elif is_error_text(text := _INVISIBLE.sub(" ", value).strip()):
            counts.error_texts += 1
        elif not _LETTER.search(text):
            counts.blank += 1
        elif frames is not None and frame not in frames:
            counts.out_of_range += 1
        elif frame in texts:
            counts.duplicates += 1
        else:
            texts[frame], made_by[frame] = text, maker
    counts.frames = len(texts)
    return Descriptions(dict(sorted(texts.items())), made_by, counts)


def numbered_from_one(clips: Iterable[tuple[int, Collection[int]]]) -> bool:
    """Return whether descriptions number frames from 1, as ffmpeg does, so that each would go to the next frame.

    No clip has a text for frame 0 then, and clips have one for the frame after their last; single clips with such a
    number occur in good folders, too. `clips` are (frames of the recording, frame numbers of its texts).

    >>> numbered_from_one([(3, [1, 2, 3]), (4, [2, 4])]), numbered_from_one([(3, [0, 1, 2]), (4, [1, 4])])
    (True, False)
    """
    described = [(n_frames, numbers) for n_frames, numbers in clips if numbers]
    beyond = sum(max(numbers) == n_frames for n_frames, numbers in described)
    return beyond >= min(3, max(1, len(described))) and all(min(numbers) for _, numbers in described)


def _parse(path: str | Path, data: bytes | None) -> list | tuple:
    """Parse a file; an object becomes a tuple of pairs, since a dict would lose the first of two equal keys."""
    if (regular_size(path) if data is None else len(data)) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    data = Path(path).read_bytes() if data is None else data
    if not data.strip():
        raise ValueError("empty file")
    try:
        document = json.loads(data, object_pairs_hook=tuple)  # bytes: json detects byte order marks and UTF-16 itself
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated") or not error.doc[error.pos :].strip()
        raise ValueError("cut short" if cut else f"no JSON: {error}") from None
    if not isinstance(document, (list, tuple)):
        raise ValueError(f"a {type(document).__name__} in place of an array")
    return document


def _frame_number(value: Any) -> int | None:
    """Extract the frame number from a file name or a string of digits; None if there is none."""
    match = _FRAME_NAME.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) if match else None


def _entries(document: list | tuple) -> Iterator[tuple[int | None, Any, str]]:
    """Yield (frame number or None, description of any type, maker) from each JSON form; an object is a tuple."""
    while isinstance(document, tuple):
        values = dict(document)
        wrapped = [values[key] for key in ("descriptions", "frames") if isinstance(values.get(key), (list, tuple))]
        if not wrapped:
            yield from ((_frame_number(key), value, "") for key, value in document)
            return
        document = wrapped[0]
    for entry in document:
        values = dict(entry) if isinstance(entry, tuple) else {}
        frame = values.get("frame_id")
        # A file name is more reliable than `frame_id`, which may be a mere count. A number as file name is invalid.
        if "filename" in values or type(frame) is not int:  # not isinstance: True is not a frame
            frame = _frame_number(values.get("filename", frame))
        elif not 0 <= frame < _MAX_FRAME:
            frame = None
        yield frame, values.get("description"), str(values.get("made_by") or "")


class TemporalAligner:
    """Assigns a description to each sampled frame."""

    def align(self, descriptions: Mapping[int, str], frame_indices: Sequence[int] | np.ndarray) -> Alignment:
        """Assign each frame its own text, or else that of the nearest described frame (the earlier one of a tie).

        Args:
            descriptions: {frame number: text} from `DescriptionLoader.load`. A frame's text can go to its neighbours
                even if the frame itself was not sampled.
            frame_indices: (T,) frame numbers in the original clip, in any order.

        >>> TemporalAligner().align({2: "up", 6: "down"}, [0, 2, 4, 5])
        Alignment(descriptions=['up', 'up', 'up', 'down'], has_description=[0, 1, 0, 0])
        """
        wanted = np.asarray(frame_indices, dtype=np.int64)  # (T,)
        described = np.array(sorted(descriptions), dtype=np.int64)  # (D,)
        if not described.size:
            return Alignment([None] * len(wanted), [0] * len(wanted))
        after = np.searchsorted(described, wanted)  # (T,), index of the first described frame at or after each
        before = np.maximum(after - 1, 0)
        after = np.minimum(after, len(described) - 1)
        nearest = described[np.where(wanted - described[before] <= described[after] - wanted, before, after)]
        return Alignment([descriptions[frame] for frame in nearest.tolist()], (nearest == wanted).astype(int).tolist())
