"""The documented commands, through the real command line: training, evaluation, resuming, several processes."""

import dataclasses
import gzip
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

import config
import fine_tuning
import utils
from synthetic.small_mt5 import write_small_mt5
from system.disk import read_lines as lines
from system.safe_pickle import load_pickle
from tests.helpers.processes import Run
from training import build
from training.checkpoint import TrainState
from translator import Translator

ROOT = Path(__file__).resolve().parents[1]
FUSION_MODULES = {"gating_fusion", "mask_embedding", "text_adapter", "description_mapper"}
SMALL = (
    "--hidden_dim 32 --epochs 2 --batch-size 4 --gradient-accumulation-steps 2 --dtype fp32 --num_workers 0 "
    "--num_beams 2 --max_new_tokens 8 --max_length 24"
).split()


def train(corpus, out, *flags):
    """Run in this process."""
    args = utils.parse_args(["--root", str(corpus), *SMALL, "--output_dir", str(out), *flags])
    fine_tuning.main(args)
    return out


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.fixture(scope="module")
def described(corpus, tmp_path_factory):
    """A finished run with descriptions."""
    return train(corpus, tmp_path_factory.mktemp("described"), "--use_descriptions", "--save_steps", "1")


@pytest.fixture(scope="module")
def baseline(corpus, tmp_path_factory):
    """A finished run without descriptions."""
    return train(corpus, tmp_path_factory.mktemp("baseline"))


def test_the_loop_by_hand(tmp_path):
    """Five micro-batches in steps of two: the last is a step of its own, and one without clips counts nothing."""
    clips = [{"name_batch": names, "attention_mask": torch.ones(1, 1)} for names in (["a"], ["b"], [], ["d"], ["e"])]
    loader = MagicMock(waited=0.0)
    loader.__len__.return_value, loader.dataset.__len__.return_value = 5, 10
    loader.epoch.return_value = [(src_input, {}) for src_input in clips]
    args = utils.parse_args(["--gradient-accumulation-steps", "2", "--output_dir", str(tmp_path)])
    outputs = [SimpleNamespace(loss=loss, nll=loss / 2) for loss in torch.arange(1.0, 6.0)]
    engine, state = MagicMock(device="cpu", module=torch.nn.Identity(), side_effect=outputs), TrainState()
    engine.optimizer.param_groups = [{"lr": 0.1}]
    numbers = fine_tuning.train_one_epoch(engine, loader, state, build.build_guards(args), args)
    boundaries = [call.args[0] for call in engine.set_gradient_accumulation_boundary.call_args_list]
    assert boundaries == [False, True, False, True, True]
    # The engine halves all: the last is a mean of one.
    assert [float(call.args[0]) for call in engine.backward.call_args_list] == [1, 2, 0, 4, 10]
    assert [line["loss"] for line in lines(tmp_path / "steps.jsonl")] == [1.5, 4, 5]
    assert (state.step, state.micro_batch) == (3, 5)
    assert numbers == {"loss": 3, "nll": 1.5, "lr": 0.1, "waited": 0}


def test_what_a_run_leaves_behind(described):
    """Beside what test_readme.py compares with the documents."""
    epochs, steps = lines(described / "log.txt"), lines(described / "steps.jsonl")
    assert [line["epoch"] for line in epochs] == [0, 1]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[0]["lr"] == pytest.approx(1e-3)
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert {"nll", "dev_bleu4", "dev_chrf", "dev_rouge_l", "dev_loss", "dev_nll", "seconds"} <= set(epochs[0])
    rows = lines(described / "dev_predictions.jsonl")
    assert len(rows) == 9
    assert set(rows[0]) == {"name", "reference", "hypothesis"}
    first = (described / "dev_tmp_refs.txt").read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"sample: S\w+, reference: (. )+.", first)  # characters, as they are scored
    assert "tok:13a" in json.loads((described / "dev_metrics.json").read_text())["signatures"]["bleu"]


def test_checkpoints_have_uni_signs_names(described, baseline):
    ours, plain = weights(described / "best_checkpoint.pth"), weights(baseline / "best_checkpoint.pth")
    extra = {name.split(".")[0] for name in set(ours) - set(plain)}
    assert set(plain) < set(ours)
    assert extra == {*FUSION_MODULES, "text_encoder"}
    assert {name.split(".")[0] for name in weights(described / "best_fusion.pth")} == extra - {"text_encoder"}


