"""Benchmark each stage of training and evaluation, optionally against a reference implementation.

    python benchmark.py --size small --compare
    python benchmark.py --size base --batch-size 16 --frames 256 --compare --json results.json

Batches are synthetic with realistic shapes; mT5 has random weights, and nothing is downloaded. Every figure is a median
after one warm-up run. With --compare, `benchmark_reference.py` and our implementation alternate in one process: their
ratio is the result, since absolute times vary between machines and over time.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import pickle
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import benchmark_reference as reference
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MT5Config, MT5EncoderModel, MT5ForConditionalGeneration

from batch import Sample, collate_fn, to_device
from cli import Parser, run
from config import DatasetSpec, ModelConfig
from datasets import SEARCHED, BatchSampler, S2T_Dataset
from distributed import autocast
from models import Uni_Sign
from mt5 import run_encoder, untie_embeddings, use_fused_activation
from optimization import parameter_groups
from packed import POSES, pack_pose, write_pack
from pose import N_KEYPOINTS, PART_JOINTS, normalize_keypoints
from text_fusion_modules import EncodesTexts, TextEncoder
from tokenizer import EOS, PAD, Tokenizer

NAMES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
MT5_BASE: dict[str, Any] = dict(zip(NAMES, (250_112, 768, 64, 2048, 12, 12), strict=True))
MT5_SMALL: dict[str, Any] = dict(zip(NAMES, (32_000, 256, 32, 512, 3, 8), strict=True))
# CSL-Daily: 2.5 million frames in 20,654 clips. The spread of clip lengths is not published; that of its sentence
# lengths in characters is used (standard deviation of the logarithm).
MEAN_FRAMES, SPREAD, MOST_FRAMES = 121, 0.34, 256
ENDING = 14  # factor for the row of </s>, so that most sentences of the small model have 10 to 20 tokens, the others 40
MT5_TINY: dict[str, Any] = dict(zip(NAMES, (500, 32, 8, 48, 1, 2), strict=True))


@dataclass(frozen=True)
class Size:
    """The size of the model, and the default size of the batch."""

    mt5: dict[str, Any]
    hidden_dim: int
    batch_size: int
    frames: int
    texts: int  # distinct descriptions per clip
    new_tokens: int  # maximum length of a generated sentence


SIZES = {
    "tiny": Size(MT5_TINY, 16, 2, 8, 2, 3),
    "small": Size(MT5_SMALL, 128, 8, 64, 8, 40),
    "base": Size(MT5_BASE, 256, 16, 256, 30, 40),
}


@dataclass
class Form:
    """The measurements of one implementation of a stage."""

    seconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None
    flops: float = 0.0

    @property
    def median(self) -> float:
        """Return the median seconds of a run."""
        return statistics.median(self.seconds)


@dataclass
class Stage:
    """A stage to measure: `ours` and `reference` do the same work, on so many `clips` and `frames`."""

    name: str
    ours: Callable[[], Any]
    reference: Callable[[], Any] | None
    clips: int
    frames: int


class Words(Tokenizer):
    """A replacement for mT5's tokenizer: each word is a token."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.kept = vocab_size, None

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Return ids that depend on the words only, in every process."""
        ids = [3 + int.from_bytes(word.encode()[-6:], "little") % (self.vocab_size - 3) for word in text.split()]
        return [*ids[: max_tokens - 1], EOS]

    def decode(self, ids: Any) -> str:
        """Return the ids up to the first </s> as text."""
        kept = []
        for token in ids:
            if token == EOS:
                break
            kept.append(str(token))
        return " ".join(word for word in kept if word != str(PAD))


class RandomTextEncoder(TextEncoder):
    """A text encoder with mT5's architecture that needs no files."""

    def __init__(self, config: MT5Config, tokenizer: Tokenizer) -> None:
        torch.nn.Module.__init__(self)
        self.max_tokens, self.width = 128, config.d_model
        self.encoder = MT5EncoderModel(copy.deepcopy(config))  # it modifies its config
        self._tokenize = tokenizer.encode_batch
        use_fused_activation(self.encoder)


