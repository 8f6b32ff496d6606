"""Measure each stage of training and evaluation: time, memory, and the share of what the device can compute.

    python -m tools.benchmark --size small
    python -m tools.benchmark --size base --batch-size 8 --frames 128 --json results.json

Clips, texts and weights are random and as large as real ones; nothing is downloaded. All clips have the same number of
frames, so nothing is padded, except where mixed lengths are named. A time is the median of some runs after a warm-up,
peak memory is what a stage takes beyond what was in use before: weights, optimizer and batch.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import gc
import pickle
import platform
import statistics
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from system.disk import to_json, write_text
from utils import Parser, cannot_be_written, run

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
    compiled: bool = False  # see `training/compiling.py`


MT5_TINY = {"vocab_size": 500, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2}
MT5_SMALL = {"vocab_size": 32_000, "d_model": 256, "d_kv": 32, "d_ff": 512, "num_layers": 3, "num_heads": 8}
MT5_BASE = {"vocab_size": 250_112, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
SIZES = {
    "tiny": Size(16, MT5_TINY, batch_size=2, frames=8, texts=2, max_new_tokens=3),
    "small": Size(128, MT5_SMALL, batch_size=8, frames=64, texts=8, max_new_tokens=40),
    "base": Size(256, MT5_BASE, batch_size=16, frames=256, texts=30, max_new_tokens=40),
}
STAGES = (
    "clips from files", "clips from packs", "pose encoder", "mT5 encoder", "decoder and loss",
    "forward and backward", "reference form, forward and backward", "optimizer",
    "training step without texts", "training step, mixed lengths", "evaluation",
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
    add("--compile", action="store_true", help="compile the model as fine_tuning.py --compile does")
    add("--json", metavar="FILE", help="also write all figures there")
    add("--kernels", action="store_true", help="count a GPU's kernels instead, for bf16; needs no GPU and little time")
    args = parser.parse_args(argv)
    size = SIZES[args.size]
    args.batch_size = size.batch_size if args.batch_size is None else args.batch_size
    args.frames = size.frames if args.frames is None else args.frames
    parser.at_least(args, batch_size=1, frames=1, repeats=1, **({} if args.threads is None else {"threads": 1}))
    parser.refuse(cannot_be_written("--json", args.json or "", ".json"))
    if not any(stage.startswith(tuple(args.only)) for stage in STAGES):
        parser.error(f"--only {' '.join(args.only)}: no stage begins so; there are {', '.join(STAGES)}.")
    return args


if __name__ == "__main__":
    ARGS = parse_args()

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import MT5Config, MT5EncoderModel

from clips.batch import Sample, SrcInput, TgtInput, collate_fn, to_device
from clips.packs import write_pack
from config import DatasetSpec, ModelConfig
from datasets import S2T_Dataset
from models import IGNORE, Uni_Sign, tokens_before
from network.mt5 import MT5, run_encoder, use_fused_layers
from network.stgcn import REACH, ClipLayout, STGCNChain
from network.vocabulary import EOS, PAD, Tokenizer
from pose.keypoints import N_KEYPOINTS
from system.distributed import autocast
from text_fusion_modules import EncodesTexts, TextEncoder
from training.compiling import compile_parts
from training.loader import SEARCHED
from training.optimization import parameter_groups


@dataclass(frozen=True)
class Stage:
    """Work to measure, on a number of clips with a number of frames in all."""

    name: str
    work: Callable[[], object]
    clips: int
    frames: int
    trains: bool = False  # whether the work is a forward and a backward pass


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


class ReferenceForm:
    """The loss as it is usually written, with the same weights: padded clips, and mT5 as transformers has it.

    Clips are packed and unpacked around each chain, which Uni-Sign's code has no need of.
    """

    def __init__(self, model: Uni_Sign) -> None:
        self.model = model
        with torch.device("meta"):
            self.mt5 = MT5(model.mt5_model.config)
        self.mt5.load_state_dict(model.mt5_model.state_dict(keep_vars=True), assign=True)

    def loss(self, src_input: SrcInput, tgt_input: TgtInput) -> torch.Tensor:
        """Compute the loss of a batch."""
        model = self.model
        with mock.patch.object(STGCNChain, "forward", _usual_chain):
            pose = model.encode_pose(src_input)
        labels = model.labels(tgt_input["gt_sentence"]).to(pose.device)
        (prompt,) = model.embed(model.prompt())
        mask = F.pad(src_input["attention_mask"], (len(prompt), 0), value=1).to(pose.device)
        embeds = torch.cat([prompt.expand(len(pose), -1, -1), pose.to(prompt.dtype)], dim=1)
        decoder_input = tokens_before(labels)
        logits = self.mt5.train(model.training)(
            inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=decoder_input, use_cache=False
        ).logits
        smoothing = model.config.label_smoothing
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, label_smoothing=smoothing)


def _usual_chain(chain: STGCNChain, x: torch.Tensor, layout: ClipLayout) -> torch.Tensor:
    x = layout.unpack(x.transpose(0, 1)).permute(0, 3, 1, 2)  # (B, C, T, V)
    for block in chain.values():
        x = usual_block(block, x)
    return layout.pack(x.permute(0, 2, 3, 1)).transpose(0, 1)


def usual_block(block: Any, x: torch.Tensor) -> torch.Tensor:
    """Apply a block of graph convolutions as it is usually written, (B, C, T, V) -> (B, C', T, V)."""

    def convolve(x: torch.Tensor, conv: Any, padding: int = 0) -> torch.Tensor:
        return F.conv2d(x, conv.weight, conv.bias, padding=(padding, 0))

    def normalise(x: torch.Tensor, norm: Any) -> torch.Tensor:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training)

    parts, shortcut = block.gcn, x
    if block.residual:
        shortcut = normalise(convolve(x, block.residual[0]), block.residual[1])
    x = convolve(x, parts.conv).unflatten(1, (len(parts.A), -1))  # (B, K, C', T, V)
    x = normalise(torch.einsum("bkctv,kvw->bctw", x, parts.A), parts.bn).relu()
    if block.tcn:
        x = normalise(convolve(x, block.tcn[0], REACH), block.tcn[1])
    return (x + shortcut).relu()


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
    for pack, source in (("poses", poses), ("train", texts)):
        write_pack(packed / pack, ((path.name, path.read_bytes()) for path in source.iterdir()), str(source), labels)
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
    samples = [files[i] for i in range(len(files))]
    batch = len(samples), len(samples) * size.frames
    yield Stage("clips from files", lambda: [files[i] for i in range(len(files))], *batch)
    yield Stage("clips from packs", lambda: [packs[i] for i in range(len(packs))], *batch)
    for texts, stages in (("no", STAGES[2:-4]), ("frozen", STAGES[-4:-2]), ("trained", STAGES[-2:])):
        if any(stage.startswith(tuple(only)) for stage in stages):
            yield from Training(size, texts, samples, device, dtype).stages()
            gc.collect()  # the model