def results(folder, split):
    """The scores and sentences of a split."""
    content = json.loads((folder / f"{split}_metrics.json").read_text())
    return content, lines(folder / f"{split}_predictions.jsonl")


def evaluate(corpus, weights_file, *flags):
    """Evaluate in this process, with nothing said about the model."""
    search = "--dtype fp32 --num_workers 0 --num_beams 2 --max_new_tokens 8 --batch-size 4".split()
    line = ["--root", str(corpus), *search, "--eval", "--finetune", str(weights_file), *flags]
    fine_tuning.main(utils.parse_args(line))


def test_a_training_ends_with_test_and_an_evaluation_repeats_it(corpus, described, tmp_path):
    """--eval needs no flag of the model, and writes where a report looks."""
    run = shutil.copytree(described, tmp_path / "run")
    wanted = {split: results(run, split) for split in ("dev", "test")}
    best = min(lines(run / "log.txt"), key=lambda line: (-line["dev_bleu4"], line["dev_nll"]))
    assert wanted["dev"][0]["nll"] == best["dev_nll"]  # those of the best epoch, as the checkpoint is
    assert len(wanted["test"][1]) == 7
    for file in run.glob("*_*s.json*"):
        file.unlink()
    assert f"a page of this run: python -m tools.report {described}\n" in (run / "train.log").read_text()
    evaluate(corpus, run / "best_checkpoint.pth")
    for split, (scores, sentences) in wanted.items():
        again, said = results(run, split)
        assert said == sentences
        assert again.pop("signatures") == scores.pop("signatures")
        assert again == pytest.approx(scores, rel=1e-5)
    last = json.loads((run / "run.json").read_text())["starts"][-1]
    settings = {"use_descriptions": True, "hidden_dim": 32, "max_length": 24, "task": "SLT", "output_dir": str(run)}
    assert settings.items() <= last["arguments"].items()
    assert last["what"] == "evaluation"


def test_a_finished_run_is_tested_again_and_trains_no_further(corpus, described, tmp_path, caplog):
    caplog.set_level("INFO")
    run = shutil.copytree(described, tmp_path / "run")
    (run / "test_metrics.json").unlink()
    before = (run / "steps.jsonl").read_bytes(), weights(run / "best_checkpoint.pth")
    train(corpus, run, "--use_descriptions", "--save_steps", "1", "--resume", "auto")
    scores, sentences = results(run, "test")
    assert sentences == results(described, "test")[1]
    assert scores["nll"] == pytest.approx(results(described, "test")[0]["nll"])
    assert (run / "steps.jsonl").read_bytes() == before[0]
    assert "dev, 9 clips" not in caplog.text


def test_a_training_without_test(corpus, tmp_path, caplog):
    """Not asked for, without one of its own, and without its files."""
    caplog.set_level("INFO")
    spec = config.DATASETS["CSL_Daily"].under(corpus)
    loaders = {}
    for name, more in (("how", {"dev_is_test": True}), ("news", {"labels": dict(list(spec.labels.items())[:2])})):
        args = utils.parse_args(["--root", str(corpus), *SMALL])
        loaders[name] = build.build_loaders(args, dataclasses.replace(spec, name=name, **more))
    loaders["not"] = build.build_loaders(utils.parse_args(["--no_test", "--root", str(corpus), *SMALL]), spec)
    assert {name: list(found) for name, found in loaders.items()} == dict.fromkeys(loaders, ["train", "dev"])
    assert "how has no dev split: the best checkpoint is chosen on test, whose scores are dev's." in caplog.text
    assert "news has no test split." in caplog.text
    args = utils.parse_args(["--root", str(corpus), *SMALL])
    gone = dataclasses.replace(spec, labels={**spec.labels, "test": str(tmp_path / "labels.test")})
    with pytest.raises(ValueError, match=r"labels.test not found.* Or leave test out of this training: --no_test"):
        build.build_loaders(args, gone)


