"""The command line: spellings, contradictions, and that every flag has a reader."""

import argparse
import ast
import contextlib
import dataclasses
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import config
import utils
from training.engine import EngineConfig
from training.optimization import OptimizerConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("spelled", ["--batch-size=4 --no-pin-mem", "--batch_size=4 --no_pin_mem"])
def test_both_spellings_work(spelled):
    args = utils.parse_args([*spelled.split(), "--output_dir", "my-run_1"])
    assert (args.batch_size, args.pin_mem, args.output_dir) == (4, False, "my-run_1")


def test_every_flag_is_read_somewhere():
    read = set()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args":
                read.add(node.attr)
    flags = {action.dest for action in utils.get_args_parser()._actions if action.help != argparse.SUPPRESS} - {"help"}
    # `training.build.from_flags` reads those that are fields of a record. The deepspeed launcher gives --local_rank and
    # sets LOCAL_RANK to the same number, which system/distributed.py reads.
    records = (config.ModelConfig, EngineConfig, OptimizerConfig)
    assert flags - read - {field.name for kind in records for field in dataclasses.fields(kind)} == {"local_rank"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--dataset", "Nobody"], ["--dataset", "Nobody", "CSL_Daily"]),
        (["--text_encoder_freeze"], ["--text_encoder_freeze", "--use_descriptions"]),
        (["--fusion_checkpoint", "x.pth"], ["--fusion_checkpoint", "--use_descriptions"]),
        (["--trainable", "fusion"], ["--trainable fusion", "--use_descriptions"]),
        (["--text_encoder", "x", "--trainable", "fusion"], ["--text_encoder needs", "--trainable fusion needs"]),
        (["--rgb_backbone", "x.pth"], ["--rgb_backbone", "--rgb_support"]),
        (["--eval"], ["--eval", "--finetune"]),
        (["--eval", "--finetune", "x", "--no_test"], ["--no_test is for a training"]),
        (["--resume", "auto", "--finetune", "x", "--eval"], ["--eval", "--resume"]),
        (["--offload", "--zero_stage", "0"], ["--offload", "--zero_stage"]),
        (["--epochs", "0"], ["--epochs 0"]),
        (["--lr", "nan"], ["--lr nan"]),
        (["--lr", "1e-4", "--min-lr", "1e-3"], ["--min_lr 0.001", "--lr, which is 0.0001"]),
        (["--gradient-clipping", "nan"], ["--gradient_clipping nan", "at least 0"]),
        (["--opt-betas", "0.9", "1"], ["--opt_betas", "0.9 1.0"]),
        (["--seed", "-1", "--epochs", "0"], ["--epochs 0: must be at least 1. --seed -1: must be between 0 and"]),
        (["--seed", "4294967296"], ["--seed 4294967296: must be between 0 and 4294967295."]),
        (["--batch-size", "9" * 23], [f"--batch_size {'9' * 23}: must be between 1 and 1000000."]),
        (["--hidden_dim", "4000000"], ["--hidden_dim 4000000: must be between 4 and 65536."]),
        (["--max_new_tokens", "999999999"], ["--max_new_tokens 999999999: must be between 1 and 10000."]),
        (["--warmup-epochs", "inf"], ["--warmup_epochs inf: must be between 0 and 1000000."]),
        (["--lr", "inf"], ["--lr inf: must be positive and finite."]),
        (["--opt-eps", "inf"], ["--opt_eps inf: must be at least 0 and finite."]),
        (["--weight-decay", "inf"], ["--weight_decay inf: must be at least 0 and finite."]),
        (["--eval", "--finetune", "x.pth", "--tensorboard"], ["draw a training"]),
    ],
)
def test_contradictions_are_one_line_and_status_2(argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        utils.parse_args(argv)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert all(word in last for word in words), last


def test_flags_without_effect_are_accepted_with_one_notice(capsys, monkeypatch):
    plain = utils.parse_args([])
    line = "--world_size 4 --dist-url env:// --device cuda --start_epoch 3 --compute_fp32_loss --momentum=0.5".split()
    assert vars(utils.parse_args(line)) == vars(plain)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("fine_tuning.py: accepted for old scripts, without effect here: --world_size (instead: ")
    assert "--start_epoch (instead: --resume)" in said
    monkeypatch.setenv("RANK", "1")
    utils.parse_args(line)
    assert capsys.readouterr().err == ""


def test_an_evaluation_leaves_the_model_to_the_checkpoint():
    args = vars(utils.parse_args("--eval --finetune x --hidden-dim 256 --no-pin-mem --rgb_support".split()))
    said = {"hidden_dim": 256, "rgb_support": True}  # the first is the default, and was said all the same
    assert {name: args[name] for name in utils.OF_CHECKPOINT} == dict.fromkeys(utils.OF_CHECKPOINT) | said
    assert (args["num_beams"], args["dataset"], args["seed"]) == (4, "CSL_Daily", 42)


def test_all_that_is_missing_is_said_at_once(tmp_path):
    args = utils.parse_args(["--root", str(tmp_path), "--use_descriptions"])
    with pytest.raises(ValueError, match="^labels: ") as error:
        utils.check_run(args)
    labels = ", ".join(f"{tmp_path}/data/CSL_Daily/labels.{split}" for split in config.SPLITS)
    texts = ", ".join(f"{tmp_path}/description/CSL-Daily/split_data/{split}" for split in config.SPLITS)
    assert str(error.value) == (
        f"labels: {labels} not found. Put the label file there, or set --root or config.py. "
        f"poses: {tmp_path}/dataset/CSL_Daily/pose_format not found. Put the poses there (with --packed, "
        "pack them), or find them in videos: python -m tools.extract_poses, or set --root. "
        f"--use_descriptions: {texts} not found. Put the JSON files there (with --packed, pack them), or train "
        f"without --use_descriptions. mT5: {tmp_path}/pretrained_weight/mt5-base/config.json does not exist. "
        f"{config.GET_MT5}"
    )
    utils.check_run(args, data=False)


def test_what_test_alone_lacks_need_not_be_there(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "copy")
    (tmp_path / "copy" / "data" / "CSL_Daily" / "labels.test").unlink()
    with pytest.raises(ValueError, match=r"labels.test not found.*Or leave test out of this training: --no_test"):
        utils.check_run(utils.parse_args(["--root", str(tmp_path / "copy")]))
    utils.check_run(utils.parse_args(["--root", str(tmp_path / "copy"), "--no_test"]))


def test_a_run_whose_data_are_there_may_start(corpus, tmp_path):
    for line in ("--use_descriptions", "--no_test", f"--eval --finetune {__file__}"):
        utils.check_run(utils.parse_args(["--root", str(corpus), *line.split()]))
    line = ["--root", str(corpus), "--output_dir", str(tmp_path), "--finetune", "gone.pth", "--resume", "auto"]
    with pytest.raises(ValueError, match="--finetune: gone.pth does not exist"):
        utils.check_run(utils.parse_args(line))
    (tmp_path / "resume" / "step_00000001").mkdir(parents=True)
    utils.check_run(utils.parse_args(line))  # the state has all weights


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a disk that is full")
def test_a_full_disk_costs_the_log_file_alone(tmp_path, capsys):
    (tmp_path / "train.log").symlink_to("/dev/full")
    utils.start_log(tmp_path, is_main=True)
    logging.getLogger("models").info("hello")
    printed = capsys.readouterr().err
    assert printed.endswith(" hello\n")
    assert len(printed.splitlines()) == 1
    [file] = [
        handler
        for handler in logging.getLogger().handlers
        if handler.name == utils._OURS and isinstance(handler, logging.FileHandler)
    ]
    logging.getLogger().removeHandler(file)
    with contextlib.suppress(OSError):  # the line that is left in it cannot be written on closing, either
        file.close()


def test_log_goes_to_the_file_and_other_ranks_are_quiet(tmp_path, capsys):
    utils.start_log(tmp_path, is_main=True)
    logging.getLogger("models").info("hello")
    assert "hello" in (tmp_path / "train.log").read_text()
    capsys.readouterr()
    utils.start_log(tmp_path / "other", is_main=False)
    logging.getLogger("models").info("not said")
    logging.getLogger("models").warning("said")
    assert not (tmp_path / "other").exists()
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["said"]


def test_without_git_there_is_no_revision(monkeypatch):
    assert utils.git_revision()
    monkeypatch.setenv("PATH", "")
    assert utils.git_revision() == ""


# -- every command line ----------------------------------------------------------------------------------------------


def test_a_terminal_that_knows_ascii_alone():
    """Sentences are written as they are, and the bytes of no character and error messages with escapes: no error."""
    code = (
        "import sys, utils\n"
        "def main():\n"
        "    sys.stdout.write('clip\\udcff\\t\u4f60\u597d\\n')\n"
        "    raise ValueError('\u4f60.pkl is damaged')\n"
        "utils.run(main)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout.decode("utf-8") == "clip\\udcff\t\u4f60\u597d" + os.linesep
    assert ended.stderr == rb"error: \u4f60.pkl is damaged" + os.linesep.encode()


def test_a_package_that_is_missing_is_named():
    utils.require_packages("--preview", "json")
    with pytest.raises(ValueError, match=r'--preview needs no_such_package: pip install -e "\.\[rgb\]"'):
        utils.require_packages("--preview", "json", "no_such_package")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("--batchsize 8", " Did you mean --batch-size?"),
        ("--use_description", " Did you mean --use_descriptions?"),
        ("--batch 8", " Did you mean --batch-size?"),  # Uni-Sign's parser takes abbreviations
        ("--minlr=1e-8", " Did you mean --min-lr?"),
        ("--stric", ""),
    ],
)
def test_a_mistyped_flag_is_one_line_with_the_flag_that_is_close(capsys, typed, hint):
    parser = utils.Parser(prog="x.py")
    for flag in ("--batch-size", "--use_descriptions", "--lr", "--min-lr"):
        parser.add_argument(flag)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(typed.split())
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"x.py: error: unrecognized arguments: {typed}.{hint} See --help.\n"


