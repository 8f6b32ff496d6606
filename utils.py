"""What every command line shares, and the flags, seed and log of a run. Nothing slow is imported: `--help` is quick."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib.util
import io
import logging
import math
import os
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import config
from system.faults import printable
from system.terminal import Lasting, ending_with_its_reader, tell_interruption

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Flags of Uni-Sign's parser and of its relatives that decide nothing here, and what does.
WITHOUT_EFFECT = {
    "--world_size": "the launcher",
    "--dist_url": "the launcher",
    "--dist_eval": "all processes evaluate",
    "--device": "CUDA_VISIBLE_DEVICES",
    "--start_epoch": "--resume",
    "--clip_grad": "--gradient-clipping",
    "--momentum": "0.9",
    "--compute_fp32_loss": "sums are in fp32",
}
MODEL_FLAGS = {field.name for field in dataclasses.fields(config.ModelConfig)} - {"language"}
# What --eval takes from the checkpoint.
OF_CHECKPOINT = MODEL_FLAGS | {"task", "max_length", "mt5_path", "text_encoder_freeze", "output_dir"}

# The least and the most of numbers that would end a run late, with a traceback or all memory.
BETWEEN = {
    "batch_size": (1, 1_000_000),
    "hidden_dim": (4, 65_536),
    "max_new_tokens": (1, 10_000),
    "seed": (0, 2**32 - 1),
    "warmup_epochs": (0, 1_000_000),
    "max_bad_clips": (0, 1),
}

NO_MODEL = "holds no model. Name a file, such as best_checkpoint.pth. (Of DeepSpeed: what its zero_to_fp32.py writes.)"
NO_TEST = "Or leave test out of this training: --no_test."
_OURS = "run"  # name of this run's log handlers

EXAMPLES = """examples:
  python -m tools.sample_data --out sample   a small made-up corpus; with --root sample below no other data is needed
  python fine_tuning.py --epochs 20 --output_dir ./output_baseline
  python fine_tuning.py --epochs 20 --use_descriptions --output_dir ./output_multimodal
  python fine_tuning.py --eval --finetune ./output_multimodal/best_checkpoint.pth
  torchrun --nproc-per-node 4 fine_tuning.py --use_descriptions
