"""Every block of code in the README and in docs/ is run, in order, in a folder laid out as a user's is.

What is made small is the model (`TINY` comes after the documented flags, so it counts) and the data; what cannot be run
here stands in `NOT_RUN`, with the reason.
"""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from forked import run_program

from config import DATASETS
from rgb_fusion import efficientnet_b0
from small_mt5 import write_small_mt5

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "description" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = {
    "fine_tuning.py": "--hidden_dim 8 --epochs 1 --num_workers 0 --num_beams 1 --max_new_tokens 2 --max_length 16",
    "pre_training_checklist.py": "--hidden_dim 8",
    "sample_data.py": "--clips 6 2 2",
    "ablate.py": "--quick --seeds 1 --arms pose own",
}
NOT_RUN = {
    r"make |pip install|python3 -m venv|source ": "installs and makes; continuous integration does both",
    r"torchrun --nnodes|deepspeed --hostfile": "needs two machines",
    r"python benchmark.py": "minutes; test_benchmark.py runs it small",
    r"python describe.py .*--endpoint": "needs a model; test_describe.py has a server in its place",
    r"python demo_page.py": "serves until it is ended; test_demo_page.py has a browser",
    r"export ": "of a key",
}
LAUNCHER = re.compile(r"^(deepspeed --num_gpus|torchrun --nproc-per-node) \d+ ")  # test_fine_tuning.py has them


def blocks(document):
    """(language, content) of every code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)


def commands(language, content):
    """The commands of a shell block or transcript, without comments; each with the lines that it is said to print."""
    lines = content.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        command = line.removeprefix("$ ") if language == "console" and line.startswith("$ ") else line
        if language == "console" and command == line:
            if found:
                found[-1][1].append(line)
        elif command := " ".join(shlex.split(command, comments=True, posix=False)):
            found.append((command, []))
    return found


class Place:
    """A user's folder: a few clips of every data set, a small mT5, and what the text says that one has."""

    def __init__(self, world, folder):
        self.folder, self.log = folder, folder.with_suffix(".log")
        shutil.copytree(world, folder)
        shutil.copytree(ROOT / "examples", folder / "examples")
        (folder / "description" / "prompts").mkdir()
        texts = ["今天很高兴。", "右手食指伸直，位于胸前。", "How are you today?", "the left hand is at the chin"] * 3
        shutil.rmtree(folder / "pretrained_weight" / "mt5-base")
        write_small_mt5(
            folder / "pretrained_weight" / "mt5-base", texts, d_model=16, heads=2, d_kv=8, d_ff=16, layers=1
        )
        spec = DATASETS["CSL_Daily"].under(folder)
        spelled = folder / "my_corpus" / "fingerspelling"
        shutil.copytree(spec.pose_dir, spelled / "pose_format")
        for split, path in spec.labels.items():
            shutil.copy(path, spelled / f"labels.{split}")
        shutil.copytree(spec.description_dir, folder / "my_corpus" / "descriptions")
        shutil.copytree(spec.pose_dir, folder / "my_poses")
        (folder / "my_poses" / "train_0.pkl").rename(folder / "my_poses" / "S000317_P0009_T00.pkl")

    def run(self, command, printed=()):
        """Run one command; it must succeed, and print the lines that the text shows."""
        words = shlex.split(LAUNCHER.sub("python ", command))
        assert words[0] == "python", f"{command}: neither run nor in NOT_RUN"
        self.provide(words)
        words += shlex.split(TINY.get(words[1], ""))
        status, output = run_program(words[1:], self.folder, self.log)
        assert status == 0, f"{command}\n{output}"
        missing = [line for line in printed if line not in output.splitlines() and line != "..."]
        assert not missing, f"{command}\n{output}"

    def provide(self, words):
        """Files that the text says to have: from an earlier run, or published elsewhere."""
        for flag, word in pairwise(words):
            path = self.folder / word
            if flag == "--out" or not word.endswith(".pth") or path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name == "efficientnet_b0.pth":
                weights = {f"features.{name}": value for name, value in efficientnet_b0().state_dict().items()}
                torch.save(weights, path)
            else:
                source = "output_multimodal" if "fusion" in path.name or "multimodal" in word else "output_baseline"
                rgb = ["--rgb_support"] if path.name == "rgb_pose.pth" else []
                flags = ["--use_descriptions"] * (source == "output_multimodal") + rgb
                made = self.folder / f"{source}{'_rgb' * bool(rgb)}"
                if not (made / "best_checkpoint.pth").exists():
                    self.run(shlex.join(["python", "fine_tuning.py", *flags, "--output_dir", made.name]))
                if not path.exists():
                    shutil.copy(made / ("best_fusion.pth" if "fusion" in path.name else "best_checkpoint.pth"), path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_runs(document, world, filmed_world, tmp_path, monkeypatch):
    place = Place(world, tmp_path / "place")
    monkeypatch.chdir(place.folder)
    for language, content in blocks(document):
        if language in ("sh", "console") and content.startswith("#!"):
            subprocess.run(["bash", "-n"], input=content, text=True, check=True)
        elif language in ("sh", "console"):
            for command, printed in commands(language, content):
                if not any(re.match(pattern, command) for pattern in NOT_RUN):
                    place.run(command, printed)
        elif language == "python":
            exec(compile(content, str(document), "exec"), {})
        elif language == "json":
            json.loads(content.strip().removesuffix(","))
        elif language == "toml":
            tomllib.loads(content)
        else:
            assert language == "text", f"{document.name}: a block of {language or 'no language'}"


def test_what_is_not_run_is_still_there():
    everything = [command for path in DOCUMENTS for block in blocks(path) for command, _ in commands(*block)]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in everything), pattern