def test_all_faults_of_a_command_line_are_said_at_once(capsys):
    parser = utils.Parser()
    for flag in ("--aspect", "--fps", "--steps", "--unset"):
        parser.add_argument(flag, type=float)
    bounds = {"aspect": (0.2, 5), "fps": 1, "steps": (0, 9), "unset": 1}
    parser.check(parser.parse_args("--aspect 5 --fps 1 --steps 0".split()), **bounds)
    with pytest.raises(SystemExit):
        parser.check(parser.parse_args("--aspect 5.1 --fps nan --steps 9".split()), ["More."], **bounds)
    wanted = "error: --aspect 5.1: must be between 0.2 and 5. --fps nan: must be at least 1. More. See --help.\n"
    assert capsys.readouterr().err.endswith(wanted)


@pytest.mark.parametrize(
    ("typed", "n_processes", "refused"),
    [
        ("", 1, False),
        ("--zero_stage 0", 1, False),
        ("--offload", 1, True),
        ("", 2, True),
        ("--zero_stage 0", 2, False),
        ("--eval --finetune x", 2, False),
    ],
)
def test_what_deepspeed_alone_does_is_refused_without_it(monkeypatch, capsys, typed, n_processes, refused):
    monkeypatch.setenv("WORLD_SIZE", str(n_processes))
    assert utils.parse_args(typed.split())
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(SystemExit) if refused else contextlib.nullcontext():
        utils.parse_args(typed.split())
    assert ("need DeepSpeed, on Linux: pip install deepspeed. See --help." in capsys.readouterr().err) == refused
