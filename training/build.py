"""Build what the command line describes: the data set, its loaders, and the model with its initial weights."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clips.packs import use_packs
from config import GET_BACKBONE, DatasetSpec, ModelConfig, dataset_of, rgb_backbone, under_root
from datasets import S2T_Dataset
from models import Uni_Sign
from network.rgb_branch import BACKBONE, load_backbone
from network.vocabulary import Tokenizer, log_coverage
from network.vocabulary import choose as choose_tokens
from system import distributed
from training import metrics
from training.checkpoint import STATE_WEIGHTS, load_model_state
from training.compiling import compile_parts
from training.engine import EngineConfig, start_engine
from training.guards import BadClips, Guards, Saves, SkippedSteps, StopRequest
from training.loader import SEARCHED, BatchSampler, ClipLoader, within_cores
from training.memory import MemorySettings
from training.optimization import ENCODER_RATE, OptimizerConfig, build_optimizer, build_schedule
from training.run_folder import results_folder
from training.text_cache import build_text_cache
from training.tracking import Tracker
from training.weight_files import read_weights
from training.weights import (
    FUSION_PREFIXES,
    TEXT_ENCODER_PREFIX,
    Checkpoint,
    assemble,
    files_beside,
    load_finetune,
    load_fusion,
)
from utils import NO_TEST, OF_CHECKPOINT, get_args_parser, needs_deepspeed, splits_of

logger = logging.getLogger(__name__)

# What --eval takes from the checkpoint, and a flag may change: places, and whether an encoder's features are cached.
MAY_MOVE = {"mt5_path", "text_encoder", "text_encoder_freeze", "output_dir"}

WITHOUT_TEXTS = "to test without: let description_dir of the data set's record name a folder with empty dev and test."


def dataset_spec(args: argparse.Namespace) -> DatasetSpec:
    """Return the data set of the command line, with its paths resolved."""
    spec = dataset_of(args.dataset, args.dataset_config)
    metrics.bleu_scorers(spec.bleu_tokenizer)  # fail now, not at the first evaluation, if the tokenizer is missing
    return use_packs(spec, args.packed, args.root) if args.packed else spec.under(args.root)


def renumber_command(args: argparse.Namespace) -> str:
    """Return the command that makes a copy of the data set's descriptions whose frames are numbered from 0."""
    folder = dataset_of(args.dataset, args.dataset_config).under(args.root).description_dir
    data = ["--dataset_config", args.dataset_config] if args.dataset_config else ["--dataset", args.dataset]
    root = ["--root", args.root] if args.root != "." else []
    return shlex.join(["python", "describe.py", "audit", folder, *data, *root, "--repair", f"{folder}_from_0"])


def from_flags(kind: type, args: argparse.Namespace, **others: Any) -> Any:
    """Return a record of this kind whose other fields have the values of the flags of the same names."""
    names = {field.name for field in dataclasses.fields(kind)} - others.keys()
    return kind(**others, **{name: getattr(args, name) for name in names})


def model_config(args: argparse.Namespace, spec: DatasetSpec) -> ModelConfig:
    """Return the model configuration of the command line."""
    return from_flags(ModelConfig, args, language=spec.language)


