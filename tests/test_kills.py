"""SIGKILL at any moment, and what a power cut leaves: the run goes on as if nothing had happened, bit for bit."""

import json
import os
import random
import shutil
import signal
import sys
import time

import pytest
import torch

from system import disk
from tests.helpers.processes import assert_same_run, ended, start


class FileOperations:
    """Counts what is done to files, and kills the process just before or after the n-th."""

    def __init__(self, n=None, count_file=None):
        self.n, self.count_file, self.seen = n, count_file, 0

    def __call__(self):
        for name in ("fsync", "replace", "rename", "truncate", "unlink"):
            self._watch(disk.os, name)
        self._watch(disk.shutil, "rmtree")
        self._watch(torch, "save")

    def _watch(self, module, name):
        function = getattr(module, name)

        def watched(*arguments, **options):
            self._count()
            result = function(*arguments, **options)
            self._count()
            return result

        setattr(module, name, watched)

    def _count(self):
        self.seen += 1
        if self.count_file:
            self.count_file.write_text(str(self.seen))
        if self.seen == self.n:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_often(tiny_corpus, folder, n_kills, epochs, seed):
    """Run to the end through so many kills, half of them at a random moment, half at a random file operation."""
    rng = random.Random(seed)
    whole, killed, count_file = folder / "whole", folder / "killed", folder / "operations"
    flags = ("--epochs", str(epochs))
    begun = time.monotonic()
    start(tiny_corpus, whole, *flags, before=FileOperations(count_file=count_file)).finish()
    n_steps, operations = len(disk.read_lines(whole / "steps.jsonl")), int(count_file.read_text())
    pause = (time.monotonic() - begun) / n_steps  # what is left to do takes longer, however fast this machine is
    places = []
    for kill in range(n_kills):
        n = rng.randrange(1, max(2, operations // n_kills)) if kill % 2 == 0 else None
        run = start(tiny_corpus, killed, *flags, before=FileOperations(n) if n else None)
        with ended(run):
            if not n:
                # By the second step there is a state to resume from, whatever was killed before.
                target = max(2, n_steps * kill // (n_kills + 1))
                while run.alive and len(disk.read_lines(killed / "steps.jsonl")) < target:
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, pause))
                run.signal(signal.SIGKILL)
            assert run.wait() == [-signal.SIGKILL], run.text
        places.append((f"operation {n}" if n else "time", len(disk.read_lines(killed / "steps.jsonl"))))
    text = start(tiny_corpus, killed, *flags).finish()
    sys.stdout.write(f"kills at (what, steps logged by then): {places}\n")
    assert_same_run(whole, killed, epochs - 1)
    assert text.count("resumed") >= 1
    return places


def test_three_kills_change_nothing(tiny_corpus, tmp_path):
    assert len(kill_often(tiny_corpus, tmp_path, n_kills=3, epochs=2, seed=1)) == 3


@pytest.mark.slow
def test_fifty_kills_change_nothing(tiny_corpus, tmp_path):
    assert len(kill_often(tiny_corpus, tmp_path, n_kills=50, epochs=20, seed=2)) == 50


def test_what_a_power_cut_leaves_is_named_and_passed_over(tiny_corpus, tmp_path):
    """Truncated, emptied, altered and half-renamed states: the newest whole one counts."""
    whole = tmp_path / "whole"
    start(tiny_corpus, whole, "--epochs", "2", "--keep_last", "0").finish()
    states = sorted((whole / "resume").iterdir())
    assert [path.name for path in states] == [f"step_{n:08d}" for n in range(1, 7)]
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    six, five, four, three = (cut / "resume" / path.name for path in reversed(states[2:]))
    os.truncate(six / "weights.pt", (six / "weights.pt").stat().st_size // 2)
    content = bytearray((five / "optimizer_exp_avg.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (five / "optimizer_exp_avg.pt").write_bytes(content)
    (four / "state.json").write_bytes(b"")
    shutil.copytree(three, three.with_name("unfinished_step_00000007"))
    with open(cut / "steps.jsonl", "a") as file:
        file.write('{"step": 7, "ep')
    text = start(tiny_corpus, cut, "--epochs", "2", "--keep_last", "0", "--num_workers", "1").finish()
    for path in (six / "weights.pt", five / "optimizer_exp_avg.pt", four / "state.json"):
        assert f"{path} is damaged" in text
    assert f"resumed {three}" in text
    assert not list((cut / "resume").glob("unfinished*"))
    assert_same_run(whole, cut, 1)
    for path in (cut / "resume").glob("step_*"):
        (path / "state.json").unlink()
    text = start(tiny_corpus, cut, "--epochs", "2").finish(code=1)
    assert "all 6 states" in text
    assert json.loads((whole / "resume" / "step_00000006" / "state.json").read_text())["epoch"] == 2
