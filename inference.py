"""Translate your own clips (videos or pose files) to sentences. `translator.py` is the Python interface."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from config import ASPECTS, ONE_PERSON, PICTURES_CURE, POSE_SUFFIXES, VIDEO_SUFFIXES
from system.disk import Lines, explain, read_lines, to_json, write_text
from system.faults import CLIP_FAULTS, in_one_line, printable
from utils import (
    Parser,
    add_extractor_flags,
    add_model_flags,
    cannot_be_written,
    progress,
    require_paths,
    run,
    sigterm_as_ctrl_c,
)

if TYPE_CHECKING:
    from clips.batch import Sample
    from pose.extraction import Extractor
    from pose.keypoints import Pose
    from translator import Explained, LiveSentence, Translator

OUT_SUFFIXES = (".json", ".jsonl", ".srt")
EXAMPLES = """examples:
  python inference.py talk.mp4 --checkpoint output_multimodal/best_checkpoint.pth --extractor mediapipe
  python inference.py 0 --checkpoint best_checkpoint.pth --live --out live.srt
  python inference.py clip.pose --checkpoint best_checkpoint.pth
  python inference.py my_poses --checkpoint best_checkpoint.pth --out translations.jsonl
  python inference.py my_poses --checkpoint best_checkpoint.pth --descriptions my_texts
  python inference.py clip.npz --checkpoint best_checkpoint.pth --describe --n_best 3
  python inference.py talk --checkpoint best_checkpoint.pth --out talk.srt --fps 25

A clip is a video or a .pkl, .npz or .pose file, and should hold one sentence: cut longer recordings. A video whose
poses lie beside it, under the same name, is read only for crops of the hands, if the checkpoint wants them. Each clip
gives a line: NAME, tab, sentence; with --n_best N lines: NAME, tab, score, tab, sentence, where a score is the mean
log-probability of the sentence's tokens. A clip that cannot be read is named on the terminal and left out. Exit status:
0 when all clips are translated, 1 when one is left out. A run that is ended early leaves in --out what it has done; if
it is killed outright, a .jsonl alone has it.

Of several people in a video, --person 0 is the one whose head and shoulders are seen largest and longest, followed from
frame to frame; 1 is the next. In a pose file it is a place in the file's order, which may change from frame to frame.
Many videos are quicker with tools/extract_poses.py first, which works in several processes.
From Python: translator.py.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and reject invalid combinations, before any slow import."""
    what = "Translate clips of your own, from videos or from their poses."
    parser = Parser(prog="inference.py", description=what, epilog=EXAMPLES)
    add = parser.add_argument
    parser.add_argument("clips", metavar="CLIPS", help="a video, a pose file, a folder of them, or a camera's number")
    add_model_flags(add)
    add("--out", default="", metavar="FILE", help="also write a .json, .jsonl or .srt file")
    add("--fps", type=float, default=0, help="frames per second, for .srt: pose files need it, a video says its own")
    add("--n_best", type=int, default=1, metavar="N", help="sentences of each clip, with scores; default: 1")
    add("--person", type=int, default=0, metavar="I", help="which of several people, from 0 (see below); default: 0")

    add_extractor_flags(add)
    add("--live", action="store_true", help="translate while somebody signs, until Ctrl-C; a file is played as if live")

    add("--descriptions", default="", metavar="FILE|DIR", help="a clip's description file, or a folder of NAME.json")
    add("--describe", action="store_true", help="describe the clips by the rules of describe.py")
    shape = "for --describe: width of the pictures / their height; default: the video's, 1 for pose files"
    add("--aspect", type=float, metavar="W/H", help=shape)

    add("--batch-size", type=int, default=8, help="clips at a time; default: 8")
    add("--num_beams", type=int, default=4, help="of the search for a sentence; default: 4")
    add("--max_new_tokens", type=int, default=100, help="maximum tokens of a generated sentence; default: 100")
    args = parser.parse_args(argv)
    parser.check(args, _faults(args), n_best=1, person=0, batch_size=1, max_new_tokens=1, aspect=ASPECTS)
    return args


def _faults(args: argparse.Namespace) -> Iterator[str]:
    if args.num_beams < args.n_best:
        yield f"--num_beams {args.num_beams}: must be at least --n_best, which is {args.n_best}."
    if args.descriptions and args.describe:
        yield "--descriptions and --describe exclude each other."
    if args.out:
        yield from _faults_of_out(args)
    if is_camera(args.clips) and not args.live:
        yield f"{args.clips}: a camera is translated with --live."
    if args.live and (args.descriptions or args.person or args.n_best > 1):
        yield "--live goes without --descriptions, --person and --n_best: it takes the largest person of each picture."
    if not 0 <= args.fps < float("inf"):
        yield f"--fps {args.fps}: must be positive and finite."
    if args.person and args.extractor == "mediapipe":
        yield ONE_PERSON


def _faults_of_out(args: argparse.Namespace) -> Iterator[str]:
    yield from cannot_be_written("--out", args.out, *OUT_SUFFIXES)
    out, texts = Path(args.out).resolve(), Path(args.descriptions).resolve()
    if args.descriptions and (out == texts or (out.parent == texts and out.suffix == ".json")):
        yield f"--out {args.out}: would replace what --descriptions names. Name another file."
    for flag in ("checkpoint", "mt5_path", "text_encoder"):
        folder = getattr(args, flag)
        if folder and os.path.isdir(folder) and Path(folder).resolve() in out.parents:
            yield f"--out {args.out}: lies in the model's folder {folder}, of --{flag}. Name a file elsewhere."
    if args.live and out.suffix != ".srt":
        yield f"--out {args.out}: --live writes subtitles; name a .srt file."


@dataclass
class Clip:
    """A clip of the command line, and its result."""

    name: str  # the file's path relative to the given folder, without suffix
    path: Path
    first: int = 0  # index of its first frame in the recording it was cut from
    end: int = 0  # index after its last frame
    fps: float = 0  # frames per second; 0 if unknown
    explained: Explained | None = None  # sentences, and what they rest on
    fault: str = ""  # why there are none

    @property
    def has_pictures(self) -> bool:
        """Return whether its poses must still be extracted from images."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    @property
    def text(self) -> str:
        """Return the best sentence."""
        return self.explained.candidates[0].text if self.explained else ""

    def as_json(self) -> dict:
        """Return the clip's entry in the results file."""
        if self.explained is None:
            return {"name": self.name, "unreadable": self.fault}
        words = [
            {"text": text, "frames": [round(share, 4) for share in frames]} for text, frames in self.explained.words
        ]
        candidates = [candidate._asdict() for candidate in self.explained.candidates]
        entry = {"name": self.name, "text": self.text, "frames": self.end - self.first}
        return entry | {"candidates": candidates, "words": words}


