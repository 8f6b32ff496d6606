"""Runs of the real command line in processes of their own, without paying for the imports each time.

A server process imports everything once; each run is a fork of it, so it can be killed as any process can.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from system import disk

_CONTEXT = multiprocessing.get_context("forkserver")
# DeepSpeed imports torch's compiler when it makes its first engine, and setuptools when it asks what can be compiled.
_LATE = ["deepspeed.runtime.zero.muon.original_muon", "deepspeed.runtime.zero.stage3", "setuptools"]
_CONTEXT.set_forkserver_preload([*_LATE, "fine_tuning", "tests.helpers.preload", "tests.helpers.processes"])
# The server looks for what it preloads along this path alone, and goes without in silence.
_ROOT = Path(__file__).resolve().parents[2]
os.environ["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _begin(log: str) -> None:
    """Be a process as the shell starts them, whose output goes to a file."""
    # The server has handed down its own way of starting processes, each of which would import everything anew.
    multiprocessing.set_start_method("fork", force=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 -- for as long as the process lives
    os.setpgid(0, 0)


def _run(flags: list[str], environment: dict[str, str], log: str, before: Callable[[], None] | None) -> None:
    os.environ.update(environment)
    _begin(log)
    import fine_tuning
    import utils
    from system import distributed

    torch.set_num_threads(1)
    if before is not None:
        before()
    args = utils.parse_args(flags)
    with distributed.naming_the_lost():
        utils.run(lambda: fine_tuning.main(args))
    distributed.stop()


def _program(words: list[str], folder: str, log: str) -> None:
    _begin(log)
    os.chdir(folder)
    if words[0] == "-m":
        words = [f"{words[1].replace('.', '/')}.py", *words[2:]]
    sys.argv = words
    exported = Path(folder) / words[0]
    program = exported if exported.is_file() else _ROOT / words[0]
    spec = importlib.util.spec_from_file_location("__main__", program)
    assert spec is not None, words[0]
    assert spec.loader is not None, words[0]
    sys.modules["__main__"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["__main__"])
    sys.stdout.flush()


def run_program(words: list[str], folder: Path, log: Path, timeout: float = 120) -> tuple[int, str]:
    """Run `python PROGRAM.py ...` or `python -m PROGRAM ...` of this project, or of an exported model, in a folder.

    Returns:
        The exit status, and what it wrote to the terminal.
    """
    log.unlink(missing_ok=True)
    process = _CONTEXT.Process(target=_program, args=(words, str(folder), str(log)))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode, log.read_text(encoding="utf-8", errors="replace")


class Run:
    """One run of one or more processes."""

    def __init__(self, log: Path, flags: list[str], n_processes: int = 1, before: Callable[[], None] | None = None):
        self.log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.processes = []
        for rank in range(n_processes):
            environment = {"OMP_NUM_THREADS": "1"}
            if n_processes > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_processes)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            process = _CONTEXT.Process(target=_run, args=(flags, environment, str(log), before))
            process.start()
            self.processes.append(process)

    @property
    def alive(self) -> bool:
        """Whether any process still runs."""
        return any(process.is_alive() for process in self.processes)

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def wait(self, timeout: float = 300) -> list[int]:
        """Exit codes by rank; negative: killed by that signal."""
        for process in self.processes:
            process.join(timeout)
        assert not self.alive, f"still running after {timeout} s:\n{self.text}"
        return [process.exitcode for process in self.processes]

    def finish(self, code: int = 0) -> str:
        """Wait for the end, which must be this one."""
        codes = self.wait()
        assert set(codes) == {code}, f"{codes}\n{self.text}"
        return self.text

    @property
    def text(self) -> str:
        """What all processes have written to the terminal."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


@contextlib.contextmanager
def ended(*runs: Run) -> Iterator[None]:
    """Leave no process behind."""
    try:
        yield
    finally:
        for run in runs:
            for process in run.processes:
                if process.is_alive():
                    process.kill()
                process.join()


# -- on the fixture `tiny_corpus` --------------------------------------------------------------------------------------

_TINY = (
    "--mt5_path tiny --hidden_dim 8 --batch-size 2 --gradient-accumulation-steps 2 --dtype fp32 --num_workers 0 "
    "--num_beams 1 --max_new_tokens 2 --max_length 16 --save_steps 1 --resume auto"
).split()


def start(corpus: Path, out: Path, *flags: str, described: bool = True, **options: Any) -> Run:
    """Begin a run of about a second that saves each step and goes on from what it finds.

    Args:
        flags: more of them, or other values for those of `_TINY`.
        described: train with descriptions.
        options: those of `Run`.
    """
    texts = ["--use_descriptions"] if described else []
    given = ["--root", str(corpus), *_TINY, *texts, "--output_dir", str(out), *flags]
    return Run(out.with_suffix(".log"), given, **options)


def wait_for(run: Run, condition: Callable[[], bool]) -> None:
    """Return once this holds, or the run has ended."""
    begun = time.monotonic()
    while run.alive and not condition():
        assert time.monotonic() - begun < 120, run.text
        time.sleep(0.01)


def curves(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a run has logged of its steps and epochs, without the times."""
    epochs = disk.read_lines(out / "log.txt")
    for line in epochs:
        del line["seconds"], line["waited"]
    return disk.read_lines(out / "steps.jsonl"), epochs


def assert_same_run(one: Path, other: Path, last_epoch: int) -> None:
    """Bit for bit: losses, weights and sentences."""
    assert curves(one) == curves(other)
    for name in (f"checkpoint_{last_epoch}.pth", "best_checkpoint.pth"):
        a, b = (torch.load(out / name, weights_only=True)["model"] for out in (one, other))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (one / "dev_predictions.jsonl").read_text() == (other / "dev_predictions.jsonl").read_text()
