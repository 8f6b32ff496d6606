"""Label files: the text and glosses of each clip, and the clips of each split.

    .json    [{"video", "text", ...}, ...] as in CSL-News, or {name: {...}}
    .jsonl   one such object per line
    .csv     a header, then a line per clip, separated by , ; | or tabs; .tsv likewise, with tabs and no quoting
    other    Uni-Sign's gzip pickle, {name: {"name", "gloss", "text", "video_path"}}

A clip has these fields; fields that are not needed may be missing, unknown fields are ignored:

    name         default: the path of the video or pose file without its suffix
    text         the sentence, or the word of an isolated sign
    gloss        list of glosses, or a string of glosses separated by spaces
    video_path   (or video) relative to rgb_dir, default: NAME.mp4; it determines the pose file's name
    pose         the pose file relative to pose_dir, if its name differs
    frames       number of frames, to be checked against the pose file
    split        train, dev or test, if one file holds several splits
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from config import SPLITS, DatasetSpec

MAX_BYTES = 1 << 30  # of a text; real ones have a few MB
Label = dict[str, Any]


def split_labels(spec: DatasetSpec, split: str) -> dict[str, Label]:
    """Read the clips of one split.

    If a file has the field `split`, it selects the clips. Otherwise, if train shares its file with other splits, the
    fraction `spec.held_out` at the file's end belongs to those, the rest to train.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: labels are unusable, or do not separate train from the other splits.
    """
    path = spec.labels[split]
    labels = read_labels(path)
    if any("split" in label for label in labels.values()):
        if unsure := [name for name, label in labels.items() if "split" not in label]:
            raise ValueError(
                f"{path}: {len(unsure)} clips have no 'split', the first is {unsure[0]!r}; others have one."
            )
        labels = {name: label for name, label in labels.items() if label["split"] == split}
    elif sum(file == path for file in spec.labels.values()) > 1 and path == spec.labels.get("train"):
        if not spec.held_out:
            raise ValueError(
                f"{path}: serves train and another split. Give its clips a field 'split', or set held_out in the data "
                "set's record to the share of its end that is not for training."
            )
        n_train = int(len(labels) * (1 - spec.held_out))
        labels = dict(list(labels.items())[slice(n_train) if split == "train" else slice(n_train, None)])
    if not labels:
        raise ValueError(f"{path}: has no clips for the split {split!r}.")
    return labels


def gloss(label: Label) -> str:
    """Return a clip's glosses joined by spaces; "" if there are none."""
    found = label.get("gloss") or ""
    return " ".join(map(str, found)) if isinstance(found, list | tuple) else str(found)


def target(label: Label, task: str) -> str:
    """Return a clip's target: its sentence or, for CSLR, its glosses."""
    if task == "CSLR":
        return gloss(label)
    text = str(label.get("text") or "")
    # A tokenizer collapses repeated spaces, and isolated signs must match exactly.
    return " ".join(text.split()) if task == "ISLR" else text