def is_camera(place: str) -> bool:
    """Return whether CLIPS is the number of a camera."""
    return place.isdecimal() and not Path(place).exists()


def find_clips(place: str) -> list[Clip]:
    """Return the clips of a folder by their names, or that of a file; FileNotFoundError if there is none."""
    folder = Path(place)
    if not folder.exists():
        raise FileNotFoundError(f"{place} does not exist. Name a pose file, a video, a folder of them or a camera.")
    if not folder.is_dir():
        return [Clip(folder.stem, folder)]
    files = sorted(path for path in folder.rglob("*") if os.path.isfile(path))
    poses = [path for path in files if path.suffix.lower() in POSE_SUFFIXES]
    known = {path.with_suffix("") for path in poses}
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES and path.with_suffix("") not in known]
    if not poses and not videos:
        suffixes = ", ".join((*POSE_SUFFIXES, *VIDEO_SUFFIXES))
        raise FileNotFoundError(f"{place}: holds no pose files and no videos ({suffixes}). {PICTURES_CURE}")
    return [Clip(path.relative_to(folder).with_suffix("").as_posix(), path) for path in sorted(poses + videos)]


def find_pose(clip: Clip, extractor: Extractor | None, args: argparse.Namespace) -> tuple[Pose, float]:
    """Read a clip's poses or extract them from its video; ValueError or OSError if a file is unusable.

    Returns the pose and the images' aspect ratio (1 if unknown).
    """
    if not clip.has_pictures:
        from translator import load_pose

        clip.fps = args.fps
        return load_pose(clip.path, args.person), args.aspect or 1
    from pose.extraction import extract_pose
    from pose.video import count_frames, read_facts, read_pictures

    assert extractor is not None, "loaded for clips with pictures"
    facts = read_facts(clip.path)
    clip.fps = args.fps or facts.fps
    if args.out.endswith(".srt") and not clip.fps:
        raise ValueError(f"{clip.path} does not say how many frames a second has; .srt needs it: give --fps.")
    name = printable(clip.name, kept="")
    pictures = progress(read_pictures(clip.path), name, total=count_frames(clip.path))
    found = extract_pose(pictures, extractor, args.person, clip.path)
    seen = ", ".join(f"{what} in {count}" for what, count in found.seen().items())
    several = f"; up to {found.people} people, --person {args.person} is taken" if found.people > 1 else ""
    sys.stderr.write(f"{name}: {len(found.pose)} frames, {clip.fps:.4g} per second; {seen}{several}\n")
    return found.pose, args.aspect or facts.width / facts.height