def test_what_the_checkpoint_says_otherwise_is_refused(corpus, baseline, tmp_path):
    best = baseline / "best_checkpoint.pth"
    wanted = (
        r"--eval: .*best_checkpoint.pth was trained with hidden_dim 32 \(here 64\), max_length 24 \(here 9\), task SLT "
        r"\(here CSLR\), use_descriptions False \(here True\). Drop these flags"
    )
    with pytest.raises(ValueError, match=wanted):
        evaluate(corpus, best, *"--hidden_dim 64 --use_descriptions --task CSLR --max_length 9".split())
    evaluate(corpus, best, "--hidden_dim", "32", "--output_dir", str(tmp_path))  # said again
    assert (tmp_path / "test_metrics.json").exists()
    with pytest.raises(
        ValueError, match=r"best_checkpoint.pth was trained on CSL_Daily, not on OpenASL. Give --dataset"
    ):
        evaluate(corpus, best, "--dataset", "OpenASL")


def test_weights_without_settings_take_the_flags(corpus, baseline, tmp_path):
    """As Uni-Sign's: their shapes decide the width, flags and defaults the rest; other epochs have their own folder."""
    torch.save({"model": weights(baseline / "best_checkpoint.pth")}, tmp_path / "released.pth")
    evaluate(corpus, tmp_path / "released.pth", "--max_length", "24", "--mt5_path", "pretrained_weight/mt5-base")
    scores, sentences = results(tmp_path / "released", "test")
    assert sentences == results(baseline, "test")[1]
    assert scores["nll"] == pytest.approx(results(baseline, "test")[0]["nll"], rel=1e-5)


@pytest.mark.parametrize(("flags", "steps", "few"), [("", 9, True), ("", 10, False), ("1", 9, True), ("1 1", 9, False)])
def test_few_steps_are_said(caplog, flags, steps, few):
    flags = zip(("--batch-size", "--gradient-accumulation-steps"), flags.split(), strict=False)
    fine_tuning.log_plan(utils.parse_args([word for pair in flags for word in pair]), steps)
    assert ("9 optimizer steps an epoch are few to learn from" in caplog.text) == few


def test_more_clips_are_searched_together_than_trained_on(corpus):
    """Four times as many; with Uni-Sign's padding a clip's neighbours count, and must stay."""
    for more, size in (([], 8), (["--uni_sign_padding"], 2)):
        args = utils.parse_args(["--root", str(corpus), *SMALL, "--batch-size", "2", *more])
        loaders = build.build_loaders(args, build.dataset_spec(args))
        sizes = {split: {len(batch) for batch in loader.sampler.batches()} for split, loader in loaders.items()}
        assert sizes == {"train": sizes["train"], "dev": {size, 1}, "test": {min(size, 7), 7 % size or 7}}
        assert max(sizes["train"]) == 2


def test_two_processes_write_the_same_files(corpus, described, tmp_path):
    flags = ("--use_descriptions", "--eval", "--finetune", str(described / "best_checkpoint.pth"), "--batch-size", "1")
    train(corpus, tmp_path / "1", *flags)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "fine_tuning.py"]
    command += ["--root", str(corpus), *SMALL, "--output_dir", str(tmp_path / "2"), *flags]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600, check=True)
    for split, count in (("dev", 9), ("test", 7)):
        for name in ("predictions.jsonl", "tmp_pres.txt", "tmp_refs.txt"):
            assert (tmp_path / "1" / f"{split}_{name}").read_text() == (tmp_path / "2" / f"{split}_{name}").read_text()
        assert len(lines(tmp_path / "2" / f"{split}_predictions.jsonl")) == count
        a, b = (json.loads((tmp_path / n / f"{split}_metrics.json").read_text()) for n in "12")
        assert a.pop("loss") == pytest.approx(b.pop("loss"))
        assert a.pop("nll") == pytest.approx(b.pop("nll"))
        assert a == b


