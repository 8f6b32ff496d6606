"""One run in an output folder at a time."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from system import lock

ROOT = Path(__file__).resolve().parents[2]
HOLD = "import sys, os; from system import lock; lock.hold(sys.argv[1]); print(os.getpid(), flush=True); "


def holder(folder, then="sys.stdin.read()"):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + then, folder], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert int(process.stdout.readline()) == process.pid
    return process


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    first = holder(tmp_path)
    with pytest.raises(ValueError, match=rf"process {first.pid} on {socket.gethostname()}") as error:
        lock.hold(tmp_path)
    assert str(error.value).startswith(f"--output_dir {tmp_path}: a run is at work there")
    first.kill()  # no chance to clear anything away
    first.wait()
    lock.hold(tmp_path)
    lock.hold(tmp_path)  # our own
    assert (tmp_path / lock.FILE_NAME).read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_child_that_outlives_the_run_does_not_keep_the_lock(tmp_path):
    """Processes that load data notice the end of the run some seconds later."""
    child = "pid = os.fork(); (sys.stdin.read() if pid == 0 else os._exit(0))"
    first = holder(tmp_path, child)
    first.wait()
    lock.hold(tmp_path)
    first.stdin.close()


def test_a_file_system_without_locks_is_said_once(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    lock.hold(tmp_path)
    assert "no locks on this file system" in caplog.text
