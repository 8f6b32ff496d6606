"""Make a data set of your own from a table and a folder of videos: labels, splits and the TOML file."""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clips.labels import FIELDS, Label, clean_label, read_table, renamed
from clips.tables import SUFFIXES, suffix_of
from config import (
    POSE_SUFFIXES,
    SPLIT_NAMES,
    SPLITS,
    UNSPACED,
    VIDEO_SUFFIXES,
    DatasetSpec,
    guess_language,
    mt5_path,
    without_suffix,
)
from system.disk import write_text
from system.faults import printable
from utils import Parser, installed, run

HELD_OUT = 10  # one clip in so many goes to dev, and one to test
LISTED = 10  # rows or files in a list
STEPS = 10  # optimizer steps of an epoch, at least
FEW = 20  # clips of dev or test, of which each changes a score by points
WEIGHTS = "./pretrained_weight/csl_stage1_weight.pth"
ONE_GPU = "--text_encoder_freeze --trainable all --gradient_checkpointing"  # of 24 GB
SMALL = "--mt5_path small_mt5 --hidden_dim 32 --text_encoder_freeze"  # to try the steps in minutes
NOTES = {  # beside keys of dataset.toml
    "rgb_dir": "  # read only with --rgb_support",
    "language": "  # named in the prompt of mT5",
    "text_unit": '  # "char" for languages without spaces between words, such as Chinese',
}
EXAMPLES = """examples:
  python -m tools.import_table sheet.xlsx --videos my_videos --out my_data --language German
  python -m tools.import_table labels.csv --videos my_poses --out my_data --split random

The table is .xlsx, .csv or .tsv: a header, then a row per clip. The columns may have any usual name, such as file and
sentence; what they are taken for is printed. A header of text, gloss, signer, split, start or end overrides the guess:
rename yours if it is wrong. If the table has a column of start and end, in frames or seconds, a clip
is that part of its video. Rows that cannot be used are listed and left out, and the exit status is 1.

A column train/dev/test splits the clips. Without one, dev and test get a tenth each: other signers than train, if the
table says who signs and there are three, or other videos. The same table always gives the same split."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(prog="python -m tools.import_table", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    parser.add_argument("table", metavar="TABLE", help=".xlsx, .csv or .tsv")
    add("--videos", required=True, metavar="DIR", help="folder of the videos, or of their pose files")
    add("--out", required=True, metavar="DIR", help="where labels.csv and dataset.toml go")
    add("--language", default="", help="of the sentences, as mT5 is told; default: by their letters, else English")
    add("--split", default="", choices=("signer", "random"), help="in place of the table's; default: see below")
    return parser.parse_args(argv)


class Files:
    """The videos of a folder, or its pose files, found by what tables say of them; FileNotFoundError without any."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        there = [path.relative_to(folder) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        videos = [path.as_posix() for path in there if path.suffix.lower() in VIDEO_SUFFIXES]
        self.paths = videos or [path.as_posix() for path in there if path.suffix.lower() in POSE_SUFFIXES]
        self.are_poses = not videos
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"--videos: {folder} is not a folder.")
        if not self.paths:
            raise FileNotFoundError(f"--videos: {folder} holds no videos ({', '.join(VIDEO_SUFFIXES)}) nor pose files.")
        self._rates: dict[str, float] = {}
        self._by_path = {next(_ends(path)): path for path in self.paths}
        self._by_end: dict[str, list[str]] = {}
        for path in self.paths:
            for end in _ends(path):
                self._by_end.setdefault(end, []).append(path)

    def find(self, cell: str) -> str | None:
        """Return the file that a cell means, with or without the suffix: one path has to be the end of the other."""
        alike = self._by_end.get(next(_ends(cell)), [])
        return alike[0] if len(alike) == 1 else next(filter(None, map(self._by_path.get, _ends(cell))), None)

    def why_none(self, cell: str) -> str:
        """Return why a cell means no file."""
        if next(_ends(cell)) in self._by_end:
            return f"more than one file is named '{cell:.60}'; give its path in {self.folder}"
        return f"no file is named '{cell:.60}'" if cell else "names no file"

    def frame_rate(self, file: str) -> float:
        """Return the frames per second of a video; ValueError if it cannot be read, or there are poses alone."""
        from pose.video import read_facts

        if self.are_poses:
            raise ValueError("is in seconds; without videos, wanted numbers of frames")
        if file not in self._rates:
            self._rates[file] = read_facts(Path(self.folder) / file).fps
        return self._rates[file]


