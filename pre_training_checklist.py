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
    from models import Uni_Sign
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
CONTRADICTIONS = (["--text_encoder_freeze"], ["--fusion_checkpoint", "x"], ["--eval"], ["--epochs", "0"])


class FailedCheckError(Exception):
    """A failed check: the reason, and how to fix it."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(reason)
        self.cure = cure


def require(holds: bool, reason: str, cure: str) -> None:
    """Fail the running check unless the condition holds."""
    if not holds:
        raise FailedCheckError(reason, cure)


# -- the five checks -------------------------------------------------------------------------------------------------


def check_flags() -> None:
    """Check that flags have the manual's defaults and both spellings, and that conflicting flags are refused."""
    import utils

    cure = "Mend get_args_parser in utils.py."
    parser = utils.get_args_parser()
    default = vars(parser.parse_args([]))
    switched = default | dict.fromkeys(SWITCHES.replace("--", "").split(), True)
    for line, wanted in ((DEFAULTS, default), (SWITCHES, switched)):
        hyphens = [word.replace("_", "-") if word.startswith("--") else word for word in line.split()]
        for words in (line.split(), hyphens):
            seen = vars(parser.parse_args(words))
            for name, value in wanted.items():
                require(seen[name] == value, f"--{name}: {value!r}; after the manual it is {seen[name]!r}", cure)
    for words in CONTRADICTIONS:
        with contextlib.suppress(SystemExit):
            utils.parse_args(words)
            raise FailedCheckError(f"{' '.join(words)} alone is accepted", "Let parse_args in utils.py refuse it.")


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


def let_text_through(model: Uni_Sign) -> None:
    """Fill the text adapter, which starts at zero: until it has been trained, text has no effect and no gradient."""
    from torch.nn import init

    for weight in model.text_adapter.parameters():
        init.normal_(weight, std=0.1)


def check_fine_tuning() -> None:
    """Check that the functions of a real run load a small corpus, backpropagate a loss and score sentences."""
    import fine_tuning
    import utils
    from datasets import S2T_Dataset
    from training import metrics

    with toy_corpus() as root:
        flags = "--use_descriptions --text_dropout_p 0 --batch-size 2 --num_workers 0 --no-pin-mem --hidden_dim 32"
        args = utils.parse_args([*flags.split(), "--mt5_path", "mt5", "--root", root])
        spec = fine_tuning.dataset_spec(args)
        dataset = S2T_Dataset(spec, "train", use_descriptions=True)
        describe(dataset, 0, {5: "右手位于胸前。", 9: "左手向上。"})
        describe(dataset, 1, {})
        loaders = fine_tuning.build_loaders(args, spec)
        model = fine_tuning.build_model(args, fine_tuning.model_config(args, spec), loaders).train()
        let_text_through(model)
        src_input, tgt_input = next(iter(loaders["train"].epoch()))
        output = model(src_input, tgt_input)
        output.loss.backward()
        for part in ("gating_fusion", "text_encoder", "pose_proj", "mt5_model"):
            gradients = [p.grad.abs().sum() for p in getattr(model, part).parameters() if p.grad is not None]
            learns = 0 < float(sum(gradients)) < math.inf
            reason = f"no gradient reaches {part} (loss {output.loss.item():g})"
            require(learns, reason, "Mend build_model in training/build.py, or fuse_text in models.py.")
        sentences = model.sentences(model.generate(output, 1, 4))
        metrics.score(args.task, sentences, tgt_input["gt_sentence"], spec.text_unit)


def check_models() -> None:
    """Check forward and backward pass of a toy model with and without descriptions, padding, and the gate."""
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

    cure = "Mend forward, encode_pose or fuse_text in models.py, or the module that it calls."
    clips = [clip(*[None] * 5, *["手向上"] * 4), clip("手向下", "手向上", None)]
    src_input, tgt_input = collate_fn(clips)
    with tempfile.TemporaryDirectory() as mt5:
        write_small_mt5(mt5, ["你好。"] * 9, d_model=32, layers=1, heads=2, d_kv=16, d_ff=64)
        for described in (False, True):
            how = f"{'with' if described else 'without'} descriptions"
            config = ModelConfig(hidden_dim=16, use_descriptions=described, text_dropout_p=0)
            model = Uni_Sign(config, load_mt5(mt5), Tokenizer(mt5), TextEncoder(mt5) if described else None)
            if described:
                let_text_through(model)
            loss = model.train()(src_input, tgt_input).loss
            loss.backward()
            require(bool(loss.isfinite()), f"{how}: the loss is {loss.item():g}", cure)
            with torch.no_grad():
                model.eval()
                batched, alone = model(src_input, tgt_input), model(*collate_fn(clips[1:]))
                own = batched.encoder_states[1, : alone.encoder_states.shape[1]]
                off = float((own - alone.encoder_states[0]).abs().max())
                require(off < 1e-3, f"{how}: padding changes a clip's result by {off:.2g}", cure)
    with torch.no_grad():
        pose = model.encode_pose(src_input)
        require(not torch.equal(model.fuse_text(pose, src_input)[0], pose), "text has no effect", cure)
        model.gating_fusion.gate.register_forward_hook(lambda _module, _input, gate: gate * 0)
        shut = torch.equal(model.fuse_text(pose, src_input)[0], pose)
        require(shut, "the gate is ignored: text comes through when it is shut", cure)


