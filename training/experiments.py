"""Runs commands of `fine_tuning.py` that differ in their descriptions, each once, for `tools/ablate.py` and
`tools/demo.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config import SMALL_MODEL, DatasetSpec
from describing.control_texts import write_control_texts
from system.disk import read_lines, sha256, to_json, write_text
from system.processes import cores
from training.run_folder import BEST

logger = logging.getLogger(__name__)

HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Experiments:
    """Trainings and tests in one folder, which goes on from what is there."""

    spec: DatasetSpec  # with its paths resolved
    root: str  # --root of all commands
    out: Path  # the folder
    jobs: int = 1  # how many run at a time; they share the cores, unless OMP_NUM_THREADS is set
    flags: tuple[str, ...] = ()  # of every command, after `SMALL_MODEL`

    def prepare(self, texts: str) -> None:
        """Write descriptions of a kind: "own" (nothing to write), "rules", or a key of `CONTROLS`."""
        folder = self.descriptions(texts)
        spec = dataclasses.replace(self.spec, description_dir=str(folder)).under(
            Path.cwd()
        )  # --root leaves it as it is
        record = self._identity() + spec.to_toml()
        if self.record(texts).exists() and self.record(texts).read_text(encoding="utf-8") != record:
            raise ValueError(
                f"--out: {self.out} holds results of another data set, other labels or other descriptions. Name "
                "another folder, or remove it."
            )
        if texts == "rules":
            self.prepare("own")
            command = [str(HERE / "describe.py"), "--dataset_config", str(self.record("own")), "--out", str(folder)]
            self.once(folder / "done.json", command)
        elif texts != "own" and not (folder / "done.json").exists():
            write_control_texts(self.spec, texts, folder)
            write_text(folder / "done.json", "{}\n")
        write_text(self.record(texts), record)

    def _identity(self) -> str:
        """Return hashes of the labels, and of the descriptions' names and sizes, as comments."""
        labels = [(split, sha256(path)) for split, path in self.spec.labels.items() if Path(path).is_file()]
        folder = Path(self.spec.description_dir)
        paths = folder.rglob("*.json") if self.spec.description_dir else ()
        texts = sorted(f"{path.relative_to(folder)} {path.stat().st_size}" for path in paths)
        hashes = [*labels, ("descriptions", hashlib.sha256("\n".join(texts).encode()).hexdigest())]
        return "".join(f"# {what}: {digest}\n" for what, digest in hashes)

    def descriptions(self, texts: str) -> Path:
        """Return the folder of descriptions of a kind."""
        return Path(self.spec.description_dir) if texts == "own" else self.out / "texts" / texts

    def record(self, texts: str) -> Path:
        """Return the data set's TOML record for descriptions of a kind."""
        return self.out / "texts" / f"{texts}.toml"

    def train(self, texts: str, flags: Sequence[str], folder: Path) -> list[dict]:
        """Train once, into `folder`; return the lines of the test clips' predictions by the best weights."""
        self.once(folder / "trained.json", [*self._fine_tuning(texts, flags, folder), "--resume", "auto"])
        return read_lines(folder / "test_predictions.jsonl")

    def test(self, texts: str, flags: Sequence[str], trained: Path, folder: Path) -> list[dict]:
        """Test the weights in the folder `trained` once with other texts, into `folder`; return as `train` does."""
        command = [*self._fine_tuning(texts, flags, folder), "--eval", "--finetune", str(trained / BEST)]
        self.once(folder / "tested.json", command)
        return read_lines(folder / "test_predictions.jsonl")

    def _fine_tuning(self, texts: str, flags: Sequence[str], out: Path) -> list[str]:
        command = [str(HERE / "fine_tuning.py"), "--dataset_config", str(self.record(texts)), "--root", self.root]
        return [*command, *SMALL_MODEL.split(), *self.flags, *flags, "--output_dir", str(out)]

    def once(self, done: Path, command: list[str]) -> None:
        """Run a command of this project unless the file `done` says that it has run; ValueError if it fails."""
        if done.exists():
            if json.loads(done.read_text(encoding="utf-8")) != command:
                raise ValueError(f"{done.parent} was made by another command. Name another folder, or remove it.")
            return
        logger.info("python %s", shlex.join(command))
        done.parent.mkdir(parents=True, exist_ok=True)
        threads = max(1, cores() // self.jobs)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        with open(done.parent / "output.txt", "ab") as output:
            status = subprocess.call(
                [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        if status:
            raise ValueError(f"status {status} of: python {shlex.join(command)}\nSee {output.name}.")
        write_text(done, to_json(command) + "\n")