def _ends(path: str) -> Iterator[str]:
    """Yield a path without its suffix, and without its first folders, one after the other."""
    end, more = without_suffix(path.replace("\\", "/")).casefold(), "/"
    while more:
        yield end
        _, more, end = end.partition("/")


# -- what the table says -----------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """What was found: field -> column, other columns, the clips' fields, and a line for each row that is left out."""

    columns: dict[str, str]
    unused: list[str]
    clips: list[Label]
    left_out: list[str]


def find_clips(path: str, files: Files) -> Table:
    """Read a table and find out what its columns are; ValueError or FileNotFoundError if no row can be used."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    if suffix_of(path) not in SUFFIXES:
        raise ValueError(f"{path}: wanted a table, {', '.join(SUFFIXES)}. Save it as one of these.")
    entries = [(where, entry) for where, _, entry in read_table(path)]
    rows = [entry for _, entry in entries if not isinstance(entry, ValueError)]
    if entries and not rows:
        faults = [f"{where}: {entry}" for where, entry in entries[:LISTED]]
        raise ValueError(f"{path}: no row can be used. {'. '.join(faults)}.")
    columns = guess_columns(path, rows, files)
    in_seconds = are_seconds(columns, rows)
    clips: dict[str, Label] = {}
    left_out = []
    for where, entry in entries:
        try:
            if isinstance(entry, ValueError):
                raise entry
            clip = _clip(entry, columns, files, in_seconds)
            if clip["name"] in clips:
                raise ValueError(f"{clip['name']} is there twice")
            clips[clip["name"]] = clip
        except (ValueError, OverflowError) as error:
            left_out.append(f"{where}: {error}")
    if not clips:
        raise ValueError(f"{path}: no row can be used. {'. '.join(left_out[:LISTED])}.")
    unused = [name for name in rows[0] if name and name not in columns.values()]
    return Table(columns, unused, list(clips.values()), left_out)


def _clip(row: Mapping[str, str], columns: Mapping[str, str], files: Files, in_seconds: bool) -> Label:
    """Return a row's fields; raise a ValueError that says why it cannot be used."""
    clip: Label = {name: row[column] for name, column in columns.items() if row[column]}
    cell = clip.pop("video", "")
    file = files.find(cell)
    if file is None:
        raise ValueError(files.why_none(cell))
    if not clip.keys() & {"text", "gloss"}:
        raise ValueError(f"{file} has no text")
    for field in clip.keys() & {"text", "gloss"}:
        clip[field] = " ".join(clip[field].split())
    for end in [end for end in ("start", "end") if end in clip]:
        number = _number(clip[end])
        clip[end] = round(number * files.frame_rate(file)) if in_seconds and number >= 0 else int(number)
    clip["pose" if files.are_poses else "video"] = file
    label, faults = clean_label(None, {**clip, "split": ""})
    if faults:
        raise ValueError(f"{file} {', '.join(faults)}")
    return clip | {"name": label["name"]}


def guess_columns(path: str, rows: Sequence[Mapping[str, str]], files: Files) -> dict[str, str]:
    """Return field -> column, by the columns' names, that of the videos by its cells; ValueError if one is missing."""
    header = list(rows[0]) if rows else []
    if row := [name for name in header if name not in (*FIELDS, *renamed(header)) and files.find(name)]:
        raise ValueError(
            f"{path}: has no header: its first row names the file {row[0]!r:.60}. Put a row of names above it, "
            "such as video, text, signer."
        )
    columns = {field: name for name, field in renamed(header).items()} | {f: f for f in FIELDS if f in header}
    likely = columns.get("video"), columns.get("video_path")
    hits = {name: sum(files.find(row[name]) is not None for row in rows) for name in header}
    video = max(header, key=lambda name: (hits[name], name in likely), default="")
    if not hits.get(video):
        shown = ", ".join(f"{cell!r:.40}" for cell in list(rows[0].values())[:LISTED]) if rows else "nothing"
        first = " Only the first sheet is read: put the table there." if suffix_of(path) == ".xlsx" else ""
        raise ValueError(
            f"{path}: no cell names a file of --videos, such as {files.paths[0]!r}; the first row holds {shown}. One "
            f"column has to hold their names, with or without the ending.{first}"
        )
    unused = ("video", "video_path", "pose", "frames")
    columns = {"video": video} | {f: name for f, name in columns.items() if f not in unused and name != video}
    if not columns.keys() & {"text", "gloss"}:
        free = [name for name in header if name and name not in columns.values()]
        if not free:
            raise ValueError(f"{path}: no column holds sentences; the columns are {', '.join(header)}. Add 'text'.")
        columns["text"] = max(free, key=lambda name: sum(len(row[name]) for row in rows))
    return columns