def take_settings(args: argparse.Namespace) -> None:
    """Fill in what --eval leaves to the checkpoint (`utils.OF_CHECKPOINT`), in place.

    Weights without a config, as Uni-Sign's, decide what follows from their shapes; flags and defaults, the rest. With
    --fusion_checkpoint its config counts, since --finetune may be a model without descriptions.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: it is unusable, a flag contradicts it, or its folder holds results on another data set.
    """
    flag = "--fusion_checkpoint" if args.fusion_checkpoint else "--finetune"
    path = args.fusion_checkpoint or args.finetune
    checkpoint = Checkpoint.read(path, flag)
    checkpoint.config()  # raises if it is of another version
    facts = checkpoint.facts
    stated = {key: checkpoint.fact(key, kind()) for key, kind in (("task", str), ("max_length", int)) if key in facts}
    saved = checkpoint.settings | stated
    given = {name: getattr(args, name) for name in OF_CHECKPOINT if getattr(args, name) is not None}
    if differing := [name for name, value in given.items() if name not in MAY_MOVE and saved.get(name, value) != value]:
        told = ", ".join(f"{name} {saved[name]} (here {given[name]})" for name in sorted(differing))
        raise ValueError(f"--eval: {path} was trained with {told}. Drop these flags: the checkpoint decides.")
    spec = dataset_of(args.dataset, args.dataset_config)
    if os.path.isdir(mt5_path := checkpoint.fact("mt5_path", "")):  # else that of this machine
        saved["mt5_path"] = mt5_path
    if saved.get("use_descriptions"):  # as in training: a frozen encoder is not among the weights
        saved["text_encoder_freeze"] = not checkpoint.holds(TEXT_ENCODER_PREFIX)
    if "output_dir" not in given:
        saved["output_dir"] = str(results_folder(args.finetune, spec.name))
    if saved.get("language", spec.language) != spec.language:
        raise ValueError(
            f"--eval: {path} was trained to write {saved['language']}, and {spec.name} is {spec.language}. Name data "
            "in its language: --dataset or --dataset_config."
        )
    defaults = vars(get_args_parser().parse_args([])) | {"task": spec.tasks[0]}
    for name in OF_CHECKPOINT - set(given):
        setattr(args, name, saved.get(name, defaults[name]))
    spec.check_task(args.task)


def build_loaders(args: argparse.Namespace, spec: DatasetSpec) -> dict[str, ClipLoader]:
    """Build the loaders of the run's splits."""
    loaders, num_workers = {}, within_cores(args.num_workers)
    if args.eval and args.use_descriptions:
        logger.info("evaluating with descriptions, as the checkpoint was trained; %s", WITHOUT_TEXTS)
    for split in splits_of(args, spec):
        training = split == "train"
        dataset = _dataset(args, spec, split)
        if args.use_descriptions and (reason := dataset.why_no_text()):
            if training:
                raise ValueError(
                    f"--use_descriptions: {reason}. See description/README.md, or drop --use_descriptions."
                )
            if distributed.is_main():
                logger.warning("%s.", reason)
        # With `uni_sign_padding` results depend on the rest of the batch, so evaluation must not regroup clips.
        free = args.length_grouping and not dataset.lengths_tell_content if training else not args.uni_sign_padding
        sampler = BatchSampler(
            len(dataset),
            args.batch_size * (SEARCHED if free and not training else 1),
            distributed.rank(),
            distributed.world_size(),
            seed=args.seed if training else None,
            lengths=dataset.lengths if free else None,
            accumulation=args.gradient_accumulation_steps,
        )
        loaders[split] = ClipLoader(dataset, sampler, num_workers)
    if not loaders:
        raise ValueError(f"--eval: {spec.name} has neither a dev nor a test split.")
    if spec.dev_is_test and not args.eval and distributed.is_main():
        logger.warning("%s has no dev split: the best checkpoint is chosen on test, whose scores are dev's.", spec.name)
    for split in ("dev", "test"):
        if split not in spec.labels:
            logger.info("%s has no %s split.", spec.name, split)
    return loaders


def fingerprints(loaders: Mapping[str, ClipLoader]) -> dict[str, Any]:
    """Return what identifies the data of all splits, by names such as "train labels_sha256"."""
    found = {split: loader.dataset.fingerprint for split, loader in loaders.items()}
    return {f"{split} {name}": value for split, facts in found.items() for name, value in facts.items()}


def _dataset(args: argparse.Namespace, spec: DatasetSpec, split: str) -> S2T_Dataset:
    """Build a split's clips; an error names the flag that leaves them out."""
    try:
        return S2T_Dataset(
            spec,
            split,
            task=args.task,
            max_length=args.max_length,
            random_frames=split == "train" or args.eval_sampling == "random",
            use_descriptions=args.use_descriptions,
            rgb_support=args.rgb_support,
            uni_sign_crops=args.uni_sign_padding,
            seed=args.seed,
            max_bad_clips=args.max_bad_clips,
        )
    except (ValueError, OSError) as error:
        if split == "test" and not args.eval:
            raise ValueError(f"{error} {NO_TEST}") from None
        if args.eval and args.use_descriptions:
            raise ValueError(f"{error} {args.finetune} was trained with descriptions; {WITHOUT_TEXTS}") from None
        raise


