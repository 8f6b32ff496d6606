"""A process that is gone is named, and the others end within a minute instead of waiting."""

import re
import signal
import sys
import time

import pytest

from system import heartbeat
from tests.helpers.processes import ended, start, wait_for


def lose(run, out, number, rank):
    """Send a rank a signal in training; seconds until the other has ended, and its last words."""
    with ended(run):
        wait_for(run, lambda: (out / "steps.jsonl").exists())
        begun = time.monotonic()
        run.signal(number, rank)
        run.processes[1 - rank].join(90)
        seconds = time.monotonic() - begun
        assert run.processes[1 - rank].exitcode == 1, run.text
        pid = run.processes[rank].pid
        (line,) = [line for line in run.text.splitlines() if line.startswith("error: ")]
        assert line.endswith("Start again with --resume auto.")
        sys.stdout.write(f"{number.name} to rank {rank}: {seconds:.0f} s\n")
    return seconds, line, pid


def test_a_killed_process_is_named(tiny_corpus, tmp_path):
    out = tmp_path / "out"
    run = start(tiny_corpus, out, "--epochs", "99", n_processes=2)
    seconds, line, pid = lose(run, out, signal.SIGKILL, rank=1)
    assert re.match(rf"error: rank 1 \(process {pid} on [\w.-]+\) is lost: silent for 6 s\. rank 0 ", line)
    assert seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize(("number", "rank"), [(signal.SIGSTOP, 1), (signal.SIGSTOP, 0), (signal.SIGKILL, 0)])
def test_a_lost_process_is_named(tiny_corpus, tmp_path, number, rank):
    """Stopped ones keep their connections open: no collective fails, all of them hang."""
    out = tmp_path / "out"
    run = start(tiny_corpus, out, "--epochs", "99", n_processes=2)
    seconds, line, pid = lose(run, out, number, rank)
    assert f"rank {rank} (process {pid} on" in line
    assert seconds < 60


class FailLate:
    """An error on rank 1 alone, in the middle of training."""

    def __call__(self):
        import os

        import fine_tuning

        log_step = fine_tuning.log_step

        def failing(state, *arguments):
            if os.environ["RANK"] == "1" and state.step == 2:
                raise ValueError("something a user can mend")
            log_step(state, *arguments)

        fine_tuning.log_step = failing


@pytest.mark.slow
def test_an_error_on_one_rank_ends_the_other(tiny_corpus, tmp_path):
    run = start(tiny_corpus, tmp_path / "out", "--epochs", "99", n_processes=2, before=FailLate())
    text = run.finish(code=1)
    assert "error: something a user can mend" in text
    assert re.search(r"error: rank 1 \(process \d+ on [\w.-]+\) (has ended before the others|is lost)", text)


def test_the_limit_is_within_a_minute():
    assert heartbeat.SILENCE + 2 * heartbeat.BEAT < 60
