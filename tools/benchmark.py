"""Time, memory and kernels of each stage of training and evaluation, of a model with random weights.

    python -m tools.benchmark --size small
    python -m tools.benchmark --size base --batch-size 8 --frames 128 --texts trained

Clips and texts are random, too, and as large as real ones; nothing is downloaded. All clips have the same number of
frames, so nothing is padded. A time is the mean of some runs after a warm-up, on a CPU on one thread. Kernels are those
that a GPU runs; without one, torch's operations that are neither views nor allocations: each is a kernel or a few.
"""

from __future__ import annotations

import argparse
import platform
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from utils import Parser, run

NUM_BEAMS = 4
WORDS = 25  # of a text; each is a token


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


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and reject invalid values, before any slow import."""
    parser = Parser(prog="python -m tools.benchmark", description="Measure each stage of training and evaluation.")
    add = parser.add_argument
    add("--size", default="small", choices=SIZES, help="base: mt5-base and the released pose encoder; default: small")
    add("--texts", default="no", choices=("no", "frozen", "trained"), help="descriptions, and their encoder")
    add("--batch-size", type=int, help="clips of a batch; default: that of the size")
    add("--frames", type=int, help="frames of a clip; default: that of the size")
    add("--dtype", choices=("bf16", "fp32"), help="of matrix products; default: bf16 on a GPU, fp32 on a CPU")
    add("--repeats", type=int, default=5, help="timed runs of a stage; default: 5")
    add("--compile", action="store_true", help="compile as fine_tuning.py --compile; operations are those before")
    args = parser.parse_args(argv)
    size = SIZES[args.size]
    args.batch_size = size.batch_size if args.batch_size is None else args.batch_size
    args.frames = size.frames if args.frames is None else args.frames
    parser.check(args, batch_size=1, frames=1, repeats=1)
    return args


if __name__ == "__main__":
    ARGS = parse_args()

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer
from transformers import MT5Config, MT5EncoderModel

from clips.batch import Sample, collate_fn, to_device
from config import ModelConfig
from models import Uni_Sign, tokens_before
from network.mt5 import MT5, run_encoder, use_fused_layers
from network.vocabulary import EOS, PAD, Tokenizer
from pose.keypoints import PART_JOINTS
from system.distributed import autocast
from text_fusion_modules import EncodesTexts, TextEncoder
from training.compiling import compile_parts
from training.loader import SEARCHED
from training.optimization import parameter_groups

# -- model and data --------------------------------------------------------------------------------------------------


class Words(Tokenizer):
    """A tokenizer that makes a token of each word."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.kept = vocab_size, None

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Return a text's ids, at most `max_tokens` including </s>."""
        ids = [3 + zlib.crc32(word.encode()) % (self.vocab_size - 3) for word in text.split()]
        return [*ids[: max_tokens - 1], EOS]


class RandomTextEncoder(TextEncoder):
    """A text encoder with mT5's architecture that needs no files."""

    def __init__(self, config: MT5Config, tokenizer: Tokenizer) -> None:
        torch.nn.Module.__init__(self)
        self.max_tokens, self.width = 128, config.d_model
        self.encoder = MT5EncoderModel(config)
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
    configs = [MT5Config(**size.mt5, decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS) for _ in range(2)]
    tokenizer = Words(size.mt5["vocab_size"])
    text_encoder: EncodesTexts | None = None
    if texts == "frozen":
        text_encoder = RandomFeatures(size.mt5["d_model"])
    elif texts == "trained":
        text_encoder = RandomTextEncoder(configs[1], tokenizer)
    model_config = ModelConfig(hidden_dim=size.hidden_dim, use_descriptions=texts != "no")
    return Uni_Sign(model_config, MT5(configs[0]), tokenizer, text_encoder)


