"""Extract poses from videos: one file per video in Uni-Sign's format, for `datasets.py` and `inference.py`."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from config import ONE_PERSON, PICTURES_CURE, VIDEO_SUFFIXES
from system.faults import CLIP_FAULTS, in_one_line
from system.processes import cores
from utils import Parser, add_extractor_flags, add_shard_flag, progress, require_packages, require_paths, run

if TYPE_CHECKING:
    from pose.extraction import Extractor
    from pose.keypoints import Pose

START = "spawn"  # start method of processes
NOTE = "extractor.txt"  # file in the output folder that names the extractor
SHOWN = 6  # frames per clip in an image of --look
EXAMPLES = """examples:
  python -m tools.extract_poses my_videos --out my_poses --extractor mediapipe
  python -m tools.extract_poses dataset/CSL_Daily/sentence-crop --out dataset/CSL_Daily/pose_format --num_workers 4
  python -m tools.extract_poses my_videos --out my_poses --look pictures
  python -m tools.extract_poses my_videos --out my_poses --check

my_videos/a/b.mp4 becomes my_poses/a/b.pkl. A file that is there is not made again: it is only compared with its video,
and a difference in the number of frames is an error. So the same command goes on where an earlier one stopped.
A damaged video is named, the others go on. Exit status: 0 when every video has its file, 1 otherwise.

rtmlib finds the 133 points of COCO-WholeBody, as in Uni-Sign's data, and several people. It needs two model files of
yours, --models. MediaPipe finds one person, runs on the CPU, and (0.10.21) brings its models along; its points differ
from those that released weights were trained on. Both are installed apart, see docs/INFERENCE.md.

Of several people, --person 0 is the one whose head and shoulders are seen largest and longest, followed from frame to
frame; 1 is the next, such as an interpreter beside a speaker. Look at the result: --look draws it over the frames.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and reject invalid combinations, before any slow import."""
    what = "Find the poses in a folder of videos."
    parser = Parser(prog="python -m tools.extract_poses", description=what, epilog=EXAMPLES)
    add = parser.add_argument
    parser.add_argument("videos", metavar="VIDEOS", help="a video, or a folder of them (and of folders)")
    add("--out", required=True, metavar="DIR", help="where the pose files go")
    add_extractor_flags(add)
    add("--device", default="", choices=("cpu", "cuda"), help="for rtmlib; default: cuda if onnxruntime can use one")
    add("--person", type=int, default=0, metavar="I", help="which of several people, from 0 (see below); default: 0")
    workers = "processes, each with a model of its own; default: one for two cores, at most 8"
    default = min(8, max(1, cores() // 2))
    add("--num_workers", type=int, default=default, metavar="N", help=workers)
    add_shard_flag(add)
    add("--overwrite", action="store_true", help="make files again that are there")
    add("--check", action="store_true", help="only compare the files that are there with their videos; make none")
    add("--look", default="", metavar="DIR", help="also draw some frames of each new file, NAME.jpg; needs pillow")
    args = parser.parse_args(argv)
    parser.check(args, _faults(args), num_workers=1, person=0)
    return args


def _faults(args: argparse.Namespace) -> Iterator[str]:
    if args.person and args.extractor == "mediapipe":
        yield ONE_PERSON
    if args.device == "cuda" and args.extractor == "mediapipe":
        yield "--device cuda: MediaPipe computes on the CPU."
    if args.check and args.overwrite:
        yield "--check and --overwrite exclude each other: --check makes no files."


class Video(NamedTuple):
    """A video, with the paths of its pose file and of its image for --look."""

    path: Path
    out: Path
    picture: Path | None


class Result(NamedTuple):
    """The result for a video: counts to be summed, and an error message."""

    counts: Counter
    fault: str = ""


def find_videos(args: argparse.Namespace) -> list[Video]:
    """Return the shard's videos by their names; FileNotFoundError for none, ValueError for two of one name."""
    place, out = Path(args.videos), Path(args.out)
    folder = place if place.is_dir() else place.parent
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    paths = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES and os.path.isfile(path)]
    if not paths:
        raise FileNotFoundError(f"{place}: no video there ({', '.join(VIDEO_SUFFIXES)}). {PICTURES_CURE}")
    look = Path(args.look) if args.look else None
    videos = []
    by_name: dict[Path, Path] = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("")
        if name in by_name:
            raise ValueError(f"{by_name[name]} and {path} would both become {out / name}.pkl. Rename or move one.")
        by_name[name] = path
        if name.as_posix() in args.shard:
            videos.append(Video(path, out / f"{name}.pkl", look / f"{name}.jpg" if look else None))
    return videos


# -- one video -------------------------------------------------------------------------------------------------------


@functools.cache
def _extractor(name: str, models: str, device: str) -> Extractor:
    """Load the model, once in each process."""
    from pose.extraction import load_extractor

    return load_extractor(name, models, device)


def compare(video: Video) -> Result:
    """Compare a pose file with its video."""
    from pose.keypoints import read_pose
    from pose.video import check_n_frames, count_frames, read_pictures

    if not video.out.is_file():
        return Result(Counter(missing=1), f"{video.out}: is not there, for {video.path}.")
    try:
        n_expected = read_pose(video.out).n_recorded
        n_frames = count_frames(video.path)
        if n_frames != n_expected:  # or the container does not have one packet per frame: decode to be sure
            n_frames = sum(1 for _ in read_pictures(video.path))
        check_n_frames(video.path, n_frames, n_expected)
    except CLIP_FAULTS as error:
        return Result(Counter({"of another video": 1}), in_one_line(error))
    return Result(Counter({"there already": 1}))


