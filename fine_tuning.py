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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import distributed
import metrics
import run_lock
import survival
from batch import to_device
from checkpoint import (
    TrainState,
    check_resumable,
    find_state,
    forget_checkpoints,
    load_model_state,
    load_optimizer_state,
    resume_dir,
    save_state,
    set_aside,
    trim_curves,
    write_on_main,
    write_progress,
)
from config import DATASETS, DatasetSpec, ModelConfig
from datasets import SEARCHED, BatchSampler, ClipLoader, S2T_Dataset
from disk import write_text
from kept_tokens import choose as choose_tokens
from kept_tokens import log_coverage
from labels import split_labels, target
from models import Uni_Sign, load_mt5
from optimization import build_optimizer, build_schedule
from packed import use_packs
from rgb_fusion import BACKBONE, load_backbone
from survival import Guards
from text_cache import build_text_cache
from text_fusion_modules import TextEncoder, TextFeatures
from tokenizer import Tokenizer
from utils import git_revision, progress, run, seed_everything, start_log, under_root
from weights import (
    FUSION_PREFIXES,
    MAPPER_PREFIX,
    fusion_weights,
    kept_tokens,
    load_finetune,
    load_fusion,
    read_weights,
    save_weights,
)
from zero_state import full_state_dict

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> None:
    """Set up, then evaluate or train."""
    if args.dtype == "fp16" and distributed.device().type == "cpu":
        raise ValueError("--dtype fp16 needs a GPU; on a CPU use bf16 or fp32.")
    distributed.start()
    if distributed.is_main():
        run_lock.hold(args.output_dir)
    start_log(args.output_dir, distributed.is_main())
    seed_everything(args.seed, distributed.rank())
    spec = dataset_spec(args)
    loaders = build_loaders(args, spec)
    resumed = find_resumed(args)
    model = build_model(args, model_config(args, spec), loaders, resumed)
    guards = Guards.of(args)
    if args.eval:
        model.to(distributed.device())
        record_start(loaders, guards)
        for loader in loaders.values():
            scores, _ = evaluate(model, loader, guards, args)
        logger.info("\n".join(f"{name}: {signature}" for name, signature in scores.signatures.items()))
    else:
        with guards.stop, guards.tracker:
            train(args, model, loaders, guards, resumed)
    guards.saves.finish()


def train(
    args: argparse.Namespace, model: Uni_Sign, loaders: dict[str, ClipLoader], guards: Guards, resumed: Resumed | None
) -> None:
    """Run the epochs, from the state of --resume if there is one; evaluate on dev and save after each."""
    loader = loaders["train"]
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    state, folder = start_state(args, model, len(loader), resumed)
    choose_trainable(args, model)
    optimizer = build_optimizer(model, args)
    schedule = build_schedule(optimizer, args, steps_per_epoch)
    engine = distributed.start_engine(distributed.synchronised_batch_norm(model), optimizer, schedule, args)
    if folder:
        state = load_optimizer_state(engine, folder, state)
    log_plan(args, steps_per_epoch)
    record_start(loaders, guards, state.step)

    while state.epoch < args.epochs:
        begun = time.monotonic()
        trained = train_one_epoch(engine, loader, state, guards, args)
        distributed.share_buffers(engine.module)
        folder = save(engine, state, guards, args)  # an evaluation can be killed as well
        scores, losses = evaluate(engine, loaders["dev"], guards, args) if "dev" in loaders else (None, {})
        score = scores.values[metrics.MAIN_METRIC[args.task][0]] if scores else None
        improved = score is None or metrics.is_better(args.task, score, state.best)
        saved = guards.saves.attempt("the checkpoint", save_epoch, engine, state.epoch, score, improved, args)
        state.best = score if improved and saved else state.best
        on_dev = {f"dev_{name}": value for name, value in (scores.values | losses).items()} if scores else {}
        log_epoch(state, {**trained, **on_dev}, improved, begun, guards, args)
        state.epoch, state.micro_batch, state.epoch_sums = state.epoch + 1, 0, {}
        if folder:
            guards.saves.attempt("the state", write_on_main, folder, write_progress, folder, state)
    logger.info("done; the best weights are %s.", Path(args.output_dir) / "best_checkpoint.pth")