def test_zero_2_trains_as_zero_0_does(corpus, tmp_path):
    """On two processes: same losses, and a checkpoint with every weight."""
    flags = ["--root", str(corpus), *SMALL, "--use_descriptions", "--epochs", "1", "--batch-size", "2"]
    flags += ["--max_length", "16", "--max_new_tokens", "4"]
    for stage in "02":
        run = [*flags, "--zero_stage", stage, "--output_dir", str(tmp_path / stage)]
        Run(tmp_path / f"{stage}.log", run, n_processes=2).finish()
    zero, two = (lines(tmp_path / stage / "steps.jsonl") for stage in "02")
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in zero], rel=1e-3)
    shapes = [{n: w.shape for n, w in weights(tmp_path / s / "checkpoint_0.pth").items()} for s in "02"]
    assert shapes[0] == shapes[1]
    assert len(lines(tmp_path / "2" / "dev_predictions.jsonl")) == 9
    # Both processes have loaded the best weights.
    (scores, sentences), best = results(tmp_path / "2", "test"), tmp_path / "2" / "best_checkpoint.pth"
    evaluate(corpus, best, "--max_new_tokens", "4", "--batch-size", "2", "--output_dir", str(tmp_path / "again"))
    again, said = results(tmp_path / "again", "test")
    assert (said, again["nll"]) == (sentences, pytest.approx(scores["nll"], rel=1e-4))


@pytest.mark.slow
@pytest.mark.parametrize(("n_processes", "stage"), [(1, "2"), (2, "0"), (2, "1"), (2, "2")])
def test_bf16_trains_and_resumes(corpus, tmp_path, n_processes, stage):
    flags = ["--root", str(corpus), *SMALL, "--use_descriptions", "--zero_stage", stage, "--dtype", "bf16"]
    flags += ["--output_dir", str(tmp_path)]
    Run(tmp_path / "first.log", flags, n_processes).finish()
    before = lines(tmp_path / "steps.jsonl")
    state = sorted((tmp_path / "resume").iterdir())[0]
    Run(tmp_path / "second.log", [*flags, "--resume", str(state)], n_processes).finish()
    assert lines(tmp_path / "steps.jsonl") == before
    assert all(w.dtype == torch.float32 for n, w in weights(tmp_path / "checkpoint_1.pth").items() if "running" in n)


def test_frozen_encoder_alone_trains_the_rest(corpus, tmp_path, caplog):
    caplog.set_level("INFO")
    train(corpus, tmp_path, "--use_descriptions", "--text_encoder_freeze", "--text_cache", str(tmp_path / "cache"))
    saved = weights(tmp_path / "best_checkpoint.pth")
    assert not [name for name in saved if name.startswith("text_encoder")]
    assert "everything but the text encoder (--text_encoder_freeze without --finetune)" in caplog.text


def test_frozen_encoder_with_a_base_trains_fusion_alone(corpus, baseline, tmp_path, caplog):
    caplog.set_level("INFO")
    base = baseline / "best_checkpoint.pth"
    flags = ("--use_descriptions", "--text_encoder_freeze", "--text_cache", str(tmp_path / "cache"))
    train(corpus, tmp_path, *flags, "--finetune", str(base), "--epochs", "1")
    before, after = weights(base), weights(tmp_path / "checkpoint_0.pth")
    assert all(torch.equal(before[name], after[name]) for name in before)  # batch statistics included
    assert {name.split(".")[0] for name in set(after) - set(before)} == FUSION_MODULES
    assert "the fusion modules alone" in caplog.text
    # A checkpoint of a frozen run evaluates with the encoder running: the features are the same.
    out = train(
        corpus, tmp_path / "e", "--use_descriptions", "--eval", "--finetune", str(tmp_path / "checkpoint_0.pth")
    )
    scores = json.loads((out / "dev_metrics.json").read_text())
    assert scores["nll"] == pytest.approx(lines(tmp_path / "log.txt")[0]["dev_nll"], rel=1e-5)


@pytest.mark.parametrize("trainable", ["auto", "all"])
def test_a_trained_text_encoder_is_frozen_as_it_was_trained(corpus, described, tmp_path, trainable):
    """It is that of the checkpoint, not that of the folder, and stays part of what is saved."""
    best = described / "best_checkpoint.pth"
    flags = ("--use_descriptions", "--text_encoder_freeze", "--trainable", trainable, "--finetune", str(best))
    train(corpus, tmp_path, *flags, "--epochs", "1")
    before, after = weights(best), weights(tmp_path / "checkpoint_0.pth")
    encoder = [name for name in before if name.startswith("text_encoder.")]
    assert encoder
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert not torch.equal(before["gating_fusion.gate.0.weight"], after["gating_fusion.gate.0.weight"])
    same = torch.equal(before["pose_proj.weight"], after["pose_proj.weight"])
    assert same == (trainable == "auto")
    assert before.keys() == after.keys()