def make_clips(size: Size) -> list[Sample]:
    """Return the clips of a batch."""
    torch.manual_seed(0)
    clips = []
    for number in range(size.batch_size):
        texts = [" ".join(map(str, row)) for row in torch.randint(10**5, 10**6, (size.texts, WORDS)).tolist()]
        of_frames: list[str | None] = [texts[frame * size.texts // size.frames] for frame in range(size.frames)]
        pose: Any = {part: torch.rand(size.frames, len(joints), 3) for part, joints in PART_JOINTS.items()}
        clips.append(Sample(str(number), pose, texts[0], "", {}, of_frames, [1] * size.frames))
    return clips


# -- stages ----------------------------------------------------------------------------------------------------------


def stages(
    size: Size, texts: str, device: torch.device, dtype: str, compiled: bool = False
) -> dict[str, Callable[[], object]]:
    """Return what each stage does with a batch, in the order of the pipeline: parts forward and backward, all, a step.

    An evaluation takes `SEARCHED` batches together. With random weights, hardly any sentence ends before its maximum
    length.
    """
    model = make_model(size, texts).to(device).train()
    if compiled:
        compile_parts(model, device)
    mt5, clips, precision = model.mt5_model, make_clips(size), partial(autocast, dtype, device)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-4), lr=1e-5, fused=True)
    src_input, tgt_input = collate_fn(clips)
    src_input = to_device(src_input, device)
    labels = model.labels(tgt_input["gt_sentence"])
    with torch.no_grad(), precision():
        pose = model.encode_pose(src_input)  # (B, T, D)
        encoded = model.encode(src_input)
        (previous,) = model.embed(tokens_before(labels))  # (B, L, D)
    mask = encoded.attention_mask

    def passes(forward: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
        """Go forward and backward, with gradients for weights and inputs."""
        with precision():
            out = forward(*(x.detach().requires_grad_() for x in inputs))
        out.float().mean().backward()
        model.zero_grad(set_to_none=True)

    def step() -> None:
        with precision():
            loss = model(src_input, tgt_input).loss
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate() -> None:
        model.eval()
        together, sentences = collate_fn(clips * SEARCHED)
        with precision():
            output = model(to_device(together, device), sentences)
            model.generate(output, NUM_BEAMS, size.max_new_tokens)
        model.train()

    text_branch = partial(passes, lambda x: model.fuse_text(x, src_input)[0], pose)
    return {
        "pose encoder": partial(passes, lambda: model.encode_pose(src_input)),
        **({"text branch": text_branch} if texts != "no" else {}),
        "mT5 encoder": partial(passes, lambda x: run_encoder(mt5.encoder, x, mask), encoded.inputs_embeds),
        "decoder and loss": partial(
            passes, lambda *x: model.target_loss(x[0], mask, labels, x[1])[0], encoded.encoder_states, previous
        ),
        "forward and backward": partial(passes, lambda: model(src_input, tgt_input).loss),
        "training step": step,
        "evaluation": evaluate,
    }


# -- measuring -------------------------------------------------------------------------------------------------------

ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")


class OperationCounter(TorchDispatchMode):
    """Counts operations that are neither views nor allocations."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and call an operation."""
        self.n += not (func.is_view or func.overloadpacket.__name__ in ALLOCATIONS)
        return func(*args, **kwargs or {})


def count_operations(work: Callable[[], object]) -> int:
    """Return how many operations some work takes that are neither views nor allocations."""
    with OperationCounter() as counter:
        work()
    return counter.n


class Figures(NamedTuple):
    """What a stage takes; the last two are of a GPU alone."""

    seconds: float
    kernels: int
    busy_seconds: float = 0.0  # in which kernels ran
    peak_gib: float = 0.0  # with weights, optimizer and batch


def measure(work: Callable[[], object], repeats: int, device: torch.device) -> Figures:
    """Measure some work, several times."""
    seconds = Timer("work()", globals={"work": work}).timeit(repeats).mean
    if device.type != "cuda":
        return Figures(seconds, count_operations(work))
    torch.cuda.reset_peak_memory_stats(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    kernels = [event for event in profiler.events() or () if event.device_type == DeviceType.CUDA]
    busy_seconds = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    return Figures(seconds, len(kernels), busy_seconds, torch.cuda.max_memory_allocated(device) / 2**30)


def main(args: argparse.Namespace) -> None:
    """Measure what the command line asks for and print a table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.dtype = args.dtype or ("bf16" if device.type == "cuda" else "fp32")
    size = replace(SIZES[args.size], batch_size=args.batch_size, frames=args.frames)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    facts = {"device": name, "torch": torch.__version__, **vars(args)}
    sys.stdout.write(", ".join(f"{key} {value}" for key, value in facts.items()) + "\n\n")
    sys.stdout.write("| stage | ms | clips/s | kernels | GPU busy, % | peak GiB |\n" + 6 * "| --- " + "|\n")
    for stage, work in stages(size, args.texts, device, args.dtype, args.compile).items():
        figures = measure(work, args.repeats, device)
        clips = size.batch_size * (SEARCHED if stage == "evaluation" else 1)
        cells = [f"{1000 * figures.seconds:,.1f}", f"{clips / figures.seconds:,.1f}", f"{figures.kernels:,}", "-", "-"]
        if device.type == "cuda":
            cells[3:] = f"{100 * figures.busy_seconds / figures.seconds:.0f}", f"{figures.peak_gib:.1f}"
        sys.stdout.write(f"| {' | '.join([stage, *cells])} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    run(lambda: main(ARGS))
