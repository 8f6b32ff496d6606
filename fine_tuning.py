"""Train and evaluate Uni-Sign stage 3, with or without description fusion.

Start with `main` for the sequence of steps and `train_one_epoch` for the training loop.
"""

from __future__ import annotations

from utils import check_run, parse_args, run

if __name__ == "__main__":  # before any slow import, so that --help, wrong flags and wrong paths are answered at once
    ARGS = parse_args()
    run(lambda: check_run(ARGS))

import argparse
import logging
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clips.batch import to_device
from models import Uni_Sign
from system import distributed, lock
from system.disk import remove_unfinished
from training import metrics
from training.build import (
    build_engine,
    build_guards,
    build_loaders,
    build_model,
    dataset_spec,
    fingerprints,
    model_config,
    renumber_command,
    take_settings,
    weights_facts,
)
from training.checkpoint import (
    TrainState,
    best_on_disk,
    check_resumable,
    check_sources,
    find_state,
    load_optimizer_state,
    state_writer,
    write_progress,
)
from training.engine import full_state_dict
from training.guards import Guards, statistics_kept
from training.loader import ClipLoader
from training.look import log_look
from training.memory import explain_memory
from training.run_folder import (
    BEST,
    BEST_FUSION,
    Results,
    forget_checkpoints,
    resume_dir,
    set_aside,
    set_later_aside,
    trim_curves,
    write_predictions,
)
from training.weight_files import read_weights, save_weights
from training.weights import files_beside, fusion_weights
from utils import git_revision, needs_deepspeed, progress, start_log

logger = logging.getLogger(__name__)

BEST_SAVED = "the best checkpoint"  # what `Saves` calls it
FEW_STEPS = 10  # in an epoch; the schedules and epochs of published recipes are made for hundreds


def main(args: argparse.Namespace) -> None:
    """Build data, model and guards from the command line, then evaluate or train."""
    distributed.check_dtype(args.dtype, distributed.device())
    distributed.start()
    if args.eval:
        take_settings(args)
    if distributed.is_main():
        lock.hold(args.output_dir)
        remove_unfinished(args.output_dir)
    start_log(args.output_dir, distributed.is_main())
    torch.manual_seed(args.seed + distributed.rank())
    spec = dataset_spec(args)
    loaders = build_loaders(args, spec)
    resumed = find_resumed(args, loaders)
    model = build_model(args, model_config(args, spec), loaders, resumed and resumed[0])
    sources = fingerprints(loaders) | files_beside(model)
    distributed.require_same(sources)
    if resumed:
        check_sources(*resumed, sources)
    log_look(loaders, model, renumber_command(args))  # ends the run if the texts are those of other clips
    guards = build_guards(args)
    if args.eval:
        model.to(distributed.device())
        record_start(loaders, guards)
        results = [keep(evaluate(model, loader, guards, args), guards, args) for loader in loaders.values()]
    else:
        with guards.stop, guards.tracker:
            results = train(args, model, loaders, guards, resumed, sources)
    guards.saves.finish()
    conclude(results)
    if not args.eval:
        logger.info("a page of this run: python -m tools.report %s", shlex.quote(args.output_dir))