def test_one_command_starts_and_resumes(corpus, baseline, tmp_path, caplog):
    """As a queue of jobs does it: the same line again, --finetune included, goes on where the first stopped."""
    caplog.set_level("INFO")
    flags = ("--use_descriptions", "--text_encoder_freeze", "--text_cache", str(tmp_path / "cache"), "--resume", "auto")
    flags += ("--finetune", str(baseline / "best_checkpoint.pth"))
    train(corpus, tmp_path, *flags)
    assert "resumed" not in caplog.text
    whole = weights(tmp_path / "checkpoint_1.pth")
    shutil.rmtree(sorted((tmp_path / "resume").iterdir())[-1])
    train(corpus, tmp_path, *flags)
    assert "resumed" in caplog.text
    assert all(torch.equal(whole[name], value) for name, value in weights(tmp_path / "checkpoint_1.pth").items())


def test_fusion_checkpoint_is_where_training_starts(corpus, described, tmp_path):
    flags = ("--use_descriptions", "--fusion_checkpoint", str(described / "best_fusion.pth"), "--lr", "1e-12")
    train(corpus, tmp_path, *flags, "--min-lr", "0", "--epochs", "1")
    wanted, got = weights(described / "best_fusion.pth"), weights(tmp_path / "best_fusion.pth")
    of_texts = ("text_adapter.mean", "text_adapter.n_batches")  # the running mean goes on
    assert all(torch.allclose(wanted[name], got[name], atol=1e-6) for name in wanted if name not in of_texts)
    assert got[of_texts[1]] > wanted[of_texts[1]] > 0


def test_resume_of_another_experiment_is_refused(corpus, baseline):
    with pytest.raises(ValueError, match=r"--resume: .* was saved with --lr 0.001; this run has 0.01"):
        train(corpus, baseline, "--resume", "auto", "--lr", "0.01")


def altered(corpus, tmp_path, file, change):
    """A copy of the corpus with another content of one file."""
    copy = shutil.copytree(corpus, tmp_path / "copy")
    (path,) = copy.glob(file)
    path.write_bytes(change(path.read_bytes()))
    return copy


def other_order(data):
    labels = pickle.loads(gzip.decompress(data))
    return gzip.compress(pickle.dumps(dict(reversed(labels.items()))))


MT5 = "pretrained_weight/mt5-base"
OTHERS = [
    ("data/CSL_Daily/labels.train", other_order, "train labels_sha256"),
    (f"{MT5}/config.json", lambda data: data.replace(b"1e-06", b"1e-03"), "mT5's layer_norm_epsilon"),
    (f"{MT5}/spiece.model", lambda data: data + b"\xc0\x3e\x01", "mT5's spiece.model"),  # a field nobody knows
]


@pytest.mark.parametrize(("file", "change", "words"), OTHERS)
def test_a_run_goes_on_with_what_it_began_with(corpus, baseline, tmp_path, file, change, words):
    out, copy = shutil.copytree(baseline, tmp_path / "out"), altered(corpus, tmp_path, file, change)
    with pytest.raises(ValueError, match=rf"--resume: .*different are: {words}\. Put them back"):
        train(copy, out, "--resume", "auto")


def test_poses_that_were_mended_are_said(corpus, baseline, tmp_path, caplog):
    out = shutil.copytree(baseline, tmp_path / "out")
    name = next(iter(load_pickle(corpus / "data/CSL_Daily/labels.train", compressed=True)))
    copy = altered(corpus, tmp_path, f"dataset/CSL_Daily/pose_format/{name}.pkl", lambda data: data + b" ")
    train(copy, out, "--resume", "auto")
    assert "these have changed: train poses_sha256." in caplog.text