def train_one_epoch(
    engine: Any, loader: ClipLoader, state: TrainState, guards: Guards, args: argparse.Namespace
) -> dict[str, float]:
    """Go once through the training clips, from where `state` stands.

    Returns:
        Means over the epoch: `loss` (smoothed, as trained), `nll` (without smoothing), `lr` of the last step, and
        `waited`, the seconds in which no batch was there to be computed.
    """
    dataset, n_batches, sums = loader.dataset, len(loader), state.epoch_sums
    group: list[torch.Tensor] = []  # loss, nll and 1 of each micro-batch since the last step
    names: list[str] = []  # their clips
    engine.train()
    batches, left = loader.epoch(state.epoch, first=state.micro_batch), n_batches - state.micro_batch
    for src_input, tgt_input in progress(batches, f"epoch {state.epoch + 1}", shown=distributed.is_main(), total=left):
        guards.clips.note(src_input, dataset.split, len(dataset))
        counts = bool(src_input["name_batch"])  # not if no clip of the batch could be read
        state.micro_batch += 1
        # The last group of an epoch may be smaller; it steps all the same, and nothing is carried over.
        last_of_group = state.micro_batch % args.gradient_accumulation_steps == 0 or state.micro_batch == n_batches
        engine.set_gradient_accumulation_boundary(last_of_group)
        with survival.explain_memory(src_input, args):
            output = engine(to_device(src_input, engine.device), tgt_input)
            engine.backward(counts * output.loss)
            state.lr = engine.get_lr()[0]
            engine.step()
        group.append(counts * torch.stack([output.loss.detach(), output.nll, torch.ones_like(output.nll)]))
        names += src_input["name_batch"]

        if last_of_group:
            state.step += 1
            loss, nll, n = torch.stack(group).double().sum(0).tolist()
            taken = guards.steps.taken(engine, loss / max(n, 1))
            if taken:
                for name, value in (("loss", loss), ("nll", nll), ("batches", n)):
                    sums[name] = sums.get(name, 0.0) + value
            log_step(state, loss / max(n, 1), taken, guards)
            if guards.steps.too_many:
                give_up(engine, state, names, guards, args)
            if state.micro_batch < n_batches:  # at the end of the epoch a state is saved anyway
                stop = guards.stop.agreed()
                save_within_epoch(engine, state, len(group), stop, guards, args)
                if stop:
                    guards.stop.leave(f"after step {state.step}")
            group.clear()
            names.clear()
    guards.clips.settle(dataset.split, len(dataset))
    return {**average(sums), "waited": round(loader.waited, 2), "lr": state.lr}