def extract(args: argparse.Namespace, video: Video) -> Result:
    """Extract a video's poses and write them; OSError, as of a full disk, concerns all videos."""
    from pose.extraction import extract_pose, write_pose
    from pose.video import read_pictures
    from system.disk import check_name, write_bytes

    extractor = _extractor(args.extractor, args.models, args.device)
    try:
        check_name(video.out)
        found = extract_pose(read_pictures(video.path), extractor, args.person, video.path)
        row = look(video.path, found.pose) if video.picture else b""
    except CLIP_FAULTS as error:
        return Result(Counter(failed=1), in_one_line(error))
    if video.picture:
        write_bytes(video.picture, row)
    write_pose(video.out, found.pose)
    return Result(Counter({"made": 1, "frames": len(found.pose), "several": int(found.people > 1), **found.seen()}))


def look(path: Path, pose: Pose) -> bytes:
    """Draw poses over some frames of a clip, as one JPEG."""
    import numpy as np

    from pose.drawing import draw_pose_over, encode, side_by_side
    from pose.video import read_frames

    shown: list[int] = np.unique(np.linspace(0, len(pose) - 1, SHOWN).round().astype(int)).tolist()
    frames = read_frames(path, set(shown), len(pose))
    return encode(side_by_side([draw_pose_over(frame, pose, number) for number, frame in frames]), "jpeg")


# -- all of them -----------------------------------------------------------------------------------------------------


def in_pool(work: Callable[[Video], Result], videos: Sequence[Video], n_processes: int) -> Iterator[Result]:
    """Yield the result of each video, in order of completion.

    A process may crash on a video or run out of memory. Unfinished videos are then retried one at a time; if the
    process crashes again, that video counts as failed and the others continue.
    """
    waiting = deque(videos)
    while waiting:
        running: dict[Future[Result], Video] = {}
        pool = _pool(min(n_processes, len(waiting)))
        try:
            while waiting or running:
                while waiting and len(running) < 2 * n_processes:
                    running[pool.submit(work, waiting[0])] = waiting[0]
                    waiting.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield future.result()
                    del running[future]
        except BrokenProcessPool:
            yield from (_alone(work, video) for video in running.values())
        finally:
            pool.shutdown(cancel_futures=True)


def _pool(n_processes: int) -> ProcessPoolExecutor:
    # Spawn, since threads and GPU state do not survive a fork. Ctrl-C ends the processes silently, since files are
    # written atomically.
    context, ends = multiprocessing.get_context(START), (signal.SIGINT, signal.SIG_DFL)
    return ProcessPoolExecutor(n_processes, context, initializer=signal.signal, initargs=ends)


def _alone(work: Callable[[Video], Result], video: Video) -> Result:
    with _pool(1) as pool:
        try:
            return pool.submit(work, video).result()
        except BrokenProcessPool:
            return Result(Counter(failed=1), f"{video.path}: the process that worked on it died.")


def keep_to_one_extractor(args: argparse.Namespace) -> None:
    """Load the model, so that its errors are reported once; ValueError if another made the poses in --out."""
    from pose.extraction import load_extractor
    from system.disk import write_text

    label = f"{load_extractor(args.extractor, args.models, args.device).label}, person {args.person}"
    note = Path(args.out) / NOTE
    if note.is_file():
        made_by = note.read_text(encoding="utf-8").strip()
    else:
        made_by = "somebody else" if any(Path(args.out).rglob("*.pkl")) else label
    if made_by != label:
        raise ValueError(
            f"--out {args.out}: its poses were made by {made_by}, not by {label}. Name another folder, or remove it."
        )
    note.parent.mkdir(parents=True, exist_ok=True)
    write_text(note, label + "\n")


def main(args: argparse.Namespace) -> int:
    """Extract or compare; return the exit status."""
    require_paths(models=args.models)
    videos = find_videos(args)
    if args.look:
        require_packages("--look", "PIL")
    if not args.check:
        keep_to_one_extractor(args)
    there = [video for video in videos if args.check or (video.out.is_file() and not args.overwrite)]
    new = sorted(set(videos) - set(there))
    counts, faults = Counter[str](), list[str]()
    works: list[tuple[Callable[[Video], Result], str, list[Video]]] = [
        (compare, "comparing", there),
        (functools.partial(extract, args), "extracting", new),
    ]
    for work, title, todo in works:
        for result in progress(in_pool(work, todo, args.num_workers), title, shown=bool(todo), total=len(todo)):
            counts += result.counts
            faults += [result.fault] if result.fault else []
    sys.stderr.write("".join(f"failed: {fault}\n" for fault in sorted(faults)))
    sys.stderr.write(summary(counts))
    return 1 if faults else 0


def summary(counts: Counter[str]) -> str:
    """Summarise the results in one or two lines."""
    words = ("made", "there already", "of another video", "missing", "failed")
    lines = ["pose files: " + (", ".join(f"{counts[word]} {word}" for word in words if counts[word]) or "none to make")]
    if frames := counts["frames"]:
        seen = ", ".join(f"{part} in {counts[part] / frames:.0%}" for part in ("body", "left hand", "right hand"))
        several = f"; several people in {counts['several']} clips" if counts["several"] else ""
        lines.append(f"{frames} frames, {seen}{several}")
    return "".join(f"{line}.\n" for line in lines)


if __name__ == "__main__":
    run(lambda: sys.exit(main(parse_args())))
