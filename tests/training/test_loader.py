"""Which clips make a batch, and the processes that read them."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clips.packs import use_packs
from config import DATASETS
from datasets import S2T_Dataset
from tools import pack_dataset
from training import loader
from training.loader import POOL, BatchSampler, ClipLoader, within_cores

resource = pytest.importorskip("resource") if sys.platform == "linux" else None


LENGTHS = np.random.default_rng(0).integers(20, 300, 700)


def padded_share(batches):
    """How much of the batches is padding."""
    frames = [LENGTHS[batch] for batch in batches]
    return 1 - sum(f.sum() for f in frames) / sum(len(f) * f.max() for f in frames)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_batches_do_not_depend_on_processes(world_size, lengths):
    alone = BatchSampler(700, 8, 0, 1, lengths=lengths).batches()
    samplers = [BatchSampler(700, 8, rank, world_size, lengths=lengths) for rank in range(world_size)]
    own = [batch for sampler in samplers for batch in sampler.batches()[: sampler.n_own]]
    assert sorted(own) == sorted(alone)
    assert sorted(sum(own, [])) == list(range(700))
    assert len({len(sampler.batches()) for sampler in samplers}) == 1  # in which they ask whether to stop
    if lengths is not None:  # the longest first
        assert LENGTHS[alone[0]].min() >= LENGTHS[alone[-1]].max()
        assert padded_share(alone) < 0.03


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_training_epoch_has_every_clip_once(world_size):
    samplers = [BatchSampler(23, 4, rank, world_size, seed=5) for rank in range(world_size)]
    with pytest.raises(ValueError, match=rf"{world_size - 1} clips to train on, and {world_size} processes"):
        BatchSampler(world_size - 1, 4, 0, world_size, seed=5)
    clips = [clip for sampler in samplers for batch in sampler.batches(epoch=2) for clip in batch]
    assert len(clips) == len(set(clips)) == 23 - 23 % world_size
    sizes = [[len(batch) for batch in sampler.batches(epoch=2)] for sampler in samplers]
    assert all(size == sizes[0] for size in sizes)


def test_global_batches_do_not_depend_on_processes():
    """Two processes with batches of 4 see in each round the clips that one process with 8 sees."""
    one = BatchSampler(48, 8, 0, 1, seed=5).batches()
    two = [BatchSampler(48, 4, rank, 2, seed=5).batches() for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*two, strict=True)] == [sorted(batch) for batch in one]


@pytest.mark.parametrize("accumulation", [1, 8])
@pytest.mark.parametrize("world_size", [1, 2])
def test_grouping_by_length_keeps_the_epoch_and_saves_padding(world_size, accumulation):
    def batches(lengths, rank, epoch=1):
        return BatchSampler(700, 8, rank, world_size, 5, lengths, accumulation).batches(epoch)

    grouped = [batches(LENGTHS, rank) for rank in range(world_size)]
    clips = [clip for own in grouped for batch in own for clip in batch]
    assert sorted(clips) == list(range(700))
    sizes = [[len(batch) for batch in own] for own in grouped]
    assert all(size == sizes[0] for size in sizes)
    assert sizes[0].count(8) >= len(sizes[0]) - 1
    # The two halves of a padded batch of random clips: about 40 % of it is padding.
    assert all(padded_share(own) < 0.15 < 0.35 < padded_share(batches(None, 0)) for own in grouped)
    assert grouped[0] == batches(LENGTHS, 0)
    assert grouped[0] != batches(LENGTHS, 0, epoch=2)
    assert grouped[0] != BatchSampler(700, 8, 0, world_size, 6, LENGTHS, accumulation).batches(1)
    longest = np.array([LENGTHS[batch].max() for batch in grouped[0]])
    for part in (longest, longest[: POOL // 8]) if accumulation == world_size == 1 else (longest,):
        assert np.abs(np.corrcoef(part, np.arange(len(part)))[0, 1]) < 0.5  # not short first, long last


def test_grouping_does_not_depend_on_how_a_global_batch_is_divided():
    """16 clips x 8, or 2 processes x 32 clips x 2: the same clips in every step."""
    one = BatchSampler(700, 16, 0, 1, 5, LENGTHS, accumulation=8).batches(0)
    two = [BatchSampler(700, 32, rank, 2, 5, LENGTHS, accumulation=2).batches(0) for rank in range(2)]
    steps = [{clip for batch in one[i : i + 8] for clip in batch} for i in range(0, len(one), 8)]
    rounds = [a + b for a, b in zip(*two, strict=True)]
    assert steps == [{clip for batch in rounds[i : i + 2] for clip in batch} for i in range(0, len(rounds), 2)]


def test_a_large_step_has_the_clips_it_has_without_grouping():
    plain, grouped = (BatchSampler(700, 16, 0, 1, 5, lengths, accumulation=16).batches() for lengths in (None, LENGTHS))
    for i in range(0, len(plain), 16):
        assert sorted(sum(plain[i : i + 16], [])) == sorted(sum(grouped[i : i + 16], []))


def test_workers_live_on_and_know_the_epoch(corpus):
    dataset = S2T_Dataset(DATASETS["CSL_Daily"].under(corpus), "train", random_frames=True, max_length=8, seed=3)
    sampler = BatchSampler(len(dataset), 6, 0, 1, seed=0)
    alone, helped = (ClipLoader(dataset, sampler, workers) for workers in (0, 1))
    processes = set()
    for epoch in (0, 1):
        for (a, _), (b, _) in zip(alone.epoch(epoch), helped.epoch(epoch), strict=True):
            assert a["name_batch"] == b["name_batch"]
            assert (a["right"] == b["right"]).all()
        processes.add(helped._workers[0].process.pid)
        assert helped.waited > 0
    assert len(processes) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_workers_that_are_spawned_load_the_same(corpus, tmp_path, packed):
    """As Windows and macOS start them, without the memory of the run."""
    spec = DATASETS["CSL_Daily"].under(corpus)
    if packed:
        pack_dataset.main(["--root", str(corpus), "--out", str(tmp_path), "--splits", "train"])
        spec = use_packs(DATASETS["CSL_Daily"], str(tmp_path), str(corpus))
    dataset = S2T_Dataset(spec, "train", use_descriptions=True, random_frames=True)
    sampler = BatchSampler(len(dataset), 3, 0, 1, seed=1)
    alone = list(ClipLoader(dataset, sampler, 0).epoch(2))
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        helped = list(ClipLoader(dataset, sampler, 1).epoch(2))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert len(helped) == len(alone) > 1
    for (one, _), (other, _) in zip(alone, helped, strict=True):
        assert one["name_batch"] == other["name_batch"]
        assert one["descriptions"] == other["descriptions"]
        assert all(torch.equal(one[part], other[part]) for part in ("body", "left", "right", "face_all"))


def test_loader_resumes_in_the_middle_with_any_workers(corpus):
    dataset = S2T_Dataset(DATASETS["CSL_Daily"].under(corpus), "train", random_frames=True, max_length=20)
    sampler = BatchSampler(len(dataset), 5, 0, 1, seed=0)
    whole = list(ClipLoader(dataset, sampler, 0).epoch(3))
    rest = list(ClipLoader(dataset, sampler, 2).epoch(3, first=2))
    assert [src["name_batch"] for src, _ in rest] == [src["name_batch"] for src, _ in whole[2:]]
    for (a, _), (b, _) in zip(rest, whole[2:], strict=True):
        assert (a["right"] == b["right"]).all()


def full_shared_memory():
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def few_open_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (28, 28))
    with contextlib.suppress(OSError):
        while True:
            os.dup(0)


FAULTS = [
    (lambda: os.kill(os.getpid(), signal.SIGKILL), "has ended with -9, perhaps for want of memory, at the clip {}"),
    (lambda: os.kill(os.getpid(), signal.SIGSTOP), "has not answered for 4 s at the clip {}"),
    (lambda: time.sleep(1000), "has not answered for 4 s at the clip {}"),
    (full_shared_memory, "failed: it cannot hand over its batch: "),
    (few_open_files, "failed: it cannot hand over its batch: "),
]


@pytest.mark.skipif(sys.platform != "linux", reason="signals and limits of Linux")
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_a_data_worker_that_fails_is_replaced_once_at_the_same_batch(
    corpus, tmp_path, monkeypatch, caplog, fault, words, again
):
    dataset = S2T_Dataset(DATASETS["CSL_Daily"].under(corpus), "train", random_frames=True, max_length=20)
    sampler = BatchSampler(len(dataset), 5, 0, 1, seed=0)
    wanted = [src["name_batch"] for src, _ in ClipLoader(dataset, sampler, 0).epoch(3)]
    clip, read = wanted[2][1], S2T_Dataset.__getitem__

    def failing(self, index):
        if self.names[index] == clip and (again or not (tmp_path / "failed").exists()):
            (tmp_path / "failed").touch()
            fault()
        return read(self, index)

    monkeypatch.setattr(S2T_Dataset, "__getitem__", failing)
    monkeypatch.setattr(loader, "DEADLINE", 4.0 if "4 s" in words else 60.0)  # a busy machine is slow
    helped, found = ClipLoader(dataset, sampler, 2), []
    with pytest.raises(OSError, match="for the second time") if again else contextlib.nullcontext() as error:
        found += [src["name_batch"] for src, _ in helped.epoch(3)]
    assert found == ([] if again else wanted)
    (record,) = [record for record in caplog.records if "data worker" in record.getMessage()]
    assert words.format(clip) in record.getMessage()
    assert not again or (words.format(clip) in str(error.value) and "\n" not in str(error.value))


def test_no_more_processes_load_than_shared_memory_has_room_for(corpus, monkeypatch, caplog):
    """A container has 64 MB by default; without room the run loads its batches itself."""
    dataset = S2T_Dataset(DATASETS["CSL_Daily"].under(corpus), "train", max_length=100)
    for room, workers in ((10**9, 2), (1_000_000, 1), (10_000, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, room=room: SimpleNamespace(free=room))
        helped = ClipLoader(dataset, BatchSampler(len(dataset), 5, 0, 1), 2)
        ((src_input, _), *_) = helped.epoch()
        assert src_input["body"].nbytes < 5 * 100 * loader.FRAME_BYTES
        assert len(helped._workers) == workers
        assert ("--shm-size" in caplog.text) == (workers < 2)


@pytest.mark.parametrize("affinity", [True, False])
def test_no_more_processes_load_than_there_are_cores(monkeypatch, caplog, affinity):
    if affinity:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4}, raising=False)
    else:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with caplog.at_level("INFO"):
        assert [within_cores(workers) for workers in (0, 1, 8)] == [0, 1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "--num_workers 8: this process may use 1 of the CPU cores; at most as many processes load data."
    ]
