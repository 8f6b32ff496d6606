"""Pack a data set's poses and descriptions into a few files instead of one per clip.

    python -m tools.pack_dataset --dataset CSL_Daily --out packed/CSL_Daily
    python fine_tuning.py --dataset CSL_Daily --packed packed/CSL_Daily

DIR/poses/{split} and DIR/descriptions/{split} are packs; see `clips/packs.py` for their format.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import config
from clips.labels import split_labels
from system import lock
from system.disk import explain
from system.processes import cores, in_processes
from utils import Parser, Shard, add_dataset_flags, add_shard_flag, progress, require_paths, run

if TYPE_CHECKING:
    from clips.packs import Content

CHUNK = 32  # files per job of a process

EXAMPLES = """examples:
  python -m tools.pack_dataset --out packed/CSL_Daily                  CSL-Daily, all splits; then train with
  python fine_tuning.py --packed packed/CSL_Daily                the same flags as before, and this one
  python -m tools.pack_dataset --dataset_config my.toml --out packed/mine --splits train dev
  python -m tools.pack_dataset --out packed/CSL_Daily --shard 1/4      a quarter, and on three other machines the others
  python -m tools.pack_dataset --verify --out packed/CSL_Daily         read all of it and compare the checksums

Packed data are a copy: after a change of poses or descriptions, pack again. A pack appears under its name when it is
whole; one that was stopped starts from the beginning.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Pack or verify."""
    what = "Pack a data set's poses and descriptions into a few files that are mapped into memory."
    parser = Parser(prog="python -m tools.pack_dataset", description=what, epilog=EXAMPLES)
    add = parser.add_argument
    add_dataset_flags(add)
    add("--root", default=".", metavar="DIR", help="folder that all paths start from, --out too; default: .")
    add("--out", required=True, metavar="DIR", help="where the packs go, or are")
    add("--splits", nargs="+", default=list(config.SPLITS), choices=config.SPLITS, help="default: all")
    add_shard_flag(add)
    add("--workers", type=int, default=cores(), help="processes that read; default: one per core")
    add("--verify", action="store_true", help="write nothing: read the packs in --out, and say whether they are whole")
    args = parser.parse_args(argv)
    parser.at_least(args, workers=1)
    require_paths(root=args.root)
    out = Path(args.root) / args.out
    if args.verify:
        require_paths(out=str(out))
        verify(out)
        return
    spec = config.dataset_of(args.dataset, args.dataset_config)
    for split in spec.under(args.root).choose(args.splits):
        pack_split(spec, split, out, args.root, args.workers, args.shard)


def pack_split(spec: config.DatasetSpec, split: str, out: Path, root: str, workers: int, shard: Shard) -> None:
    """Pack the poses of a split's clips, and their descriptions if there are any; of a shard, its own."""
    from clips.packs import DESCRIPTIONS, POSES, pack_descriptions, pack_pose, sketch  # after --help and wrong flags

    there, name = spec.under(root), spec.folder(split)
    labels = split_labels(there, split)
    split_spec = there.for_split(split)
    folder = split_spec.pose_dir
    files = dict.fromkeys(split_spec.pose_path(label).relative_to(folder).as_posix() for label in labels.values())
    # Two processes would write to the same files.
    lock.hold(out, "--out", "another tools/pack_dataset.py", f"{shard.name or 'run'}.lock")
    clips, sketched = [(folder, file) for file in files if file in shard], sketch(labels)
    pack(out / POSES / name, POSES, spec.pose_dir, pack_pose, clips, workers, sketched, shard)
    descriptions = Path(there.description_dir) / name
    if spec.description_dir and descriptions.is_dir():
        texts = out / DESCRIPTIONS / name
        jobs = [(str(descriptions), clip) for clip in labels if clip in shard]
        pack(texts, DESCRIPTIONS, spec.description_dir, pack_descriptions, jobs, workers, sketched, shard)
    else:
        sys.stdout.write(f"{name}: no descriptions in {descriptions}.\n" if spec.description_dir else "")


def pack(
    folder: Path,
    kind: str,
    source: str,
    read: Callable[[tuple[str, str]], Content | None],
    jobs: Sequence[tuple[str, str]],
    workers: int,
    sketched: Mapping[str, str],
    shard: Shard,
) -> None:
    """Write one pack, or a shard of it, and print a summary."""
    from clips.packs import POSES, write_pack

    counts: Counter[str] = Counter()
    faults: list[str] = []

    def contents() -> Iterator[Content]:
        read_ones = in_processes(read, jobs, workers, CHUNK)
        title = f"{kind}/{folder.name}"
        for (_, name), content in zip(jobs, progress(read_ones, title, total=len(jobs)), strict=True):
            if content is None:
                counts["missing"] += 1
                faults.append(f"{name} is missing" if kind == POSES else f"{name} has none that can be read")
                continue
            if not content.length:
                counts["unreadable"] += 1
                faults.append(content.data.decode("utf-8", "replace"))
            counts["packed"] += 1
            yield content

    begun = time.monotonic()
    try:
        folder = write_pack(folder, kind, source, contents(), sketched, shard)
    except OSError as error:
        raise OSError(explain(error, folder)) from None
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    seconds = time.monotonic() - begun
    unreadable = f", {counts['unreadable']} of them unreadable (a run leaves them out)" if counts["unreadable"] else ""
    missing = f", {counts['missing']} of the labels' clips missing" if counts["missing"] else ""
    first = f"; the first: {faults[0]}" if faults else ""
    sys.stdout.write(
        f"{folder}: {counts['packed']} clips{unreadable}{missing}, {size:,.1f} MB, {seconds:.1f} s{first}\n"
    )


def verify(out: Path) -> None:
    """Verify all packs in a folder; ValueError with the first fault, FileNotFoundError if there are none."""
    from clips.packs import DESCRIPTIONS, POSES, DescriptionPack, PosePack, packs_in

    folders = packs_in(out)
    if not folders:
        raise FileNotFoundError(f"--verify: {out} holds no packs.")
    damaged: list[str] = []
    for folder in folders:
        kinds = {POSES: PosePack, DESCRIPTIONS: DescriptionPack}
        try:
            pack = kinds.get(folder.parent.name, PosePack)(folder)
            faults = pack.verify(partial(progress, title=f"{folder.parent.name}/{folder.name}"))
        except ValueError as error:
            faults = [str(error)]
        sys.stdout.write(f"{folder}: {f'{len(faults)} faults' if faults else f'{len(pack)} clips, whole'}\n")
        damaged += faults
    if damaged:
        raise ValueError(f"--verify: {len(damaged)} faults; the first: {damaged[0]}")


if __name__ == "__main__":
    run(main)
