"""Translate clips of your own: pose files in, sentences out. `translator.py` does the same from Python."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from config import POSE_SUFFIXES
from disk import write_text
from utils import Parser, progress, run

if TYPE_CHECKING:
    from batch import Sample
    from translator import Candidate, Translator

OUT_SUFFIXES = (".json", ".jsonl", ".srt")
EXAMPLES = """examples:
  python inference.py clip.pose --checkpoint output_multimodal/best_checkpoint.pth
  python inference.py my_poses --checkpoint best_checkpoint.pth --out translations.jsonl
  python inference.py my_poses --checkpoint best_checkpoint.pth --descriptions my_texts
  python inference.py clip.npz --checkpoint best_checkpoint.pth --describe --n_best 3
  python inference.py talk --checkpoint best_checkpoint.pth --out talk.srt --fps 25

A clip is a .pkl, .npz or .pose file. Each gives a line: NAME, tab, sentence; with --n_best N lines: NAME, tab, score,
tab, sentence, where a score is the mean log-probability of the sentence's tokens. A clip that cannot be read is named
on the terminal and left out. Exit status: 0 when all clips are translated, 1 when one is left out.
The checkpoint says where its mT5 is and how it was trained; mT5's weights are not needed. From Python:

  from translator import Translator
  translate = Translator.from_checkpoint("best_checkpoint.pth")
  print(translate("clip.pose"))
"""


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = Parser(
        prog="inference.py",
        description="Translate clips of your own from their poses.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    parser.add_argument("clips", metavar="CLIPS", help="a pose file, or a folder of them (and of folders)")
    add("--checkpoint", required=True, metavar="FILE", help="best_checkpoint.pth of a run, or weights of Uni-Sign")
    add("--out", default="", metavar="FILE", help="also write a .json, .jsonl or .srt file")
    add("--fps", type=float, default=0, help="frames per second, for .srt; a clip stands where its `start` puts it")
    add("--n_best", type=int, default=1, metavar="N", help="sentences of each clip, with scores; default: 1")
    add(
        "--person",
        type=int,
        default=0,
        metavar="I",
        help="where a frame shows several people: the one at place I in the file's order, from 0, in every frame; "
        "extractors may change the order from frame to frame; default: 0, as in training",
    )

    add("--descriptions", default="", metavar="FILE|DIR", help="a clip's description file, or a folder of NAME.json")
    add("--describe", action="store_true", help="describe the clips by the rules of describe.py")
    add("--aspect", type=float, default=1.0, metavar="W/H", help="for --describe: width of the videos / their height")

    add("--mt5_path", default="", metavar="DIR", help="default: the mT5 of training")
    add("--text_encoder", default="", metavar="DIR", help="default: that of training")
    add("--language", default="", help="of the prompt; for weights without a config; default: that of training")
    add("--max_length", type=int, default=0, help="a longer clip is sampled evenly; default: as in training, or 256")

    add("--device", default="", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--dtype", default="bf16", choices=("bf16", "fp16", "fp32"), help="of matrix products; default: bf16")
    add("--batch-size", type=int, default=8, help="clips at a time; default: 8")
    add("--num_beams", type=int, default=4, help="of the search for a sentence; default: 4")
    add("--max_new_tokens", type=int, default=100, help="longest sentence that is written; default: 100")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line and refuse what cannot be, before anything heavy is imported."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    for flag, least in (("n_best", 1), ("person", 0), ("max_length", 0), ("batch_size", 1), ("max_new_tokens", 1)):
        if getattr(args, flag) < least:
            parser.error(f"--{flag} {getattr(args, flag)}: must be at least {least}.")
    out = Path(args.out)
    wrong = {
        f"--num_beams {args.num_beams}: must be at least --n_best, which is {args.n_best}.": args.num_beams
        < args.n_best,
        "--descriptions and --describe exclude each other.": args.descriptions and args.describe,
        f"--out {out}: must end in {', '.join(OUT_SUFFIXES)}.": args.out and out.suffix not in OUT_SUFFIXES,
        f"--out {out}: its folder does not exist.": args.out and not out.parent.is_dir(),
        "--out FILE.srt needs --fps, the frames per second of the videos.": out.suffix == ".srt" and not args.fps > 0,
        f"--aspect {args.aspect}: must be between 0.2 and 5.": not 0.2 <= args.aspect <= 5,
    }
    for message in (message for message, holds in wrong.items() if holds):
        parser.error(message)
    return args


@dataclass
class Clip:
    """A clip of the command line, and what became of it.

    Attributes:
        name: the file's path under the folder given, without its ending.
        path: the file.
        first: its first frame in the recording that it was cut from.
        end: the frame after its last.
        candidates: sentences, the best first.
        fault: why there are none.
    """

    name: str
    path: Path
    first: int = 0
    end: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    fault: str = ""

    def as_json(self) -> dict:
        """What goes into the file of results."""
        if self.fault:
            return {"name": self.name, "unreadable": self.fault}
        candidates = [candidate._asdict() for candidate in self.candidates]
        return {"name": self.name, "text": self.candidates[0].text, "frames": self.end - self.first} | (
            {"candidates": candidates}
        )


def find_clips(place: str) -> list[Clip]:
    """The clips of a folder, in the order of their names, or the one of a file.

    Raises:
        FileNotFoundError: nothing of that name, or no pose file in the folder.
    """
    folder = Path(place)
    if not folder.is_dir():
        return [Clip(folder.stem, folder)]
    paths = sorted(path for path in folder.rglob("*") if path.suffix in POSE_SUFFIXES and path.is_file())
    if not paths:
        raise FileNotFoundError(
            f"{place}: holds no pose files ({', '.join(POSE_SUFFIXES)}). Videos are not read here yet: extract poses."
        )
    return [Clip(path.relative_to(folder).with_suffix("").as_posix(), path) for path in paths]


def read_clip(translator: Translator, clip: Clip, args: argparse.Namespace) -> Sample:
    """Read a clip and its descriptions.

    Raises:
        ValueError: a file that cannot be used.
        OSError: one that cannot be opened.
    """
    from translator import load_descriptions, load_pose

    pose = load_pose(clip.path, args.person)
    clip.first, clip.end = pose.start, pose.start + len(pose)
    texts = None
    if args.describe:
        from pose_sentences import describe_pose

        language = "zh" if translator.model.config.language == "Chinese" else "en"
        texts = describe_pose(pose, language, args.aspect)
    elif args.descriptions:
        path = Path(args.descriptions)
        if path.is_dir():
            path = path / f"{clip.name}.json"
            texts = load_descriptions(path, pose) if path.is_file() else {}
        else:
            texts = load_descriptions(path, pose)
    return translator.sample(pose, texts, clip.name)


def translate(translator: Translator, clips: list[Clip], args: argparse.Namespace) -> Iterator[Clip]:
    """Give each clip its sentences, or the reason why it has none, a batch at a time."""
    for first in range(0, len(clips), args.batch_size):
        batch = clips[first : first + args.batch_size]
        samples = []
        for clip in batch:
            try:
                samples.append(read_clip(translator, clip, args))
            except (ValueError, OSError) as error:
                clip.fault = str(error)
        found = iter(translator.candidates(samples, args.n_best) if samples else [])
        for clip in batch:
            clip.candidates = [] if clip.fault else next(found)
            yield clip


def write_results(path: str, clips: Sequence[Clip], fps: float) -> None:
    """Write all results as JSON, JSON lines or subtitles, whole or not at all."""
    if path.endswith(".srt"):
        content = subtitles(clips, fps)
    elif path.endswith(".jsonl"):
        content = "".join(json.dumps(clip.as_json(), ensure_ascii=False) + "\n" for clip in clips)
    else:
        content = json.dumps([clip.as_json() for clip in clips], ensure_ascii=False, indent=1) + "\n"
    write_text(path, content)


def subtitles(clips: Sequence[Clip], fps: float) -> str:
    """SubRip subtitles in the order of the clips' first frames."""

    def time(frame: int) -> str:
        ms = round(1000 * frame / fps)
        return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"

    translated = sorted((clip for clip in clips if not clip.fault), key=lambda clip: clip.first)
    return "".join(
        f"{number}\n{time(clip.first)} --> {time(clip.end)}\n{clip.candidates[0].text}\n\n"
        for number, clip in enumerate(translated, 1)
    )


