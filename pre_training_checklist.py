"""Check that everything is ready for a run: test the code on toy data, then examine data, weights and GPU.

    python pre_training_checklist.py [--lang en|zh] [--strict] [--full] [--page FILE] [the flags of the run]

Modules are imported only by the check that needs them, so that one which cannot be imported fails that check.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import logging
import math
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from system.disk import to_json, write_text
from system.terminal import ending_with_its_reader
from training.findings import LANGUAGES, Report

if TYPE_CHECKING:
    from datasets import S2T_Dataset
    from training.look import SplitLook

HELP = """\
Take the command line of a run and put this program in the place of fine_tuning.py: --dataset, --dataset_config, --root,
--mt5_path, --use_descriptions, --finetune, --batch-size and the other flags mean what they mean there.

  ✓ in order    · good to know    ! worth mending    ✗ a check failed, or the run could not start

Missing labels and mT5 are marked ✗, and so are poses and videos beyond --max_bad_clips, and descriptions and weights
that the flags ask for. That some clips have no description file is no fault.
Exit status: 1 if a line is marked ✗, or with --strict also !; 2 for a wrong flag; else 0."""
EXAMPLES = """examples:
  python pre_training_checklist.py
  python pre_training_checklist.py --root sample --strict --full
  python pre_training_checklist.py --use_descriptions --finetune ./output_baseline/best_checkpoint.pth
"""

# Flags of the manual: switches, and the others with their defaults.
SWITCHES = "--use_descriptions --text_encoder_freeze --offload --eval --rgb_support --uni_sign_padding"
DEFAULTS = (
    "--text_dropout_p 0.1 --trainable auto --dataset CSL_Daily --task SLT --epochs 20 --batch_size 16 --lr 1e-3 "
    "--gradient_accumulation_steps 8 --gradient_clipping 1 --zero_stage 2 --dtype bf16 --num_workers 8 --pin_mem "
    "--max_length 256 --eval_sampling even --hidden_dim 256 --label_smoothing 0.2 --seed 42 --output_dir ./output "
    "--opt adamw --weight_decay 1e-4 --opt_eps 1e-9 --warmup_epochs 0 --min_lr 1e-8 --sched cosine"
)


class FailedCheckError(Exception):
    """A check failed, for the reason that it says."""


def require(holds: bool, reason: str) -> None:
    """Fail the running check unless the condition holds."""
    if not holds:
        raise FailedCheckError(reason)


# -- the five checks -------------------------------------------------------------------------------------------------


def check_flags() -> None:
    """Check that the manual's flags are there, with its defaults."""
    import utils

    parser = utils.get_args_parser()
    seen, manual = (vars(parser.parse_args(line.split())) for line in ("", DEFAULTS))
    parser.parse_args(SWITCHES.split())
    for name, value in manual.items():
        require(seen[name] == value, f"--{name}: {seen[name]!r}; after the manual it is {value!r}")


@contextlib.contextmanager
def toy_corpus() -> Iterator[str]:
    """Write a few clips to a temporary folder, to which config.py's paths of CSL_Daily and mT5 point in the block."""
    import config
    from synthetic.corpus import write_corpus

    with tempfile.TemporaryDirectory() as root:
        labels = {split: f"labels.{split}" for split in config.SPLITS}
        spec = config.DATASETS["CSL_Daily"]
        spec = dataclasses.replace(spec, labels=labels, pose_dir="poses", rgb_dir="", description_dir="descriptions")
        with mock.patch.dict(config.DATASETS, CSL_Daily=spec), mock.patch.object(config, "mt5_path", "mt5"):
            write_corpus(root, dict.fromkeys(config.SPLITS, 2))
            yield root


def describe(dataset: S2T_Dataset, clip: int, texts: dict[int, str]) -> None:
    """Write a clip's description file in reverse order: frames are identified by file name, not by position."""
    entries = [{"filename": f"{frame:06d}.jpg", "description": texts[frame]} for frame in sorted(texts, reverse=True)]
    path = Path(dataset.spec.description_dir) / dataset.split / f"{dataset.names[clip]}.json"
    write_text(path, to_json(entries))