class RandomFeatures:
    """Replaces the feature cache of a frozen text encoder."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return random features for n texts, (n, W)."""
        return torch.randn(len(texts), self.width)


# -- what is measured ------------------------------------------------------------------------------------------------


def make_model(size: Size, described: bool, device: torch.device, frozen: bool = False) -> Uni_Sign:
    """Return a model with random weights, in training mode; its text encoder, if any, is trained or cached."""
    torch.manual_seed(0)
    config = MT5Config(**size.mt5, dropout_rate=0.1, decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS)
    tokenizer = Words(size.mt5["vocab_size"])
    mt5 = untie_embeddings(MT5ForConditionalGeneration(config))
    mt5.lm_head.weight.data.mul_(0.02)  # like a trained one; otherwise the first loss is about 50
    texts: EncodesTexts | None = None
    if described:
        texts = RandomFeatures(config.d_model) if frozen else RandomTextEncoder(config, tokenizer)
    model_config = ModelConfig(hidden_dim=size.hidden_dim, use_descriptions=described, text_dropout_p=0.0)
    return Uni_Sign(model_config, mt5, tokenizer, texts).to(device).train()


def clip_lengths(n: int, most: int) -> np.ndarray:
    """Draw n clip lengths like those of CSL-Daily, (n,), scaled to a maximum of `most` frames."""
    drawn = np.random.default_rng(0).lognormal(np.log(MEAN_FRAMES) - SPREAD**2 / 2, SPREAD, n)
    return np.ceil(drawn.clip(max=MOST_FRAMES) / MOST_FRAMES * most).astype(int)


