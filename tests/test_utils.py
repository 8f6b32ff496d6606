"""The command line: spellings, contradictions, and that every flag has a reader."""

import ast
import contextlib
import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import config
import utils

ROOT = Path(__file__).resolve().parents[1]

SPEC_DEFAULTS = {
    "use_descriptions": False,
    "text_dropout_p": 0.1,
    "text_encoder_freeze": False,
    "fusion_checkpoint": "",
    "trainable": "auto",
    "dataset": "CSL_Daily",
    "task": "SLT",
    "epochs": 20,
    "batch_size": 16,
    "lr": 1e-3,
    "gradient_accumulation_steps": 8,
    "gradient_clipping": 1.0,
    "zero_stage": 2,
    "offload": False,
    "dtype": "bf16",
    "num_workers": 8,
    "pin_mem": True,
    "max_length": 256,
    "eval_sampling": "even",
    "hidden_dim": 256,
    "label_smoothing": 0.2,
    "seed": 42,
    "finetune": "",
    "eval": False,
    "weight_decay": 1e-4,
    "opt_eps": 1e-9,
    "warmup_epochs": 0,
    "sched": "cosine",
    "text_max_tokens": 128,
    "rgb_support": False,
    "rgb_backbone": "",
    "root": ".",
}


def test_documented_defaults():
    args = vars(utils.parse_args([]))
    assert {name: args[name] for name in SPEC_DEFAULTS} == SPEC_DEFAULTS


@pytest.mark.parametrize("flag", ["--batch-size", "--batch_size"])
def test_both_spellings(flag):
    assert utils.parse_args([flag, "3"]).batch_size == 3


def test_pinning_can_be_switched_off_in_both_spellings():
    assert not utils.parse_args(["--no-pin-mem"]).pin_mem
    assert not utils.parse_args(["--no_pin_mem"]).pin_mem


def test_every_flag_is_read_somewhere():
    read = set()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args":
                read.add(node.attr)
    flags = {action.dest for action in utils.get_args_parser()._actions} - {"help"}
    # The deepspeed launcher gives --local_rank and sets LOCAL_RANK to the same number, which system/distributed.py
    # reads. `training.build.model_config` reads those that are fields of the model's record.
    assert flags - read - {field.name for field in dataclasses.fields(config.ModelConfig)} == {"local_rank"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--dataset", "Nobody"], ["--dataset", "Nobody", "CSL_Daily"]),
        (["--text_encoder_freeze"], ["--text_encoder_freeze", "--use_descriptions"]),
        (["--fusion_checkpoint", "x.pth"], ["--fusion_checkpoint", "--use_descriptions"]),
        (["--trainable", "fusion"], ["--trainable fusion", "--use_descriptions"]),
        (["--rgb_backbone", "x.pth"], ["--rgb_backbone", "--rgb_support"]),
        (["--eval"], ["--eval", "--finetune"]),
        (["--resume", "auto", "--finetune", "x", "--eval"], ["--eval", "--resume"]),
        (["--offload", "--zero_stage", "0"], ["--offload", "--zero_stage"]),
        (["--epochs", "0"], ["--epochs 0"]),
        (["--lr", "0"], ["--lr"]),
        (["--lr", "nan"], ["--lr nan"]),
        (["--lr", "1e-4", "--min-lr", "1e-3"], ["--min_lr 0.001", "--lr, which is 0.0001"]),
        (["--seed", "-1"], ["--seed -1", "at least 0"]),
        (["--keep_last", "-1"], ["--keep_last -1", "at least 0"]),
        (["--num_workers", "-1"], ["--num_workers -1", "at least 0"]),
        (["--gradient-clipping", "nan"], ["--gradient_clipping nan", "at least 0"]),
        (["--opt-betas", "0.9", "1"], ["--opt_betas", "0.9 1.0"]),
        (["--batch"], ["unrecognized"]),
    ],
)
def test_contradictions_are_one_line_and_status_2(argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        utils.parse_args(argv)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert all(word in last for word in words), last


def test_help_imports_nothing_heavy():
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        "try: runpy.run_path('fine_tuning.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'transformers', 'numpy', 'deepspeed'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--use_descriptions" in out or "--use-descriptions" in out
    assert out.splitlines()[-1] == "heavy: []"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a disk that is full")
def test_a_full_disk_costs_the_log_file_alone(tmp_path, capsys):
    (tmp_path / "train.log").symlink_to("/dev/full")
    utils.start_log(tmp_path, is_main=True)
    logging.getLogger("models").info("hello")
    printed = capsys.readouterr().err
    assert printed.endswith(" hello\n")
    assert len(printed.splitlines()) == 1
    [file] = [handler for handler in logging.getLogger().handlers if isinstance(handler, utils._LogFile)]
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