def read_labels(path: str | Path) -> dict[str, Label]:
    """Read a label file of any format.

    Returns:
        Clip name -> fields, which always include `video_path`; in the file's order.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not a label file, or a clip's path points outside the data folders; one line with file and clip.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"labels: {path} does not exist. Put the label file there, or set --root or config.py.")
    readers = {".json": _read_json, ".jsonl": _read_json_lines, ".csv": _read_table, ".tsv": _read_table}
    reader = readers.get(Path(path).suffix.lower(), _read_pickle)
    labels: dict[str, Label] = {}
    for where, name, entry in reader(path):
        if not isinstance(entry, Mapping):
            raise ValueError(f"{path}: {where} is {_shown(entry)}; wanted the fields of a clip, name, text and so on.")
        name, label = _clean(path, where, name, entry)
        if name in labels:
            raise ValueError(f"{path}: the clip {name!r} is there twice, the second time at {where}.")
        labels[name] = label
    if not labels:
        raise ValueError(f"{path}: holds no clips.")
    return labels


def check_column(path: str | Path, field: str) -> None:
    """Check that a table has a column; other label formats always pass.

    Raises:
        ValueError: there is no such column.
    """
    if Path(path).suffix.lower() not in (".csv", ".tsv"):
        return
    header, _ = _table(path)
    if field not in header:
        columns = ", ".join(" ".join(name.split())[:60] for name in header[:20])
        raise ValueError(f"{path}: no column {field!r}; the columns are {columns}. Rename the one that holds it.")


def _clean(path: str | Path, where: str, name: str | None, entry: Mapping) -> tuple[str, Label]:
    """Return a clip's name and its checked fields, with defaults filled in."""
    label = {key: value for key, value in entry.items() if not (value is None or isinstance(value, str) and not value)}
    video, pose = label.pop("video", None) or label.get("video_path"), label.get("pose")
    name = name or label.get("name") or os.path.splitext(str(video or pose or ""))[0]
    if not name:
        raise ValueError(f"{path}: {where} has neither name nor video; its fields are {_names(entry)}.")
    if not isinstance(label.get("text", ""), str | int):  # some programs write NaN for "none"
        raise ValueError(f"{path}: clip {name!r} has the text {label['text']!r:.60}; wanted a text.")
    if not isinstance(label.get("gloss", ""), str | int | list | tuple):
        raise ValueError(
            f"{path}: clip {name!r} has the gloss {label['gloss']!r:.60}; wanted a text, or a list of them."
        )
    label["name"] = name = str(name)
    label["video_path"] = str(video or f"{name}.mp4")
    for place in filter(None, (name, label["video_path"], pose)):
        at = PureWindowsPath(str(place))  # which knows both kinds of slash, and drives
        if at.anchor or ".." in at.parts:
            raise ValueError(f"{path}: clip {name!r} points out of the data folder: {place!r}.")
    if label.get("split", SPLITS[0]) not in SPLITS:
        raise ValueError(f"{path}: clip {name!r} has the split {label['split']!r}; wanted {', '.join(SPLITS)}.")
    if "frames" in label:
        if not str(label["frames"]).isdecimal():
            raise ValueError(f"{path}: clip {name!r} has {label['frames']!r} frames; wanted a whole number.")
        label["frames"] = int(label["frames"])
    return name, label


def _shown(value: object) -> str:
    return f"{value!r:.60}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _names(fields: Iterable[Any]) -> str:
    """Return field names in one line, with limits on their number and length."""
    return ", ".join(f"{field!r:.60}" for field in islice(fields, 20)) or "none"


# -- readers of the file formats: each yields (location in the file, clip name or None, fields) ------------------------

Entries = Iterator[tuple[str, str | None, Any]]


def _read_pickle(path: str | Path) -> Entries:
    from system.safe_pickle import load_pickle  # with numpy, and other formats need none

    return _entries(path, load_pickle(path, compressed=True))


def _read_json(path: str | Path) -> Entries:
    return _entries(path, _parse_json(path, "the file", _text(path)))


def _entries(path: str | Path, content: Any) -> Entries:
    if isinstance(content, Mapping):
        return ((f"{name!r}", str(name), entry) for name, entry in content.items())
    if isinstance(content, list):
        return ((f"entry {number}", None, entry) for number, entry in enumerate(content, start=1))
    raise ValueError(f"{path}: holds {_shown(content)}; wanted a list of clips, or a dict of clips by name.")


def _read_json_lines(path: str | Path) -> Entries:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield f"line {number}", None, _parse_json(path, f"line {number}", line)


def _parse_json(path: str | Path, where: str, text: str) -> Any:
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.append(Counter(key for key, _ in pairs).most_common(1)[0][0])
        return found

    try:
        content = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {where} is not JSON: {' '.join(str(error).split())}.") from None
    if twice:
        raise ValueError(f"{path}: {where} has {twice[0]!r:.60} twice in one object. Remove one.")
    return content


def _read_table(path: str | Path) -> Entries:
    header, rows = _table(path)
    for where, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path}: {where} has {len(row)} cells, the header {len(header)}: {_names(header)}.")
        yield where, None, dict(zip(header, (cell.strip() for cell in row), strict=True))


def _table(path: str | Path) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """Return the column names, and an iterator over the rows."""
    text = _text(path)
    # Spreadsheets use semicolons in locales with a decimal comma; some corpora use tabs or bars.
    tsv = Path(path).suffix.lower() == ".tsv"
    sign = max("\t" if tsv else ",;\t|", key=text.partition("\n")[0].count)
    # An unclosed quotation mark would swallow lines.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if tsv else csv.QUOTE_MINIMAL
    rows = _rows(path, csv.reader(io.StringIO(text, newline=""), delimiter=sign, quoting=quoting, strict=True))
    _, header = next(rows, ("", []))
    return [name.strip() for name in header], rows


def _rows(path: str | Path, reader: Any) -> Iterator[tuple[str, list[str]]]:
    try:
        for row in reader:
            if any(map(str.strip, row)):
                yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}.") from None


def _text(path: str | Path) -> str:
    if Path(path).stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES} bytes. This is no label file.")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text. Save it as UTF-8.") from None
