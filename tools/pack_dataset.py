"""Pack a data set's poses and descriptions into a zip for each split instead of a file per clip.

    python -m tools.pack_dataset --dataset CSL_Daily --out packed/CSL_Daily
    python fine_tuning.py --dataset CSL_Daily --packed packed/CSL_Daily

DIR/poses/{split} and DIR/descriptions/{split} are packs; see `clips/packs.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import config
from clips.labels import Label, split_labels
from system.disk import explain, read_unpacked
from system.faults import in_one_line
from utils import Parser, add_dataset_flags, progress, require_paths, run

READERS = 32  # threads, since a network disk takes milliseconds to open a file
AHEAD = 4 * READERS  # files that are held in memory
SHOWN = 5  # files that cannot be read, in a message

EXAMPLES = """examples:
  python -m tools.pack_dataset --out packed/CSL_Daily                  CSL-Daily, all splits; then train with
  python fine_tuning.py --packed packed/CSL_Daily                the same flags as before, and this one
  python -m tools.pack_dataset --dataset_config my.toml --out packed/mine --splits train dev
  python -m zipfile -t packed/CSL_Daily/poses/train/pack.zip     read all of it and compare the checksums

Packed data are a copy: after a change of poses or descriptions, pack again. A pack appears under its name when it is
whole; one that was stopped starts from the beginning.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Pack the splits of a data set."""
    what = "Pack a data set's poses and descriptions into a zip for each split."
    parser = Parser(prog="python -m tools.pack_dataset", description=what, epilog=EXAMPLES)
    add = parser.add_argument
    add_dataset_flags(add)
    add("--root", default=".", metavar="DIR", help="folder that all paths start from, --out too; default: .")
    add("--out", required=True, metavar="DIR", help="where the packs go")
    add("--splits", nargs="+", default=list(config.SPLITS), choices=config.SPLITS, help="default: all")
    args = parser.parse_args(argv)
    require_paths(root=args.root)
    spec = config.dataset_of(args.dataset, args.dataset_config)
    for split in spec.under(args.root).choose(args.splits):
        pack_split(spec, split, Path(args.root) / args.out, args.root)


def pack_split(spec: config.DatasetSpec, split: str, out: Path, root: str) -> None:
    """Pack the poses of a split's clips, and their descriptions if there are any."""
    from clips.packs import DESCRIPTIONS, POSES  # after --help and wrong flags

    there, name = spec.under(root), spec.folder(split)
    labels, places = split_labels(there, split), there.for_split(split)
    paths = [places.pose_path(label).relative_to(places.pose_dir).as_posix() for label in labels.values()]
    pack(out / POSES / name, spec.pose_dir, Path(places.pose_dir), paths, labels)
    descriptions = Path(there.description_dir) / name
    if spec.description_dir and descriptions.is_dir():
        paths = [f"{clip}.json" for clip in labels]
        pack(out / DESCRIPTIONS / name, spec.description_dir, descriptions, paths, labels)
    elif spec.description_dir:
        sys.stdout.write(f"{name}: no descriptions in {descriptions}.\n")


def pack(out: Path, source: str, folder: Path, paths: Sequence[str], labels: Mapping[str, Label]) -> None:
    """Write one pack of those files of a folder that there are, and print a summary."""
    from clips.packs import write_pack

    paths = list(dict.fromkeys(paths))  # parts of a recording share its file
    missing, faults = list[str](), list[str]()

    def contents() -> Iterator[tuple[str, bytes]]:
        with ThreadPoolExecutor(READERS) as pool:
            for first in range(0, len(paths), AHEAD):
                some = paths[first : first + AHEAD]
                for path, content in zip(some, pool.map(_content, [folder / path for path in some]), strict=True):
                    if content is None:
                        missing.append(path)
                    elif isinstance(content, str):
                        faults.append(content)
                    else:
                        yield path, content
        if faults:
            more = f" {len(faults) - SHOWN} more are like these." if len(faults) > SHOWN else ""
            raise ValueError(f"{'; '.join(faults[:SHOWN])}. Mend them, or remove them; nothing is packed.{more}")

    title = f"{out.parent.name}/{out.name}"
    try:
        n_files = write_pack(out, progress(contents(), title, total=len(paths)), source, labels)
    except OSError as error:
        raise OSError(explain(error, out)) from None
    size = (out / "pack.zip").stat().st_size / 1e6
    lacking = f"; {len(missing)} are missing, the first is {missing[0]}" if missing else ""
    sys.stdout.write(f"{out}: {n_files} files, {size:,.1f} MB{lacking}\n")


def _content(path: Path) -> bytes | str | None:
    """Return what a file holds, or what is wrong with it; None if it is missing."""
    try:
        return read_unpacked(path, packed=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{path}: cannot be read: {in_one_line(error)}"


if __name__ == "__main__":
    run(main)