def check_datasets() -> None:
    """Check the documented format of items and batches, and that descriptions are aligned with their frames."""
    from clips.batch import Sample, collate_fn
    from config import DATASETS
    from datasets import S2T_Dataset
    from pose.keypoints import PART_JOINTS, read_pose
    from temporal_alignment import sample_frames

    cure = "Mend datasets.py, or what it calls in clips/batch.py, pose/keypoints.py or temporal_alignment.py."
    with toy_corpus() as root:
        dataset = S2T_Dataset(DATASETS["CSL_Daily"].under(root), "train", max_length=19, use_descriptions=True)
        n_frames = len(read_pose(dataset.pose_paths[dataset.names[0]]))
        describe(dataset, 0, {frame: f"frame {frame}" for frame in range(0, n_frames, 2)})
        describe(dataset, 1, {})
        item = dataset[0]
        fields = ", ".join(Sample._fields)
        require(isinstance(item, Sample) and len(item) == 7, f"an item is not the 7-tuple {fields}", cure)
        shapes = {part: tuple(value.shape) for part, value in item.pose_sample.items()}
        wanted = {part: (19, len(joints), 3) for part, joints in PART_JOINTS.items()}
        require(shapes == wanted, f"pose_sample has the shapes {shapes}; wanted {wanted}", cure)
        # Even frames are described; an odd one takes the text of the preceding frame.
        frames = sample_frames(n_frames, 19).tolist()
        placed = item.descriptions == [f"frame {frame - frame % 2}" for frame in frames]
        require(placed, "descriptions do not lie on the frames that their file names say", cure)
        marked = item.has_description == [1 - frame % 2 for frame in frames]
        require(marked, "has_description does not tell a frame's own text from its neighbour's", cure)
        dataset.max_length = 9
        src_input, _ = collate_fn([item, dataset[1]])
        padded = [[item.descriptions, [None] * 19], [item.has_description, [0] * 19]]
        alike = [src_input.get("descriptions"), src_input.get("has_description")] == padded
        alike = alike and src_input["attention_mask"].sum(1).tolist() == [19, 9]
        require(alike, "a batch does not pad poses, descriptions and indicators alike", cure)


def check_config() -> None:
    """Check that the dictionaries in config.py match their records, and the model's defaults."""
    import config

    cure = "Edit the record in DATASETS in config.py; the dictionaries below it follow by themselves."
    for name, spec in config.DATASETS.items():
        paths = {f"{split}_label_paths": spec.labels.get(split, "") for split in config.SPLITS}
        paths |= {"pose_dirs": spec.pose_dir, "rgb_dirs": spec.rgb_dir, "description_dirs": spec.description_dir}
        for view, path in paths.items():
            seen = getattr(config, view).get(name, "")
            require(seen == path, f"{view}[{name!r}] is {seen!r}, but its record in DATASETS says {path!r}", cure)
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
        reason, cure = explain(error, said.getvalue(), name.split()[0])
        print(f"✗ {name}\n    reason: {reason}\n    cure:   {cure}", flush=True)
        return False
    print(f"✓ {name}", flush=True)
    return True