class Training:
    """A model, its optimizer and a batch; `texts` as in `make_model`."""

    def __init__(self, size: Size, texts: str, samples: list[Sample], device: torch.device, dtype: str) -> None:
        self.size, self.texts, self.samples, self.device = size, texts, samples, device
        self.precision = partial(autocast, dtype, device)
        self.model = make_model(size, texts).to(device).train()
        if size.compiled:
            compile_parts(self.model, device)
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
        if not self.size.compiled:
            reference = ReferenceForm(model)
            yield self.trained(
                "reference form, forward and backward", lambda: reference.loss(self.src_input, self.tgt_input)
            )
        self.loss().backward()  # leaves gradients for the optimizer
        yield self.stage("optimizer", self.optimizer.step)
        yield self.stage("training step without texts", self.step)
        n_clips, n_frames = len(self.samples), self.size.frames
        lengths = [-(-n_frames * (i + 1) // n_clips) for i in range(n_clips)]
        mixed = to_device(
            collate_fn([_first_frames(*pair) for pair in zip(self.samples, lengths, strict=True)])[0], self.device
        )
        yield Stage("training step, mixed lengths", lambda: self.step(mixed), n_clips, sum(lengths))
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

        return replace(self.stage(name, passes), trains=True)

    def loss(self, src_input: SrcInput | None = None) -> torch.Tensor:
        """Compute the loss of the batch, or of other clips with its sentences."""
        with self.precision():
            return self.model(src_input or self.src_input, self.tgt_input).loss

    def step(self, src_input: SrcInput | None = None) -> None:
        """Take a training step."""
        self.model.zero_grad(set_to_none=True)
        self.loss(src_input).backward()
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


def _first_frames(sample: Sample, n: int) -> Sample:
    poses: Any = {part: x[:n] for part, x in sample.pose_sample.items()}
    return sample._replace(pose_sample=poses, descriptions=None, has_description=None)


# -- measuring -------------------------------------------------------------------------------------------------------


class Meter:
    """Measures stages, several times each; by the wall's clock, or by this process's CPU time where others compute."""

    def __init__(self, device: torch.device, clock: str, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.now = time.process_time if clock == "cpu" else time.perf_counter

    def measure(self, stage: Stage, ceiling: float) -> dict[str, Any]:
        """Return the figures of a stage; `ceiling` is the most FLOP/s to expect."""
        with FlopCounterMode(display=False) as counter:  # also the warm-up
            stage.work()
        in_use, peak_mib = self.in_use(), self.peak(stage.work)
        runs = [self.seconds(stage.work) for _ in range(self.repeats)]
        seconds = statistics.median(runs)
        return {
            "stage": stage.name,
            "seconds": seconds,
            "spread": [min(runs), max(runs)],
            "clips_per_second": stage.clips / seconds,
            "frames_per_second": stage.frames / seconds,
            "in_use_mib": in_use,
            "peak_mib": peak_mib,
            "share_of_ceiling": counter.get_total_flops() / seconds / ceiling,
            **(self.trace(stage.work) if self.device.type == "cuda" else {}),
        }

    def trace(self, work: Callable[[], object]) -> dict[str, Any]:
        """Return what a GPU does in a run: kernels, their launches and seconds, and lines that wait for it."""
        on_gpu = self.device.type == "cuda"
        self.wait()
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                if on_gpu:
                    torch.cuda.set_sync_debug_mode("warn")
                work()
                if on_gpu:
                    torch.cuda.set_sync_debug_mode("default")
            self.wait()
        events = profiler.events() or ()
        kernels = [event for event in events if event.device_type == DeviceType.CUDA]
        waits = [warning for warning in told if "called a synchronizing" in str(warning.message)]
        return {
            "kernels": len(kernels),
            "launches": sum("LaunchKernel" in event.name for event in events),
            "busy_seconds": sum(event.time_range.elapsed_us() for event in kernels) / 1e6,
            "waits": Counter("/".join(Path(wait.filename).parts[-2:]) + f":{wait.lineno}" for wait in waits),
        }

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds of one run."""
        self.wait()
        begun = self.now()
        work()
        self.wait()
        return self.now() - begun

    def peak(self, work: Callable[[], object]) -> float | None:
        """Return the peak MiB of a run beyond the memory in use before; None if the system cannot tell."""
        gc.collect()
        self.wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = self.in_use() or 0.0
            work()
            return torch.cuda.max_memory_allocated(self.device) / 2**20 - before
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise memory freed earlier would hide what this run allocates
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak (VmHWM)
            before = _status_mib("VmRSS")
            work()
            return _status_mib("VmHWM") - before
        except (OSError, AttributeError):
            return None

    def in_use(self) -> float | None:
        """Return the MiB of tensors on a GPU."""
        return torch.cuda.memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else None

    def wait(self) -> None:
        """Synchronise with the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ceiling(self, dtype: str) -> float:
        """Return the FLOP/s of a large matrix product on this device."""
        n = 8192 if self.device.type == "cuda" else 1024
        a = torch.randn(n, n, device=self.device, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
        return 2.0 * n**3 / min(self.seconds(lambda: a @ a) for _ in range(8))


def _status_mib(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


# -- counting kernels ------------------------------------------------------------------------------------------------

# The number of kernels depends on layers and branches, not on widths: these are small, so that counting takes seconds.
NARROW = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4}
NO_KERNELS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "promote_types")


class KernelCounter(TorchDispatchMode):
    """Counts operations that are neither views nor allocations: on a GPU, each is a kernel or a few.

    Operations that a GPU has in one piece and a CPU has not are counted as a GPU has them: attention and the norm once
    in each direction, dropout too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.n, self.counting = 0, True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and call an operation."""
        self.n += self.counting and not (func.is_view or func.overloadpacket.__name__ in NO_KERNELS)
        return func(*args, **kwargs or {})

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Count whatever happens as one kernel."""
        self.n, self.counting = self.n + 1, False
        yield
        self.counting = True

    def count(self, work: Callable[[], object]) -> int:
        """Return the number of kernels of some work."""
        self.n = 0
        with self, _AsOnGPU(self):
            work()
        return self.n


def count_kernels(size: Size, only: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield each stage of training whose name begins so, and the kernels of its forward and backward pass in bf16."""
    narrow, cpu = replace(size, hidden_dim=16, mt5=size.mt5 | NARROW), torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        for stage in all_stages(narrow, Path(folder), cpu, "bf16", only):
            if stage.trains and stage.name.startswith(tuple(only)):
                yield stage.name, KernelCounter().count(stage.work)


class _AsOnGPU(TorchFunctionMode):
    """Calls some functions of torch as a GPU runs them."""

    def __init__(self, counter: KernelCounter) -> None:
        super().__init__()
        self.counter = counter
        self.replaced = {
            F.dropout: self._dropout,
            F.rms_norm: self._rms_norm,
            F.scaled_dot_product_attention: self._attend,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.replaced.get(func, func)(*args, **kwargs or {})

    def _dropout(self, x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        return torch.native_dropout(x, p, training)[0]

    def _rms_norm(self, x: torch.Tensor, shape: Any, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return _OneKernel.apply(self.counter, lambda x, weight: F.rms_norm(x, shape, weight, eps), x, weight)

    def _attend(self, *inputs: Any, attn_mask: Any = None, dropout_p: float = 0.0, **options: Any) -> torch.Tensor:
        given = [x for x in (*inputs, attn_mask) if isinstance(x, torch.Tensor)]  # the rest is dropout
        if torch.is_autocast_enabled("cpu"):
            given = [x.to(torch.get_autocast_dtype("cpu")) if x.is_floating_point() else x for x in given]

        def attend(*given: Any) -> torch.Tensor:
            out = F.scaled_dot_product_attention(*given, **options)
            return out.transpose(1, 2).contiguous().transpose(1, 2)  # it lies in memory as (B, L, H, D / H)

        return _OneKernel.apply(self.counter, attend, *given)


class _OneKernel(torch.autograd.Function):
    """A function of tensors as one kernel forward and one backward."""

    @staticmethod
    def forward(ctx: Any, counter: KernelCounter, function: Callable, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.counter, ctx.inputs = counter, [x.detach().requires_grad_(x.requires_grad) for x in inputs]
        with counter.one(), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            ctx.out = function(*ctx.inputs)
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with ctx.counter.one():
            gradients = iter(torch.autograd.grad(ctx.out, [x for x in ctx.inputs if x.requires_grad], grad))
        return None, None, *(next(gradients) if x.requires_grad else None for x in ctx.inputs)


# -- the table -------------------------------------------------------------------------------------------------------

# Heading, key in a row of figures, factor, format.
COLUMNS = (
    ("ms", "seconds", 1000, ",.1f"),
    ("clips/s", "clips_per_second", 1, ",.1f"),
    ("frames/s", "frames_per_second", 1, ",.0f"),
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
    size = replace(size, batch_size=args.batch_size, frames=args.frames, compiled=args.compile)
    if args.kernels:
        sys.stdout.write(table_line("stage", "kernels") + table_line("---", "---"))
        for name, kernels in count_kernels(size, args.only):
            sys.stdout.write(table_line(name, f"{kernels:,}"))
            sys.stdout.flush()
        return
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