"""


# -- every command line ----------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Accepts every flag with hyphens or underscores, never abbreviated; help texts keep their line breaks."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # what parse_args calls
        """Spell each flag as it was declared, then parse."""
        declared = {flag.replace("-", "_"): flag for flag in self._option_string_actions}
        words = [word.partition("=") for word in (sys.argv[1:] if args is None else args)]
        spelled = [declared.get(flag.replace("-", "_"), flag) + equals + value for flag, equals, value in words]
        return super().parse_known_args(spelled, namespace)

    def error(self, message: str) -> NoReturn:
        """End the program with one line, and the flag that may have been meant, in place of the whole usage."""
        known = [flag[2:] for flag in self._option_string_actions if flag.startswith("--")]
        typed = re.findall(r"--([\w-]+)", message) if message.startswith("unrecognized arguments") else []
        close = []
        for word in typed:
            longer = [name for name in known if name.startswith(word)]
            close += [f"--{name}" for name in longer or difflib.get_close_matches(word, known, n=1)]
        hint = f" Did you mean {' '.join(close)}?" if close else ""
        end = "" if message.endswith((".", "?", "!")) else "."
        self.exit(2, f"{self.prog}: error: {message}{end}{hint} See --help.\n")

    def check(
        self, args: argparse.Namespace, faults: Iterable[str] = (), /, **bounds: float | tuple[float, float]
    ) -> None:
        """Exit with all faults in one line, if there are any: numbers out of their bounds, then others.

        A number's bound is the least that it may be, or the least and the most; NaN is none, and None was not given.
        """
        found = []
        for name, bound in bounds.items():
            low, high = bound if isinstance(bound, tuple) else (bound, math.inf)
            value = getattr(args, name)
            if value is not None and not low <= value <= high:
                wanted = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                found.append(f"--{name} {value}: must be {wanted}.")
        if message := " ".join([*found, *faults]):
            self.error(message)


def cannot_be_written(flag: str, path: str, *suffixes: str) -> Iterator[str]:
    """Yield why a file that a flag names for writing is refused: it might be another one, such as weights."""
    if path and Path(path).suffix not in suffixes:
        yield f"{flag} {path}: must end in {', '.join(suffixes)}."
    if path and not Path(path).absolute().parent.is_dir():
        yield f"{flag} {path}: its folder does not exist."
    elif path and not os.access(Path(path).absolute().parent, os.W_OK):
        yield f"{flag} {path}: its folder may not be written."


def add_dataset_flags(add: Callable[..., argparse.Action]) -> None:
    """Add the flags used by `config.dataset_of`."""
    add("--dataset", default="CSL_Daily", choices=sorted(config.DATASETS), help="default: CSL_Daily")
    add("--dataset_config", default="", metavar="FILE", help="a data set of your own, as TOML; in place of --dataset")


def add_model_flags(add: Callable[..., argparse.Action]) -> None:
    """Add the flags used by `Translator.from_checkpoint` in every program that translates."""
    model = "best_checkpoint.pth of a run, weights of Uni-Sign, or a folder of tools/export.py"
    add("--checkpoint", required=True, metavar="FILE", help=model)
    add("--mt5_path", default="", metavar="DIR", help="default: the mT5 of training")
    add("--text_encoder", default="", metavar="DIR", help="default: that of training")
    add("--language", default="", help="of the prompt; for weights without a config; default: that of training")
    add("--device", default="", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--dtype", default="bf16", choices=("bf16", "fp16", "fp32"), help="of matrix products; default: bf16")


def add_extractor_flags(add: Callable[..., argparse.Action]) -> None:
    """Add the flags used by `pose.extraction.load_extractor`."""
    which = "finds the poses in videos; default: whichever is installed, rtmlib before mediapipe"
    add("--extractor", default="", choices=config.EXTRACTORS, help=which)
    add("--models", default="", metavar="DIR", help="the extractor's files; default: pretrained_weight/EXTRACTOR")


class Shard(NamedTuple):
    """One of n parts of the work, from 1, chosen by name: which others there are does not matter.

    >>> [[name for name in "abcdef" if name in Shard(i, 2)] for i in (1, 2)]
    [['d', 'e', 'f'], ['a', 'b', 'c']]
    """

    i: int = 1
    n: int = 1

    @classmethod
    def of(cls, text: str) -> Shard:
        """Read "I/N", as a flag's type."""
        i, _, n = text.partition("/")
        if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
            raise argparse.ArgumentTypeError(f"{text} is no part I/N, with I from 1 to N (sbatch --array=1-N)")
        return cls(int(i), int(n))

    @property
    def name(self) -> str:
        """Return "I_of_N", for the names of its files; "" if there is one part alone."""
        return f"{self.i}_of_{self.n}" if self.n > 1 else ""

    def __contains__(self, name: object) -> bool:
        return zlib.crc32(str(name).encode("utf-8", "surrogatepass")) % self.n + 1 == self.i


def add_shard_flag(add: Callable[..., argparse.Action]) -> None:
    """Add the flag for one part of the work."""
    what = "do only the I-th of N parts, from 1: for several machines, in any order; default: all"
    add("--shard", type=Shard.of, default=Shard(), metavar="I/N", help=what)