def explain(error: BaseException, said: str, file: str) -> tuple[str, str]:
    """Return one line on why a check failed, with the code location, and one on what to do."""
    if isinstance(error, FailedCheckError):
        return str(error), error.cure
    if isinstance(error, SystemExit) and said.strip():  # the parser has printed its reason
        return said.strip().splitlines()[-1], f"Mend {file}."
    here = Path(__file__).resolve()
    ours = {here.parent, *(package.parent for package in here.parent.glob("*/__init__.py"))}
    lines = [(Path(call.filename), call.lineno) for call in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((Path(error.filename), error.lineno))
    places = [(path.relative_to(here.parent), line) for path, line in lines if path.parent in ours and path != here]
    place = f" ({places[-1][0]}, line {places[-1][1]})" if places else ""
    reason = f"{type(error).__name__}: {' '.join(str(getattr(error, 'msg', error)).split())[:300]}{place}"
    if isinstance(error, ModuleNotFoundError):
        missing = error.name or ""
        if not (here.parent / f"{missing.replace('.', '/')}.py").is_file():
            return reason, f"pip install {missing.partition('.')[0]}"
    return reason, f"Mend {places[-1][0] if places else file}, or take it anew from the repository."


def run_flags(typed: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of the run; exit if they are wrong or name files that do not exist."""
    from utils import check_run, parse_args

    args = parse_args(typed)
    try:
        check_run(args, data=False)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    return args


def examine(report: Report, args: argparse.Namespace, everything: bool) -> dict[str, SplitLook]:
    """Report on the folders, weights and GPU of a run; return a section's title -> what the files of its split hold."""
    from clips.labels import target
    from config import under_root
    from network.vocabulary import Tokenizer, choose
    from training import build, readiness
    from training.look import SAMPLE, every, look_at_splits, look_at_texts
    from training.memory import MT5_BASE, mt5_parameters
    from utils import starts_from_state

    if args.eval:
        build.take_settings(args)
    spec = build.dataset_spec(args)
    config = build.model_config(args, spec)
    limit = sys.maxsize if everything else SAMPLE
    folder = Path(under_root(args.root, args.mt5_path))
    looks: dict[str, SplitLook] = {}
    train, sizes, tokenizer = (0, 0.0), None, None
    with contextlib.suppress(OSError, ValueError):  # said under "weights"
        tokenizer = Tokenizer(folder)
    for split in spec.labels:
        title = f"{spec.name} {split}"
        with report.section(title):
            look = readiness.look_at_split(report, spec, split, limit, args.max_bad_clips, build.renumber_command(args))
            if look is None:
                continue
            looks[title] = look
            texts = readiness.examine_descriptions(report, spec, split, look, args.use_descriptions)
            report.say_all(look.fit_lines(refused=config.uses_mapper and split == "train" and not args.eval))
            if split == "train":
                train = max((clip.n_frames for clip in look.clips.values()), default=0), texts
            if args.rgb_support:
                readiness.examine_videos(report, spec, split, limit, args.max_bad_clips)
            if tokenizer:
                targets = {name: target(look.labels[name], args.task) for name in every(look.labels, limit)}
                report.say_all(look_at_texts(tokenizer, targets, spec, args.task, config.max_target_tokens))
    with report.section(report.text("splits")):
        report.say_all(look_at_splits(spec, args.task))
    with report.section(report.text("weights")):
        sizes = readiness.examine_mt5(report, folder)
        if sizes and tokenizer and args.trim_vocab and (look := looks.get(f"{spec.name} train")):
            sizes["vocab_size"] = len(choose(tokenizer, [target(label, args.task) for label in look.labels.values()]))
            report.say("·", "trim_vocab", sizes["vocab_size"], sum(mt5_parameters(MT5_BASE | sizes)) / 1e6)
    if sizes and (args.finetune or args.fusion_checkpoint) and not starts_from_state(args):
        with report.section(report.text("checkpoint")):
            # With a frozen text encoder this would fill the cache.
            unfrozen = argparse.Namespace(**{**vars(args), "text_encoder_freeze": False})
            build.build_model(unfrozen, config, {})
            report.say("✓", "fits", ", ".join(filter(None, (args.finetune, args.fusion_checkpoint))))
    with report.section("GPU"):
        longest, texts = train
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
    if own.page:
        from utils import cannot_be_written

        for fault in cannot_be_written("--page", own.page, ".html"):
            parser.exit(2, f"{parser.prog}: error: {fault}\n")
    args, report = None, Report(own.lang)
    # The checks report broken code; wrong flags and paths exit here, before torch is imported.
    broken = ""
    try:
        args = run_flags(of_run)
    except Exception as error:  # noqa: BLE001 -- whatever is broken, the checks say where
        broken = f"{type(error).__name__}: {error}"
    if all([passes(name) for name in CHECKS]):
        print("\n✓ 所有检查通过！系统准备就绪", flush=True)
    else:
        report.require("checks.cure")
        broken = ""
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