def check_fine_tuning() -> None:
    """Check that the functions of a real run load a small corpus, backpropagate a loss and score sentences."""
    import fine_tuning
    import utils
    from training import metrics

    with toy_corpus() as root:
        flags = "--use_descriptions --batch-size 2 --num_workers 0 --no-pin-mem --hidden_dim 32 --mt5_path mt5"
        args = utils.parse_args([*flags.split(), "--root", root])
        spec = fine_tuning.dataset_spec(args)
        loaders = fine_tuning.build_loaders(args, spec)
        model = fine_tuning.build_model(args, fine_tuning.model_config(args, spec), loaders).train()
        src_input, tgt_input = next(iter(loaders["train"].epoch()))
        output = model(src_input, tgt_input)
        output.loss.backward()
        require(math.isfinite(output.loss.item()), f"the loss is {output.loss.item():g}")
        sentences = model.sentences(model.generate(output, 1, 4))
        metrics.score(args.task, sentences, tgt_input["gt_sentence"], spec.text_unit)


def check_models() -> None:
    """Check forward and backward pass of a toy model with and without descriptions, and that padding is ignored."""
    import torch

    from clips.batch import Sample, collate_fn
    from config import ModelConfig
    from models import Uni_Sign
    from network.mt5 import load_mt5
    from network.vocabulary import Tokenizer
    from pose.keypoints import PART_JOINTS
    from synthetic.small_mt5 import write_small_mt5
    from text_fusion_modules import TextEncoder

    def clip(*texts: str | None) -> Sample:
        pose = {part: torch.randn(len(texts), len(joints), 3) for part, joints in PART_JOINTS.items()}
        return Sample("toy", pose, "你好。", "", {}, list(texts), [int(text is not None) for text in texts])

    clips = [clip(*[None] * 5, *["手向上"] * 4), clip("手向下", "手向上", None)]
    src_input, tgt_input = collate_fn(clips)
    with tempfile.TemporaryDirectory() as mt5:
        write_small_mt5(mt5, ["你好。"] * 9, d_model=32, layers=1, heads=2, d_kv=16, d_ff=64)
        for described in (False, True):
            config = ModelConfig(hidden_dim=16, use_descriptions=described)
            model = Uni_Sign(config, load_mt5(mt5), Tokenizer(mt5), TextEncoder(mt5) if described else None)
            loss = model.train()(src_input, tgt_input).loss
            loss.backward()
            require(bool(loss.isfinite()), f"the loss is {loss.item():g}")
            with torch.no_grad():
                model.eval()
                batched, alone = model(src_input, tgt_input), model(*collate_fn(clips[1:]))
                own = batched.encoder_states[1, : alone.encoder_states.shape[1]]
                off = float((own - alone.encoder_states[0]).abs().max())
                require(off < 1e-3, f"padding changes a clip's result by {off:.2g}")


def check_datasets() -> None:
    """Check the documented format of items and batches, and that descriptions are aligned with their frames."""
    from clips.batch import Sample, collate_fn
    from config import DATASETS
    from datasets import S2T_Dataset
    from pose.keypoints import PART_JOINTS, read_pose
    from temporal_alignment import sample_frames

    with toy_corpus() as root:
        dataset = S2T_Dataset(DATASETS["CSL_Daily"].under(root), "train", max_length=19, use_descriptions=True)
        n_frames = len(read_pose(dataset.pose_paths[dataset.names[0]]))
        describe(dataset, 0, {frame: f"frame {frame}" for frame in range(0, n_frames, 2)})
        describe(dataset, 1, {})
        item = dataset[0]
        fields = ", ".join(Sample._fields)
        require(isinstance(item, Sample) and len(item) == 7, f"an item is not the 7-tuple {fields}")
        shapes = {part: tuple(value.shape) for part, value in item.pose_sample.items()}
        wanted = {part: (19, len(joints), 3) for part, joints in PART_JOINTS.items()}
        require(shapes == wanted, f"pose_sample has the shapes {shapes}; wanted {wanted}")
        # Even frames are described; an odd one takes the text of the preceding frame.
        frames = sample_frames(n_frames, 19).tolist()
        placed = item.descriptions == [f"frame {frame - frame % 2}" for frame in frames]
        require(placed, "descriptions do not lie on the frames that their file names say")
        marked = item.has_description == [1 - frame % 2 for frame in frames]
        require(marked, "has_description does not tell a frame's own text from its neighbour's")
        dataset.max_length = 9
        src_input, _ = collate_fn([item, dataset[1]])
        padded = [[item.descriptions, [None] * 19], [item.has_description, [0] * 19]]
        alike = [src_input.get("descriptions"), src_input.get("has_description")] == padded
        alike = alike and src_input["attention_mask"].sum(1).tolist() == [19, 9]
        require(alike, "a batch does not pad poses, descriptions and indicators alike")


