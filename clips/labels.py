"""Label files: the text and glosses of each clip, and the clips of each split.

docs/DATA.md has their formats and fields. `.json`, `.jsonl`, `.csv`, `.tsv` and `.xlsx` are known by their endings, the
first four packed with gzip or not; any other file is Uni-Sign's gzip pickle.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, islice
from pathlib import Path
from typing import Any, NamedTuple

from clips.tables import SUFFIXES, read_rows, read_text, suffix_of
from config import SPLIT_NAMES, SPLITS, DatasetSpec, without_suffix
from system.disk import LONGEST_NAME
from system.faults import UNPRINTABLE, shown

Label = dict[str, Any]

# The fields (and who signs), and what other tables call them (in lower case, with underscores).
FIELDS = {
    "video": "file filename file_name filepath path video_file video_name video_id clip_path 视频 文件 文件名",
    "name": "id uid clip clip_id clip_name sample_id sentence_id sentence_name utterance_id 编号 名称",
    "text": "sentence translation transcript transcription caption label word spoken target 文本 句子 翻译",
    "gloss": "glosses orth gloss_sequence 手语",
    "pose": "pose_file pose_path keypoints",
    "start": "begin start_frame frame_start start_time start_seconds start_realigned",
    "end": "stop end_frame frame_end end_time end_seconds end_realigned",
    "frames": "n_frames num_frames",
    "split": "set subset partition 划分",
    "signer": "signer_id speaker person participant performer subject who wer gebärdender gebärdende 手语者",
    "video_path": "",
}
MAX_NAME = LONGEST_NAME - len(".json")  # bytes
MAX_TEXT = 10_000  # characters of a text; sentences have hundreds
SHOWN = 5  # faults in a message
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""


def split_labels(spec: DatasetSpec, split: str) -> dict[str, Label]:
    """Read the clips of one split.

    If a file has the field `split`, it selects the clips. Otherwise, if train shares its file with other splits, the
    fraction `spec.held_out` at the file's end belongs to those, in equal parts, the rest to train.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: labels are unusable, or do not separate the splits.
    """
    path = spec.labels[split]
    status = os.stat(path) if os.path.isfile(path) else None
    labels = dict(_read_again(path, status and (status.st_ino, status.st_mtime_ns, status.st_size)))
    folders = {spec.folder(other) for other, file in spec.labels.items() if file == path}
    sharing = [other for other in SPLITS if other in folders]
    if any("split" in label for label in labels.values()):
        if unsure := [name for name, label in labels.items() if "split" not in label]:
            raise ValueError(
                f"{path}: {len(unsure)} clips have no 'split', the first is {unsure[0]!r}; others have one."
            )
        labels = {name: label for name, label in labels.items() if label["split"] == spec.folder(split)}
    elif len(sharing) > 1:
        if "train" not in sharing or not spec.held_out:
            cure = "set held_out to the share of its end that is not for training"
            cure = cure if "train" in sharing else "set dev_is_test = true if both are to have the same clips"
            raise ValueError(
                f"{path}: serves {' and '.join(sharing)}. Give its clips a field 'split', or {cure} (in the data "
                "set's record)."
            )
        n_train = int(len(labels) * (1 - spec.held_out))
        n_held, n_parts = len(labels) - n_train, len(sharing) - 1
        ends = [0, *(n_train + n_held * part // n_parts for part in range(n_parts + 1))]
        part = sharing.index(spec.folder(split))
        labels = dict(islice(labels.items(), ends[part], ends[part + 1]))
    if not labels:
        raise ValueError(f"{path}: has no clips for the split {split!r}.")
    return labels


@functools.lru_cache(maxsize=1)
def _read_again(path: str, _stamp: tuple[int, ...] | None) -> dict[str, Label]:
    """Read a label file, unless it was the last one and is as it was: splits may share one of 500,000 clips."""
    return read_labels(path)


class Shared(NamedTuple):
    """The clips of a split that another split has, too: by name, by frames of a pose file, by target."""

    split: str
    other: str
    names: list[str]
    poses: list[str]
    targets: list[str]


def shared_clips(spec: DatasetSpec, labels: Mapping[str, Mapping[str, Label]], task: str) -> list[Shared]:
    """Find the clips that two splits share: a record for each two, which lists names of the second; see `split_labels`.

    Parts of one pose file (`start`, `end`) are shared only where they overlap. Words of isolated signs are in every
    split, so that their targets say nothing. Dev and test are not compared if `spec.dev_is_test`.
    """
    found = []
    for other, split in combinations(labels, 2):
        if spec.dev_is_test and {other, split} == {"dev", "test"}:
            continue
        parts: dict[str, list[tuple[int, float]]] = {}
        for path, label in _pose_files(spec, other, labels[other]):
            parts.setdefault(path, []).append(_part(label))
        targets = {target(label, task) for label in labels[other].values()}
        names, poses, texts = [], [], []
        for path, label in _pose_files(spec, split, labels[split]):
            name, (start, end) = label["name"], _part(label)
            names += [name] if name in labels[other] else []
            poses += [name] if any(start < last and first < end for first, last in parts.get(path, ())) else []
            texts += [name] if target(label, task) in targets else []
        found.append(Shared(split, other, names, poses, texts))
    return found


def _pose_files(spec: DatasetSpec, split: str, labels: Mapping[str, Label]) -> Iterator[tuple[str, Label]]:
    places = spec.for_split(split)
    return ((os.path.normpath(places.pose_path(label)), label) for label in labels.values())


def _part(label: Label) -> tuple[int, float]:
    return label.get("start", 0), label.get("end", math.inf)


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
        ValueError: not a label file, or clips that cannot be used; one line with the file, the clips and their faults.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"labels: {path} does not exist. Put the label file there, or set --root or config.py.")
    readers = {".json": _read_json, ".jsonl": _read_json_lines} | dict.fromkeys(SUFFIXES, read_table)
    labels: dict[str, Label] = {}
    faults: dict[str, list[str]] = {}  # what is wrong -> where
    for where, name, entry in readers.get(suffix_of(path), _read_pickle)(path):
        if not isinstance(entry, Mapping):
            wrong = f"is {shown(entry)}; wanted the fields of a clip, name, text and so on"
            faults.setdefault(str(entry) if isinstance(entry, ValueError) else wrong, []).append(where)
            continue
        label, wrongs = clean_label(name, entry)
        name = label.get("name")
        if name in labels:
            wrongs = [*wrongs, f"is there twice, the second time at {where}. Rename one"]
        for wrong in wrongs:
            faults.setdefault(wrong, []).append(f"clip {name!r:.60}" if name else where)
        labels[name or where] = label
    if faults:
        told = [
            f"{places[0]} {wrong:.350}{f' ({len(places) - 1} more are so)' if len(places) > 1 else ''}."
            for wrong, places in islice(faults.items(), SHOWN)
        ]
        more = [f"And {len(faults) - SHOWN} other faults."] if len(faults) > SHOWN else []
        raise ValueError(f"{path}: {' '.join(told + more)}")
    if not labels:
        raise ValueError(f"{path}: holds no clips.")
    return labels


def renamed(fields: Iterable[Any]) -> dict[str, str]:
    """Return which fields seem to be those of `FIELDS` under another name: {field: the name it should have}.

    >>> renamed(["File", "sentence", "split"])
    {'File': 'video', 'sentence': 'text'}
    """
    given = {re.sub(r"[\W_]+", "_", str(field).lower()).strip("_"): str(field) for field in fields}
    exact = set(given.values())
    found: dict[str, str] = {}
    for field, others in FIELDS.items():
        alike = next((given[other] for other in (field, *others.split()) if other in given), field)
        if field not in exact and alike not in (*FIELDS, *found):
            found[alike] = field
    return found


def cure_of(fields: Iterable[Any], *needed: str) -> str:
    """Return what fields there are, and which to rename so that the needed ones are there."""
    renames = ", ".join(f"{field!r:.60} to {name!r}" for field, name in renamed(fields).items() if name in needed)
    return f"its fields are {_names(fields)}" + (f"; rename {renames}" if renames else "")


def clean_label(name: str | None, entry: Mapping) -> tuple[Label, list[str]]:
    """Return a clip's fields with defaults filled in, and what is wrong with them."""
    label = {key: value for key, value in entry.items() if not (value is None or isinstance(value, str) and not value)}
    faults = [*_clean_frames(label), *_clean_paths(label, name), *_clean_texts(label)]
    if "split" in label:
        label["split"] = SPLIT_NAMES.get(str(label["split"]).lower(), label["split"])
        if label["split"] not in SPLITS:
            faults.append(f"has the split {label['split']!r:.60}; wanted {', '.join(SPLITS)}")
    return label, faults


