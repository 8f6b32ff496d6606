"""What holds for every program: a wrong path is answered before torch is imported, and `head` may leave."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

import utils

ROOT = Path(__file__).resolve().parents[1]
RUNNER = """
import runpy, sys
# As on a machine without extractors.
sys.modules |= dict.fromkeys(["mediapipe", "onnxruntime", "rtmlib"])
sys.argv = sys.argv[1:]
program = sys.argv[0]
status = 0
try:
    runpy.run_path(program, run_name="__main__")
except SystemExit as end:
    if isinstance(end.code, str):
        sys.stderr.write(f"{end.code}\\n")
    status = end.code if isinstance(end.code, int) else 1
print("torch" if "torch" in sys.modules else "nothing slow", status)
"""
# program -> command lines with something that is not there, and what is said of it
WRONG = {
    "fine_tuning.py": {
        "--root nowhere": "--root: nowhere does not exist.",
        "--root {here}": "labels: {here}/data/CSL_Daily/labels.train, {here}/data/CSL_Daily/labels.dev, {here}/data",
        "--root {here} --mt5_path gone": "mT5: {here}/gone/config.json does not exist.",
        "--finetune nowhere.pth --fusion_checkpoint gone.pth --use_descriptions": (
            "--finetune: nowhere.pth does not exist. --fusion_checkpoint: gone.pth does not exist."
        ),
        "--eval --finetune nowhere.pth": "--finetune: nowhere.pth does not exist.",
        "--eval --finetune {here}": "--finetune: {here} holds no model. Name a file, such as best_checkpoint.pth.",
        "--dataset_config nowhere.toml": "--dataset_config: nowhere.toml does not exist.",
        "--resume nowhere": "--resume: nowhere holds no state. Name a folder under OUTPUT_DIR/resume, or auto.",
        "--packed nowhere": "--packed: nowhere does not exist. Make it: python -m tools.pack_dataset --out nowhere.",
        "--task ISLR": "--task ISLR: the labels of CSL_Daily allow SLT, CSLR.",
        "--hidden_dim 30": "--hidden_dim 30: must be a positive multiple of 4.",
        "--output_dir=": "--output_dir: '' is no folder; a run keeps what it learns, name one for it.",
        "--dataset WLASL --root {here}": "labels: {here}/data/WLASL/labels-2000.train, ",
        "--output_dir {here}/file": "--output_dir: '{here}/file' is no folder;",
        "--output_dir {here}/file/run": "--output_dir: '{here}/file/run' is no folder;",
    },
    "pre_training_checklist.py": {
        "--finetune nowhere.pth": "--finetune: nowhere.pth does not exist.",
        "--finetune " + 300 * "x": " does not exist.",
        "--page best_checkpoint.pth": "--page best_checkpoint.pth: must end in .html.",
    },
    "inference.py": {
        "nowhere.mp4 --checkpoint nowhere.pth": "nowhere.mp4 does not exist.",
        "{here}/file --checkpoint nowhere.pth": "--checkpoint: nowhere.pth does not exist.",
        "{here}/a.mp4 --checkpoint {here}/file": "--extractor rtmlib needs onnxruntime: pip install",
        "{here}/a.mp4 --checkpoint {here}/file --extractor mediapipe": "--extractor mediapipe needs mediapipe: pip",
    },
    "describe.py": {
        "--root nowhere": "--root: nowhere does not exist.",
        "--dataset-config gone.toml": "--dataset_config: gone.toml does not exist.",
        "--root {here}": "labels: {here}/data/CSL_Daily/labels.train, ",
        "--poses nowhere --out x": "--poses: nowhere does not exist.",
        "audit nowhere": "nowhere is not a folder.",
    },
    "tools/ablate.py": {"--root nowhere --out {here}/x": "--root: nowhere does not exist."},
    "tools/benchmark.py": {"--repeats 0": "--repeats 0: must be at least 1."},
    "tools/demo.py": {"--root {here}": "--out {here}: not empty, and no sample corpus."},
    "tools/demo_page.py": {
        "--checkpoint nowhere.pth": "--checkpoint: nowhere.pth does not exist.",
        "--checkpoint {here}/file --extractor mediapipe": "--extractor mediapipe needs mediapipe: pip install",
    },
    "tools/export.py": {
        "--checkpoint nowhere.pth --out {here}/x": "--checkpoint: nowhere.pth does not exist.",
        "--checkpoint {here}/file --out {here}": "--out: {here} exists.",
    },
    "tools/extract_poses.py": {
        "nowhere --out {here}/x": "nowhere: no video there",
        "{here} --out {here}/x --models nowhere": "--models: nowhere does not exist.",
        "{here} --out {here}/x": "--extractor rtmlib needs onnxruntime: pip install",
    },
    "tools/import_table.py": {
        "{here}/file --videos nowhere --out {here}/x": "--videos: nowhere",
    },
    "tools/pack_dataset.py": {
        "--root {here} --out x": "labels: {here}/data/CSL_Daily/labels.train, ",
    },
    "tools/picture.py": {"nowhere --out {here}/x.gif": "nowhere is not a folder."},
    "tools/report.py": {"nowhere": "nowhere is not a folder."},
    "tools/sample_data.py": {"--out {here}": "--out {here}: not empty, and no sample corpus."},
    "tools/small_mt5.py": {"--out {here}/x --texts nowhere": "--texts: nowhere does not exist."},
}


def start(*words, **options):
    command = [sys.executable, "-c", RUNNER, *words]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=variables, text=True, check=False, capture_output=True, **options)


def test_every_program_is_tried():
    files = [*ROOT.glob("*.py"), *ROOT.glob("tools/*.py")]
    programs = {path.relative_to(ROOT).as_posix() for path in files if "__main__" in path.read_text(encoding="utf-8")}
    assert programs == WRONG.keys()


@pytest.mark.parametrize(("program", "line"), [(program, line) for program, lines in WRONG.items() for line in lines])
def test_what_is_not_there_is_said_in_one_line_before_torch_is_imported(tmp_path, program, line):
    (tmp_path / "file").write_text("")
    (tmp_path / "a.mp4").write_text("")
    result = start(program, *line.format(here=tmp_path).split())
    said = WRONG[program][line].format(here=tmp_path)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert re.fullmatch("nothing slow [12]", result.stdout.splitlines()[-1])


@pytest.mark.parametrize("program", sorted(WRONG))
def test_help_imports_nothing_slow(program):
    result = start(program, "--help")
    assert result.stdout.startswith("usage: ")
    assert result.stdout.splitlines()[-1] == "nothing slow 0"


@pytest.mark.parametrize("line", ["pre_training_checklist.py", "describe.py audit {here}"])
def test_a_reader_that_leaves_is_no_error(tmp_path, line):
    """As `| head -0` does: the first line cannot be written."""
    (tmp_path / "clip.json").write_text('{"0.jpg": "The right hand rises."}')
    read, write = os.pipe()
    os.close(read)
    for variables in ({"PYTHONUNBUFFERED": ""}, {"PYTHONUNBUFFERED": "1"}):
        result = subprocess.run(
            [sys.executable, *line.format(here=tmp_path).split()],
            cwd=ROOT,
            env=os.environ | variables,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stderr) == (141, "")
    os.close(write)


def test_a_bar_that_nobody_reads_ends_nothing(monkeypatch):
    monkeypatch.setattr(
        sys, "stderr", Mock(**{"write.side_effect": BrokenPipeError, "flush.side_effect": BrokenPipeError})
    )
    assert list(utils.progress(range(3), "epoch 1")) == [0, 1, 2]


def test_another_pipe_that_breaks_is_an_error():
    code = "import utils\ndef work(): raise BrokenPipeError(32, 'worker')\nutils.run(work)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "error: [Errno 32] worker\n")


CLOSED = "import os, sys; [os.close(n) for n in (0, 1, 2)]; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


def test_closed_streams_end_nothing(tmp_path):
    """As of a job without a terminal; what is printed must not get into a file."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "clip.json").write_text('{"0.jpg": "The right hand rises."}')
    line = ["describe.py", "audit", str(tmp_path / "texts"), "--repair", str(tmp_path / "clean")]
    assert subprocess.run([sys.executable, "-c", CLOSED, *line], cwd=ROOT, check=False).returncode == 0
    assert "The right hand rises." in (tmp_path / "clean" / "clip.json").read_text()


def test_ctrl_c_during_slow_imports_is_one_word():
    code = "import utils\nutils.run(lambda: None)\nraise KeyboardInterrupt"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "interrupted\n")