def check_config() -> None:
    """Check that the dictionaries in config.py match their records, and the model's defaults."""
    import config

    for name, spec in config.DATASETS.items():
        paths = {f"{split}_label_paths": spec.labels.get(split, "") for split in config.SPLITS}
        paths |= {"pose_dirs": spec.pose_dir, "rgb_dirs": spec.rgb_dir, "description_dirs": spec.description_dir}
        for view, path in paths.items():
            seen = getattr(config, view).get(name, "")
            require(seen == path, f"{view}[{name!r}] is {seen!r}, but its record in DATASETS says {path!r}")
    config.ModelConfig()


CHECKS: dict[str, Callable[[], None]] = {
    "utils.py 参数": check_flags,
    "fine_tuning.py 集成": check_fine_tuning,
    "models.py 集成": check_models,
    "datasets.py 集成": check_datasets,
    "config.py 配置": check_config,
}


def passes(name: str) -> bool:
    """Run a check and print its result, with reason and cure after a failure."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            CHECKS[name]()
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- broken code can fail in any way; each becomes a line
        file, line = place_of(error)
        reason = f"{type(error).__name__}: {' '.join(str(getattr(error, 'msg', error)).split())[:300]}"
        if isinstance(error, FailedCheckError):
            file, reason = name.split()[0], str(error)
        elif isinstance(error, SystemExit):  # the parser has printed why
            file, reason = name.split()[0], " ".join(said.getvalue().split())
        else:
            reason += f" ({file}, line {line})"
        cure = f"Mend {file} or what it calls, or take the files anew from the repository."
        if isinstance(error, ModuleNotFoundError):
            cure = f"pip install {error.name}, or take the files anew from the repository."
        print(f"✗ {name}\n    reason: {reason}\n    cure:   {cure}", flush=True)
        return False
    print(f"✓ {name}", flush=True)
    return True


def place_of(error: BaseException) -> tuple[str, int]:
    """Return the last file of this project, and the line in it, that an error came from."""
    here = Path(__file__).resolve().parent
    calls = [(call.filename, call.lineno or 0) for call in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        calls.append((error.filename or "", error.lineno or 0))
    places = [(Path(path).resolve(), line) for path, line in calls if path.endswith(".py")]  # not <frozen ...>
    ours = [place for place in places if place[0].is_relative_to(here) and "site-packages" not in place[0].parts]
    return str(ours[-1][0].relative_to(here)), ours[-1][1]


def run_flags(typed: Sequence[str], page: str) -> argparse.Namespace:
    """Parse the flags of the run, which may exit; ValueError if they, or `page`, name what is not there."""
    from utils import cannot_be_written, check_run, parse_args

    args = parse_args(typed)
    if faults := " ".join(cannot_be_written("--page", page, ".html")):
        raise ValueError(faults)
    check_run(args, data=False)
    return args


def examine(report: Report, args: argparse.Namespace, everything: bool) -> dict[str, SplitLook]:
    """Report on the folders, weights and GPU of a run; return a section's title -> what the files of its split hold."""
    from clips.labels import target
    from config import under_root
    from network.vocabulary import Tokenizer
    from training import build, readiness
    from training.look import SAMPLE, every, look_at_splits, look_at_texts
    from utils import starts_from_state

    if args.eval:
        build.take_settings(args)
    spec = build.dataset_spec(args)
    config = build.model_config(args, spec)
    limit = sys.maxsize if everything else SAMPLE
    folder = Path(under_root(args.root, args.mt5_path))
    looks: dict[str, SplitLook] = {}
    longest, texts, sizes, tokenizer = 0, 0.0, None, None
    with contextlib.suppress(OSError, ValueError):  # said under "weights"
        tokenizer = Tokenizer(folder)
    for split in spec.labels:
        title = f"{spec.name} {split}"
        with report.section(title):
            look = readiness.look_at_split(report, spec, split, limit, args.max_bad_clips, build.renumber_command(args))
            if look is None:
                continue
            looks[title] = look
            per_clip = readiness.examine_descriptions(report, spec, split, look, args.use_descriptions)
            report.say_all(look.fit_lines(refused=config.uses_mapper and split == "train" and not args.eval))
            if split == "train":
                longest, texts = max((clip.n_frames for clip in look.clips.values()), default=0), per_clip
            if args.rgb_support:
                readiness.examine_videos(report, spec, split, limit, args.max_bad_clips)
            if tokenizer:
                targets = {name: target(look.labels[name], args.task) for name in every(look.labels, limit)}
                report.say_all(look_at_texts(tokenizer, targets, spec, args.task, config.max_target_tokens))
    with report.section(report.text("splits")):
        report.say_all(look_at_splits(spec, args.task))
    with report.section(report.text("weights")):
        sizes = readiness.examine_mt5(report, folder)
    if sizes and (args.finetune or args.fusion_checkpoint) and not starts_from_state(args):
        with report.section(report.text("checkpoint")):
            # With a frozen text encoder this would fill the cache.
            unfrozen = argparse.Namespace(**{**vars(args), "text_encoder_freeze": False})
            build.build_model(unfrozen, config, {})
            report.say("✓", "fits", ", ".join(filter(None, (args.finetune, args.fusion_checkpoint))))
    with report.section("GPU"):
        frames = min(args.max_length, longest or args.max_length)
        readiness.examine_gpu(report, build.memory_settings(args), sizes or {}, frames, texts)
    return looks


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks, then examine the folders of the run; return the exit status."""
    parser = argparse.ArgumentParser(
        description=HELP,
        epilog=EXAMPLES,
        usage="%(prog)s [-h] [--lang en|zh] [--strict] [--full] [--page FILE] [flags of fine_tuning.py]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    lang = "zh" if locale.startswith("zh") else "en"
    parser.add_argument("--lang", choices=LANGUAGES, default=lang, help="default: the locale's, here %(default)s")
    parser.add_argument("--strict", action="store_true", help="what is marked ! is an error, too")
    parser.add_argument("--page", default="", metavar="FILE", help="also write a page with pictures of the clips")
    parser.add_argument("--full", action="store_true", help="open all files, not a sample of each split")
    own, of_run = parser.parse_known_args(argv)
    args, report, broken = None, Report(own.lang), ""
    try:  # wrong flags and paths exit here, before torch is imported
        args = run_flags(of_run, own.page)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except Exception as error:  # noqa: BLE001 -- the checks say where the code is broken
        broken = f"{type(error).__name__}: {error}"
    if all([passes(name) for name in CHECKS]):
        print("\n✓ 所有检查通过！系统准备就绪", flush=True)
    else:
        report.require("checks.cure")
    if broken:
        report.say("✗", "unusable", broken)
    if args:
        with report.section(f"\n{report.text('data')}"):
            looks = examine(report, args, own.full)
            if own.page:
                from pages.look import page_of

                write_text(own.page, page_of(report, looks))
                report.say("✓", "written", own.page)
    return 0 if report.conclude(own.strict) else 1


if __name__ == "__main__":
    logging.disable()
    warnings.simplefilter("ignore")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # the marks are in no code page of Windows
    try:
        with ending_with_its_reader():
            sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