def train(
    args: argparse.Namespace,
    model: Uni_Sign,
    loaders: dict[str, ClipLoader],
    guards: Guards,
    resumed: Resumed | None,
    sources: dict[str, Any],
) -> list[Results]:
    """Train from the start or from the state of --resume; after each epoch, save and evaluate on dev, and at last test.

    Returns:
        The results of the best epoch on dev, unless an earlier start had it, and those of its weights on test.
    """
    loader = loaders["train"]
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    state, kept = start_state(args, resumed, sources), list[Results]()
    engine = build_engine(args, model, steps_per_epoch)
    if resumed:
        state = load_optimizer_state(engine, resumed[0], state)
    log_plan(args, steps_per_epoch)
    record_start(loaders, guards, state.step)
    for split in ("train", "dev") if "dev" in loaders else ("train",):
        loaders[split].start()  # later they would inherit, and keep, the copy of a state that is being saved

    while state.epoch < args.epochs:
        begun = time.monotonic()
        trained = train_one_epoch(engine, loader, state, guards, args)
        distributed.broadcast_buffers(engine.module)
        folder = save(engine, state, guards, args)  # before evaluating, which can be killed too, and meanwhile
        dev = evaluate(engine, loaders["dev"], guards, args) if "dev" in loaders else None
        improved = dev is None or metrics.is_better(args.task, dev.rank, state.best)
        if save_weights_of_epoch(engine, state, dev, improved, guards, args) and dev:
            state.best, kept = dev.rank, [keep(dev, guards, args)]
        log_epoch(state, {**trained, **(dev.numbers("dev_") if dev else {})}, improved, begun, guards, args)
        state.epoch, state.micro_batch, state.epoch_sums = state.epoch + 1, 0, {}
        guards.saves.settle()
        # Without its progress a state stands before the evaluation, and a resumed run saves the best weights again.
        if not (guards.saves.failed["the state"] or guards.saves.failed[BEST_SAVED]):
            with guards.saves.attempt("the state", folder):
                if distributed.is_main():
                    write_progress(folder, state)
    guards.saves.finish()
    best = Path(args.output_dir) / BEST
    logger.info("trained; the best weights are %s.", best)
    if "test" in loaders:
        if distributed.is_main():
            engine.module.load_state_dict(read_weights(best, "--output_dir")[0])
        distributed.broadcast_weights(engine.module)
        kept.append(keep(evaluate(engine, loaders["test"], guards, args), guards, args))
    return kept


def train_one_epoch(
    engine: Any, loader: ClipLoader, state: TrainState, guards: Guards, args: argparse.Namespace
) -> dict[str, float]:
    """Train for one epoch, from the micro-batch at which `state` stands.

    Returns:
        Means over the epoch: `loss` (label-smoothed, as trained), `nll` (without smoothing); `lr` of the last step;
        `waited`, the seconds spent waiting for the data loader.
    """
    dataset, n_batches = loader.dataset, len(loader)
    sums: list[torch.Tensor] = []  # (loss, nll, 1) of each micro-batch since the last step
    names: list[str] = []  # clips of those micro-batches
    engine.module.train()
    guards.steps.remember(engine.module)  # the running statistics, which a skipped step gets back
    batches, left = loader.epoch(state.epoch, first=state.micro_batch), n_batches - state.micro_batch
    bar = progress(batches, f"epoch {state.epoch + 1}", shown=distributed.is_main(), total=left)
    for src_input, tgt_input in bar:
        guards.clips.note(src_input, dataset.split, len(dataset))
        has_clips = bool(src_input["name_batch"])  # False if no clip of the batch could be read
        state.micro_batch += 1
        share, last_of_group = place_in_group(state.micro_batch, n_batches, args.gradient_accumulation_steps)
        engine.set_gradient_accumulation_boundary(last_of_group)
        with explain_memory(src_input), statistics_kept(engine.module, src_input):
            output = engine(to_device(src_input, engine.device), tgt_input)
            engine.backward(has_clips * share * output.loss)
            state.lr = engine.optimizer.param_groups[0]["lr"]
            engine.step()
        sums.append(has_clips * torch.stack([output.loss.detach(), output.nll, torch.ones_like(output.nll)]))
        names += src_input["name_batch"]

        if last_of_group:
            loss = end_step(engine, state, sums, guards)
            bar.set_postfix(loss=loss, lr=state.lr, refresh=False)
            if guards.steps.too_many:
                give_up(engine, state, names, guards, args)
            if state.micro_batch < n_batches:  # the end of an epoch saves a state anyway
                stop = guards.stop.agreed()
                save_within_epoch(engine, state, len(sums), stop, guards, args)
                if stop:
                    guards.saves.settle()
                    guards.stop.leave(f"after step {state.step}")
            sums.clear()
            names.clear()
    guards.clips.settle(dataset.split, len(dataset))
    return {**average(state.epoch_sums), "waited": round(loader.waited, 2), "lr": state.lr}


