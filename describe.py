"""Generate descriptions of clips by rules from keypoints or by a vision-language model, and audit existing ones.

python describe.py                                       by rules, offline
python describe.py --endpoint URL --model NAME           by a model
python describe.py audit DIR                             audit description files
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import config
from clips.tables import read_text
from describing.files import Clip, clips_of
from system.processes import cores, in_processes
from utils import (
    Parser,
    add_dataset_flags,
    add_shard_flag,
    log_to_terminal,
    progress,
    require_packages,
    require_paths,
    run,
)

logger = logging.getLogger("describe")

PROMPTS = Path(__file__).parent / "description" / "prompts"
EXAMPLES = """examples:
  python describe.py                                     every clip of CSL-Daily that has no file yet, in Chinese
  python describe.py --root sample --out sample/rules    the sample corpus, into another folder
  python describe.py --poses my_poses --out my_texts --language en
  python describe.py --endpoint http://localhost:8000/v1 --model NAME --images skeleton --max_requests 100
  python describe.py audit description/CSL-Daily/split_data --dataset CSL_Daily

The rules skip files that exist. With --overwrite they write their own files again, but never those of others.
A model's texts are added frame by frame to the files: what failed is listed and asked again by the next run.
Exit status: 0 when all is described, 1 when something is left."""
AUDIT_EXAMPLES = """examples:
  python describe.py audit description/CSL-Daily/split_data
  python describe.py audit description/CSL-Daily/split_data --dataset CSL_Daily
  python describe.py audit description/CSL-Daily/split_data --repair description/CSL-Daily/cleaned

DIR holds NAME.json files, or one folder of them per split; names may have sub-folders. Without --dataset, clips that
have no file and frames beyond a clip's end cannot be known.
Exit status: 0, also when faults are found; 1 when DIR cannot be read."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and reject invalid combinations; `audit` has flags of its own."""
    what = "Describe the frames of clips: by rules on their keypoints, or by a vision-language model."
    parser = Parser(prog="describe.py", description=what, epilog=EXAMPLES)
    add = parser.add_argument_group("which clips, and where to").add_argument
    add_dataset_flags(add)
    add("--root", default=".", metavar="DIR", help="folder that the paths in config.py start from; default: .")
    add("--splits", nargs="+", default=list(config.SPLITS), choices=config.SPLITS, help="default: all")
    add("--poses", default="", metavar="DIR", help="pose files in this folder, in place of a data set")
    add("--videos", default="", metavar="DIR", help="with --poses: the videos, NAME.mp4")
    add_shard_flag(add)
    add("--clips", nargs="+", default=[], metavar="NAME", help="only these")
    add("--out", default="", metavar="DIR", help="default: the data set's folder of descriptions")
    language = "default: zh for Chinese data sets and for --poses, else en"
    add("--language", default="", choices=("zh", "en"), help=language)
    add("--aspect", type=float, default=1.0, metavar="W/H", help="width of the videos / their height; default: 1")

    add = parser.add_argument_group("by rules").add_argument
    add("--workers", type=int, default=cores(), help="processes; default: one per core")
    add("--overwrite", action="store_true", help="write files of the rules again, of other versions too")

    add = parser.add_argument_group("by a vision-language model").add_argument
    add("--endpoint", default="", metavar="URL", help="an OpenAI-compatible API, such as http://localhost:8000/v1")
    add("--model", default="", metavar="NAME", help="the model's name there")
    add("--api_key_env", default="OPENAI_API_KEY", metavar="VAR", help="environment variable that holds the key")
    add("--prompt", default="", metavar="FILE", help="default: description/prompts/LANGUAGE.txt")
    add("--images", default="video", choices=("video", "skeleton"), help="what the model sees; default: video")
    add("--segment", type=int, default=16, metavar="K", help="frames of one call; 1: each frame alone; default: 16")
    add("--pictures", type=int, default=4, metavar="N", help="pictures shown of a segment, evenly spaced; default: 4")
    add("--picture_height", type=int, default=384, help="in pixels; default: 384")
    add("--concurrency", type=int, default=4, help="clips at a time, each with one request; default: 4")
    add("--timeout", type=float, default=120, metavar="S", help="seconds of a request; default: 120")
    add("--max_tokens", type=int, default=300, help="of an answer; default: 300")
    add("--max_requests", type=int, default=0, help="stop after so many, retries included; default: 0, no limit")
    more = 'more fields of a request: \'{"temperature": null, "seed": 1}\''
    add("--fields", type=json_object, default={}, metavar="JSON", help=more)
    args = parser.parse_args(argv)
    if args.poses and not args.out:
        parser.error("--poses needs --out DIR, where the descriptions go.")
    if args.videos and not args.poses:
        parser.error("--videos goes with --poses; a data set has its own folder of videos.")
    if bool(args.endpoint) != bool(args.model):
        parser.error("--endpoint URL and --model NAME go together.")
    at_least_1 = dict.fromkeys(("workers", "segment", "pictures", "concurrency", "max_tokens"), 1)
    sizes = {"aspect": config.ASPECTS, "timeout": (0.1, 86400), "picture_height": (1, 4096)}
    parser.check(args, **at_least_1, **sizes, max_requests=0)
    return args


def json_object(text: str) -> dict:
    """Read a JSON object, as a flag's type."""
    return {**json.loads(text)}


# -- which clips -----------------------------------------------------------------------------------------------------