def read_clip(translator: Translator, clip: Clip, extractor: Extractor | None, args: argparse.Namespace) -> Sample:
    """Convert a clip and its descriptions to the model's input; ValueError or OSError if a file is unusable."""
    from translator import load_descriptions, video_of

    pose, aspect = find_pose(clip, extractor, args)
    video = video_of(clip.path) if translator.hand_crops else None
    clip.first, clip.end = pose.frames.start, pose.frames.stop
    texts = translator.describe(pose, aspect) if args.describe else None
    if args.descriptions:
        path = Path(args.descriptions)
        if path.is_dir():
            path = path / f"{clip.name}.json"
            texts = load_descriptions(path, pose) if os.path.isfile(path) else {}  # False for too long a name
        else:
            texts = load_descriptions(path, pose)
    return translator.sample(pose, texts, clip.name, video)


def translate(
    translator: Translator, clips: list[Clip], extractor: Extractor | None, args: argparse.Namespace
) -> Iterator[Clip]:
    """Yield each clip with its sentences or the reason why there are none, batch by batch."""
    for first in range(0, len(clips), args.batch_size):
        batch = clips[first : first + args.batch_size]
        samples = []
        for clip in batch:
            try:
                samples.append(read_clip(translator, clip, extractor, args))
            except CLIP_FAULTS as error:
                clip.fault = in_one_line(error)
        explained = iter(translator.explain(samples, args.n_best) if samples else [])
        for clip in batch:
            clip.explained = None if clip.fault else next(explained)
            yield clip


class Results:
    """The file of --out ("" for none), written when the run ends, however it does; a .jsonl grows with each clip."""

    def __init__(self, path: str) -> None:
        self.path, self.clips = path, list[Clip]()
        self._lines, self._behind = Lines(path), False

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.write()
        except OSError as error:
            raise OSError(explain(error, self.path)) from error

    def add(self, clip: Clip) -> None:
        """Add a finished clip."""
        self.clips.append(clip)
        if self.path.endswith(".jsonl"):
            if len(self.clips) == 1:
                write_text(self.path, "")
            self._lines.add(clip.as_json())

    def write(self) -> None:
        """Write the file, if there is anything to write: without results, that of an earlier run stays."""
        if self.clips and self.path.endswith(".srt"):
            write_text(self.path, subtitles(self.clips), sync=False)  # a busy disk takes long, live is now
        elif self.clips and self.path.endswith(".json"):
            write_text(self.path, to_json([clip.as_json() for clip in self.clips], indent=1) + "\n")
        elif self.clips and self.path.endswith(".jsonl") and len(read_lines(self.path)) < len(self.clips):
            write_text(self.path, "".join(to_json(clip.as_json()) + "\n" for clip in self.clips))

    def update(self) -> None:
        """Write the file while the run goes on: what cannot be written, as on a full disk, is with the next clip."""
        try:
            self.write()
            self._behind = False
        except OSError as error:
            if not self._behind:
                sys.stderr.write(printable(f"{explain(error, self.path)} What it should hold is kept until it can.\n"))
            self._behind = True


def subtitles(clips: Sequence[Clip]) -> str:
    """Return SubRip subtitles in the order of the clips' first frames."""

    def time(frame: int, fps: float) -> str:
        ms = round(1000 * frame / fps)
        return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"

    translated = sorted((clip for clip in clips if not clip.fault), key=lambda clip: clip.first)
    return "".join(
        f"{number}\n{time(clip.first, clip.fps)} --> {time(clip.end, clip.fps)}\n{printable(clip.text)}\n\n"
        for number, clip in enumerate(translated, 1)
    )


def check_request(args: argparse.Namespace, clips: Sequence[Clip]) -> None:
    """Raise ValueError or FileNotFoundError for what these clips cannot fulfil, before loading any model."""
    flags = ("checkpoint", "descriptions", "models", "mt5_path", "text_encoder")
    require_paths(**{flag: getattr(args, flag) for flag in flags})
    if args.descriptions and Path(args.descriptions).is_file() and len(clips) > 1:
        raise ValueError(f"--descriptions: {args.descriptions} is one file for {len(clips)} clips; give a folder.")
    if args.live and len({clip.has_pictures for clip in clips}) > 1:
        raise ValueError("--live plays videos or pose files, not both; name a folder of one kind.")
    to_srt = args.out.endswith(".srt")
    if (args.live or to_srt) and not args.fps and not all(clip.has_pictures for clip in clips):
        flag = "--live" if args.live else "--out FILE.srt"
        raise ValueError(f"{flag} needs --fps for pose files, which do not say how many frames a second has.")
    if to_srt and not args.live and len(clips) > 1 and any(clip.has_pictures for clip in clips):
        raise ValueError("--out FILE.srt: the subtitles of one recording; translate several videos one by one.")


