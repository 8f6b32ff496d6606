"""Train and evaluate Uni-Sign stage 3, with or without description fusion.

Read `main` for the order of things, `train_one_epoch` for the loop.
"""

from __future__ import annotations

from utils import parse_args

if __name__ == "__main__":
    ARGS = parse_args()  # before anything heavy is imported: --help and wrong flags answer at once

import argparse
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import distributed
import metrics
from batch import to_device
from checkpoint import (
    FUSION_PREFIXES,
    TrainState,
    find_state,
    forget_checkpoints,
    fusion_weights,
    load_finetune,
    load_fusion,
    load_state,
    save_state,
    save_weights,
    set_aside,
    trim_curves,
    write_progress,
)
from config import DATASETS, DatasetSpec, ModelConfig
from datasets import BatchSampler, ClipLoader, S2T_Dataset
from models import Uni_Sign, load_mt5
from optimization import build_optimizer, build_schedule
from text_cache import build_text_cache
from text_fusion_modules import TextEncoder, TextFeatures
from tokenizer import Tokenizer
from utils import git_revision, progress, run, seed_everything, start_log, under_root

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> None:
    """Set up, then evaluate or train."""
    if args.dtype == "fp16" and distributed.device().type == "cpu":
        raise ValueError("--dtype fp16 needs a GPU; on a CPU use bf16 or fp32.")
    distributed.start()
    start_log(args.output_dir, distributed.is_main())
    seed_everything(args.seed, distributed.rank())
    spec = dataset_spec(args)
    loaders = build_loaders(args, spec)
    model = build_model(args, model_config(args, spec), loaders)
    if args.eval:
        model.to(distributed.device())
        for loader in loaders.values():
            scores, _ = evaluate(model, loader, args)
        logger.info("\n".join(f"{name}: {signature}" for name, signature in scores.signatures.items()))
        return
    train(args, model, loaders)


def train(args: argparse.Namespace, model: Uni_Sign, loaders: dict[str, ClipLoader]) -> None:
    """Run the epochs; evaluate on dev and save after each."""
    loader = loaders["train"]
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    choose_trainable(args, model)
    optimizer = build_optimizer(model, args)
    schedule = build_schedule(optimizer, args, steps_per_epoch)
    engine = distributed.start_engine(distributed.synchronised_batch_norm(model), optimizer, schedule, args)
    state = start_state(engine, args)
    log_plan(args, steps_per_epoch)

    while state.epoch < args.epochs:
        begun = time.monotonic()
        trained = train_one_epoch(engine, loader, state, args)
        folder = save_state(engine, state, args.output_dir, args.keep_last)  # an evaluation can be killed as well
        scores, losses = evaluate(engine, loaders["dev"], args) if "dev" in loaders else (None, {})
        score = scores.values[metrics.MAIN_METRIC[args.task][0]] if scores else None
        improved = score is None or metrics.is_better(args.task, score, state.best)
        save_epoch(engine, state.epoch, score, improved, args)
        state.best = score if improved else state.best
        on_dev = {f"dev_{name}": value for name, value in (scores.values | losses).items()} if scores else {}
        log_epoch(state, {**trained, **on_dev}, improved, begun, args)
        state.epoch, state.micro_batch, state.epoch_sums = state.epoch + 1, 0, {}
        if distributed.is_main():
            write_progress(folder, state)
    logger.info("done; the best weights are %s.", Path(args.output_dir) / "best_checkpoint.pth")