@torch.no_grad()
def evaluate(model: Any, loader: ClipLoader, guards: Guards, args: argparse.Namespace) -> Results:
    """Generate a sentence for every clip of a split, shared among all processes, and score them.

    A clip that cannot be read counts as an empty sentence. `model` may be the engine that trains it. The results are
    identical on every process.
    """
    dataset, device, bare = loader.dataset, distributed.device(), getattr(model, "module", model)
    bare.eval()
    mine: list[tuple[str, str]] = []
    sums = torch.zeros(3, dtype=torch.float64)  # loss and nll summed over target tokens; their number
    batches = progress(loader.epoch(), dataset.split, shown=distributed.is_main(), total=len(loader))
    for number, (src_input, tgt_input) in enumerate(batches):
        guards.clips.note(src_input, dataset.split, len(dataset))
        with explain_memory(src_input, training=False), distributed.autocast(args.dtype, device):
            output = model(to_device(src_input, device), tgt_input)
            ids = bare.generate(output, args.num_beams, args.max_new_tokens)
        if number < loader.sampler.n_own and src_input["name_batch"]:
            mine += zip(src_input["name_batch"], bare.sentences(ids), strict=True)
            sums += output.n_tokens * torch.tensor([output.loss.item(), output.nll.item(), 1.0], dtype=torch.float64)
        if guards.stop.agreed():
            guards.saves.settle()
            guards.stop.leave(f"in the evaluation of {dataset.split}")
    written = dict(pair for part in distributed.all_gather(mine) for pair in part)
    bad_clips = guards.clips.settle(dataset.split, len(dataset))
    hypotheses = ["" if name in bad_clips else written[name] for name in dataset.names]
    references = dataset.targets()
    spec = dataset.spec
    scores = metrics.score(args.task, hypotheses, references, spec.text_unit, spec.bleu_tokenizer)
    loss, nll, n_tokens = torch.stack(distributed.all_gather(sums)).sum(0).tolist()
    losses = {"loss": loss / max(n_tokens, 1), "nll": nll / max(n_tokens, 1)}
    if distributed.is_main():
        shown = f"loss {losses['loss']:.4f} (without smoothing {losses['nll']:.4f})"
        logger.info("%s, %d clips, %s:\n%s", dataset.split, len(dataset), shown, scores.table())
    return Results(args.task, dataset, hypotheses, references, scores, losses, bad_clips)


# -- helper functions ------------------------------------------------------------------------------------------------


def log_plan(args: argparse.Namespace, steps_per_epoch: int) -> None:
    """Log the training plan, above all the global batch size, which must match for runs to be comparable."""
    world, clips, group = distributed.world_size(), args.batch_size, args.gradient_accumulation_steps
    product = f"{clips * group * world} = {clips} clips x {group} micro-batches x {world} processes"
    engine = f"ZeRO-{args.zero_stage}" if needs_deepspeed(args.zero_stage, args.offload) else "torch alone"
    plan = f"{args.epochs} epochs of {steps_per_epoch} steps, lr {args.lr:g}, {args.dtype}, {engine}"
    logger.info("global batch %s; %s.", product, plan)
    if steps_per_epoch < FEW_STEPS and clips * group > 1 and distributed.is_main():
        fewer = "a lower --gradient-accumulation-steps, then a lower --batch-size"
        logger.warning("%d optimizer steps an epoch are few to learn from. Try %s.", steps_per_epoch, fewer)


def record_start(loaders: dict[str, ClipLoader], guards: Guards, step: int | None = None) -> None:
    """Record this start in run.json: training from `step` on, or (None) an evaluation."""
    if distributed.is_main():
        datasets = [loader.dataset for loader in loaders.values()]
        guards.tracker.start(datasets[0].spec, {dataset.split: dataset.fingerprint for dataset in datasets}, step)


Resumed = tuple[Path, TrainState]  # a state's folder and its progress