def find_clips(args: argparse.Namespace) -> tuple[list[Clip], str, Path]:
    """Return the clips of the command line, their texts' language, and the folder that all texts go to.

    Raises ValueError or FileNotFoundError without any clip.
    """
    if args.poses:
        clips, language, out = _clips_in_folder(args), args.language or "zh", Path(args.out)
    else:
        spec = config.dataset_of(args.dataset, args.dataset_config).under(args.root)
        if not (args.out or spec.description_dir):
            raise ValueError(f"--out: {spec.name} has no folder of descriptions; name one.")
        out, splits = Path(args.out or spec.description_dir), spec.choose(args.splits)
        clips = [clip for split in splits for clip in clips_of(spec, split, out / spec.folder(split))]
        language = args.language or config.description_language(spec.language)
    if args.clips:
        if unknown := sorted(set(args.clips) - {clip.name for clip in clips}):
            raise ValueError(f"--clips: no clip is named {unknown[0]!r}.")
        clips = [clip for clip in clips if clip.name in set(args.clips)]
    return [clip for clip in clips if clip.name in args.shard], language, out


def _clips_in_folder(args: argparse.Namespace) -> list[Clip]:
    paths = sorted(path for path in Path(args.poses).rglob("*") if path.suffix.lower() in config.POSE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"--poses: {args.poses} holds no pose files ({', '.join(config.POSE_SUFFIXES)}).")
    names = [path.relative_to(args.poses).with_suffix("").as_posix() for path in paths]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"--poses: {args.poses} has several pose files of the clip {twice[0]!r}. Keep one of them.")
    videos = Path(args.videos) if args.videos else None
    return [
        Clip(name, path, videos / f"{name}.mp4" if videos else None, Path(args.out) / f"{name}.json")
        for name, path in zip(names, paths, strict=True)
    ]


# -- the audit -------------------------------------------------------------------------------------------------------


def audit(argv: Sequence[str]) -> int:
    """Audit a folder of descriptions; return the exit status."""
    what = "Say what a folder of descriptions covers and what is wrong with it."
    parser = Parser(prog="describe.py audit", description=what, epilog=AUDIT_EXAMPLES)
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--dataset", default="", choices=sorted(config.DATASETS), help="whose clips they describe")
    parser.add_argument("--dataset_config", default="", metavar="FILE", help="the same, for a data set of your own")
    parser.add_argument("--root", default=".", metavar="DIR", help="folder that the data set's paths start from")
    parser.add_argument("--repair", default="", metavar="DIR", help="write a cleaned copy to this new folder")
    parser.add_argument("--workers", type=int, default=cores(), help="processes; default: one per core")
    args = parser.parse_args(argv)
    parser.check(args, workers=1)
    from describing.audit import SplitReport, examine, find_files, repair, table

    log_to_terminal()
    target = Path(args.repair)
    if args.repair and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--repair: {target} is there already. Name a new folder, so that no file is overwritten.")
    known = bool(args.dataset or args.dataset_config)
    spec = config.dataset_of(args.dataset, args.dataset_config).under(args.root) if known else None
    clips = find_files(Path(args.folder), spec)
    splits = []
    for split, of_split in clips.items():
        reports = in_processes(examine, of_split, args.workers, 64)
        splits.append(SplitReport(split, list(progress(reports, f"reading {split}", total=len(of_split))), known))
    sys.stdout.write(table(splits) + "\n")
    if args.repair:
        if not known:
            logger.warning("not renumbered: whether frames count from 1 shows with --dataset or --dataset_config only.")
        count = repair(splits, target)
        logger.info("%s: %d files with valid texts only; %s is as it was.", target, count, args.folder)
    return 0


# -- the command -----------------------------------------------------------------------------------------------------


def ask_model(args: argparse.Namespace, clips: list[Clip], language: str, out: Path) -> int:
    """Describe clips with a model, and list in `out` what failed; return the exit status.

    ValueError or FileNotFoundError if it cannot be asked.
    """
    from describing.by_model import Question, by_model
    from describing.vlm_client import VlmClient

    require_packages("--endpoint", "PIL", *(["av"] if args.images == "video" else []))
    if args.images == "video" and not any(clip.video for clip in clips):
        raise FileNotFoundError("--images video: there is no folder of videos. Use --images skeleton, or name one.")
    prompt = read_text(args.prompt or PROMPTS / f"{language}.txt").strip()
    if not prompt:
        raise ValueError(f"--prompt: {args.prompt} is empty; wanted the question for each segment.")
    question = Question(
        prompt, args.max_tokens, args.images, args.segment, args.pictures, args.picture_height, args.aspect
    )
    key = os.environ.get(args.api_key_env, "")  # a local server needs none
    client = VlmClient(args.endpoint, args.model, key, language, args.fields, args.timeout, args.max_requests)
    whole = not args.clips and set(args.splits) == set(config.SPLITS)
    part = f"_{args.shard.name}" if args.shard.name else ""
    return by_model(clips, question, client, args.concurrency, out / f"failures{part}.jsonl", whole)


def main(argv: Sequence[str] | None = None) -> int:
    """Describe or audit; return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["audit"]:
        return audit(argv[1:])
    args = parse_args(argv)
    require_paths(**{flag: getattr(args, flag) for flag in ("root", "poses", "videos", "prompt")})
    log_to_terminal()
    clips, language, out = find_clips(args)
    if not clips:
        logger.info("no clips in part %d of %d.", *args.shard)
        return 0
    if args.endpoint:
        return ask_model(args, clips, language, out)
    from describing.by_rules import by_rules

    return 1 if by_rules(clips, language, args.aspect, args.workers, args.overwrite) else 0


if __name__ == "__main__":
    run(lambda: sys.exit(main()))