def _clean_frames(label: Label) -> Iterator[str]:
    for field in ("start", "end", "frames"):
        if str(label.get(field, "-1")) == "-1":  # PHOENIX-2014T: all
            label.pop(field, None)
        elif number := re.fullmatch(r"(\d{1,9})(\.0*)?", str(label[field])):  # some programs write 60 as 60.0
            label[field] = int(number[1])
        else:
            yield f"has {field} {label.pop(field)!r:.60}; wanted a whole number of frames (seconds x frame rate)"
    if label.get("end", math.inf) <= label.get("start", 0):
        yield f"begins at frame {label.get('start', 0)} and ends at {label['end']}; wanted start < end"


def _clean_paths(label: Label, name: str | None) -> Iterator[str]:
    fields = label.pop("name", None), label.pop("video", None) or label.pop("video_path", None), label.pop("pose", None)
    name, video, pose = (str(value or "").replace("\\", "/") for value in (name or fields[0], *fields[1:]))
    video = "" if "*" in video else video  # PHOENIX-2014T names its pictures there: NAME/1/*.png
    if not name and (video or pose):
        part = [str(label[field]) for field in ("start", "end") if field in label]
        name = "-".join([without_suffix(video or pose), *part])
    if not name:
        yield f"has neither name nor video; {cure_of(label, 'name', 'video', 'text', 'gloss')}"
        return
    label |= {"name": name, "video_path": video or f"{name}.mp4"} | ({"pose": pose} if pose else {})
    for place in dict.fromkeys(filter(None, (name, video, pose))):
        folders = place.split("/")
        if folders[0] == "" or folders[0][1:] == ":" or ".." in folders:
            yield f"points out of the data folder: {place!r:.60}. Give its path in that folder"
        elif UNPRINTABLE.search(place) or any(len(part.encode()) > MAX_NAME for part in folders):
            yield f"has {place!r:.60} as a path; wanted names of up to {MAX_NAME} bytes without control characters"