def find_resumed(args: argparse.Namespace, loaders: dict[str, ClipLoader]) -> Resumed | None:
    """Find the state of --resume and check that it is of the same flags; None to start from the beginning."""
    mine = find_state(args.resume, args.output_dir) if args.resume and distributed.is_main() else None
    if (found := distributed.broadcast_object(mine)) is None:
        return None
    folder, state = found
    return folder, check_resumable(folder, state, vars(args), len(loaders["train"]))


def start_state(args: argparse.Namespace, resumed: Resumed | None, sources: dict[str, Any]) -> TrainState:
    """Return the state the run starts from, after moving files of an earlier run out of the output folder."""
    begun_here = resumed and resumed[0].resolve().is_relative_to(Path(args.output_dir).resolve())
    if distributed.is_main() and not begun_here:
        set_aside(args.output_dir)
    distributed.barrier()
    if resumed is None:
        world = distributed.world_size()
        return TrainState(revision=git_revision(), arguments=vars(args), n_processes=world, sources=sources)
    folder, state = resumed
    state.sources |= sources
    if distributed.is_main():
        trim_curves(args.output_dir, state.epoch, state.step)
        set_later_aside(args.output_dir, state.step)
        state.best = best_on_disk(state, Path(args.output_dir) / BEST, args.epochs)
    state.best = distributed.broadcast_object(state.best)
    logger.info("resumed %s: epoch %d, step %d.", folder, state.epoch + 1, state.step)
    return state


def save(engine: Any, state: TrainState, guards: Guards, args: argparse.Namespace) -> Path:
    """Begin to save a state to resume from, once the one before is saved, and return its folder."""
    folder = resume_dir(args.output_dir) / state.folder_name
    guards.saves.settle()  # before there is another copy in memory
    guards.saves.begin("the state", folder, state_writer(engine, state, folder, args.keep_last))
    return folder


def save_weights_of_epoch(
    engine: Any, state: TrainState, dev: Results | None, improved: bool, guards: Guards, args: argparse.Namespace
) -> bool:
    """Save an epoch's weights, and before them, if they are the best so far, the best ones; return if those are new.

    They are two attempts, since what is written must be recorded: else a worse epoch could take the best one's place.
    """
    weights, config, out = full_state_dict(engine), engine.module.config, Path(args.output_dir)
    facts = {**weights_facts(args, engine.module), "score": dev and dev.rank[0], "epoch": state.epoch}
    if improved:
        with guards.saves.attempt(BEST_SAVED, out):
            if distributed.is_main():
                if config.use_descriptions:
                    save_weights(out / BEST_FUSION, fusion_weights(weights), config, **facts)
                save_weights(out / BEST, weights, config, **facts)
    with guards.saves.attempt("the checkpoint", out):
        if distributed.is_main():
            save_weights(out / f"checkpoint_{state.epoch}.pth", weights, config, **facts)
            forget_checkpoints(out, state.epoch, args.keep_last)
    return improved and not guards.saves.failed[BEST_SAVED]


def keep(results: Results, guards: Guards, args: argparse.Namespace) -> Results:
    """Write the files of a split's results, in place of earlier ones, and return them; all processes must call this."""
    with guards.saves.attempt("predictions", args.output_dir):
        if distributed.is_main():
            write_predictions(Path(args.output_dir), results)
    return results


def conclude(results: Sequence[Results]) -> None:
    """Log how scores were computed and, once, if the model has learnt next to nothing."""
    for name, signature in results[-1].scores.signatures.items() if results else ():
        logger.info("%s: %s", name, signature)
    complaint = next(filter(None, (one.complaint() for one in results)), "")
    if complaint and distributed.is_main():
        logger.warning(complaint)


def give_up(engine: Any, state: TrainState, names: list[str], guards: Guards, args: argparse.Namespace) -> None:
    """Save the state and raise ValueError: too many losses or gradients in a row were not finite."""
    clips = sorted(name for part in distributed.all_gather(names) for name in part)
    folder = Path(args.output_dir) / "non_finite" / state.folder_name
    guards.saves.settle()
    with guards.saves.attempt("the state", folder):
        state_writer(engine, state, folder)()
    place = "not saved" if guards.saves.failed["the state"] else f"saved in {folder}"
    raise ValueError(guards.steps.report(state.step, state.lr, clips, f"The state is {place}."))