@torch.no_grad()
def evaluate(
    model: Any, loader: ClipLoader, guards: Guards, args: argparse.Namespace
) -> tuple[metrics.Scores, dict[str, float]]:
    """Write a sentence for every clip of a split, on all processes, and score them.

    A clip that cannot be read counts as an empty sentence.

    Args:
        model: the model, or the engine that trains it.
        loader: of the split.
        guards: of the run.
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
        guards.clips.note(src_input, dataset.split, len(dataset))
        with survival.explain_memory(src_input, args), distributed.autocast(args.dtype):
            output = model(to_device(src_input, distributed.device()), tgt_input)
            ids = bare.generate(output, args.num_beams, args.max_new_tokens, synced=in_step)
        if number < loader.sampler.n_own and src_input["name_batch"]:
            mine += zip(src_input["name_batch"], bare.sentences(ids), strict=True)
            sums += output.n_tokens * torch.tensor([output.loss.item(), output.nll.item(), 1.0], dtype=torch.float64)
        if guards.stop.agreed():
            guards.stop.leave(f"in the evaluation of {dataset.split}")
    written = dict(pair for part in distributed.gather(mine) for pair in part)
    bad_clips = guards.clips.settle(dataset.split, len(dataset))
    hypotheses = ["" if name in bad_clips else written[name] for name in dataset.names]
    references = dataset.targets()
    spec = dataset.spec
    scores = metrics.score(args.task, hypotheses, references, spec.text_unit, spec.bleu_tokenizer)
    loss, nll, n_tokens = torch.stack(distributed.gather(sums)).sum(0).tolist()
    losses = {"loss": loss / max(n_tokens, 1), "nll": nll / max(n_tokens, 1)}
    results = Results(dataset, hypotheses, references, scores, losses, bad_clips)
    out = Path(args.output_dir)
    guards.saves.attempt("predictions", write_on_main, out, write_predictions, out, results)
    if distributed.is_main():
        shown = f"loss {losses['loss']:.4f} (without smoothing {losses['nll']:.4f})"
        logger.info("%s, %d clips, %s:\n%s", dataset.split, len(dataset), shown, scores.table())
    return scores, losses


# -- what main is made of --------------------------------------------------------------------------------------------


def dataset_spec(args: argparse.Namespace) -> DatasetSpec:
    """The data set of the command line, with its paths resolved."""
    spec = DatasetSpec.from_toml(args.dataset_config) if args.dataset_config else DATASETS[args.dataset]
    metrics.bleu_scorers(spec.bleu_tokenizer)  # a tokenizer that is not there should not wait for the first evaluation
    return use_packs(spec, args.packed, args.root) if args.packed else spec.under(args.root)


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
        description_alignment=args.description_alignment,
        missing_text=args.missing_text,
        rgb_support=args.rgb_support,
        joint_hands=args.joint_hands,
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
            rgb_support=args.rgb_support,
            uni_sign_crops=args.uni_sign_padding,
            seed=args.seed,
            max_bad_clips=args.max_bad_clips,
        )
        # With Uni-Sign's padding a clip's result depends on the clips beside it: in evaluation those must stay.
        free = args.length_grouping if training else not args.uni_sign_padding
        sampler = BatchSampler(
            len(dataset),
            args.batch_size * (SEARCHED if free and not training else 1),
            distributed.rank(),
            distributed.world_size(),
            seed=args.seed if training else None,
            lengths=dataset.lengths if free else None,
            accumulation=args.gradient_accumulation_steps,
        )
        loaders[split] = ClipLoader(dataset, sampler, args.num_workers, args.pin_mem)
    if not loaders:
        raise ValueError(f"--eval: {spec.name} has neither a dev nor a test split.")
    if spec.folder("dev") == "test":
        logger.warning("%s has no dev split: the best checkpoint is chosen on test.", spec.name)
    return loaders


def build_model(
    args: argparse.Namespace, config: ModelConfig, loaders: dict[str, ClipLoader], resumed: Resumed | None = None
) -> Uni_Sign:
    """Load mT5 and the text branch, then the weights of --finetune, --rgb_backbone and --fusion_checkpoint."""
    mt5_folder = under_root(args.root, args.mt5_path)
    kept = choose_vocabulary(args, config, loaders, resumed)
    texts = build_texts(args, mt5_folder, loaders, kept)
    model = Uni_Sign(config, load_mt5(mt5_folder, kept=kept), Tokenizer(mt5_folder, kept), texts)
    if args.gradient_checkpointing:
        model.recompute_activations()
    new = load_finetune(model, args.finetune, config) if args.finetune else list(model.state_dict())
    start_backbone(args, model, any(name.startswith(BACKBONE) for name in new))
    if args.eval and args.missing_text == "mapper" and any(name.startswith(MAPPER_PREFIX) for name in new):
        raise ValueError(f"--missing_text mapper: {args.finetune} has no mapper; it was not trained with one.")
    if args.fusion_checkpoint:
        load_fusion(model, args.fusion_checkpoint)
    return model


def start_backbone(args: argparse.Namespace, model: Uni_Sign, is_new: bool) -> None:
    """Load --rgb_backbone where the hand backbone is new; a random one is worth a warning, and useless for --eval."""
    if is_new and args.eval:
        raise ValueError(f"--eval: {args.finetune} has no RGB branch; drop --rgb_support.")
    if args.rgb_backbone:
        if not is_new:
            raise ValueError(f"--rgb_backbone: {args.finetune} holds a trained hand backbone; drop --rgb_backbone.")
        load_backbone(model, read_weights(args.rgb_backbone, "--rgb_backbone")[0], args.rgb_backbone)
    elif is_new:
        logger.warning("the hand backbone starts from random weights; --rgb_backbone FILE takes ImageNet's.")


def choose_vocabulary(
    args: argparse.Namespace, config: ModelConfig, loaders: dict[str, ClipLoader], resumed: Resumed | None
) -> torch.Tensor | None:
    """The tokens of mT5 that the model has, None for all.

    They are those of the weights that the run goes on from; --trim_vocab adds what the training texts need. Nothing of
    dev and test decides.
    """
    mt5_folder = under_root(args.root, args.mt5_path)

    def choose() -> torch.Tensor | None:
        if resumed:
            path = resumed[0] / "weights.pt"
            return kept_tokens(read_weights(path, "--resume")[0], path, "--resume")
        path = args.finetune
        kept = kept_tokens(read_weights(path, "--finetune")[0], path, "--finetune") if path else None
        if not args.trim_vocab:
            return kept
        train = loaders["train"].dataset if "train" in loaders else None
        texts = [*train.targets(), *train.description_texts()] if train else []
        return choose_tokens(Tokenizer(mt5_folder), [config.prompt, *texts], kept)

    kept = distributed.from_main(choose() if distributed.is_main() else None)
    if kept is not None and distributed.is_main():
        log_coverage(Tokenizer(mt5_folder), kept, held_out_texts(args, loaders))
    return kept


def held_out_texts(args: argparse.Namespace, loaders: dict[str, ClipLoader]) -> dict[str, Iterable[str]]:
    """What the model will meet in dev and test: their sentences, and the descriptions that its own encoder reads."""
    texts: dict[str, Iterable[str]] = {}
    spec = dataset_spec(args)
    for split in ("dev", "test"):
        if split in loaders:
            texts[f"{split}, sentences"] = loaders[split].dataset.targets()
            if args.use_descriptions and not args.text_encoder and not args.text_encoder_freeze:
                texts[f"{split}, descriptions"] = loaders[split].dataset.description_texts()
        elif Path(spec.labels.get(split, "")).is_file():
            texts[f"{split}, sentences"] = [target(label, args.task) for label in split_labels(spec, split).values()]
    return texts


def build_texts(
    args: argparse.Namespace, mt5_folder: str, loaders: dict[str, ClipLoader], kept: torch.Tensor | None
) -> TextFeatures | None:
    """What encodes descriptions: the encoder itself or, where it is frozen, a cache of its features."""
    if not args.use_descriptions:
        return None
    folder = args.text_encoder or mt5_folder
    if not args.text_encoder_freeze:
        return TextEncoder(folder, args.text_max_tokens, kept=None if args.text_encoder else kept)
    texts = set().union(*(loader.dataset.description_texts() for loader in loaders.values()))
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


def record_start(loaders: dict[str, ClipLoader], guards: Guards, step: int | None = None) -> None:
    """Put this start of the program into run.json: a training from `step` on, or an evaluation."""
    if distributed.is_main():
        datasets = [loader.dataset for loader in loaders.values()]
        guards.tracker.start(datasets[0].spec, {dataset.split: dataset.fingerprint() for dataset in datasets}, step)


Resumed = tuple[Path, TrainState]  # a state's folder, and where it stands


def find_resumed(args: argparse.Namespace) -> Resumed | None:
    """The state of --resume; None for a run that starts at the beginning."""
    mine = find_state(args.resume, args.output_dir) if args.resume and distributed.is_main() else None
    return distributed.from_main(mine)


def start_state(
    args: argparse.Namespace, model: Uni_Sign, n_batches: int, resumed: Resumed | None
) -> tuple[TrainState, Path | None]:
    """Where the run starts: at the beginning, or where the state of --resume stands; its weights are in the model then.

    Returns:
        The state, and the folder from which the optimizer is still to be loaded.
    """
    if resumed is None:
        if distributed.is_main():
            set_aside(args.output_dir)
        distributed.barrier()
        state = TrainState(revision=git_revision(), arguments=vars(args), n_processes=distributed.world_size())
        return state, None
    folder, state = resumed
    state = check_resumable(folder, state, vars(args), n_batches)
    load_model_state(model, folder)
    if distributed.is_main():
        trim_curves(args.output_dir, state)
    logger.info("resumed %s: epoch %d, step %d.", folder, state.epoch + 1, state.step)
    return state, folder


def save(engine: Any, state: TrainState, guards: Guards, args: argparse.Namespace) -> Path | None:
    """Save a state to resume from; None where that failed and the run may go on."""
    folder = resume_dir(args.output_dir)
    return guards.saves.attempt("the state", save_state, engine, state, folder, args.keep_last)


def give_up(engine: Any, state: TrainState, names: list[str], guards: Guards, args: argparse.Namespace) -> None:
    """End a run whose losses or gradients are not finite any more.

    Raises:
        ValueError: with all that there is to look at.
    """
    clips = sorted(name for part in distributed.gather(names) for name in part)
    folder = guards.saves.attempt("the state", save_state, engine, state, Path(args.output_dir) / "non_finite")
    raise ValueError(guards.steps.report(state.step, state.lr, clips, f"The state is saved in {folder}."))


def log_epoch(
    state: TrainState, numbers: dict[str, float], improved: bool, begun: float, guards: Guards, args: argparse.Namespace
) -> None:
    """Tell how an epoch went: one line in the log, and all numbers as JSON in log.txt."""
    if distributed.is_main():
        line = {"epoch": state.epoch, **numbers, "seconds": round(time.monotonic() - begun, 1)}
        guards.tracker.epoch(state.step, line)
    shown = ("loss", "nll", "lr", "waited", "dev_nll", f"dev_{metrics.MAIN_METRIC[args.task][0]}")
    text = ", ".join(f"{name} {numbers[name]:.4g}" for name in shown if name in numbers)
    logger.info("epoch %d of %d: %s%s.", state.epoch + 1, args.epochs, text, " (best)" if improved else "")


def log_step(state: TrainState, loss: float, taken: bool, guards: Guards) -> None:
    """Add an optimizer step to steps.jsonl; one that was skipped has no loss."""
    if distributed.is_main():
        line = {"step": state.step, "epoch": state.epoch, "loss": loss if taken else None, "lr": state.lr}
        guards.tracker.step(line if taken else {**line, "skipped": True})
    if not taken:
        logger.warning("step %d is skipped: its loss or gradient is not finite (loss %.4g).", state.step, loss)


def average(sums: dict[str, float]) -> dict[str, float]:
    """Means over the micro-batches of all processes."""
    parts = distributed.gather(sums)
    loss, nll, n_batches = (sum(part.get(name, 0.0) for part in parts) for name in ("loss", "nll", "batches"))
    return {"loss": loss / max(n_batches, 1), "nll": nll / max(n_batches, 1)}


def save_within_epoch(
    engine: Any, state: TrainState, n_micro_batches: int, stop: bool, guards: Guards, args: argparse.Namespace
) -> None:
    """Save what --save_steps and --quick_break ask for after a step of `n_micro_batches`, and before a stop."""
    # Uni-Sign counts micro-batches here: is a multiple of N among those of this step?
    quick = args.quick_break > 0 and state.micro_batch % args.quick_break < n_micro_batches
    if quick:
        path, config, facts = Path(args.output_dir) / "checkpoint.pth", engine.module.config, weights_facts(args)
        weights = full_state_dict(engine)
        write = partial(save_weights, path, weights, config, **facts, epoch=state.epoch, score=None)
        guards.saves.attempt("checkpoint.pth", write_on_main, path, write)
    if quick or stop or (args.save_steps and state.step % args.save_steps == 0):
        save(engine, state, guards, args)


def weights_facts(args: argparse.Namespace) -> dict[str, Any]:
    """What inference needs to know beside a checkpoint's weights and config."""
    mt5_path = str(Path(under_root(args.root, args.mt5_path)).absolute())
    return {"mt5_path": mt5_path, "max_length": args.max_length}