def run(main: Callable[[], None]) -> None:
    """Run a program; an error that a user can fix prints one line (its traceback goes to the log), exit status 1."""
    sys.excepthook = tell_interruption
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as of a job without a terminal: the next file would take its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 -- for good
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a pipe has on Windows, and some terminals, lack most characters; and file names may have invalid ones.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        with ending_with_its_reader():
            main()
    except (ValueError, OSError) as error:
        logging.getLogger().debug("where it came from:", exc_info=True)
        sys.stderr.write(printable(f"error: {error}\n"))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM, which schedulers send, like Ctrl-C: raise KeyboardInterrupt."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def installed(package: str) -> bool:
    """Return whether a package can be imported; a mere folder of that name, such as wandb's, does not count."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def require_paths(**paths: str) -> None:
    """Raise FileNotFoundError, before any slow import, if what flags name is missing; "" is that of an unused flag."""
    if missing := _missing(**paths):
        raise FileNotFoundError(" ".join(missing))


def _missing(**paths: str) -> list[str]:
    return [f"--{flag}: {path} does not exist." for flag, path in paths.items() if path and not os.path.exists(path)]


def needs_deepspeed(zero_stage: int, offload: bool) -> bool:
    """Return whether a training needs DeepSpeed: alone, a process has nothing to shard."""
    return offload or (zero_stage > 0 and int(os.environ.get("WORLD_SIZE", 1)) > 1)


def require_packages(flag: str, *names: str) -> None:
    """Raise ValueError if packages for images and videos that a flag needs are not installed."""
    if missing := [name for name in names if not installed(name)]:
        raise ValueError(f'{flag} needs {" and ".join(missing)}: pip install -e ".[rgb]"')


def progress(items: Iterable[T], title: str, *, shown: bool = True, total: int | None = None) -> tqdm[T]:
    """Show a progress bar, in a log file once a minute. `total` is for items without a length."""
    from tqdm import tqdm

    every, delay = (0.1, 0) if sys.stderr.isatty() else (60, 60)
    how = {"mininterval": every, "maxinterval": 10 + every, "delay": delay, "leave": False, "dynamic_ncols": True}
    return tqdm(items, desc=title, total=total, disable=not shown, file=Lasting(sys.stderr), **how)


# -- the flags of a run ----------------------------------------------------------------------------------------------


def get_args_parser() -> Parser:
    """Build the argument parser of `fine_tuning.py`, which keeps names and defaults of Uni-Sign's flags."""
    parser = Parser(
        prog="fine_tuning.py",
        description="Train or evaluate Uni-Sign stage 3, with or without descriptions of the frames.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument_group("data").add_argument
    add_dataset_flags(add)
    add("--task", default="SLT", choices=config.TASKS, help="default: SLT; for WLASL ISLR")
    add("--root", default=".", metavar="DIR", help="folder that the paths in config.py start from; default: .")
    add("--packed", default="", metavar="DIR", help="read the poses and texts that tools/pack_dataset.py wrote there")
    add("--mt5_path", default=config.mt5_path, metavar="DIR", help=f"mT5; default: {config.mt5_path} under --root")
    add("--max_length", type=int, default=256, help="maximum frames of a clip; longer ones are sampled; default: 256")
    which = "frames of a longer clip that are evaluated; random is Uni-Sign's way; default: even"
    add("--eval_sampling", default="even", choices=("even", "random"), help=which)
    grouped = "clips of similar length share a training batch, so that little of it is padding; the default"
    add("--length_grouping", action=argparse.BooleanOptionalAction, default=True, help=grouped)
    add("--num_workers", type=int, default=8, help="processes that load data; default: 8")
    pinned = "pin the memory of --offload, as that of batches always is; the default"
    add("--pin-mem", action=argparse.BooleanOptionalAction, default=True, help=pinned)

    add = parser.add_argument_group("model").add_argument
    add("--hidden_dim", type=int, default=256, help="width of a part's feature; default: 256")
    add("--label_smoothing", type=float, default=0.2, help="default: 0.2")
    add("--max_target_tokens", type=int, default=50, help="a target is cut to this many tokens; default: 50")
    add("--trim_vocab", action="store_true", help="keep only the mT5 tokens that the training texts need: less memory")
    add("--uni_sign_batch_norm", action="store_true", help="in training, normalise each hand by itself as in Uni-Sign")
    add("--uni_sign_padding", action="store_true", help="let padded frames leak as in Uni-Sign; for comparison only")
    add("--rgb_support", action="store_true", help="look at crops of the hands, too; needs the videos")
    backbone = f"ImageNet weights for a new RGB branch; default, if it is there: {config.rgb_backbone} under --root"
    add("--rgb_backbone", default="", metavar="FILE", help=backbone)

    add = parser.add_argument_group("descriptions").add_argument
    add("--use_descriptions", action="store_true", help="fuse the descriptions of frames")
    dropped = "in training, how likely a clip loses all its texts, and a frame its own; default: 0.1"
    add("--text_dropout_p", type=float, default=0.1, help=dropped)
    add("--text_encoder", default="", metavar="DIR", help="any Hugging Face text encoder; default: the encoder of mT5")
    add("--text_encoder_freeze", action="store_true", help="the text encoder gets no gradient; its features are cached")
    add("--text_max_tokens", type=int, default=128, help="a description is cut to this many tokens; default: 128")
    weight, default = "weight of learning to predict texts from poses", config.ModelConfig.description_alignment
    add("--description_alignment", type=float, default=default, metavar="W", help=f"{weight}; default: {default}")
    add("--text_cache", default="text_cache", metavar="DIR", help="features of a frozen encoder; default: text_cache")
    add("--fusion_checkpoint", default="", metavar="FILE", help="load the fusion modules alone, from a best_fusion.pth")
    trains = "auto: only the fusion modules with --text_encoder_freeze and --finetune, else all; default: auto"
    add("--trainable", default="auto", choices=("auto", "fusion", "all"), help=trains)

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, default=20, help="default: 20")
    add("--batch-size", type=int, default=16, help="clips per process and micro-batch; default: 16")
    add("--gradient-accumulation-steps", type=int, default=8, help="micro-batches per step; default: 8")
    add("--gradient-clipping", type=float, default=1.0, help="maximum gradient norm; default: 1.0")
    add("--gradient_checkpointing", action="store_true", help="less memory for more time: activations are recomputed")
    add("--compile", action="store_true", help="compile parts of the model with torch.compile: fewer kernels on a GPU")
    add("--opt", type=str.lower, default="adamw", choices=config.OPTIMIZERS, help="default: adamw")
    add("--opt-eps", type=float, default=1e-9, help="default: 1e-9")
    add("--opt-betas", type=float, nargs=2, default=None, metavar="B", help="default: 0.9 0.999")
    add("--weight-decay", type=float, default=1e-4, help="default: 1e-4")
    add("--sched", default="cosine", choices=config.SCHEDULES, help="of the learning rate; default: cosine")
    add("--lr", type=float, default=1e-3, help="peak learning rate; default: 1e-3")
    add("--min-lr", type=float, default=1e-8, help="where the learning rate stops falling; default: 1e-8")
    add("--warmup-epochs", type=float, default=0, help="epochs of linear warm-up from 0; default: 0")
    add("--seed", type=int, default=42, help="default: 42")

    add = parser.add_argument_group("processes and precision").add_argument
    add("--zero_stage", type=int, default=2, choices=(0, 1, 2), help="DeepSpeed ZeRO; default: 2")
    add("--offload", action="store_true", help="keep the optimizer's state in CPU memory")
    add("--dtype", default="bf16", choices=("bf16", "fp16", "fp32"), help="autocast of matrix products; default: bf16")
    add("--local_rank", type=int, default=0, help="set by the deepspeed launcher")

    add = parser.add_argument_group("what a run starts from, evaluates and leaves behind").add_argument
    finetune = "start from these weights: .pth, .safetensors, or a folder of tools/export.py, with its mT5"
    add("--finetune", default="", metavar="FILE|DIR", help=finetune)
    add("--eval", action="store_true", help="evaluate --finetune on dev and test, with its own settings; train nothing")
    add("--no_test", action="store_true", help="end a training without the evaluation of test by its best weights")
    add("--num_beams", type=int, default=4, help="beams of the beam search; 1 is greedy; default: 4")
    add("--max_new_tokens", type=int, default=100, help="maximum tokens of a generated sentence; default: 100")
    add("--output_dir", default="./output", metavar="DIR", help="default: ./output; with --eval, beside --finetune")
    add("--resume", default="", metavar="auto|DIR", help="go on from the newest state in --output_dir, or from DIR")
    add("--save_steps", type=int, default=0, metavar="N", help="also save a state every N steps; default: 0, off")
    bad = "end with an error when more than this share of a split's clips cannot be read; default: 0.01"
    add("--max_bad_clips", type=float, default=0.01, metavar="SHARE", help=bad)
    quick = "also save checkpoint.pth and a state every N micro-batches, for long epochs; default: 0, off"
    add("--quick_break", type=int, default=0, metavar="N", help=quick)
    add("--tensorboard", action="store_true", help="draw the curves in OUTPUT_DIR/tensorboard as well")
    add("--wandb", action="store_true", help="and in Weights & Biases; WANDB_MODE=offline keeps them in OUTPUT_DIR")
    add("--keep_last", type=int, default=2, metavar="N", help="checkpoints and states kept; 0 keeps all; default: 2")
    for flag in WITHOUT_EFFECT:
        parser.add_argument(flag, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and reject conflicting flags and invalid values, before any slow import.

    With --eval, what the checkpoint decides and the command line does not say is None: see `OF_CHECKPOINT`.
    """
    parser = get_args_parser()
    args = parser.parse_args(argv)
    unset = argparse.Namespace(**dict.fromkeys(vars(args)))
    typed = {name for name, value in vars(parser.parse_args(argv, unset)).items() if value is not None}
    _drop_flags_without_effect(parser, args)
    if "task" not in typed:
        with contextlib.suppress(OSError, ValueError):  # `check_run` says what is wrong with --dataset_config
            args.task = config.dataset_of(args.dataset, args.dataset_config).tasks[0]
    at_least_1 = "epochs gradient_accumulation_steps max_length num_beams"
    at_least_0 = "num_workers save_steps quick_break keep_last weight_decay gradient_clipping opt_eps min_lr"
    least = dict.fromkeys(at_least_1.split(), 1) | dict.fromkeys(at_least_0.split(), 0)
    parser.check(args, _faults(args), **least, **BETWEEN)
    if args.eval:
        for name in OF_CHECKPOINT - typed:
            setattr(args, name, None)
    else:
        _take_from_export(args)
    return args


def _faults(args: argparse.Namespace) -> Iterator[str]:
    if not 0 < args.lr < math.inf:
        yield f"--lr {args.lr}: must be positive and finite."
    for name in ("opt_eps", "weight_decay"):
        if getattr(args, name) == math.inf:
            yield f"--{name} inf: must be at least 0 and finite."
    if args.min_lr > args.lr:
        yield f"--min_lr {args.min_lr}: must not be above --lr, which is {args.lr}."
    if not all(0 <= beta < 1 for beta in args.opt_betas or ()):
        yield f"--opt_betas {' '.join(map(str, args.opt_betas))}: each must lie in [0, 1)."
    if args.rgb_backbone and not args.rgb_support:
        yield "--rgb_backbone needs --rgb_support."
    if args.offload and args.zero_stage == 0:
        yield "--offload needs --zero_stage 1 or 2: without ZeRO the optimizer's state stays where it is."
    yield from _faults_of_evaluation(args) if args.eval else _faults_of_training(args)


def _faults_of_evaluation(args: argparse.Namespace) -> Iterator[str]:
    if not args.finetune:
        yield "--eval needs --finetune FILE, the weights to evaluate."
    if args.trim_vocab:
        yield "--eval takes the vocabulary that the weights of --finetune have; drop --trim_vocab."
    if args.resume:
        yield "--eval and --resume exclude each other: --eval trains nothing."
    if args.no_test:
        yield "--no_test is for a training; --eval evaluates dev and test."
    if args.tensorboard or args.wandb:
        yield "--tensorboard and --wandb draw a training; --eval writes its scores to {split}_metrics.json."


def _faults_of_training(args: argparse.Namespace) -> Iterator[str]:
    for package in ("tensorboard", "wandb"):
        if getattr(args, package) and not installed(package):
            yield f'--{package} needs a package: pip install -e ".[tracking]"'
    if needs_deepspeed(args.zero_stage, args.offload) and not (sys.platform == "linux" and installed("deepspeed")):
        yield "--offload and several processes at --zero_stage 1 or 2 need DeepSpeed, on Linux: pip install deepspeed."
    if not args.use_descriptions:
        for name in ("text_encoder_freeze", "text_encoder", "fusion_checkpoint"):
            if getattr(args, name):
                yield f"--{name} needs --use_descriptions."
        if args.trainable == "fusion":
            yield "--trainable fusion needs --use_descriptions."


def _drop_flags_without_effect(parser: Parser, args: argparse.Namespace) -> None:
    """Remove flags that other programs of this family have, and say so once for all processes."""
    given = [flag for flag in WITHOUT_EFFECT if hasattr(args, flag[2:])]
    for flag in given:
        delattr(args, flag[2:])
    if given and os.environ.get("RANK", "0") == "0":
        decides = ", ".join(f"{flag} (instead: {WITHOUT_EFFECT[flag]})" for flag in given)
        sys.stderr.write(f"{parser.prog}: accepted for old scripts, without effect here: {decides}.\n")


def _take_from_export(args: argparse.Namespace) -> None:
    """If --finetune is a folder of `tools/export.py`, use its mT5 and text encoder unless flags name others."""
    folder = Path(args.finetune)
    if not args.finetune or not os.path.isdir(folder / "mt5"):  # of a name that is too long, too
        return
    if args.mt5_path == config.mt5_path:
        args.mt5_path = str((folder / "mt5").absolute())
    if args.use_descriptions and not args.text_encoder and os.path.isdir(folder / "text_encoder"):
        args.text_encoder = str(folder / "text_encoder")


def splits_of(args: argparse.Namespace, spec: config.DatasetSpec) -> list[str]:
    """Return the splits that a run reads: train, dev, and test for its end; with --eval, dev and test; none twice."""
    if args.eval:
        splits = ["test"] if spec.dev_is_test else ["dev", "test"]
    else:
        splits = ["train", "dev"] if args.no_test or spec.dev_is_test else ["train", "dev", "test"]
    return [split for split in splits if split in spec.labels or split == "train"]


def starts_from_state(args: argparse.Namespace) -> bool:
    """Return whether a run resumes a state, which has all weights: what other flags name for a start is not read."""
    there = args.resume == "auto" and any(Path(args.output_dir, "resume").glob("step_*"))
    return there or args.resume not in ("", "auto")


def check_run(args: argparse.Namespace, *, data: bool = True) -> None:
    """Check, before any slow import, that the model's sizes are valid and what a run reads is there; else ValueError.

    With `data`, also look for the data set's files and for mT5, not only for what flags name.
    """
    flags = ["root", "text_encoder"]
    if not starts_from_state(args):
        flags += ["finetune", "fusion_checkpoint", "rgb_backbone"]
    faults = _missing(**{flag: getattr(args, flag) or "" for flag in flags})
    if "finetune" in flags and os.path.isdir(args.finetune) and not Path(args.finetune, config.MODEL_JSON).is_file():
        faults.append(f"--finetune: {args.finetune} {NO_MODEL}")
    if args.packed and not os.path.isdir(packs := config.under_root(args.root, args.packed)):
        faults.append(f"--packed: {packs} does not exist. Make it: python -m tools.pack_dataset --out {args.packed}.")
    if args.resume not in ("", "auto") and not Path(args.resume, "state.json").is_file():
        faults.append(f"--resume: {args.resume} holds no state. Name a folder under OUTPUT_DIR/resume, or auto.")
    out = Path(args.output_dir or ".")
    if args.output_dir == "" or any(place.is_file() for place in (out, *out.parents)):
        faults.append(f"--output_dir: {args.output_dir!r} is no folder; a run keeps what it learns, name one for it.")
    try:
        spec = config.dataset_of(args.dataset, args.dataset_config)
        spec.check_task(args.task or spec.tasks[0])
        if not args.eval:
            config.ModelConfig(**{name: getattr(args, name) for name in MODEL_FLAGS})
    except (OSError, ValueError) as error:
        faults.append(str(error))
    else:
        faults += _missing_data(args, spec.under(args.root)) if data and os.path.isdir(args.root) else []
    if faults:
        raise ValueError(" ".join(faults))


def _missing_data(args: argparse.Namespace, spec: config.DatasetSpec) -> list[str]:
    """Return a sentence on each file and folder of the data set, and of mT5, that does not exist."""
    splits, files = splits_of(args, spec), not args.packed
    wanted = {"poses": files, "videos": bool(args.rgb_support), "descriptions": files and bool(args.use_descriptions)}
    faults = spec.absent(*splits, **wanted)
    if faults and not args.eval and not spec.absent(*(split for split in splits if split != "test"), **wanted):
        faults.append(NO_TEST)
    folder = Path(config.under_root(args.root, args.mt5_path or ""))
    if args.mt5_path and not (folder / "config.json").is_file():
        faults.append(f"mT5: {folder}/config.json does not exist. {config.GET_MT5}")
    return faults


# -- the log and the seed of a run -------------------------------------------------------------------------------------


class _Plain(logging.Formatter):
    """Writes out what a terminal would obey, as file names may hold it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_terminal() -> None:
    """Show the messages of a program that is no run."""
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(_Plain("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[terminal])


def start_log(output_dir: str | Path, is_main: bool) -> None:
    """Log to the terminal and, on rank 0, to `train.log`; other ranks show warnings only."""
    logging.raiseExceptions = False  # on a full disk, each line would print a traceback
    root = logging.getLogger()
    root.setLevel(logging.DEBUG)
    for handler in [handler for handler in root.handlers if handler.name == _OURS]:  # from an earlier run
        root.removeHandler(handler)
        handler.close()
    terminal = logging.StreamHandler(sys.stderr)
    terminal.name = _OURS
    terminal.setLevel(logging.INFO if is_main else logging.WARNING)
    terminal.setFormatter(_Plain("%(asctime)s %(message)s", "%H:%M:%S"))
    root.addHandler(terminal)
    if is_main:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(Path(output_dir) / "train.log", encoding="utf-8")
        file.name = _OURS
        file.setFormatter(_Plain("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file)
    for name in ("DeepSpeed", "torch", "filelock", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


def git_revision() -> str:
    """Return this code's commit, followed by "+changes" if tracked files differ from it; "" outside a git checkout."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, as in slim images, or no checkout
        return ""
    return done.stdout.strip()
