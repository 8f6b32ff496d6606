"""Measure each stage of training and evaluation: time, memory, and the share of what the device can compute.

    python -m tools.benchmark --size small
    python -m tools.benchmark --size base --batch-size 8 --frames 128 --json results.json

Clips, texts and weights are random and as large as real ones; nothing is downloaded. All clips have the same number of
frames, so nothing is padded. A time is the median of some runs after a warm-up.
Operations of torch are counted that are neither views nor allocations: on a GPU, each is a kernel or a few. Peak memory
is that of a GPU, with weights, optimizer and batch; a line that waits for the GPU gets a warning of torch.
"""

from __future__ import annotations

import argparse
import copy
import gc
import pickle
import platform
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from system.disk import to_json, write_text
from utils import Parser, run

NUM_BEAMS = 4
WORDS = 25  # of a text; each is a token
NO_KERNELS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "promote_types")


@dataclass(frozen=True)
class Size:
    """The size of the model and of a batch."""

    hidden_dim: int
    mt5: dict[str, Any]  # fields of its config
    batch_size: int
    frames: int  # of each clip
    texts: int  # distinct descriptions of each clip
    max_new_tokens: int


MT5_TINY = {"vocab_size": 500, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2}
MT5_SMALL = {"vocab_size": 32_000, "d_model": 256, "d_kv": 32, "d_ff": 512, "num_layers": 3, "num_heads": 8}
MT5_BASE = {"vocab_size": 250_112, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
SIZES = {
    "tiny": Size(16, MT5_TINY, batch_size=2, frames=8, texts=2, max_new_tokens=3),
    "small": Size(128, MT5_SMALL, batch_size=8, frames=64, texts=8, max_new_tokens=40),
    "base": Size(256, MT5_BASE, batch_size=16, frames=256, texts=30, max_new_tokens=40),
}
STAGES = (
    "normalisation", "clips from files", "clips from packs", "collation", "pose encoder", "mT5 encoder",
    "decoder and loss", "forward and backward", "optimizer",
    "training step without texts", "evaluation",
    "text branch with frozen texts", "training step with frozen texts",
    "text branch with trained texts", "training step with trained texts",
)  # fmt: skip


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and reject invalid values, before any slow import."""
    parser = Parser(prog="python -m tools.benchmark", description="Measure each stage of training and evaluation.")
    add = parser.add_argument
    add("--size", default="small", choices=SIZES, help="base: mt5-base and the released pose encoder; default: small")
    add("--only", nargs="+", default=[""], metavar="STAGE", help="stages whose name begins so; default: all")
    add("--batch-size", type=int, help="clips of a batch; default: that of the size")
    add("--frames", type=int, help="frames of a clip; default: that of the size")
    add("--dtype", choices=("bf16", "fp32"), help="of matrix products; default: bf16 on a GPU, fp32 on a CPU")
    add("--repeats", type=int, default=5, help="timed runs of a stage; default: 5")
    add("--clock", default="wall", choices=("wall", "cpu"), help="cpu: the time of this process, where others compute")
    add("--threads", type=int, help="of torch on a CPU; default: torch's choice")
    add("--json", metavar="FILE", help="also write all figures there")
    args = parser.parse_args(argv)
    size = SIZES[args.size]
    args.batch_size = size.batch_size if args.batch_size is None else args.batch_size
    args.frames = size.frames if args.frames is None else args.frames
    parser.at_least(args, batch_size=1, frames=1, repeats=1, **({} if args.threads is None else {"threads": 1}))
    if args.json and not Path(args.json).absolute().parent.is_dir():
        parser.error(f"--json {args.json}: its folder does not exist.")
    if not any(stage.startswith(tuple(args.only)) for stage in STAGES):
        parser.error(f"--only {' '.join(args.only)}: no stage begins so; there are {', '.join(STAGES)}.")
    return args


if __name__ == "__main__":
    ARGS = parse_args()

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import MT5Config, MT5EncoderModel

from clips.batch import Sample, collate_fn, to_device
from clips.packs import DESCRIPTIONS, POSES, pack_descriptions, pack_pose, write_pack
from config import DatasetSpec, ModelConfig
from datasets import S2T_Dataset
from models import Uni_Sign, tokens_before
from network.mt5 import MT5, run_encoder, use_fused_layers
from network.vocabulary import EOS, PAD, Tokenizer
from pose.keypoints import N_KEYPOINTS, normalize_keypoints
from system.distributed import autocast
from text_fusion_modules import EncodesTexts, TextEncoder
from training.loader import SEARCHED
from training.optimization import parameter_groups


@dataclass(frozen=True)
class Stage:
    """Work to measure, on a number of clips with a number of frames in all."""

    name: str
    work: Callable[[], object]
    clips: int
    frames: int


# -- model and data --------------------------------------------------------------------------------------------------


class Words(Tokenizer):
    """A tokenizer that makes a token of each word."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.kept = vocab_size, None

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Return a text's ids, at most `max_tokens` including </s>."""
        ids = [3 + zlib.crc32(word.encode()) % (self.vocab_size - 3) for word in text.split()]
        return [*ids[: max_tokens - 1], EOS]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the ids as text."""
        return " ".join(map(str, ids))


class RandomTextEncoder(TextEncoder):
    """A text encoder with mT5's architecture that needs no files."""

    def __init__(self, config: MT5Config, tokenizer: Tokenizer) -> None:
        torch.nn.Module.__init__(self)
        self.max_tokens, self.width = 128, config.d_model
        self.encoder = MT5EncoderModel(copy.deepcopy(config))  # it modifies its config
        self._tokenize = tokenizer.encode_batch
        use_fused_layers(self.encoder)


class RandomFeatures:
    """Stands in for the feature cache of a frozen text encoder."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return features of n texts, (n, W)."""
        return torch.randn(len(texts), self.width)


def make_model(size: Size, texts: str) -> Uni_Sign:
    """Return a model with random weights; its text encoder is "trained" or "frozen", or there are "no" texts."""
    torch.manual_seed(0)
    config = MT5Config(**size.mt5, decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS)
    mt5, tokenizer = MT5(config), Words(config.vocab_size)
    text_encoder: EncodesTexts | None = None
    if texts == "frozen":
        text_encoder = RandomFeatures(config.d_model)
    elif texts == "trained":
        text_encoder = RandomTextEncoder(config, tokenizer)
    model_config = ModelConfig(hidden_dim=size.hidden_dim, use_descriptions=texts != "no")
    return Uni_Sign(model_config, mt5, tokenizer, text_encoder)


def write_clips(folder: Path, size: Size) -> tuple[DatasetSpec, DatasetSpec]:
    """Write the clips of a batch; return them as a data set in files, and as one in packs."""
    rng = np.random.default_rng(0)
    poses, texts, packed = folder / "poses", folder / "texts" / "train", folder / "packed"
    poses.mkdir()
    texts.mkdir(parents=True)
    labels = {}
    for name in map(str, range(size.batch_size)):
        keypoints = rng.uniform(0, 1, (size.frames, 1, N_KEYPOINTS, 2))
        scores = rng.uniform(0, 1, (size.frames, 1, N_KEYPOINTS)).astype(np.float32)
        (poses / f"{name}.pkl").write_bytes(pickle.dumps({"keypoints": list(keypoints), "scores": list(scores)}))
        distinct = [" ".join(words) for words in rng.integers(10**5, 10**6, (size.texts, WORDS)).astype(str)]
        of_frames = {frame: distinct[frame * size.texts // size.frames] for frame in range(size.frames)}
        write_text(texts / f"{name}.json", to_json(of_frames), sync=False)
        labels[name] = {"video": f"{name}.mp4", "text": distinct[0]}
    write_text(folder / "labels.json", to_json(list(labels.values())))
    pose_contents = [pack_pose((str(poses), f"{name}.pkl")) for name in labels]
    text_contents = [pack_descriptions((str(texts), name)) for name in labels]
    write_pack(packed / "poses", POSES, str(poses), filter(None, pose_contents))
    write_pack(packed / "train", DESCRIPTIONS, str(texts), filter(None, text_contents))
    files = DatasetSpec(
        "benchmark", {"train": str(folder / "labels.json")}, str(poses), description_dir=str(texts.parent)
    )
    return files, replace(files, pose_dir=str(packed / "poses"), description_dir=str(packed))


# -- stages ----------------------------------------------------------------------------------------------------------


def all_stages(
    size: Size, folder: Path, device: torch.device, dtype: str, only: Sequence[str] = ("",)
) -> Iterator[Stage]:
    """Yield all stages in the order of the pipeline, without those of models none of whose stages begins so.

    A model is made when its first stage is reached.
    """
    files, packs = (
        S2T_Dataset(spec, "train", max_length=size.frames, use_descriptions=True) for spec in write_clips(folder, size)
    )
    poses = [files.poses.read(path, files.labels[name]) for name, path in files.pose_paths.items()]
    samples = [files[i] for i in range(len(files))]
    batch = len(samples), len(samples) * size.frames
    yield Stage("normalisation", lambda: [normalize_keypoints(pose.keypoints, pose.scores) for pose in poses], *batch)
    yield Stage("clips from files", lambda: [files[i] for i in range(len(files))], *batch)
    yield Stage("clips from packs", lambda: [packs[i] for i in range(len(packs))], *batch)
    yield Stage("collation", lambda: collate_fn(samples), *batch)
    for texts, stages in (("no", STAGES[4:-4]), ("frozen", STAGES[-4:-2]), ("trained", STAGES[-2:])):
        if any(stage.startswith(tuple(only)) for stage in stages):
            yield from Training(size, texts, samples, device, dtype).stages()
            gc.collect()  # the model


class Training:
    """A model, its optimizer and a batch; `texts` as in `make_model`."""

    def __init__(self, size: Size, texts: str, samples: list[Sample], device: torch.device, dtype: str) -> None:
        self.size, self.texts, self.samples, self.device = size, texts, samples, device
        self.precision = partial(autocast, dtype, device)
        self.model = make_model(size, texts).to(device).train()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 1e-4), lr=1e-5, fused=True)
        src_input, self.tgt_input = collate_fn(samples)
        self.src_input = to_device(src_input, device)

    def stages(self) -> Iterator[Stage]:
        """Yield the parts of a training step (without descriptions) or the text branch (with them), then the step."""
        model, mt5 = self.model, self.model.mt5_model
        labels = model.labels(self.tgt_input["gt_sentence"])
        with torch.no_grad(), self.precision():
            pose = model.encode_pose(self.src_input)
        if self.texts != "no":
            yield self.trained(
                f"text branch with {self.texts} texts", lambda x: model.fuse_text(x, self.src_input)[0], pose
            )
            yield self.stage(f"training step with {self.texts} texts", self.step)
            return
        yield self.trained("pose encoder", lambda: model.encode_pose(self.src_input))
        with torch.no_grad(), self.precision():
            encoded = model.encode(self.src_input)
            (previous,) = model.embed(tokens_before(labels))
        mask, states = encoded.attention_mask, encoded.encoder_states
        yield self.trained("mT5 encoder", lambda x: run_encoder(mt5.encoder, x, mask), encoded.inputs_embeds)
        yield self.trained(
            "decoder and loss", lambda *x: model.target_loss(x[0], mask, labels, x[1])[0], states, previous
        )
        yield self.trained("forward and backward", self.loss)
        self.loss().backward()  # leaves gradients for the optimizer
        yield self.stage("optimizer", self.optimizer.step)
        yield self.stage("training step without texts", self.step)
        yield self.stage("evaluation", self.evaluate, SEARCHED)

    def stage(self, name: str, work: Callable[[], object], batches: int = 1) -> Stage:
        """Return a stage that works on some batches."""
        clips = batches * len(self.samples)
        return Stage(name, work, clips, clips * self.size.frames)

    def trained(self, name: str, forward: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Stage:
        """Return a stage of forward and backward pass, with gradients for weights and inputs."""

        def passes() -> None:
            with self.precision():
                out = forward(*(x.detach().requires_grad_() for x in inputs))
            out.float().mean().backward()
            self.model.zero_grad(set_to_none=True)

        return self.stage(name, passes)

    def loss(self) -> torch.Tensor:
        """Compute the loss of the batch."""
        with self.precision():
            return self.model(self.src_input, self.tgt_input).loss

    def step(self) -> None:
        """Take a training step."""
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Compute losses and sentences; with random weights, hardly any sentence ends before its maximum length."""
        self.model.eval()
        src_input, tgt_input = collate_fn(self.samples * SEARCHED)
        with self.precision():
            output = self.model(to_device(src_input, self.device), tgt_input)
            ids = self.model.generate(output, NUM_BEAMS, self.size.max_new_tokens)
        self.model.sentences(ids)


# -- measuring -------------------------------------------------------------------------------------------------------


class OperationCounter(TorchDispatchMode):
    """Counts operations that are neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and call an operation."""
        self.n += not (func.is_view or func.overloadpacket.__name__ in NO_KERNELS)
        return func(*args, **kwargs or {})


class Meter:
    """Measures stages, several times each; by the wall's clock, or by this process's CPU time where others compute."""

    def __init__(self, device: torch.device, clock: str, repeats: int) -> None:
        self.on_gpu, self.device, self.repeats = device.type == "cuda", device, repeats
        self.now = time.process_time if clock == "cpu" else time.perf_counter

    def measure(self, stage: Stage, ceiling: float) -> dict[str, Any]:
        """Return the figures of a stage; `ceiling` is the most FLOP/s to expect."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.set_sync_debug_mode("warn")
        with FlopCounterMode(display=False) as flops, OperationCounter() as operations:  # also the warm-up
            stage.work()
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        runs = [self.seconds(stage.work) for _ in range(self.repeats)]
        seconds = statistics.median(runs)
        return {
            "stage": stage.name,
            "seconds": seconds,
            "spread": [min(runs), max(runs)],
            "clips_per_second": stage.clips / seconds,
            "frames_per_second": stage.frames / seconds,
            "operations": operations.n,
            "peak_mib": torch.cuda.max_memory_allocated(self.device) / 2**20 if self.on_gpu else None,
            "share_of_ceiling": flops.get_total_flops() / seconds / ceiling,
        }

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds of one run."""
        self.wait()
        begun = self.now()
        work()
        self.wait()
        return self.now() - begun

    def wait(self) -> None:
        """Synchronise with the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def ceiling(self, dtype: str) -> float:
        """Return the FLOP/s of a large matrix product on this device."""
        n = 8192 if self.on_gpu else 1024
        a = torch.randn(n, n, device=self.device, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
        return 2.0 * n**3 / min(self.seconds(lambda: a @ a) for _ in range(8))


# -- the table -------------------------------------------------------------------------------------------------------

# Heading, key in a row of figures, factor, format.
COLUMNS = (
    ("ms", "seconds", 1000, ",.1f"),
    ("clips/s", "clips_per_second", 1, ",.1f"),
    ("frames/s", "frames_per_second", 1, ",.0f"),
    ("operations", "operations", 1, ",d"),
    ("peak MiB", "peak_mib", 1, ",.0f"),
    ("% of ceiling", "share_of_ceiling", 100, ".0f"),
)


def table_line(*cells: str) -> str:
    """Format a line of a Markdown table."""
    return f"| {' | '.join(cells)} |\n"


def main(args: argparse.Namespace) -> None:
    """Measure what the command line asks for and print a table."""
    device, size = torch.device("cuda" if torch.cuda.is_available() else "cpu"), SIZES[args.size]
    args.dtype = args.dtype or ("bf16" if device.type == "cuda" else "fp32")
    args.threads = args.threads or torch.get_num_threads()
    size = replace(size, batch_size=args.batch_size, frames=args.frames)
    torch.set_num_threads(args.threads)
    meter = Meter(device, args.clock, args.repeats)
    ceiling = meter.ceiling(args.dtype)
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "ceiling_tflops": round(ceiling / 1e12, 3),
        **{key: value for key, value in vars(args).items() if key not in ("only", "json")},
    }
    sys.stdout.write(", ".join(f"{key} {value}" for key, value in facts.items()) + "\n\n")
    sys.stdout.write(table_line("stage", *(column[0] for column in COLUMNS)))
    sys.stdout.write(table_line(*["---"] * (1 + len(COLUMNS))))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in all_stages(size, Path(folder), device, args.dtype, args.only):
            if stage.name.startswith(tuple(args.only)):
                rows.append(row := meter.measure(stage, ceiling))
                cells = ("-" if row[key] is None else format(row[key] * by, form) for _, key, by, form in COLUMNS)
                sys.stdout.write(table_line(stage.name, *cells))
                sys.stdout.flush()
                if args.json:
                    content = {"run": facts | {"model": asdict(size)}, "stages": rows}
                    write_text(args.json, to_json(content, indent=1) + "\n")
            del stage  # with the model, before the next one is made


if __name__ == "__main__":
    run(lambda: main(ARGS))