def make_samples(lengths: Sequence[int] | np.ndarray, texts: int) -> list[Sample]:
    """Return clips of the given lengths with random content."""
    rng = np.random.default_rng(0)
    samples = []
    for i, length in enumerate(np.asarray(lengths).tolist()):
        pose = {
            part: torch.from_numpy(rng.uniform(-1, 1, (length, len(joints), 3)).astype(np.float32))
            for part, joints in PART_JOINTS.items()
        }
        words = rng.integers(10**5, 10**6, size=(texts, 25)).astype(str)
        described: list[str | None] = [" ".join(words[t * texts // length]) for t in range(length)]
        target = " ".join(rng.integers(10**5, 10**6, size=rng.integers(8, 33)).astype(str))
        samples.append(Sample(f"clip{i}", pose, target, "", {}, described, [1] * length))
    return samples


def stages_of_loading(folder: Path, frames: int, samples: list[Sample]) -> Iterator[Stage]:
    """Yield the stages from files to a batch, one clip at a time, as in a data worker."""
    rng = np.random.default_rng(0)
    n = 16
    labels = {}
    clips = []
    for i in range(n):
        keypoints = rng.uniform(0, 1, (frames, 1, N_KEYPOINTS, 2))
        scores = rng.uniform(0, 1, (frames, 1, N_KEYPOINTS)).astype(np.float32)
        with open(folder / f"clip{i}.pkl", "wb") as file:
            pickle.dump({"keypoints": list(keypoints), "scores": list(scores)}, file)
        labels[f"clip{i}"] = {"video": f"clip{i}.mp4", "pose": f"clip{i}.pkl", "text": "a sentence"}
        clips.append((keypoints[:, 0], scores[:, 0]))
    (folder / "labels.json").write_text(json.dumps(list(labels.values())))
    spec = DatasetSpec("benchmark", {"train": str(folder / "labels.json")}, str(folder))
    dataset = S2T_Dataset(spec, "train", max_length=frames)

    def load(path: Path) -> dict[str, np.ndarray]:
        with open(path, "rb") as file:
            content = pickle.load(file)
        return reference.normalize_keypoints(np.concatenate(content["keypoints"]), np.concatenate(content["scores"]))

    yield Stage(
        "normalisation",
        lambda: [normalize_keypoints(*clip) for clip in clips],
        lambda: [reference.normalize_keypoints(*clip) for clip in clips],
        n,
        n * frames,
    )
    yield Stage(
        "clip from .pkl",
        lambda: [dataset[i] for i in range(n)],
        lambda: [load(folder / f"clip{i}.pkl") for i in range(n)],
        n,
        n * frames,
    )
    contents = filter(None, (pack_pose((str(folder), f"{name}.pkl")) for name in labels))
    write_pack(folder / "pack", POSES, str(folder), contents)
    packed = S2T_Dataset(replace(spec, pose_dir=str(folder / "pack")), "train", max_length=frames)
    yield Stage(
        "clip from a pack",
        lambda: [packed[i] for i in range(n)],
        lambda: [load(folder / f"clip{i}.pkl") for i in range(n)],
        n,
        n * frames,
    )
    arrays = [{part: x.numpy() for part, x in sample.pose_sample.items()} for sample in samples]
    total = sum(len(sample.pose_sample["body"]) for sample in samples)
    yield Stage("collation", lambda: collate_fn(samples), lambda: reference.collate(arrays), len(samples), total)


class Training:
    """The stages of a training step, on one batch.

    Args:
        size: the model's size.
        samples: the clips of the batch.
        described: whether to use descriptions.
        frozen: whether their encoder is frozen.
        device: the device.
        dtype: precision of matrix products.
    """

    def __init__(
        self, size: Size, samples: list[Sample], device: torch.device, dtype: str, described: bool, frozen: bool = False
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.model = make_model(size, described, device, frozen)
        self.reference = reference.ReferenceModel(self.model).train()
        self.src_input, self.tgt_input = collate_fn(samples)
        self.src_input = to_device(self.src_input, device)
        self.on_device = {**self.src_input, "attention_mask": self.src_input["attention_mask"].to(device)}
        # Two, since the fused one keeps step counts on the device, where the other would synchronise for each.
        options: dict[bool, dict[str, Any]] = {True: {"fused": True}, False: {"foreach": device.type == "cuda"}}
        self.optimizers = {
            fused: torch.optim.AdamW(parameter_groups(self.model, 1e-4), lr=1e-5, **kind)
            for fused, kind in options.items()
        }
        self.clips, self.frames = len(samples), int(self.src_input["attention_mask"].sum())
        with torch.no_grad(), self.precision():
            pose = self.model.encode_pose(self.src_input)
            self.pose = pose.float()
            embeds, self.mask = self.model.prepend_prompt(self.pose, self.src_input["attention_mask"])
            self.embeds = embeds.float()
            self.states = run_encoder(self.model.mt5_model.encoder, self.embeds, self.mask).float()

    def precision(self) -> torch.autocast:
        """Return autocast with the measured precision."""
        return autocast(self.dtype, self.device)

    def both_ways(self, forward: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Callable[[], None]:
        """Return a function that runs a forward and a backward pass, with gradients for the inputs."""

        def passes() -> None:
            leaves = [x.detach().requires_grad_() for x in inputs]
            with self.precision():
                out = forward(*leaves)
            (out if out.ndim == 0 else out.float().mean()).backward()
            self.model.zero_grad(set_to_none=True)

        return passes

    def stage(
        self, name: str, ours: Callable[..., torch.Tensor], other: Callable[..., torch.Tensor], *inputs: torch.Tensor
    ) -> Stage:
        """Return a stage of forward and backward pass."""
        return Stage(name, self.both_ways(ours, *inputs), self.both_ways(other, *inputs), self.clips, self.frames)

    def stages(self) -> Iterator[Stage]:
        """Yield the stages of the pose-only training step."""
        ours, other, mt5 = self.model, self.reference, self.model.mt5_model
        labels = ours.labels(self.tgt_input["gt_sentence"])
        src: Any = self.on_device
        yield self.stage("pose encoder", lambda: ours.encode_pose(self.src_input), lambda: other.encode_pose(src))
        yield self.stage(
            "mT5 encoder",
            lambda x: run_encoder(mt5.encoder, x, self.mask),
            lambda x: other.encode(x, self.mask),
            self.embeds,
        )
        yield self.stage(
            "decoder and loss",
            lambda x: ours.target_loss(x, self.mask, self.tgt_input["gt_sentence"])[0],
            lambda x: other.loss(x, self.mask, labels),
            self.states,
        )
        yield self.stage(
            "forward and backward",
            lambda: ours(self.src_input, self.tgt_input).loss,
            lambda: other(src, self.tgt_input),
        )
        yield Stage("optimizer", self.step(True), self.step(False), self.clips, self.frames)
        yield Stage("training step", self.whole(True), self.whole(False), self.clips, self.frames)

    def described_stages(self, pose_only: Training) -> Iterator[Stage]:
        """Yield the stages of the step with descriptions, compared with the pose-only step."""
        # Only the first clip: with one encoder call per frame, a batch would take minutes.
        fields = ("descriptions", "has_description")
        texts: Any = self.src_input
        src: Any = {**self.on_device, **{key: texts[key][:1] for key in fields}}
        ours = self.both_ways(lambda x: self.model.fuse_text(x, src)[0], self.pose[:1])
        other = self.both_ways(lambda x: self.reference.fuse_text(x, src), self.pose[:1])
        yield Stage("text branch, one clip", ours, other, 1, self.pose.shape[1])
        yield Stage("step with trained texts", self.whole(True), pose_only.whole(True), self.clips, self.frames)

    def step(self, fused: bool) -> Callable[[], None]:
        """Return a function that takes an optimizer step with existing gradients."""

        def take() -> None:
            for parameter in self.model.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.optimizers[fused].step()

        return take

    def whole(self, fast: bool, batches: Sequence[tuple[Any, Any]] = ()) -> Callable[[], None]:
        """Return a function for full training steps on the batches (default: this object's batch)."""
        batches = batches or [(self.src_input if fast else self.on_device, self.tgt_input)]
        step = self.step(fast)

        def train() -> None:
            for src_input, tgt_input in batches:
                self.model.zero_grad(set_to_none=True)
                with self.precision():
                    ours, other = self.model, self.reference
                    loss = ours(src_input, tgt_input).loss if fast else other(src_input, tgt_input)
                loss.backward()
                step()

        return train

    def split_stages(
        self, samples: list[Sample], batch_size: int, new_tokens: int, num_beams: int = 4
    ) -> Iterator[Stage]:
        """Yield stages with clips of unequal length: an evaluation (losses and sentences), and training steps.

        Ours groups clips by length, as in a real run; the reference takes clips in their order, like Uni-Sign, and
        processes the padding. With random weights no sentence would end, so the evaluation scales up the row of </s>
        in both.
        """
        lengths = np.array([len(sample.pose_sample["body"]) for sample in samples])
        n, n_frames = len(samples), int(lengths.sum())

        def batches(size: int, grouped: bool, seed: int | None = None) -> list[tuple[Any, Any]]:
            sampler = BatchSampler(n, size, 0, 1, seed=seed, lengths=lengths if grouped else None)
            collated = []
            for clips in sampler.batches():
                src_input, tgt_input = collate_fn([samples[clip] for clip in clips])
                src_input = to_device(src_input, self.device)
                if not grouped:
                    src_input["attention_mask"] = src_input["attention_mask"].to(self.device)
                collated.append((src_input, tgt_input))
            return collated

        large, as_they_come = batches(SEARCHED * batch_size, True), batches(batch_size, False)

        @torch.no_grad()
        def evaluate() -> None:
            for src_input, tgt_input in large:
                with self.precision():
                    output = self.model(src_input, tgt_input)
                    ids = self.model.generate(output, num_beams, new_tokens)
                self.model.sentences(ids)

        def evaluate_plainly() -> None:
            with self.precision():
                self.reference.evaluate(as_they_come, num_beams, new_tokens)

        row = self.model.mt5_model.lm_head.weight.data[EOS]
        row *= ENDING
        self.reference.eval()  # also the model, which is its submodule
        yield Stage(f"evaluation, beam {num_beams}, clips of unequal length", evaluate, evaluate_plainly, n, n_frames)
        self.reference.train()
        row /= ENDING
        ours = self.whole(True, batches(batch_size, True, seed=0))
        other = self.whole(False, batches(batch_size, False, seed=0))
        yield Stage("training steps, clips of unequal length", ours, other, n, n_frames)


# -- measuring -------------------------------------------------------------------------------------------------------


class Meter:
    """Measures time, memory and operations.

    Args:
        device: the device.
        clock: "wall", or "cpu" for this process's CPU time, for a machine with other load.
        repeats: runs of each implementation.
    """

    def __init__(self, device: torch.device, clock: str, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.now = time.process_time if clock == "cpu" else time.perf_counter

    def measure(self, stage: Stage, compare: bool) -> tuple[Form, Form | None]:
        """Measure ours and, with `compare`, the reference: one warm-up run each, then alternating."""
        forms = [(stage.ours, Form())]
        if compare and stage.reference is not None:
            forms.append((stage.reference, Form()))
        with FlopCounterMode(display=False) as counter:
            stage.ours()
        forms[0][1].flops = float(counter.get_total_flops())
        for work, form in forms:
            form.peak_mib = self.peak(work)
        for _ in range(self.repeats):
            for work, form in forms:
                form.seconds.append(self.seconds(work))
        return forms[0][1], forms[1][1] if len(forms) > 1 else None

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return the seconds of one run."""
        self.wait()
        begun = self.now()
        work()
        self.wait()
        return self.now() - begun

    def peak(self, work: Callable[[], Any]) -> float | None:
        """Return the peak MiB of a run beyond the memory in use before; None if the system cannot tell."""
        gc.collect()
        self.wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before: float = torch.cuda.memory_allocated(self.device)
            work()
            self.wait()
            return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise memory freed earlier would hide what this run allocates
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak (VmHWM)
            before = _status_mib("VmRSS")
            work()
            return _status_mib("VmHWM") - before
        except (OSError, AttributeError):
            return None

    def wait(self) -> None:
        """Synchronise with the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ceiling(self, kind: torch.dtype | None) -> float:
        """Return the maximum FLOP/s of a large matrix product on this device."""
        n = 8192 if self.device.type == "cuda" else 1024
        a = torch.randn(n, n, device=self.device, dtype=kind or torch.float32)
        return 2.0 * float(n) ** 3 / min(self.seconds(lambda: a @ a) for _ in range(8))


def _status_mib(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def rows_of(stage: Stage, ours: Form, other: Form | None, ceiling: float) -> dict[str, Any]:
    """Return the figures of a stage for the JSON file."""
    row: dict[str, Any] = {
        "stage": stage.name,
        "seconds": ours.median,
        "spread": [min(ours.seconds), max(ours.seconds)],
        "clips_per_second": stage.clips / ours.median,
        "frames_per_second": stage.frames / ours.median,
        "peak_mib": ours.peak_mib,
        "share_of_ceiling": ours.flops / ours.median / ceiling,
    }
    if other is not None:
        row |= {
            "reference_seconds": other.median,
            "reference_spread": [min(other.seconds), max(other.seconds)],
            "reference_peak_mib": other.peak_mib,
            "ratio": other.median / ours.median,
            "memory_ratio": other.peak_mib / ours.peak_mib if other.peak_mib and ours.peak_mib else None,
        }
    return row


HEAD = ("stage", "ours ms", "reference ms", "ratio", "clips/s", "frames/s", "peak MiB", "reference MiB", "of ceiling")


def line_of(row: dict[str, Any]) -> str:
    """Format a line of the table."""

    def number(key: str, scale: float = 1, form: str = ",.0f") -> str:
        return format(row[key] * scale, form) if row.get(key) is not None else "-"

    cells = [
        row["stage"],
        number("seconds", 1e3, ",.1f"),
        number("reference_seconds", 1e3, ",.1f"),
        number("ratio", form=".2f"),
        number("clips_per_second", form=",.1f"),
        number("frames_per_second"),
        number("peak_mib"),
        number("reference_peak_mib"),
        number("share_of_ceiling", 100, ".0f") + " %",
    ]
    return f"| {' | '.join(cells)} |"


def get_args_parser() -> Parser:
    """Build the command line."""
    parser = Parser(description="Measure each stage of training and evaluation.")
    add = parser.add_argument
    add("--size", default="small", choices=SIZES, help="base: mt5-base and the released pose encoder; default: small")
    add("--compare", action="store_true", help="also run the straightforward form of each stage, and give the ratio")
    add("--only", nargs="+", default=[], metavar="STAGE", help="stages whose name begins so; default: all")
    add("--batch-size", type=int, help="clips of a batch; default: that of the size")
    add("--frames", type=int, help="frames of a clip, of the longest where they differ; default: that of the size")
    add("--dtype", choices=("bf16", "fp32"), help="of matrix products; default: bf16 on a GPU, fp32 on a CPU")
    add("--repeats", type=int, default=5, help="runs of each form; default: 5")
    add("--clock", default="wall", choices=("wall", "cpu"), help="cpu: the time of this process, where others compute")
    add("--threads", type=int, help="of torch on a CPU")
    add("--json", metavar="FILE", help="also write all figures there")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmarks of the command line and print a table."""
    args = get_args_parser().parse_args(argv)
    size = SIZES[args.size]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = args.dtype or ("bf16" if device.type == "cuda" else "fp32")
    meter = Meter(device, args.clock, args.repeats)
    ceiling = meter.ceiling(torch.bfloat16 if dtype == "bf16" else None)
    batch_size, frames = args.batch_size or size.batch_size, args.frames or size.frames
    facts = {
        **{key: value for key, value in vars(args).items() if key != "json"},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "ceiling_tflops": ceiling / 1e12,
        "dtype": dtype,
        "batch_size": batch_size,
        "frames": frames,
        "model": asdict(size),
    }
    shown = ("device", "torch", "threads", "size", "batch_size", "frames", "dtype", "clock", "repeats")
    sys.stdout.write(", ".join(f"{key} {facts[key]}" for key in shown) + f", ceiling {ceiling / 1e12:.3g} TFLOP/s\n\n")
    sys.stdout.write(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in all_stages(size, batch_size, frames, device, dtype, folder):
            if args.only and not stage.name.startswith(tuple(args.only)):
                continue
            ours, other = meter.measure(stage, args.compare)
            rows.append(rows_of(stage, ours, other, ceiling))
            sys.stdout.write(line_of(rows[-1]) + "\n")
            sys.stdout.flush()
    if args.json:
        Path(args.json).write_text(json.dumps({"run": facts, "stages": rows}, indent=1) + "\n", encoding="utf-8")


def all_stages(
    size: Size, batch_size: int, frames: int, device: torch.device, dtype: str, folder: str
) -> Iterator[Stage]:
    """Yield all stages in pipeline order; models are built when needed."""
    samples = make_samples([frames] * batch_size, size.texts)  # no padding, which would favour ours
    yield from stages_of_loading(Path(folder), frames, samples)
    training = Training(size, samples, device, dtype, described=False)
    split = make_samples(clip_lengths(SEARCHED * batch_size, frames), size.texts)
    yield from training.split_stages(split, batch_size, size.new_tokens)
    yield from training.stages()
    frozen = Training(size, samples, device, dtype, described=True, frozen=True)
    yield Stage("step with frozen texts", frozen.whole(True), training.whole(True), frozen.clips, frozen.frames)
    del frozen
    gc.collect()
    yield from Training(size, samples, device, dtype, described=True).described_stages(training)


if __name__ == "__main__":
    run(main)