def build_model(
    args: argparse.Namespace, config: ModelConfig, loaders: dict[str, ClipLoader], state: Path | None = None
) -> Uni_Sign:
    """Load mT5 and the text branch, then the weights that the run starts from; `loaders` give the texts.

    A `state` to resume from has all weights, so weights named by flags are ignored.

    Raises:
        FileNotFoundError: a file or folder named by a flag does not exist.
        ValueError: weights do not fit the model.
    """
    mt5_folder = under_root(args.root, args.mt5_path)
    path, flag = (state / STATE_WEIGHTS, "--resume") if state else (args.finetune, "--finetune")
    # A state lies where rank 0 sees it, and may lie nowhere else.
    first = Checkpoint.read(path, flag) if path and distributed.is_main() else Checkpoint("", {}, {})
    kept = choose_vocabulary(args, config, loaders, first.kept, resumed=state is not None)
    holds_encoder = distributed.broadcast_object(first.holds(TEXT_ENCODER_PREFIX))
    # A trained encoder among the initial weights is part of the model even if it is frozen.
    frozen = config.use_descriptions and args.text_encoder_freeze and not holds_encoder
    features = None
    if frozen:
        folder, cache = args.text_encoder or mt5_folder, under_root(args.root, args.text_cache)
        texts = sorted(set().union(*(loader.dataset.description_texts() for loader in loaders.values())))
        features = build_text_cache(cache, folder, args.text_max_tokens, texts, distributed.device())
    model = assemble(config, mt5_folder, kept, features, with_weights=state is None)
    if args.gradient_checkpointing:
        model.recompute_activations()
    if args.compile:
        compile_parts(model, distributed.device())
    for split, loader in loaders.items() if distributed.is_main() else ():
        lengths, most = model.tokenizer.lengths(loader.dataset.targets()), config.max_target_tokens
        if cut := sum(length > most for length in lengths):
            logger.warning(
                "%s: %d of %d targets are cut to %d tokens, the longest has %d. Raise --max_target_tokens, and "
                "--max_new_tokens if it is lower.",
                split, cut, len(lengths), most, max(lengths),
            )  # fmt: skip
    if state:
        load_model_state(model, state)
    else:
        load_first_weights(args, model)
    return model


def load_first_weights(args: argparse.Namespace, model: Uni_Sign) -> None:
    """Load the weights of --finetune, --rgb_backbone and --fusion_checkpoint.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: weights do not fit the model, or --eval would evaluate untrained weights.
    """
    new = list(model.state_dict())
    if args.finetune:
        new = load_finetune(model, args.finetune, evaluated=args.eval)
    backbone_is_new = any(name.startswith(BACKBONE) for name in new)
    elsewhere = (TEXT_ENCODER_PREFIX, *(FUSION_PREFIXES if args.fusion_checkpoint else ()))
    untrained = {name.partition(".")[0] for name in new if not name.startswith(elsewhere)}
    if args.eval and untrained:
        raise ValueError(
            f"--eval: {args.finetune} has no {', '.join(sorted(untrained))}. Drop the flags that ask for them "
            "(--rgb_support, --use_descriptions), or name trained fusion modules with --fusion_checkpoint."
        )
    if backbone_is_new and trains_fusion_alone(args):
        raise ValueError(
            f"--rgb_support: {args.finetune or 'nothing'} has no RGB branch to start from, and a new one would not "
            "train with the fusion modules alone. Add --trainable all, or drop --rgb_support."
        )
    if args.rgb_backbone and not backbone_is_new:
        raise ValueError(f"--rgb_backbone: {args.finetune} holds a trained hand backbone; drop --rgb_backbone.")
    if backbone_is_new:
        usual = under_root(args.root, rgb_backbone)
        if backbone := args.rgb_backbone or (usual if os.path.isfile(usual) else ""):
            load_backbone(model, read_weights(backbone, "--rgb_backbone")[0], backbone)
            logger.info("the hand backbone starts from %s.", backbone)
        else:
            text = "the hand backbone starts from random weights. For ImageNet's, save %s as %s."
            logger.warning(text, GET_BACKBONE, usual)
    if args.fusion_checkpoint:
        encoder_new = any(name.startswith(TEXT_ENCODER_PREFIX) for name in new)
        encoder_loaded = isinstance(model.text_encoder, nn.Module) and not encoder_new
        load_fusion(model, args.fusion_checkpoint, evaluated=args.eval, encoder_loaded=encoder_loaded)


