"""A process that is gone is named, and the others end within a minute instead of waiting."""

import os
import re
import signal
import time

import pytest

from system import heartbeat
from tests.helpers.processes import ended, start, wait_for


def lose(run, out, number, rank):
    """Send a rank a signal in training; the other's last words, which must come, and the rank's process."""
    with ended(run):
        wait_for(run, lambda: (out / "steps.jsonl").exists())
        run.signal(number, rank)
        run.processes[1 - rank].join(90)
        assert run.processes[1 - rank].exitcode == 1, run.text
        (line,) = [line for line in run.text.splitlines() if line.startswith("error: ")]
        assert line.endswith("Start again with --resume auto.")
    return line, run.processes[rank].pid


STOP, KILL = signal.SIGSTOP, signal.SIGKILL


@pytest.mark.parametrize(
    ("number", "rank"),
    [(KILL, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((STOP, 1), (STOP, 0), (KILL, 0)))],
)
def test_a_lost_process_is_named(tiny_corpus, tmp_path, number, rank):
    """Stopped ones keep their connections open: no collective fails, all of them hang."""
    out = tmp_path / "out"
    run = start(tiny_corpus, out, "--epochs", "99", n_processes=2)
    line, pid = lose(run, out, number, rank)
    assert f"rank {rank} (process {pid} on" in line
    if (number, rank) == (KILL, 1):
        assert re.match(rf"error: rank 1 \(process {pid} on [\w.-]+\) is lost: silent for 6 s\. rank 0 ", line)


def fail_late():
    """An error on rank 1 alone, in the middle of training."""
    import fine_tuning

    end_step = fine_tuning.end_step

    def failing(engine, state, *arguments):
        if os.environ["RANK"] == "1" and state.step == 2:
            raise ValueError("something a user can mend")
        return end_step(engine, state, *arguments)

    fine_tuning.end_step = failing


@pytest.mark.slow
def test_an_error_on_one_rank_ends_the_other(tiny_corpus, tmp_path):
    run = start(tiny_corpus, tmp_path / "out", "--epochs", "99", n_processes=2, before=fail_late)
    text = run.finish(code=1)
    assert "error: something a user can mend" in text
    assert re.search(r"error: rank 1 \(process \d+ on [\w.-]+\) (has ended before the others|is lost)", text)


def patient_for_3_s():
    heartbeat.BEAT, heartbeat.SILENCE = 0.5, 3.0


@pytest.mark.slow
def test_a_job_that_is_suspended_as_a_whole_goes_on(tiny_corpus, tmp_path):
    """As schedulers do, or Ctrl-Z: none of its processes is lost."""
    out = tmp_path / "out"
    run = start(tiny_corpus, out, "--epochs", "99", n_processes=2, before=patient_for_3_s)
    with ended(run):
        wait_for(run, lambda: (out / "steps.jsonl").exists())
        run.signal(STOP)
        time.sleep(6)
        before = (out / "steps.jsonl").stat().st_size
        run.signal(signal.SIGCONT)
        wait_for(run, lambda: (out / "steps.jsonl").stat().st_size > before)
        time.sleep(4)
        assert all(process.is_alive() for process in run.processes), run.text


def test_the_limit_is_within_a_minute():
    assert heartbeat.SILENCE + 2 * heartbeat.BEAT < 60