def main(args: argparse.Namespace) -> int:
    """Translate; returns the exit status."""
    clips = find_clips(args.clips)
    if args.descriptions and not Path(args.descriptions).exists():
        raise FileNotFoundError(f"--descriptions: {args.descriptions} does not exist.")
    if args.descriptions and Path(args.descriptions).is_file() and len(clips) > 1:
        raise ValueError(f"--descriptions: {args.descriptions} is one file for {len(clips)} clips; give a folder.")
    from translator import Translator

    translator = Translator.from_checkpoint(
        args.checkpoint,
        mt5_path=args.mt5_path,
        text_encoder=args.text_encoder,
        language=args.language,
        max_length=args.max_length,
        device=args.device,
        dtype=args.dtype,
        num_beams=args.num_beams,
        max_new_tokens=args.max_new_tokens,
    )
    if (args.descriptions or args.describe) and not translator.model.config.use_descriptions:
        raise ValueError(f"--descriptions, --describe: {args.checkpoint} was trained without descriptions; drop them.")
    if args.descriptions and Path(args.descriptions).is_dir():
        found = sum((Path(args.descriptions) / f"{clip.name}.json").is_file() for clip in clips)
        sys.stderr.write(f"{found} of {len(clips)} clips have a description file.\n")
    done = translate(translator, clips, args)
    # Where a person reads the sentences as they come, a bar would only cross them.
    for clip in progress(done, "translating", shown=not sys.stdout.isatty(), total=len(clips)):
        if clip.fault:
            sys.stderr.write(f"left out: {clip.fault}\n")
        for candidate in clip.candidates:
            score = f"{candidate.score:.3f}\t" if args.n_best > 1 else ""
            sys.stdout.write(f"{clip.name}\t{score}{' '.join(candidate.text.split())}\n")
        sys.stdout.flush()
    if args.out:
        write_results(args.out, clips, args.fps)
    left_out = sum(bool(clip.fault) for clip in clips)
    if left_out:
        sys.stderr.write(f"{left_out} of {len(clips)} clips could not be read.\n")
    return 1 if left_out else 0


if __name__ == "__main__":
    run(lambda: sys.exit(main(parse_args())))