def train_one_epoch(engine: Any, loader: ClipLoader, state: TrainState, args: argparse.Namespace) -> dict[str, float]:
    """Go once through the training clips, from where `state` stands.

    Returns:
        Means over the epoch: `loss` (smoothed, as trained), `nll` (without smoothing), `lr` of the last step, and
        `waited`, the seconds in which no batch was there to be computed.
    """
    n_batches, sums = len(loader), state.epoch_sums
    group: list[torch.Tensor] = []  # the losses of the micro-batches since the last step
    engine.train()
    batches, left = loader.epoch(state.epoch, first=state.micro_batch), n_batches - state.micro_batch
    for src_input, tgt_input in progress(batches, f"epoch {state.epoch + 1}", shown=distributed.is_main(), total=left):
        state.micro_batch += 1
        # The last group of an epoch may be smaller; it steps all the same, and nothing is carried over.
        last_of_group = state.micro_batch % args.gradient_accumulation_steps == 0 or state.micro_batch == n_batches
        engine.set_gradient_accumulation_boundary(last_of_group)
        output = engine(to_device(src_input, engine.device), tgt_input)
        engine.backward(output.loss)
        state.lr = engine.get_lr()[0]
        engine.step()

        group.append(torch.stack([output.loss.detach(), output.nll]))
        if last_of_group:
            state.step += 1
            loss, nll = torch.stack(group).double().sum(0).tolist()
            sums["loss"], sums["nll"] = sums.get("loss", 0.0) + loss, sums.get("nll", 0.0) + nll
            log_step(state, loss / len(group), args)
            group.clear()
            if args.save_steps and state.step % args.save_steps == 0 and state.micro_batch < n_batches:
                save_state(engine, state, args.output_dir, args.keep_last)
    means = {name: total / n_batches for name, total in sums.items()}
    return {**average(means | {"waited": loader.waited}), "lr": state.lr}


@torch.no_grad()
def evaluate(model: Any, loader: ClipLoader, args: argparse.Namespace) -> tuple[metrics.Scores, dict[str, float]]:
    """Write a sentence for every clip of a split, on all processes, and score them.

    Args:
        model: the model, or the engine that trains it.
        loader: of the split.
        args: the command line.

    Returns:
        The scores, and the loss with and without smoothing; the same on every process.
    """
    dataset, bare = loader.dataset, getattr(model, "module", model)
    in_step = args.zero_stage == 3 and bare is not model  # ZeRO-3 scatters the weights: all processes search in step
    model.eval()
    mine: list[tuple[str, str]] = []
    sums = torch.zeros(3, dtype=torch.float64)  # loss and nll over target tokens, and their number
    batches = progress(loader.epoch(), dataset.split, shown=distributed.is_main(), total=len(loader))
    for number, (src_input, tgt_input) in enumerate(batches):
        with distributed.autocast(args.dtype):
            output = model(to_device(src_input, distributed.device()), tgt_input)
            ids = bare.generate(output, args.num_beams, args.max_new_tokens, synced=in_step)
        if number < loader.sampler.n_own:
            mine += zip(src_input["name_batch"], bare.sentences(ids), strict=True)
            sums += output.n_tokens * torch.tensor([output.loss.item(), output.nll.item(), 1.0], dtype=torch.float64)
    written = dict(pair for part in distributed.gather(mine) for pair in part)
    hypotheses = [written[name] for name in dataset.names]
    references = [dataset.target(name) for name in dataset.names]
    scores = metrics.score(args.task, hypotheses, references, dataset.spec.text_unit)
    loss, nll, n_tokens = torch.stack(distributed.gather(sums)).sum(0).tolist()
    losses = {"loss": loss / n_tokens, "nll": nll / n_tokens}
    if distributed.is_main():
        write_predictions(Path(args.output_dir), dataset, hypotheses, references, scores, losses)
        shown = f"loss {losses['loss']:.4f} (without smoothing {losses['nll']:.4f})"
        logger.info("%s, %d clips, %s:\n%s", dataset.split, len(dataset), shown, scores.table())
    return scores, losses


# -- what main is made of --------------------------------------------------------------------------------------------


def dataset_spec(args: argparse.Namespace) -> DatasetSpec:
    """The data set of the command line, with its paths resolved."""
    spec = DatasetSpec.from_toml(args.dataset_config) if args.dataset_config else DATASETS[args.dataset]
    return spec.under(args.root)


def model_config(args: argparse.Namespace, spec: DatasetSpec) -> ModelConfig:
    """The model of the command line."""
    return ModelConfig(
        hidden_dim=args.hidden_dim,
        language=spec.language,
        label_smoothing=args.label_smoothing,
        use_descriptions=args.use_descriptions,
        text_dropout_p=args.text_dropout_p,
        text_encoder=args.text_encoder,
        text_max_tokens=args.text_max_tokens,
        uni_sign_padding=args.uni_sign_padding,
    )