def are_seconds(columns: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> bool:
    """Return whether `start` and `end` are in seconds, or h:m:s, and not in frames: by their names, or by a cell."""
    names = [columns[end] for end in ("start", "end") if end in columns]
    named = any(re.search("sec|time|realigned", name.lower()) for name in names)
    return named or any(re.search(r":|\.\d*[1-9]", row[name]) for row in rows for name in names)


def _number(cell: str) -> float:
    if cell == "-1":  # PHOENIX-2014T: all
        return -1
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d*)?", cell):
        raise ValueError(f"begins or ends at {cell!r}; wanted a frame, seconds, or hours:minutes:seconds")
    return sum(part * 60**place for place, part in enumerate(map(float, reversed(cell.split(":")))))


# -- what is made of it ------------------------------------------------------------------------------------------------


def split_clips(table: Table, how: str) -> str:
    """Give each clip its split, and return how that was done; ValueError if there are too few clips or signers."""
    clips = table.clips
    if len(clips) < len(SPLITS):
        raise ValueError(f"{len(clips)} clips cannot be split into train, dev and test.")
    if not how and (column := _has_splits(table)):
        return f"as the column {column!r} says"
    signers = {clip.get("signer") for clip in clips}
    many = len(signers) >= len(SPLITS) and None not in signers
    if how == "signer" and not many:
        raise ValueError(
            f"--split signer: wanted a column 'signer' with three signers or more, and a name in every row; it has "
            f"{len(signers - {None})}."
        )
    key = "signer" if how == "signer" or (many and not how) else "video"
    groups: dict[str, list[Label]] = {}
    for clip in clips:
        group = clip["signer"] if key == "signer" else without_suffix(clip.get("video") or clip["pose"])
        groups.setdefault(group, []).append(clip)
    if len(groups) < len(SPLITS):  # parts of one or two videos
        groups = {clip["name"]: [clip] for clip in clips}
    # The smallest first, so that train keeps the most; of the same size, in an order that is random but repeats.
    waiting = sorted(groups, key=lambda group: (-len(groups[group]), hashlib.sha256(group.encode()).digest()))
    wanted = max(1, len(clips) // HELD_OUT)
    for split, n_later in (("test", 2), ("dev", 1), ("train", 0)):
        taken = 0
        while len(waiting) > n_later and (taken < wanted or split == "train"):
            group = groups[waiting.pop()]
            taken += len(group)
            for clip in group:
                clip["split"] = split
    return "other signers in each" if key == "signer" else "at random, of all signers"


def _has_splits(table: Table) -> str:
    """Give the splits of a table their usual names; return its column, "" if there is none that names splits.

    Raises:
        ValueError: some clips have no split, or a split has no clips: to divide anew would train on an official test.
    """
    splits = [SPLIT_NAMES.get(clip.get("split", "").lower(), "other") for clip in table.clips]
    given = Counter(splits)
    if not set(given) & set(SPLITS):
        return ""
    column = table.columns["split"]
    if set(given) != set(SPLITS):
        has = ", ".join(f"{given[split]} {split}" for split in (*SPLITS, "other"))
        raise ValueError(
            f"the column {column!r} has {has}; wanted train, dev and test, and one of them in every row. Fill them in, "
            "or divide the clips anew: --split random."
        )
    for clip, split in zip(table.clips, splits, strict=True):
        clip["split"] = split
    return column


def write(table: Table, files: Files, out: Path, language: str) -> DatasetSpec:
    """Write labels.csv and dataset.toml; return the data set."""
    clips, labels = table.clips, out / "labels.csv"
    guessed = guess_language([clip.get("text") or clip["gloss"] for clip in clips])
    spec = DatasetSpec(
        name=out.resolve().name,
        labels=dict.fromkeys(SPLITS, labels.as_posix()),
        pose_dir=(Path(files.folder) if files.are_poses else out / "poses").as_posix(),
        rgb_dir="" if files.are_poses else Path(files.folder).as_posix(),
        description_dir=(out / "descriptions").as_posix(),
        language=language or guessed,
        text_unit="char" if guessed in UNSPACED else "word",
        tasks=tuple(
            task for task, field in (("SLT", "text"), ("CSLR", "gloss")) if any(field in clip for clip in clips)
        ),
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, [f for f in FIELDS if any(f in clip for clip in clips)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(clips)
    out.mkdir(parents=True, exist_ok=True)
    write_text(labels, text.getvalue())
    write_text(out / "dataset.toml", "# For --dataset_config. Paths start from --root.\n" + spec.to_toml(NOTES))
    return spec


def summary(table: Table, files: Files, spec: DatasetSpec, how: str) -> str:
    """Return what was found, what is missing, and the commands to go on with."""
    lines = [f"{field:8} is column {name!r}" for field, name in table.columns.items()]
    if table.unused:
        names = ", ".join(map(repr, table.unused))
        lines.append(f"not used: {names}; to use one, rename its header to signer, text, gloss, split, start or end")
    for split in SPLITS:
        clips = [clip for clip in table.clips if clip["split"] == split]
        signers = sorted({clip["signer"] for clip in clips if "signer" in clip})
        who = f" of {', '.join(signers[:LISTED])}{' ...' if len(signers) > LISTED else ''}" if signers else ""
        few = f"; fewer than {FEW}: a score by chance" if split != "train" and len(clips) < FEW else ""
        lines.append(f"{split:8} {len(clips)} clips{who} ({how}{few})")
    lines.append(f"language is {spec.language}; if not, edit dataset.toml")
    used = {clip.get("video") or clip.get("pose") for clip in table.clips}
    unused = [path for path in files.paths if path not in used]
    for what, missing in (("row left out", table.left_out), ("file not used", unused)):
        lines += [f"{what}: {line}" for line in missing[:LISTED]]
        lines += [f"... and {len(missing) - LISTED} more"] if len(missing) > LISTED else []
    lines.append(f"{Path(spec.labels['train']).parent}: labels.csv and dataset.toml written.")
    return "\n".join([*(printable(line, kept="") for line in lines), "Next (batches for a table of this size):", ""])


def next_commands(spec: DatasetSpec, files: Files, n_train: int) -> str:
    """Return the commands from here to a report, with what of mT5 and of Uni-Sign's weights is there."""
    config = Path(spec.labels["train"]).with_name("dataset.toml").as_posix()
    flags, run_folder = f"--dataset_config {shlex.quote(config)}", shlex.quote(f"./output_{spec.name}")
    batch = min(8, max(1, n_train // STEPS))
    steps = f"--batch-size {batch} --gradient-accumulation-steps {min(4, max(1, n_train // (STEPS * batch)))}"
    training, commands, note = f"{steps} --lr 3e-4 {ONE_GPU}", [f"python describe.py {flags}{_aspect(files)}"], ""
    if not files.are_poses:
        paths = f"{shlex.quote(spec.rgb_dir)} --out {shlex.quote(spec.pose_dir)}"
        commands.insert(0, f"python -m tools.extract_poses {paths} --look my_pictures")
    if Path(WEIGHTS).is_file():
        training += f" --finetune {WEIGHTS}"
    if not Path(mt5_path, "config.json").is_file():
        texts = shlex.join([*dict.fromkeys(spec.labels.values()), spec.description_dir])
        commands.append(f"python -m tools.small_mt5 --out small_mt5 --texts {texts}")
        steps, training = f"{SMALL} {steps}", f"{SMALL} {steps}"
        note = (
            f"mT5 is not in {mt5_path}: this tries the steps with a small random one, which writes nonsense. For a "
            f"real model put mT5 there, leave out {SMALL}, and add --lr 3e-4 {ONE_GPU} --finetune {WEIGHTS}.\n"
        )
    commands += [
        f"python pre_training_checklist.py {flags} --use_descriptions {steps}",
        f"python fine_tuning.py {flags} --use_descriptions {training} --output_dir {run_folder}",
        f"python -m tools.report {run_folder}",
    ]
    return "".join(f"  {command}\n" for command in commands) + note


def _aspect(files: Files) -> str:
    if files.are_poses or not installed("av"):
        return ""
    from pose.video import read_facts

    with contextlib.suppress(ValueError):  # of a damaged video, which tools.extract_poses names
        facts = read_facts(Path(files.folder) / files.paths[0])
        return f" --aspect {facts.width / facts.height:.4g}"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Import a table; return the exit status."""
    args = parse_args(argv)
    out = Path(args.out)
    if there := [str(out / name) for name in ("labels.csv", "dataset.toml") if (out / name).exists()]:
        raise ValueError(f"--out: {' and '.join(there)} exist already. Remove them, or name another folder.")
    files = Files(args.videos)
    table = find_clips(args.table, files)
    how = split_clips(table, args.split)
    spec = write(table, files, out, args.language)
    n_train = sum(clip["split"] == "train" for clip in table.clips)
    sys.stdout.write(summary(table, files, spec, how) + next_commands(spec, files, n_train))
    return 1 if table.left_out else 0


if __name__ == "__main__":
    run(lambda: sys.exit(main()))