def _clean_texts(label: Label) -> Iterator[str]:
    text, glosses = label.get("text", ""), label.get("gloss", "")
    if isinstance(glosses, str) and re.fullmatch(rf"[\[(]\s*(?:(?:{_QUOTED})[\s,]*)*[\])]", glosses):
        with contextlib.suppress(SyntaxError, ValueError):  # of an escape sequence that is none
            glosses = label["gloss"] = [ast.literal_eval(word) for word in re.findall(_QUOTED, glosses)]
    words = glosses if isinstance(glosses, list | tuple) else [glosses]
    if not isinstance(text, str | int):  # some programs write NaN for "none"
        yield f"has the text {text!r:.60}; wanted a text"
        return
    if not all(isinstance(word, str | int) for word in words):
        yield f"has the gloss {glosses!r:.60}; wanted a text, or a list of them"
        return
    for field, texts in (("text", [text]), ("gloss", words)):
        whole = " ".join(map(str, texts))
        if len(whole) > MAX_TEXT:
            yield f"has {len(whole)} characters in its {field}; wanted at most {MAX_TEXT}"
        try:
            whole.encode()
        except UnicodeEncodeError as error:
            near = whole[max(0, error.start - 9) : error.end]
            yield f"has half a character in its {field}, as of an emoji cut in two: {near!r}. Remove it"


def _names(fields: Iterable[Any]) -> str:
    """Return field names in one line, with limits on their number and length."""
    return ", ".join(f"{field!r:.60}" for field in islice(fields, 20)) or "none"


# -- readers of the file formats: each yields (location in the file, clip name or None, fields or an error) ------------

Entries = Iterator[tuple[str, str | None, Any]]


def _read_pickle(path: str | Path) -> Entries:
    from system.safe_pickle import load_pickle  # with numpy, and other formats need none

    return _entries(path, load_pickle(path, compressed=True))


def _read_json(path: str | Path) -> Entries:
    return _entries(path, _parse_json(read_text(path)))


def _entries(path: str | Path, content: Any) -> Entries:
    if isinstance(content, Mapping):
        return ((f"{name!r:.60}", str(name), entry) for name, entry in content.items())
    if isinstance(content, list):
        return ((f"entry {number}", None, entry) for number, entry in enumerate(content, start=1))
    if isinstance(content, ValueError):
        return iter([("the file", None, content)])
    raise ValueError(f"{path}: holds {shown(content)}; wanted a list of clips, or a dict of clips by name.")


def _read_json_lines(path: str | Path) -> Entries:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"line {number}", None, _parse_json(line)


def _parse_json(text: str) -> Any:
    """Return the content, or an error that says what is wrong."""
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.append(Counter(key for key, _ in pairs).most_common(1)[0][0])
        return found

    try:
        content = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        return ValueError(f"is not JSON: {' '.join(str(error).split())}")
    return ValueError(f"has {twice[0]!r:.60} twice in one object. Remove one") if twice else content


def read_table(path: str | Path) -> Entries:
    """Read the clips of a `.csv`, `.tsv` or `.xlsx` file: place, None, and cells by column or an error about the line.

    Raises:
        ValueError: not a table, or two columns have one name; one line that names the file.
    """
    rows = read_rows(path)
    where, header = next(rows, ("", []))
    if isinstance(header, ValueError):
        raise ValueError(f"{path}: {where} {header}.")
    for field, times in Counter(header).items():
        if times > 1 and (field in FIELDS or renamed([field])):
            raise ValueError(f"{path}: {where} has {times} columns {field!r:.60}. Rename or remove one.")
    for where, row in rows:
        if isinstance(row, ValueError):
            yield where, None, row
        elif len(row) != len(header):
            yield where, None, ValueError(f"has {len(row)} cells, the header {len(header)}: {_names(header)}")
        else:
            yield where, None, dict(zip(header, row, strict=True))