@pytest.mark.parametrize(("file", "change", "words"), OTHERS[1:])
def test_what_a_checkpoint_does_not_hold_is_that_of_its_training(
    corpus, baseline, tmp_path, file, change, words, caplog
):
    """Refused by an evaluation; a training and a translation say so."""
    best, copy = baseline / "best_checkpoint.pth", altered(corpus, tmp_path, file, change)
    told = rf"{best} was trained with other files; different are: {words}\. Name those of training: --mt5_path"
    with pytest.raises(ValueError, match=f"--finetune: {told}"):
        evaluate(copy, best, "--mt5_path", MT5, "--output_dir", str(tmp_path / "out"))
    Translator.from_checkpoint(best, mt5_path=str(copy / MT5), language="English", device="cpu")
    assert re.search(f"--checkpoint: {told}", caplog.text)
    assert f"{best} was trained with --language Chinese; English is taken" in caplog.text


def test_a_frozen_encoder_is_that_of_training(corpus, tmp_path, caplog):
    copy = shutil.copytree(corpus, tmp_path / "copy")
    flags = ("--use_descriptions", "--text_encoder_freeze", "--epochs", "1", "--no_test")
    best = train(copy, tmp_path / "out", *flags) / "best_checkpoint.pth"
    (copy / MT5 / "merges.txt").touch()
    with pytest.raises(ValueError, match="different are: the frozen text encoder"):
        evaluate(copy, best)
    translator = Translator.from_checkpoint(best, device="cpu")
    assert "other files" not in caplog.text
    translator.model.text_encoder(["hi"])
    assert "the checkpoint was trained with other files; different are: the frozen text encoder" in caplog.text


def test_an_evaluation_in_another_language_is_refused(corpus, baseline, tmp_path):
    toml = 'name = "CSL_Daily"\nlanguage = "English"\npose_dir = "x"\n[labels]\ntest = "y"\n'
    (tmp_path / "english.toml").write_text(toml)
    with pytest.raises(ValueError, match="best_checkpoint.pth was trained to write Chinese, and CSL_Daily is English"):
        evaluate(corpus, baseline / "best_checkpoint.pth", "--dataset_config", str(tmp_path / "english.toml"))


def test_keep_last_bounds_the_disk(corpus, tmp_path):
    (tmp_path / "checkpoint_7.pth").write_text("of an earlier, longer run")
    train(corpus, tmp_path, "--epochs", "3", "--keep_last", "1")
    assert [path.name for path in tmp_path.glob("checkpoint_*.pth")] == ["checkpoint_2.pth"]
    assert (tmp_path / "earlier" / "checkpoint_7.pth").read_text() == "of an earlier, longer run"
    assert len(list((tmp_path / "resume").iterdir())) == 1


@pytest.mark.parametrize("place", ["out/resume", "link/resume", "link/../out/resume"])
def test_going_back_to_an_older_state(corpus, described, tmp_path, place):
    """What was saved after it is of another course of the run: the next --resume auto must not take it."""
    out = shutil.copytree(described, tmp_path / "out")
    (tmp_path / "link").symlink_to(out)
    older, *_, newest = sorted((tmp_path / place).iterdir())
    flags = ("--use_descriptions", "--save_steps", "1", "--keep_last", "2")
    args = utils.parse_args(["--root", str(corpus), *SMALL, "--output_dir", str(out), *flags, "--resume", str(older)])
    loaders = build.build_loaders(args, build.dataset_spec(args))
    state = fine_tuning.start_state(args, fine_tuning.find_resumed(args, loaders), {})
    assert f"step_{state.step:08d}" == older.name != newest.name
    assert [path.name for path in (out / "resume").iterdir()] == [older.name]
    assert newest.name in {path.name for path in (out / "earlier" / "resume").iterdir()}
    assert [line["step"] for line in lines(out / "steps.jsonl")] == list(range(1, state.step + 1))


def test_a_state_of_another_folder(corpus, described, tmp_path, caplog):
    """What lies in the output folder is of another run: neither its curves nor its best weights are this one's."""
    out = shutil.copytree(described, tmp_path / "out")
    older = sorted((described / "resume").iterdir())[-2]
    flags = ("--use_descriptions", "--save_steps", "1", "--resume", str(older), "--output_dir", str(out))
    args = utils.parse_args(["--root", str(corpus), *SMALL, *flags])
    loaders = build.build_loaders(args, build.dataset_spec(args))
    state = fine_tuning.start_state(args, fine_tuning.find_resumed(args, loaders), {})
    assert state.best is None
    assert "best_checkpoint.pth is not the best checkpoint so far" in caplog.text
    assert {"best_checkpoint.pth", "steps.jsonl", "resume"} <= {path.name for path in (out / "earlier").iterdir()}