def build_loaders(args: argparse.Namespace, spec: DatasetSpec) -> dict[str, ClipLoader]:
    """Loaders of the splits that the run needs: train and dev, or with --eval dev and test."""
    splits = ("dev", "test") if args.eval else ("train", "dev")
    loaders = {}
    for split in splits:
        if split not in spec.labels and split != "train":
            logger.info("%s has no %s split.", spec.name, split)
            continue
        training = split == "train"
        dataset = S2T_Dataset(
            spec,
            split,
            task=args.task,
            max_length=args.max_length,
            random_frames=training or args.eval_sampling == "random",
            use_descriptions=args.use_descriptions,
            seed=args.seed,
        )
        sampler = BatchSampler(
            len(dataset),
            args.batch_size,
            distributed.rank(),
            distributed.world_size(),
            seed=args.seed if training else None,
            # With Uni-Sign's padding a clip's result depends on the clips beside it: in evaluation those must stay.
            lengths=dataset.lengths if (args.length_grouping if training else not args.uni_sign_padding) else None,
            accumulation=args.gradient_accumulation_steps,
        )
        loaders[split] = ClipLoader(dataset, sampler, args.num_workers, args.pin_mem)
    if not loaders:
        raise ValueError(f"--eval: {spec.name} has neither a dev nor a test split.")
    if spec.labels.get("dev") == spec.labels.get("test"):
        logger.warning("%s has no dev split: the best checkpoint is chosen on test.", spec.name)
    return loaders


def build_model(args: argparse.Namespace, config: ModelConfig, loaders: dict[str, ClipLoader]) -> Uni_Sign:
    """Load mT5 and the text branch, then the weights of --finetune and --fusion_checkpoint."""
    mt5_folder = under_root(args.root, args.mt5_path)
    model = Uni_Sign(config, load_mt5(mt5_folder), Tokenizer(mt5_folder), build_texts(args, mt5_folder, loaders))
    if args.gradient_checkpointing:
        model.recompute_activations()
    if args.finetune:
        load_finetune(model, args.finetune, config)
    if args.fusion_checkpoint:
        load_fusion(model, args.fusion_checkpoint)
    return model


def build_texts(args: argparse.Namespace, mt5_folder: str, loaders: dict[str, ClipLoader]) -> TextFeatures | None:
    """What encodes descriptions: the encoder itself or, where it is frozen, a cache of its features."""
    if not args.use_descriptions:
        return None
    folder = args.text_encoder or mt5_folder
    if not args.text_encoder_freeze:
        return TextEncoder(folder, args.text_max_tokens)
    datasets = [loader.dataset for loader in loaders.values()]
    texts = set().union(*(dataset.description_texts(i) for dataset in datasets for i in range(len(dataset))))
    cache_root = under_root(args.root, args.text_cache)
    return build_text_cache(cache_root, folder, args.text_max_tokens, sorted(texts), distributed.device(), progress)


def choose_trainable(args: argparse.Namespace, model: Uni_Sign) -> None:
    """Freeze what --trainable and --text_encoder_freeze say, and tell which parameters train and why."""
    fusion_only = args.trainable == "fusion" or (
        args.trainable == "auto" and args.text_encoder_freeze and bool(args.finetune)
    )
    prefixes = FUSION_PREFIXES
    if fusion_only:
        model.freeze([module for name, module in model.named_children() if f"{name}." not in prefixes])
        model.part_para.requires_grad_(False)
        why = "--trainable fusion" if args.trainable == "fusion" else "--text_encoder_freeze with --finetune"
        what = "the fusion modules alone"
    else:
        why = "--trainable all" if args.trainable == "all" else "--text_encoder_freeze without --finetune"
        why = why if args.text_encoder_freeze or args.trainable == "all" else "the default"
        what = "everything but the text encoder" if args.text_encoder_freeze else "everything"
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    held = sum(parameter.numel() for parameter in model.parameters())
    logger.info("training %s (%s): %.2f M of %.2f M parameters.", what, why, trained / 1e6, held / 1e6)