def save_epoch(engine: Any, epoch: int, score: float | None, best: bool, args: argparse.Namespace) -> bool:
    """Write checkpoint_{epoch}.pth and, for the best so far, best_checkpoint.pth and best_fusion.pth."""
    weights = full_state_dict(engine)
    output_dir, config = Path(args.output_dir), engine.module.config
    facts = {**weights_facts(args), "epoch": epoch, "score": score}

    def write() -> None:
        if best:
            save_weights(output_dir / "best_checkpoint.pth", weights, config, **facts)
            if config.use_descriptions:
                save_weights(output_dir / "best_fusion.pth", fusion_weights(weights), config, **facts)
        save_weights(output_dir / f"checkpoint_{epoch}.pth", weights, config, **facts)
        forget_checkpoints(output_dir, args.keep_last)

    write_on_main(output_dir, write)
    return True


@dataclass
class Results:
    """What an evaluation gave, in the data set's order."""

    dataset: S2T_Dataset
    hypotheses: Sequence[str]
    references: Sequence[str]
    scores: metrics.Scores
    losses: dict[str, float]
    bad_clips: dict[str, str]


def write_predictions(output_dir: Path, results: Results) -> None:
    """Write {split}_predictions.jsonl, {split}_metrics.json, and the two text files that Uni-Sign writes."""
    dataset, scores, bad_clips = results.dataset, results.scores, results.bad_clips
    split, unit = dataset.split, dataset.spec.text_unit
    lines = []
    for name, reference, hypothesis in zip(dataset.names, results.references, results.hypotheses, strict=True):
        line = {"name": name, "reference": reference, "hypothesis": hypothesis}
        line |= {"unreadable": bad_clips[name]} if name in bad_clips else {}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(output_dir / f"{split}_predictions.jsonl", "".join(lines))
    numbers = {**scores.values, **results.losses, "clips": len(dataset), "unreadable": len(bad_clips)}
    content = json.dumps({**numbers, "signatures": scores.signatures}, indent=1)
    write_text(output_dir / f"{split}_metrics.json", content + "\n")
    for file, texts, prepare in (
        ("pres", results.hypotheses, metrics.prepare_hypothesis),
        ("refs", results.references, metrics.prepare_reference),
    ):
        content = "".join(prepare(text, unit).replace("\n", " ") + "\n" for text in texts)
        write_text(output_dir / f"{split}_tmp_{file}.txt", content)


if __name__ == "__main__":
    with distributed.naming_the_lost():
        run(lambda: main(ARGS))
    distributed.stop()