def test_missing_descriptions_stop_the_run_before_training(corpus, described, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    shutil.rmtree(copy / "description")
    with pytest.raises(FileNotFoundError, match=r"--use_descriptions: .*description/CSL-Daily/split_data/train"):
        train(copy, tmp_path / "out", "--use_descriptions")
    with pytest.raises(ValueError, match=r"dev not found.*with descriptions; to test without") as error:
        evaluate(copy, described / "best_checkpoint.pth", "--output_dir", str(tmp_path / "out"))
    assert "drop --use_descriptions" not in str(error.value)


def test_real_signing_goes_through(shared_real, tmp_path):
    """Real poses and messy descriptions: clips of over 256 frames and of under 8, files with every kind of fault."""
    manifest = json.loads((shared_real / "descriptions" / "MANIFEST.json").read_text(encoding="utf-8"))["files"]
    messy = {facts["problem"]: name for name, facts in manifest.items() if name.startswith("train/")}
    for split in ("train", "dev"):
        labels = load_pickle(shared_real / "fingerspelling" / f"labels.{split}", compressed=True)
        by_length = sorted(labels, key=lambda name: len(labels[name]["gloss"]))
        chosen = [*by_length[:3], *by_length[-2:]]
        chosen += [Path(name).stem for name in messy.values()] if split == "train" else []
        content = pickle.dumps({name: labels[name] for name in dict.fromkeys(chosen)})
        (tmp_path / f"labels.{split}").write_bytes(gzip.compress(content))
    config = (ROOT / "examples" / "fingerspelling.toml").read_text(encoding="utf-8")
    (tmp_path / "real.toml").write_text(config.replace('"fingerspelling/labels', f'"{tmp_path}/labels'))
    write_small_mt5(tmp_path / "mt5", ["red car", "右手在胸前", "the left hand rises"] * 5, d_model=64, layers=1)
    flags = ("--dataset_config", tmp_path / "real.toml", "--mt5_path", tmp_path / "mt5", "--use_descriptions")
    out = train(shared_real, tmp_path / "out", *map(str, flags), "--epochs", "1", "--max_length", "256", "--no_test")
    assert 0 < lines(out / "log.txt")[0]["loss"] < 20
    assert len(lines(out / "dev_predictions.jsonl")) == 5


@pytest.mark.slow
def test_real_signing_is_learnt(shared_real, tmp_path):
    """Twenty epochs of a small model on real poses, with and without messy descriptions: the trained loss halves.

    That loss is smoothed: it cannot fall below the entropy of its own targets, about 1.8, and starts near 4.8.
    """
    config = ROOT / "examples" / "fingerspelling.toml"
    mt5 = tmp_path / "mt5"
    texts = [shared_real / "fingerspelling" / "labels.train", shared_real / "descriptions" / "train"]
    subprocess.run([sys.executable, "-m", "tools.small_mt5", "--out", mt5, "--texts", *texts], cwd=ROOT, check=True)
    flags = ["--dataset_config", str(config), "--mt5_path", str(mt5), "--text_cache", str(tmp_path / "cache")]
    flags += "--hidden_dim 32 --lr 4e-4 --warmup-epochs 0.5 --epochs 20 --batch-size 4".split()
    flags += "--gradient-accumulation-steps 1 --num_beams 1 --max_new_tokens 40 --max_length 256".split()
    for name, more in (("pose", []), ("described", ["--use_descriptions", "--text_encoder_freeze"])):
        out = train(shared_real, tmp_path / name, *flags, *more)
        epochs = lines(out / "log.txt")
        assert epochs[-1]["loss"] < epochs[0]["loss"] / 2
        sys.stdout.write(f"{name}: loss {epochs[0]['loss']:.2f} -> {epochs[-1]['loss']:.2f}, ")
        sys.stdout.write(f"dev BLEU-4 {[round(line['dev_bleu4'], 2) for line in epochs]}\n")