def load_models(args: argparse.Namespace, clips: Sequence[Clip]) -> tuple[Translator, Extractor | None]:
    """Load the model and, if a clip needs it, a pose extractor; ValueError or FileNotFoundError if one is unusable."""
    extractor = None
    if any(clip.has_pictures for clip in clips) and not args.live:
        from pose.extraction import load_extractor

        # onnxruntime may not be able to use the GPU that translates.
        extractor = load_extractor(args.extractor, args.models, "cpu" if args.device == "cpu" else "")
    from translator import Translator  # only now: torch is slow to import

    options = ["mt5_path", "text_encoder", "language", "device", "dtype", "num_beams", "max_new_tokens"]
    translator = Translator.from_checkpoint(args.checkpoint, **{name: getattr(args, name) for name in options})
    if (args.descriptions or args.describe) and not translator.model.config.use_descriptions:
        raise ValueError(f"--descriptions, --describe: {args.checkpoint} was trained without descriptions; drop them.")
    if args.live and translator.hand_crops:
        raise ValueError(f"--live: {args.checkpoint} looks at crops of the hands, which are not kept; drop --live.")
    return translator, extractor


def live(translator: Translator, clips: Sequence[Clip], results: Results, args: argparse.Namespace) -> None:
    """Translate segments of signing while they come; however it ends, segments that have ended get their sentences."""
    import torch

    from pose import extraction
    from pose.live import live_poses
    from translator import Live

    torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # the rest is for the extractor
    device = "cpu" if args.device == "cpu" else ""
    load = functools.partial(extraction.load_extractor, args.extractor, args.models, device)
    source = [clip.path for clip in clips] or int(args.clips)
    poses, now = live_poses(source, args.fps, args.aspect or 0, load), Live(translator, args.describe)

    def finish() -> None:
        for final in now.finals():
            results.add(clip := as_clip(final))
            show(clip)
            results.update()

    sys.stderr.write("live; Ctrl-C ends.\n")
    try:
        for frames in poses:
            now.take(frames)
            finish()
            for draft in now.drafts():
                show(as_clip(draft), " ...")
        now.end()
    except ValueError:  # a file that cannot be played: what was signed before counts
        now.end()
        raise
    finally:
        now.take(next(poses, []))
        finish()
        sys.stderr.write(f"{now.n_dropped} of {now.n_frames + now.n_dropped} frames dropped.\n")


def as_clip(sentence: LiveSentence) -> Clip:
    """Return a live segment as a clip of the recording; its frames are milliseconds."""
    first, end = (round(1000 * frame.time) for frame in (sentence.frames[0], sentence.frames[-1]))
    return Clip("live", Path(), first, end, 1000, sentence.explained)


def show(clip: Clip, more: str = "") -> None:
    """Print a live sentence; a terminal rewrites its line as long as there is more to come."""
    text, erase, end = " ".join(clip.text.split()), "", "\n"
    if sys.stdout.isatty():
        erase, end = "\r\x1b[K", "" if more else "\n"
        room = shutil.get_terminal_size().columns // (1 if text.isascii() else 2) - 16
        text = text[-room:] if more else text  # a line that is longer than the terminal cannot be rewritten
    minutes, ms = divmod(clip.first, 60_000)
    sys.stdout.write(f"{erase}{minutes:02}:{ms / 1000:04.1f}\t{printable(text)}{more}{end}")
    sys.stdout.flush()


def main(args: argparse.Namespace) -> int:
    """Translate all clips; return the exit status."""
    clips = [] if is_camera(args.clips) else find_clips(args.clips)
    check_request(args, clips)
    translator, extractor = load_models(args, clips)
    if args.live:
        with sigterm_as_ctrl_c(), Results(args.out) as results:
            live(translator, clips, results, args)
        return 0
    if args.descriptions and Path(args.descriptions).is_dir():
        found = sum(os.path.isfile(Path(args.descriptions) / f"{clip.name}.json") for clip in clips)
        sys.stderr.write(f"{found} of {len(clips)} clips have a description file.\n")
    done = translate(translator, clips, extractor, args)
    with sigterm_as_ctrl_c(), Results(args.out) as results:  # finished clips are written in any case
        # A bar would interfere with sentences printed to a terminal.
        for clip in progress(done, "translating", shown=not sys.stdout.isatty(), total=len(clips)):
            results.add(clip)
            if clip.explained is None:
                sys.stderr.write(f"left out: {clip.fault}\n")
                continue
            name = printable(clip.name, kept="")  # it may hold what looks like the result of another clip
            for candidate in clip.explained.candidates:
                score = f"{candidate.score:.3f}\t" if args.n_best > 1 else ""
                sys.stdout.write(printable(f"{name}\t{score}{' '.join(candidate.text.split())}\n"))
            sys.stdout.flush()
    left_out = sum(bool(clip.fault) for clip in clips)
    if left_out:
        sys.stderr.write(f"{left_out} of {len(clips)} clips could not be read.\n")
    return 1 if left_out else 0


if __name__ == "__main__":
    run(lambda: sys.exit(main(parse_args())))
