"""Work shared among several processes."""

from concurrent.futures import ProcessPoolExecutor
from itertools import islice

import pytest

from system import processes


@pytest.mark.parametrize("chunk", [1, 3])
def test_processes_keep_the_order(chunk):
    for n in (0, 1, 50):
        assert list(processes.in_processes(str, range(n), 2, chunk)) == [str(job) for job in range(n)]


def test_processes_are_few_jobs_ahead_of_who_takes_the_results(monkeypatch):
    """Results that wait lie in memory: a slow disk must not let all of a data set pile up there."""
    chunks = []
    submit = ProcessPoolExecutor.submit
    monkeypatch.setattr(ProcessPoolExecutor, "submit", lambda *job: chunks.append(job) or submit(*job))
    results = processes.in_processes(str, range(1000), 2, 2)
    for taken in (1, 100):
        assert len(list(islice(results, taken))) == taken
        assert len(chunks) <= taken / 2 + 2 * processes.AHEAD + 1
    results.close()


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
