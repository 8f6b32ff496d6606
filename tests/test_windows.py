"""What is pure Python, on a Python for Windows under Wine (`make test-windows`); numpy and torch do not load there."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_programs import WRONG

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".wine/cp313/python.exe"

pytestmark = [
    pytest.mark.wine,
    pytest.mark.skipif(
        not (shutil.which("wine") and PYTHON.is_file()), reason="no Wine, or no Python for it: make test-windows"
    ),
]


def drive(path: Path) -> str:
    """The path as Windows programs see it."""
    return f"Z:{path}".replace("/", "\\")


@pytest.fixture(scope="module")
def windows():
    """Run code there, in which `out(value)` collects what is returned."""
    # The file decides on all of Python's paths.
    PYTHON.with_name("python313._pth").write_text(f"python313.zip\n.\n{drive(ROOT)}\n")
    environment = os.environ | {"WINEPREFIX": str(ROOT / ".wine/prefix"), "WINEDEBUG": "-all"}

    def run(code: str, folder: Path, *arguments: str) -> list:
        script, results = folder / "script.py", folder / "results.jsonl"
        head = f"""
import json, sys
def out(value):
    with open(r"{drive(results)}", "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\\n")
"""
        script.write_text(head + code, encoding="utf-8")
        # Without standard input, Python does not start under Wine.
        ended = subprocess.run(
            ["wine", str(PYTHON), drive(script), *arguments],
            input="",
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=folder,
            env=environment,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]

    return run


PROGRAMS = """
import contextlib, io, runpy
def call(words):
    sys.argv = words
    said = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")  # what a pipe has there
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if words[0].endswith(".py"):
                runpy.run_path(words[0], run_name="__main__")
            else:
                runpy.run_module(words[0], run_name="__main__")
            status = 0
        except SystemExit as error:
            status = error.code
    said.flush()
    return status, said.buffer.getvalue().decode(said.encoding)
for words in json.loads(sys.argv[1]):
    out([*call(words)])
"""


def test_programs_start(windows, tmp_path):
    programs = [path.removesuffix(".py").replace("/", ".") if "/" in path else drive(ROOT / path) for path in WRONG]
    training, describing = drive(ROOT / "fine_tuning.py"), drive(ROOT / "describe.py")
    lost = drive(tmp_path / "lost.toml")
    wrong = {
        f"{training} --offload": (2, "need DeepSpeed, on Linux"),
        f"{training} --bath-size 2": (2, "Did you mean --batch-size?"),
        f"{describing} --dataset_config {lost}": (1, f"error: --dataset_config: {lost} does not exist."),
        f"{describing} --shard 3/2": (2, "3/2 is no part I/N"),
        r"tools.extract_poses C:\nothing --out C:\poses": (1, r"error: C:\nothing"),
        r"tools.pack_dataset --root C:\nothing --out packed": (1, r"error: --root: C:\nothing does not exist."),
        r"tools.ablate --root C:\nothing --out ablation": (1, r"error: --root: C:\nothing does not exist."),
        r"tools.export --checkpoint C:\gone.pth --out model": (1, r"error: --checkpoint: C:\gone.pth does not exist."),
        r"tools.demo_page --checkpoint C:\gone.pth": (1, r"error: --checkpoint: C:\gone.pth does not exist."),
    }
    results = windows(
        PROGRAMS, tmp_path, json.dumps([*([name, "--help"] for name in programs), *(line.split() for line in wrong)])
    )
    for name, (status, text) in zip(programs, results, strict=False):
        assert (status, text[:7].lower()) == (0, "usage: "), (name, text)
    for (line, (status, part)), (seen, text) in zip(wrong.items(), results[len(programs) :], strict=True):
        assert seen == status, (line, text)
        assert part in text
        assert text.count("\n") == 1, text


FILES = r"""
import os, pathlib, subprocess, time
from clips.labels import read_labels
from config import DatasetSpec
from describing.files import write_descriptions
from system import disk, lock

folder = pathlib.Path.cwd() / "文件"
for text in ("first", "second"):
    disk.write_text(folder / "a.txt", text)
out([(folder / "a.txt").read_text(), os.listdir(folder)])
def fail(file):
    file.write(b"half")
    raise OSError(28, "No space left on device")
try:
    disk.write_whole(folder / "a.txt", fail)
except OSError as error:
    out([disk.explain(error, folder / "a.txt"), (folder / "a.txt").read_text(), os.listdir(folder)])
for number in range(2):
    with disk.new_folder(folder / "state") as unfinished:
        disk.write_text(unfinished / "n", str(number))
out([(folder / "state/n").read_text(), sorted(os.listdir(folder))])
write_descriptions(folder / "clip.json", {3: "手向上"}, {3: "rules"})
out(json.loads((folder / "clip.json").read_text(encoding="utf-8")))

(folder / "labels.csv").write_text("video,text\nday\\one.mp4,天\n", encoding="utf-8")
(folder / "data.toml").write_text("name = 'x'\npose_dir = 'C:\\poses'\n[labels]\ntrain = 'labels.csv'\n")
spec = DatasetSpec.from_toml(folder / "data.toml").under(folder)
(label,) = read_labels(spec.labels["train"]).values()
out([label["name"], label["text"], str(spec.pose_path(label))])
for place in ("C:\\videos\\one.mp4", "\\\\server\\one.mp4", "..\\one.mp4"):
    (folder / "labels.csv").write_text(f"video,text\n{place},x\n", encoding="utf-8")
    try:
        read_labels(folder / "labels.csv")
    except ValueError as error:
        out(str(error))

hold = "from system import lock; lock.hold('run'); import time; print('held', flush=True); time.sleep(99)"
pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
owner = subprocess.Popen([sys.executable, "-c", hold], **pipes)
assert owner.stdout.readline() == b"held\r\n", owner.stderr.read()
try:
    lock.hold("run")
except ValueError as error:
    out([str(error), owner.pid])
owner.kill()
owner.wait()
lock.hold("run")
out(pathlib.Path("run/run.lock").read_text())
"""


def test_files_labels_and_locks(windows, tmp_path):
    twice, failed, state, texts, label, *outside, held, owner = windows(FILES, tmp_path)
    assert twice == ["second", ["a.txt"]]
    assert failed[0].startswith(drive(tmp_path / "文件/a.txt") + " cannot be written: No space left on device;")
    assert failed[1:] == ["second", ["a.txt"]]
    assert state == ["1", ["a.txt", "state"]]
    assert texts == [{"filename": "000003.jpg", "description": "手向上", "made_by": "rules"}]
    assert label == ["day/one", "天", "C:\\poses\\day\\one.pkl"]
    assert len(outside) == 3
    assert all("points out of the data folder" in line for line in outside)
    assert f"--output_dir run: a run is at work there (process {held[1]} on " in held[0]
    assert owner.startswith("process ")
