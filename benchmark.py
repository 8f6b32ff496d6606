"""Measure each stage of training and evaluation, alone and against its straightforward form.

    python benchmark.py --size small --compare
    python benchmark.py --size base --batch-size 16 --frames 256 --compare --json results.json

Batches are made up, with the shapes of real ones; mT5 gets random weights from its configuration, and nothing is
downloaded. Every figure is a median after one run to warm up. With --compare the form in `benchmark_reference.py` is
run in turn with ours, in the same process: the ratio of the two is the result, for times alone differ from one machine
and one minute to the next.
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

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MT5Config, MT5EncoderModel, MT5ForConditionalGeneration

import benchmark_reference as reference
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
# Clips of CSL-Daily: 2.5 million frames in 20,654 clips. How far the lengths of clips differ is not published; taken is
# what its sentences differ by, in characters (standard deviation of the logarithm).
MEAN_FRAMES, SPREAD, MOST_FRAMES = 121, 0.34, 256
ENDING = 14  # times the row of </s>: of the small model's sentences most then have 10 to 20 tokens, the others 40
MT5_TINY: dict[str, Any] = dict(zip(NAMES, (500, 32, 8, 48, 1, 2), strict=True))


@dataclass(frozen=True)
class Size:
    """What is measured: the model, and the batch where the command line does not say otherwise."""

    mt5: dict[str, Any]
    hidden_dim: int
    batch_size: int
    frames: int
    texts: int  # distinct descriptions of a clip
    new_tokens: int  # of a sentence that is searched


SIZES = {
    "tiny": Size(MT5_TINY, 16, 2, 8, 2, 3),
    "small": Size(MT5_SMALL, 128, 8, 64, 8, 40),
    "base": Size(MT5_BASE, 256, 16, 256, 30, 40),
}


@dataclass
class Form:
    """What one form of a stage took."""

    seconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None
    flops: float = 0.0

    @property
    def median(self) -> float:
        """Seconds of a run."""
        return statistics.median(self.seconds)


@dataclass
class Stage:
    """A stage to measure: `ours` and `reference` do the same work; `clips` and `frames` say how much it is."""

    name: str
    ours: Callable[[], Any]
    reference: Callable[[], Any] | None
    clips: int
    frames: int


class Words(Tokenizer):
    """A stand-in for mT5's tokenizer: a word is a token."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.kept = vocab_size, None

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """The same ids for the same words, in every process."""
        ids = [3 + int.from_bytes(word.encode()[-6:], "little") % (self.vocab_size - 3) for word in text.split()]
        return [*ids[: max_tokens - 1], EOS]

    def decode(self, ids: Any) -> str:
        """Ids up to the first </s>, as text."""
        kept = []
        for token in ids:
            if token == EOS:
                break
            kept.append(str(token))
        return " ".join(word for word in kept if word != str(PAD))


class RandomTextEncoder(TextEncoder):
    """A text encoder of mT5's shape that needs no files."""

    def __init__(self, config: MT5Config, tokenizer: Tokenizer) -> None:
        torch.nn.Module.__init__(self)
        self.max_tokens, self.width = 128, config.d_model
        self.encoder = MT5EncoderModel(copy.deepcopy(config))  # it changes its config
        self._tokenize = tokenizer.encode_batch
        use_fused_activation(self.encoder)