def log_epoch(
    state: TrainState, numbers: dict[str, float], improved: bool, begun: float, guards: Guards, args: argparse.Namespace
) -> None:
    """Log an epoch: one summary line in the log, all numbers as JSON in log.txt."""
    if distributed.is_main():
        line = {"epoch": state.epoch, **numbers, "seconds": round(time.monotonic() - begun, 1)}
        guards.tracker.epoch(state.step, line)
    shown = ("loss", "nll", "lr", "waited", "dev_nll", f"dev_{metrics.MAIN_METRIC[args.task][0]}")
    text = ", ".join(f"{name} {numbers[name]:.4g}" for name in shown if name in numbers)
    logger.info("epoch %d of %d: %s%s.", state.epoch + 1, args.epochs, text, " (best)" if improved else "")


def place_in_group(micro_batch: int, n_batches: int, group: int) -> tuple[float, bool]:
    """Return the factor of a micro-batch's loss, and whether it is the last of its accumulation group.

    The last group of an epoch may be smaller. It still makes a step; nothing is carried over to the next epoch. The
    engine divides every loss by the size of a full group, which the factor corrects.

    >>> [place_in_group(micro_batch, n_batches=3, group=2) for micro_batch in (1, 2, 3)]
    [(1.0, False), (1.0, True), (2.0, True)]
    """
    before = (micro_batch - 1) // group * group  # micro-batches in earlier groups
    size = min(group, n_batches - before)
    return group / size, micro_batch == before + size


def end_step(engine: Any, state: TrainState, sums: list[torch.Tensor], guards: Guards) -> float:
    """Count an optimizer step, append it to steps.jsonl, and return its mean loss; that of a skipped one is not kept.

    `sums` has (loss, nll, 1) of each micro-batch of the step, 0 for those without clips.
    """
    state.step += 1
    loss, nll, n = torch.stack(sums).double().sum(0).tolist()
    mean = loss / max(n, 1)
    taken = guards.steps.taken(engine, mean)  # else the running statistics are as they were
    if taken:
        for name, value in (("loss", loss), ("nll", nll), ("batches", n)):
            state.epoch_sums[name] = state.epoch_sums.get(name, 0.0) + value
    else:
        logger.warning("step %d is skipped: its loss or gradient is not finite (loss %.4g).", state.step, mean)
    if distributed.is_main():
        line = {"step": state.step, "epoch": state.epoch, "loss": mean if taken else None, "lr": state.lr}
        guards.tracker.step(line if taken else {**line, "skipped": True})
    return mean


def average(sums: dict[str, float]) -> dict[str, float]:
    """Return the mean loss and nll over the micro-batches of all processes."""
    parts = distributed.all_gather(sums)
    loss, nll, n_batches = (sum(part.get(name, 0.0) for part in parts) for name in ("loss", "nll", "batches"))
    return {"loss": loss / n_batches, "nll": nll / n_batches} if n_batches else {"loss": math.nan, "nll": math.nan}


def save_within_epoch(
    engine: Any, state: TrainState, n_micro_batches: int, stop: bool, guards: Guards, args: argparse.Namespace
) -> None:
    """After a step of `n_micro_batches`, save what --save_steps or --quick_break asks for, or a state before a stop."""
    # Like Uni-Sign, --quick_break counts micro-batches: does this step include a multiple of N?
    quick = args.quick_break > 0 and state.micro_batch % args.quick_break < n_micro_batches
    if quick:
        weights = full_state_dict(engine)
        with guards.saves.attempt("checkpoint.pth", args.output_dir):
            if distributed.is_main():
                facts = {**weights_facts(args, engine.module), "score": None, "epoch": state.epoch}
                save_weights(Path(args.output_dir) / "checkpoint.pth", weights, engine.module.config, **facts)
    if quick or stop or (args.save_steps and state.step % args.save_steps == 0):
        save(engine, state, guards, args)


if __name__ == "__main__":
    with distributed.naming_the_lost():
        run(lambda: main(ARGS))
    distributed.stop()
