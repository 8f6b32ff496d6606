"""Work shared among several processes."""

import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from system import processes


@pytest.mark.parametrize("chunk", [1, 3])
def test_processes_keep_the_order(chunk):
    for n in (0, 1, 50):
        assert list(processes.in_processes(str, range(n), 2, chunk)) == [str(job) for job in range(n)]


def refuse_seven(job):
    if job == 7:
        raise ValueError("seven")
    return job


def test_an_exception_of_a_process_arrives_in_its_place():
    results = processes.in_processes(refuse_seven, range(1000), 2)
    assert list(islice(results, 7)) == list(range(7))
    with pytest.raises(ValueError, match="seven"):
        next(results)
    assert list(results) == []


def test_a_process_that_dies_is_one_line():
    with pytest.raises(OSError, match="one of 2 processes died, perhaps for want of memory. Give fewer --workers"):
        list(processes.in_processes(os._exit, range(8), 2))


def test_processes_end_with_their_parent(tmp_path):
    """However it ends: a scheduler's SIGKILL runs no code of its own."""
    code = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from system.processes import in_processes
def work(job):
    open(os.path.join({str(tmp_path)!r}, str(os.getpid())), "w").close()
    time.sleep(60)
list(in_processes(work, [1, 2], 2))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    parent.kill()
    parent.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    wait_until(lambda: not any(map(is_running, workers)))


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(holds):
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)
