"""Every block of code in the README and in docs/ is run, in order, in a folder laid out as a user's is.

What is made small is the model (`TINY` comes after the documented flags, so it counts) and the data; what cannot be run
here stands in `NOT_RUN`, with the reason.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from itertools import pairwise
from pathlib import Path

import openpyxl
import pytest
import torch

from config import DATASETS
from network.rgb_branch import efficientnet_b0
from synthetic.corpus import write_corpus
from synthetic.small_mt5 import write_small_mt5
from tests.helpers.processes import run_program

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "description" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = {
    # bf16 is slow on a CPU; the slow tests of test_fine_tuning.py keep it.
    "fine_tuning.py": "--hidden_dim 8 --epochs 1 --num_workers 0 --num_beams 1 --max_new_tokens 2 --max_length 16 "
    "--dtype fp32",
    "pre_training_checklist.py": "--hidden_dim 8",
    "-m tools.sample_data": "--clips 6 2 2",
    "inference.py": "--max_new_tokens 4 --dtype fp32",
}
DETERMINED = re.compile(r"python describe\.py .*--root sample")  # the same words on every machine
NOT_RUN = {
    "-m tools.ablate": "hours; tools/test_ablate.py runs it small",
    "-m tools.benchmark": "minutes; tools/test_benchmark.py runs it small",
    "-m tools.demo_page": "serves until it is ended; tools/test_demo_page.py has a browser",
    "-m tools.picture": "needs a font with Chinese characters; see tools/test_picture.py",
    r"describe.py .*--endpoint": "needs a model; test_describe.py has a server in its place",
    r"fine_tuning.py .*--(tensorboard|wandb)": "needs packages; see training/test_tracking.py",
    r"-m tools.extract_poses|inference.py .*--extractor": (
        "needs an extractor; tools/test_extract_poses.py has one in its place"
    ),
}
# What the documents call beside this project's programs, and what stands in its place: installers, launchers (which
# test_fine_tuning.py has; here one process runs what they start), other people's programs.
STANDS_IN = {
    "python": f'exec {sys.executable} -S {HERE / "helpers/doc_client.py"} "$@"',
    "deepspeed": '[ "$1" = --hostfile ] || { shift 2; exec python "$@"; }',
    "torchrun": '[ "$1" = --nnodes ] || { shift 2; exec python "$@"; }',
    **dict.fromkeys(("make", "pip", "python3", "tensorboard", "wandb", "scontrol"), "true"),
}


def blocks(document):
    """(language, content) of every code block, also of those in lists."""
    text = document.read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.M | re.S)
    return [(language, re.sub(rf"^{indent}", "", content, flags=re.M)) for indent, language, content in found]


def transcript(content):
    """The commands of a transcript, each with the lines that it is said to print."""
    first, *parts = re.split(r"^\$ ", content.replace("\\\n", " "), flags=re.M)
    assert not first or not parts, content
    return [(command, printed.splitlines()) for command, _, printed in (part.partition("\n") for part in parts)]


class Place:
    """A user's folder: a few clips of every data set, a small mT5, and what the text says that one has."""

    def __init__(self, world, folder):
        self.folder, self.log = folder, folder.with_suffix(".log")
        shutil.copytree(world, folder)
        shutil.copytree(ROOT / "examples", folder / "examples")
        texts = ["今天很高兴。", "右手食指伸直，位于胸前。", "How are you today?", "the left hand is at the chin"] * 3
        mt5 = folder / "pretrained_weight" / "mt5-base"
        shutil.rmtree(mt5)
        write_small_mt5(mt5, texts, d_model=16, heads=2, d_kv=8, d_ff=16, layers=1)
        spec = DATASETS["CSL_Daily"].under(folder)
        spelled = folder / "my_corpus" / "fingerspelling"
        shutil.copytree(spec.pose_dir, spelled / "pose_format")
        for split, path in spec.labels.items():
            shutil.copy(path, spelled / f"labels.{split}")
        shutil.copytree(spec.description_dir, folder / "my_corpus" / "descriptions")
        shutil.copytree(spec.pose_dir, folder / "my_poses")
        (folder / "my_poses" / "train_0.pkl").rename(folder / "my_poses" / "S000317_P0009_T00.pkl")
        own = folder / "my_data"
        shutil.copytree(spec.pose_dir, own / "poses")
        (folder / "my_pictures").mkdir()
        (folder / "my_videos").mkdir()
        sheet = openpyxl.Workbook()
        sheet.active.append(["File", "Sentence"])
        for path in (own / "poses").iterdir():
            (folder / "my_videos" / f"{path.stem}.mp4").touch()
            sheet.active.append([path.stem, "Guten Tag"])
        sheet.save(folder / "sheet.xlsx")
        for file in (".venv/bin/activate", "requirements.txt", "hello.srt"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        tools = folder / "tools"
        tools.mkdir()
        for name, script in STANDS_IN.items():
            (tools / name).write_text(f"#!/bin/bash\n{script}\n")
            (tools / name).chmod(0o755)
        self.environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "DOCS": str(folder / "docs.socket")}

    def shell(self, script):
        """Run a script as a reader would; its exit status and output."""
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def python(self, words):
        """Run a program of this project, small; its exit status and output."""
        if any(re.match(pattern, " ".join(words)) for pattern in NOT_RUN):
            return 0, ""
        self.provide(words)
        program = " ".join(words[: 2 if words[0] == "-m" else 1])
        return run_program([*words, *TINY.get(program, "").split()], self.folder, self.log)

    @contextlib.contextmanager
    def serving(self):
        """Answer every `python` of the shell."""
        listener = socket.socket(socket.AF_UNIX)
        os.chdir(self.folder)
        listener.bind("docs.socket")  # a path from here: that of the folder may be too long
        listener.listen()

        def serve():
            while True:
                with contextlib.suppress(OSError), listener.accept()[0] as call, call.makefile("rw") as file:
                    words = json.loads(file.readline())
                    if words is None:
                        return
                    file.write(json.dumps(self.python(words)) + "\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            with socket.socket(socket.AF_UNIX) as call:
                call.connect("docs.socket")
                call.sendall(b"null\n")
                thread.join()
            listener.close()

    def provide(self, words):
        """What the text says to have: from an earlier run, or published elsewhere."""
        wanted = any(word.split("/")[0] == "sample" for word in words) and "tools.sample_data" not in words
        if wanted and not (self.folder / "sample").exists():
            write_corpus(self.folder / "sample", {"train": 400, "dev": 60, "test": 60})
        for flag, word in pairwise(words):
            path = self.folder / word
            if flag == "--out" or not word.endswith(".pth") or path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name == "efficientnet_b0.pth":
                weights = {f"features.{name}": value for name, value in efficientnet_b0().state_dict().items()}
                torch.save(weights, path)
                continue
            source = "output_multimodal" if "fusion" in path.name or "multimodal" in word else "output_baseline"
            rgb = ["--rgb_support"] if path.name == "csl_daily_rgb_pose_slt.pth" else []
            flags = ["--use_descriptions"] * (source == "output_multimodal") + rgb
            made = self.folder / ("output_stage2" if rgb else source)  # the README trains it earlier
            if not (made / "best_checkpoint.pth").exists():
                status, output = self.python(["fine_tuning.py", *flags, "--output_dir", made.name])
                assert status == 0, output
            if not path.exists():
                shutil.copy(made / ("best_fusion.pth" if "fusion" in path.name else "best_checkpoint.pth"), path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_runs(document, world, filmed_world, tmp_path, monkeypatch):
    place = Place(world, tmp_path / "place")
    monkeypatch.chdir(place.folder)
    with place.serving():
        for language, content in blocks(document):
            if language == "sh" and content.startswith("#!"):
                subprocess.run(["bash", "-n"], input=content, text=True, check=True)
            elif language == "sh":
                status, output = place.shell(content)
                assert status == 0, f"{content}\n{output}"
            elif language == "console":
                for command, printed in transcript(content):
                    status, output = place.shell(command)
                    fails = any(line.startswith(("error: ", "failed: ")) for line in printed)
                    assert fails or status == 0, f"{command}\n{output}"
                    if DETERMINED.match(command):
                        missing = [line for line in printed if line not in output.splitlines() and line != "..."]
                        assert not missing, f"{command}\n{output}"
            elif language == "python" and "load_extractor" not in content:
                exec(compile(content, str(document), "exec"), {})
            elif language == "json":
                json.loads(content)
            elif language == "toml":
                tomllib.loads(content)
            else:
                assert language in ("text", "python"), f"{document.name}: a block of {language or 'no language'}"


def test_what_is_not_run_is_still_there():
    everything = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS).replace("\\\n", " ")
    for pattern in NOT_RUN:
        assert re.search(rf"python ({pattern})", everything), pattern