class RandomFeatures:
    """Stands in for the cache of a frozen text encoder."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """n texts -> (n, W)."""
        return torch.randn(len(texts), self.width)


# -- what is measured ------------------------------------------------------------------------------------------------


def make_model(size: Size, described: bool, device: torch.device, frozen: bool = False) -> Uni_Sign:
    """A model with random weights, in training; with descriptions their encoder trains, or is frozen and cached."""
    torch.manual_seed(0)
    config = MT5Config(**size.mt5, dropout_rate=0.1, decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS)
    tokenizer = Words(size.mt5["vocab_size"])
    mt5 = untie_embeddings(MT5ForConditionalGeneration(config))
    mt5.lm_head.weight.data.mul_(0.02)  # as a trained one: otherwise the first loss is about 50
    texts: EncodesTexts | None = None
    if described:
        texts = RandomFeatures(config.d_model) if frozen else RandomTextEncoder(config, tokenizer)
    model_config = ModelConfig(hidden_dim=size.hidden_dim, use_descriptions=described, text_dropout_p=0.0)
    return Uni_Sign(model_config, mt5, tokenizer, texts).to(device).train()


def clip_lengths(n: int, most: int) -> np.ndarray:
    """Lengths of n clips as of CSL-Daily, (n,), scaled so that the longest that there may be has `most` frames."""
    drawn = np.random.default_rng(0).lognormal(np.log(MEAN_FRAMES) - SPREAD**2 / 2, SPREAD, n)
    return np.ceil(drawn.clip(max=MOST_FRAMES) / MOST_FRAMES * most).astype(int)


def make_samples(lengths: Sequence[int] | np.ndarray, texts: int) -> list[Sample]:
    """Clips of so many frames, with random content."""
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
    """From files to a batch; one clip at a time, as a loader's worker works."""
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
        size: of the model.
        samples: of the batch.
        described: with descriptions.
        frozen: their encoder does not train.
        device: where to compute.
        dtype: of matrix products.
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
        # Two, for a fused one keeps its numbers of steps where the other would have to wait for each.
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
        """Matrix products in the precision that is measured."""
        return autocast(self.dtype, self.device)

    def both_ways(self, forward: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Callable[[], None]:
        """A forward and backward pass, from inputs that want a gradient."""

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
        """A stage of forward and backward pass."""
        return Stage(name, self.both_ways(ours, *inputs), self.both_ways(other, *inputs), self.clips, self.frames)

    def stages(self) -> Iterator[Stage]:
        """Of the pose-only step."""
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
        """Of the step with descriptions, which is compared with that without."""
        # Of the first clip alone: with a call for each frame a batch would take minutes.
        fields = ("descriptions", "has_description")
        texts: Any = self.src_input
        src: Any = {**self.on_device, **{key: texts[key][:1] for key in fields}}
        ours = self.both_ways(lambda x: self.model.fuse_text(x, src)[0], self.pose[:1])
        other = self.both_ways(lambda x: self.reference.fuse_text(x, src), self.pose[:1])
        yield Stage("text branch, one clip", ours, other, 1, self.pose.shape[1])
        yield Stage("step with trained texts", self.whole(True), pose_only.whole(True), self.clips, self.frames)

    def step(self, fused: bool) -> Callable[[], None]:
        """The optimizer's step; gradients are there already."""

        def take() -> None:
            for parameter in self.model.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.optimizers[fused].step()

        return take

    def whole(self, fast: bool, batches: Sequence[tuple[Any, Any]] = ()) -> Callable[[], None]:
        """Training steps, on each of the batches or on that of this object: forward, backward, optimizer."""
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
        """Of clips of unequal length: an evaluation, losses and sentences, and training steps.

        Ours has batches of clips of like length, as a run has; the reference form takes clips as they come, as Uni-Sign
        does, and computes what they are padded with. With random weights no sentence would end: for the evaluation the
        row of </s> is made larger, for both forms.
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
        self.reference.eval()  # and the model, which it holds
        yield Stage(f"evaluation, beam {num_beams}, clips of unequal length", evaluate, evaluate_plainly, n, n_frames)
        self.reference.train()
        row /= ENDING
        ours = self.whole(True, batches(batch_size, True, seed=0))
        other = self.whole(False, batches(batch_size, False, seed=0))
        yield Stage("training steps, clips of unequal length", ours, other, n, n_frames)


# -- measuring -------------------------------------------------------------------------------------------------------


class Meter:
    """Times, memory and operations.

    Args:
        device: that computes.
        clock: "wall", or "cpu" for the time of this process alone, on a machine that has other work.
        repeats: runs of each form.
    """

    def __init__(self, device: torch.device, clock: str, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.now = time.process_time if clock == "cpu" else time.perf_counter

    def measure(self, stage: Stage, compare: bool) -> tuple[Form, Form | None]:
        """Ours and, to compare, the reference form: once to warm up, then in turn."""
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
        """How long a run takes."""
        self.wait()
        begun = self.now()
        work()
        self.wait()
        return self.now() - begun

    def peak(self, work: Callable[[], Any]) -> float | None:
        """MiB that a run needs at most, beyond what is there before it; None where the system does not tell."""
        gc.collect()
        self.wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before: float = torch.cuda.memory_allocated(self.device)
            work()
            self.wait()
            return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # or what an earlier run has freed would hide what this one takes
            Path("/proc/self/clear_refs").write_text("5")  # the highest mark is now where we stand
            before = _status_mib("VmRSS")
            work()
            return _status_mib("VmHWM") - before
        except (OSError, AttributeError):
            return None

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ceiling(self, kind: torch.dtype | None) -> float:
        """The most operations a second that a large matrix product reaches here."""
        n = 8192 if self.device.type == "cuda" else 1024
        a = torch.randn(n, n, device=self.device, dtype=kind or torch.float32)
        return 2.0 * float(n) ** 3 / min(self.seconds(lambda: a @ a) for _ in range(8))


def _status_mib(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def rows_of(stage: Stage, ours: Form, other: Form | None, ceiling: float) -> dict[str, Any]:
    """The figures of a stage, as they are written to the JSON file."""
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
    """A line of the table."""

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
    """Measure what the command line asks for; print a table."""
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
    """Every stage, in the order in which a clip meets them; a model is made when its stages are reached."""
    samples = make_samples([frames] * batch_size, size.texts)  # no padding: it would flatter us
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