def choose_vocabulary(
    args: argparse.Namespace,
    config: ModelConfig,
    loaders: dict[str, ClipLoader],
    kept: torch.Tensor | None,
    *,
    resumed: bool,
) -> torch.Tensor | None:
    """Choose the tokens of mT5's vocabulary that the model keeps; None for all.

    They are those of the initial weights (`kept`, on rank 0); --trim_vocab adds the tokens of the training texts,
    except when a run is resumed. Dev and test texts have no influence.
    """
    folder = under_root(args.root, args.mt5_path)
    if distributed.is_main():
        if args.trim_vocab and not resumed:
            train = loaders["train"].dataset if "train" in loaders else None
            texts = [*train.targets(), *train.description_texts()] if train else []
            kept = choose_tokens(Tokenizer(folder), [config.prompt, *texts], kept)
        if kept is not None:
            held_out = [text for split in loaders if split != "train" for text in loaders[split].dataset.targets()]
            log_coverage(Tokenizer(folder), kept, held_out)
    return distributed.broadcast_object(kept)


def trains_fusion_alone(args: argparse.Namespace) -> bool:
    """Return whether only the fusion modules train: with --trainable fusion, or "auto" and suitable other flags."""
    auto = args.trainable == "auto" and args.text_encoder_freeze and bool(args.finetune)
    return args.trainable == "fusion" or (auto and not args.eval)


def build_engine(args: argparse.Namespace, model: Uni_Sign, steps_per_epoch: int) -> Any:
    """Choose what trains, and build the engine that trains it; `engine.module` is the model."""
    choose_trainable(args, model)
    config = from_flags(OptimizerConfig, args)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config, steps_per_epoch)
    return start_engine(model, optimizer, schedule, from_flags(EngineConfig, args))


def weights_facts(args: argparse.Namespace, model: Uni_Sign) -> dict[str, Any]:
    """Return what inference needs besides a checkpoint's weights and config."""
    mt5_path = str(Path(under_root(args.root, args.mt5_path)).absolute())
    return {"mt5_path": mt5_path, "max_length": args.max_length, "task": args.task, "files": files_beside(model)}


def build_guards(args: argparse.Namespace) -> Guards:
    """Build the run's fault handlers and the tracker of its curves."""
    return Guards(
        BadClips(args.output_dir, args.max_bad_clips),
        StopRequest(),
        SkippedSteps(),
        Saves(),
        Tracker(args.output_dir, vars(args), tensorboard=args.tensorboard, wandb=args.wandb),
    )


def memory_settings(args: argparse.Namespace) -> MemorySettings:
    """Return what decides how much memory the run needs."""
    return from_flags(
        MemorySettings,
        args,
        zero_stage=args.zero_stage if needs_deepspeed(args.zero_stage, args.offload) else 0,
        encodes_texts=args.use_descriptions and not args.text_encoder_freeze,
        fusion_alone=trains_fusion_alone(args),
    )


def choose_trainable(args: argparse.Namespace, model: Uni_Sign) -> None:
    """Freeze modules according to --trainable and --text_encoder_freeze; log which parameters train and why."""
    if alone := trains_fusion_alone(args):
        model.freeze([module for name, module in model.named_children() if f"{name}." not in FUSION_PREFIXES])
        model.part_para.requires_grad_(False)
    elif args.text_encoder_freeze and isinstance(model.text_encoder, nn.Module):
        model.freeze([model.text_encoder])
    if args.trainable != "auto":
        why = f"--trainable {args.trainable}"
    elif args.text_encoder_freeze:
        why = f"--text_encoder_freeze {'with' if args.finetune else 'without'} --finetune"
    else:
        why = "the default"
    rest = "everything but the text encoder" if args.text_encoder_freeze else "everything"
    what = "the fusion modules alone" if alone else rest
    trained = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    if any(name.startswith(TEXT_ENCODER_PREFIX) for name in trained):
        what += f" (the text encoder at {ENCODER_RATE:g} of the learning rate)"
    n_trained, n_all = sum(trained.values()), sum(parameter.numel() for parameter in model.parameters())
    logger.info("training %s (%s): %.2f M of %.2f M parameters.", what, why, n_trained / 1e6, n_all / 1e6)