def log_plan(args: argparse.Namespace, steps_per_epoch: int) -> None:
    """Tell the global batch, which is what makes two runs comparable."""
    world = distributed.world_size()
    logger.info(
        "global batch %d = %d clips x %d micro-batches x %d processes; %d epochs of %d steps, lr %g, %s, ZeRO-%d.",
        args.batch_size * args.gradient_accumulation_steps * world,
        args.batch_size,
        args.gradient_accumulation_steps,
        world,
        args.epochs,
        steps_per_epoch,
        args.lr,
        args.dtype,
        args.zero_stage,
    )


def start_state(engine: Any, args: argparse.Namespace) -> TrainState:
    """Where the run starts: at the beginning, or where the state of --resume stands."""
    folder = find_state(args.resume, args.output_dir) if args.resume else None
    if folder is None:
        if distributed.is_main():
            set_aside(args.output_dir)
        distributed.barrier()
        return TrainState(revision=git_revision(), arguments=vars(args))
    state = load_state(engine, folder, vars(args))
    if distributed.is_main():
        trim_curves(args.output_dir, state)
    logger.info("resumed %s: epoch %d, step %d.", folder, state.epoch + 1, state.step)
    return state


def log_epoch(
    state: TrainState, numbers: dict[str, float], improved: bool, begun: float, args: argparse.Namespace
) -> None:
    """Tell how an epoch went: one line in the log, and all numbers as JSON in log.txt."""
    if distributed.is_main():
        line = {"epoch": state.epoch, **numbers, "seconds": round(time.monotonic() - begun, 1)}
        with open(Path(args.output_dir) / "log.txt", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    shown = ("loss", "nll", "lr", "waited", "dev_nll", f"dev_{metrics.MAIN_METRIC[args.task][0]}")
    text = ", ".join(f"{name} {numbers[name]:.4g}" for name in shown if name in numbers)
    logger.info("epoch %d of %d: %s%s.", state.epoch + 1, args.epochs, text, " (best)" if improved else "")


def log_step(state: TrainState, loss: float, args: argparse.Namespace) -> None:
    """Add an optimizer step to steps.jsonl."""
    if distributed.is_main():
        line = {"step": state.step, "epoch": state.epoch, "loss": loss, "lr": state.lr}
        with open(Path(args.output_dir) / "steps.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def average(means: dict[str, float]) -> dict[str, float]:
    """Mean over the processes."""
    parts = distributed.gather(means)
    return {name: sum(part[name] for part in parts) / len(parts) for name in means}


def save_epoch(engine: Any, epoch: int, score: float | None, best: bool, args: argparse.Namespace) -> None:
    """Write checkpoint_{epoch}.pth and, for the best so far, best_checkpoint.pth and best_fusion.pth."""
    weights = distributed.full_state_dict(engine)
    if not distributed.is_main():
        return
    output_dir, config = Path(args.output_dir), engine.module.config
    facts = {"epoch": epoch, "score": score}
    path = output_dir / f"checkpoint_{epoch}.pth"
    save_weights(path, weights, config, **facts)
    if best:
        save_weights(output_dir / "best_checkpoint.pth", weights, config, **facts)
        if config.use_descriptions:
            save_weights(output_dir / "best_fusion.pth", fusion_weights(weights), config, **facts)
    forget_checkpoints(output_dir, args.keep_last)


def write_predictions(
    output_dir: Path,
    dataset: S2T_Dataset,
    hypotheses: Sequence[str],
    references: Sequence[str],
    scores: metrics.Scores,
    losses: dict[str, float],
) -> None:
    """Write {split}_predictions.jsonl, {split}_metrics.json, and the two text files that Uni-Sign writes."""
    split, unit = dataset.split, dataset.spec.text_unit
    rows = zip(dataset.names, references, hypotheses, strict=True)
    lines = [json.dumps({"name": n, "reference": r, "hypothesis": h}, ensure_ascii=False) for n, r, h in rows]
    (output_dir / f"{split}_predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    numbers = {**scores.values, **losses, "clips": len(dataset), "signatures": scores.signatures}
    (output_dir / f"{split}_metrics.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    for file, texts, prepare in (
        ("pres", hypotheses, metrics.prepare_hypothesis),
        ("refs", references, metrics.prepare_reference),
    ):
        content = "".join(prepare(text, unit).replace("\n", " ") + "\n" for text in texts)
        (output_dir / f"{split}_tmp_{file}.txt").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    run(lambda: main(ARGS))
    distributed.stop()
