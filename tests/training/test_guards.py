"""Stop signals, steps that are not finite, failed saves: by doing the thing itself."""

import argparse
import errno
import gzip
import json
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from system import disk
from tests.helpers.processes import assert_same_run, start
from training import guards
from training.guards import RESUME_ME, Saves, SkippedSteps, StopRequest, statistics_kept

# -- signals ---------------------------------------------------------------------------------------------------------


def kill_group(pid, number):
    """Send from a process outside the job: those that load data obey the run itself, and nobody else."""
    code = f"import os; os.killpg({pid}, {int(number)})"
    subprocess.run([sys.executable, "-S", "-c", code], check=True, start_new_session=True)


class SignalAt:
    """Send this process a signal in the middle of a step, or of an evaluation, as SLURM would."""

    def __init__(self, number, call, where="forward", rank=0, again_after=None, to_all=False):
        self.number, self.call, self.where, self.rank, self.again_after = number, call, where, rank, again_after
        self.seen, self.kill = 0, kill_group if to_all else os.kill

    def __call__(self):
        from models import Uni_Sign

        function = getattr(Uni_Sign, self.where)

        def watched(*arguments, **options):
            self.seen += 1
            if self.seen == self.call and int(os.environ.get("RANK", "0")) == self.rank:
                self.kill(os.getpid(), self.number)
                if self.again_after is not None:
                    time.sleep(self.again_after)
                    self.kill(os.getpid(), self.number)
            return function(*arguments, **options)

        setattr(Uni_Sign, self.where, watched)


def break_the_loss():
    """Let something fail that nobody foresaw, in the middle of an epoch."""
    from models import Uni_Sign

    def target_loss(*_arguments):
        raise RuntimeError("the loss is broken")

    Uni_Sign.target_loss = target_loss


@pytest.fixture(scope="module")
def whole(tiny_corpus, tmp_path_factory):
    """A run of two epochs that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "out"
    start(tiny_corpus, out, "--epochs", "2", "--save_steps", "0").finish()
    return out


def test_stopped_in_a_step_and_in_an_evaluation(tiny_corpus, whole, tmp_path):
    """SIGTERM in the first half of a step, then SIGUSR1 in the evaluation: status 75 both times, nothing is lost."""
    out = tmp_path / "out"
    flags = ("--epochs", "2", "--save_steps", "0")
    # To the whole process group, those that load data included, as SLURM sends it.
    to_all = SignalAt(signal.SIGTERM, 3, to_all=True)
    text = start(tiny_corpus, out, *flags, "--num_workers", "2", before=to_all).finish(code=RESUME_ME)
    assert "SIGTERM: the run stops after this step" in text
    assert "stopped by SIGTERM after step 2. Go on with --resume auto." in text
    assert [path.name for path in (out / "resume").iterdir()] == ["step_00000002"]
    text = start(tiny_corpus, out, *flags, before=SignalAt(signal.SIGUSR1, 1, "generate")).finish(code=RESUME_ME)
    assert "stopped by SIGUSR1 in the evaluation of dev" in text
    start(tiny_corpus, out, *flags).finish()
    assert_same_run(whole, out, 1)


def test_two_processes_stop_at_the_same_step(tiny_corpus, tmp_path):
    """Only one of them hears the signal."""
    out = tmp_path / "out"
    flags = ("--batch-size", "1", "--epochs", "9")
    run = start(tiny_corpus, out, *flags, n_processes=2, before=SignalAt(signal.SIGTERM, 3, rank=1))
    text = run.finish(code=RESUME_ME)
    assert text.count("the run stops after this step") == 1
    assert "stopped by another process after step 2" in text


def test_an_unforeseen_error_ends_the_run(tiny_corpus, tmp_path):
    """The processes that load data heed no signal but the run's own; else the run would wait for them for ever."""
    run = start(tiny_corpus, tmp_path / "out", "--num_workers", "2", before=break_the_loss)
    assert "the loss is broken" in run.finish(code=1)


def test_a_second_signal_ends_at_once(tiny_corpus, tmp_path):
    run = start(tiny_corpus, tmp_path / "out", before=SignalAt(signal.SIGINT, 3, again_after=1.2))
    run.finish(code=128 + signal.SIGINT)
    assert not list((tmp_path / "out" / "resume").glob("step_00000002"))


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_signals_that_come_together_are_one_request(number, monkeypatch):
    """Also when nobody reads what is said, as Ctrl-C reaches `| tee` as well."""
    monkeypatch.setattr(os, "write", Mock(side_effect=BrokenPipeError))
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.agreed()
        for _ in range(3):
            signal.raise_signal(number)
        assert stop.asked == number.name
        assert stop.agreed()
    assert signal.getsignal(number) == before


# -- data that do not come -------------------------------------------------------------------------------------------


class FailAt:
    """Let something happen once, in whichever process reads the n-th clip; each leaves its number in `pids`."""

    def __init__(self, pids, fault, n=7):
        self.pids, self.fault, self.n = pids, fault, n

    def __call__(self):
        from datasets import S2T_Dataset

        read = S2T_Dataset.__getitem__
        self.pids.mkdir()
        StopRequest.GRACE = 2.0

        def failing(dataset, index):
            (self.pids / str(os.getpid())).touch()
            with open(self.pids.parent / "clips", "ab") as file:
                file.write(b".")
                nth = file.tell()
            if dataset.split == "train" and nth == self.n:
                self.fault()
            return read(dataset, index)

        S2T_Dataset.__getitem__ = failing


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang_and_stop_the_run():
    os.kill(os.getppid() if multiprocessing.current_process().daemon else os.getpid(), signal.SIGTERM)
    time.sleep(1000)


def left(pids):
    """Return the processes that still run; one that has ended may be waiting for the system to take note of it."""
    stats = [Path("/proc", path.name, "stat") for path in pids.iterdir()]
    return [stat for stat in stats if stat.exists() and ") Z " not in stat.read_text()]


def test_a_data_worker_is_killed(tiny_corpus, whole, tmp_path):
    """As the kernel does when memory is short."""
    out = tmp_path / "out"
    flags = ("--epochs", "2", "--save_steps", "0", "--num_workers", "2")
    text = start(tiny_corpus, out, *flags, before=FailAt(tmp_path / "pids", die)).finish()
    assert "has ended with -9, perhaps for want of memory, at the clip" in text
    assert "Traceback" not in text
    assert_same_run(whole, out, 1)
    assert not left(tmp_path / "pids")


@pytest.mark.parametrize(("workers", "n"), [("1", 3), ("0", 9)])
def test_a_run_that_hangs_obeys_sigterm(tiny_corpus, whole, tmp_path, workers, n):
    """In a worker or in the run itself; no process is left behind, and the run goes on from its last state."""
    out = tmp_path / "out"
    flags = ("--epochs", "2", "--num_workers", workers)
    fail = FailAt(tmp_path / "pids", hang_and_stop_the_run, n)
    text = start(tiny_corpus, out, *flags, before=fail).finish(code=RESUME_ME)
    assert "SIGTERM: something hangs, 2 s later; the run ends as it was last saved. Go on with --resume auto." in text
    time.sleep(0.5)
    assert not left(tmp_path / "pids")
    start(tiny_corpus, out, *flags).finish()
    assert_same_run(whole, out, 1)


class OtherLabels:
    """Rank 1 has a copy of the corpus with the labels of train in another order, or with half of them."""

    def __init__(self, corpus, copy, change):
        shutil.copytree(corpus, copy)
        path = copy / "data/CSL_Daily/labels.train"
        labels = list(pickle.loads(gzip.decompress(path.read_bytes())).items())
        path.write_bytes(gzip.compress(pickle.dumps(dict(change(labels)))))
        self.copy = copy

    def __call__(self):
        import fine_tuning

        make = fine_tuning.dataset_spec

        def other(args):
            return make(argparse.Namespace(**vars(args) | {"root": str(self.copy)}))

        if os.environ["RANK"] == "1":
            fine_tuning.dataset_spec = other


@pytest.mark.parametrize("change", [lambda labels: labels[::-1], lambda labels: labels[:6]])
def test_a_process_with_other_data_is_named(tiny_corpus, tmp_path, change):
    before = OtherLabels(tiny_corpus, tmp_path / "copy", change)
    text = start(tiny_corpus, tmp_path / "out", "--batch-size", "1", n_processes=2, before=before).finish(code=1)
    assert "error: rank 1 of 2 reads other files than the others; different are: train" in text
    assert "train labels_sha256" in text


# -- saves -----------------------------------------------------------------------------------------------------------


class SmallDisk:
    """From the n-th step on, no file can grow beyond some bytes; later it can again."""

    def __init__(self, first, last=10**9, n_bytes=20_000):
        self.first, self.last, self.n_bytes = first, last, n_bytes

    def __call__(self):
        import resource

        import fine_tuning

        make = fine_tuning.state_writer
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

        def limited(engine, state, *arguments):
            write = make(engine, state, *arguments)
            if not self.first <= state.step <= self.last:
                return write
            written = Future()  # at once, since the limit holds for whatever the process writes
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.n_bytes, hard))
            try:
                written.set_result(write())
            except OSError as error:
                written.set_exception(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            return written.result

        fine_tuning.state_writer = limited


def test_a_full_disk_is_survived_for_a_while(tiny_corpus, whole, tmp_path):
    """Two saves fail in a row, the third succeeds: same losses, every state whole, no half file left."""
    out = tmp_path / "out"
    text = start(tiny_corpus, out, "--epochs", "2", "--keep_last", "0", before=SmallDisk(2, 3)).finish()
    assert text.count("The run goes on; what was saved before is whole.") >= 2
    assert f"{out}/resume/step_00000002 cannot be written: File too large; " in text
    assert "MB are free there" in text
    assert sorted(path.name for path in (out / "resume").iterdir()) == [f"step_{n:08d}" for n in (1, 4, 5, 6)]
    assert disk.read_lines(out / "steps.jsonl") == disk.read_lines(whole / "steps.jsonl")
    assert not list(out.rglob("*unfinished*"))


def test_a_disk_that_stays_full_ends_the_run(tiny_corpus, whole, tmp_path):
    out = tmp_path / "out"
    text = start(tiny_corpus, out, "--epochs", "2", before=SmallDisk(3)).finish(code=1)
    assert "error: saving the state failed 3 times in a row" in text
    assert "Traceback" not in text
    start(tiny_corpus, out, "--epochs", "2").finish()
    assert_same_run(whole, out, 1)


def test_a_full_disk_of_rank_0_is_known_to_all(tiny_corpus, tmp_path):
    """The other rank writes nothing, and both go on together: else one would wait for the other for ever."""
    out = tmp_path / "out"
    text = start(tiny_corpus, out, "--epochs", "1", n_processes=2, before=SmallDisk(1, 1)).finish()
    assert text.count("the state is not saved") == 2
    assert [path.name for path in (out / "resume").iterdir()] == ["step_00000002"]


@pytest.mark.parametrize("world", [1, 2])
def test_what_processes_sum_up_is_not_taken_back_by_one_of_them(monkeypatch, world):
    """After a batch without clips: the others keep it, and running means must stay the same on all."""
    monkeypatch.setattr("system.distributed.world_size", lambda: world)
    model = torch.nn.ModuleDict({kind.__name__: kind(1) for kind in (torch.nn.BatchNorm1d, torch.nn.SyncBatchNorm)})
    model.register_buffer("summed", torch.zeros(1))
    with statistics_kept(model, {"name_batch": []}):
        for buffer in model.buffers():
            buffer.add_(1)
    moved = {name for name, value in model.named_buffers() if value.item() != name.endswith("running_var")}
    assert moved == ({name for name in moved if not name.startswith("BatchNorm1d")} if world > 1 else set())
    assert ("summed" in moved) == (world > 1)
    assert ("SyncBatchNorm.running_mean" in moved) == (world > 1)


class FullDiskFor:
    """The first file of this name finds no room; the first epoch is the best."""

    def __init__(self, name):
        self.name = name

    def __call__(self):
        import fine_tuning
        from training import metrics, weight_files

        write_whole = disk.write_whole

        def full(path, write, **options):
            if Path(path).name == self.name and not Path(f"{path}.failed").exists():
                Path(f"{path}.failed").touch()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return write_whole(path, write, **options)

        weight_files.write_whole = full
        fine_tuning.metrics.is_better = metrics.is_better = lambda task, new, best: best is None


@pytest.mark.parametrize(
    ("name", "best"),
    [("checkpoint_0.pth", 0), ("best_fusion.pth", 1), ("best_checkpoint.pth", 1)],
)
def test_the_best_weights_are_those_on_record_whatever_could_not_be_written(tiny_corpus, tmp_path, name, best):
    """Else a worse epoch would take the best one's place."""
    out = tmp_path / "out"
    start(tiny_corpus, out, "--epochs", "2", before=FullDiskFor(name)).finish()
    for file in ("best_checkpoint.pth", "best_fusion.pth"):
        assert torch.load(out / file, weights_only=True)["epoch"] == best
    dev = [line["dev_nll"] for line in disk.read_lines(out / "log.txt")]
    (state,) = (out / "resume").glob("step_00000006")
    assert json.loads((state / "state.json").read_text())["best"][1] == dev[best]


def test_the_last_epochs_best_weights_are_saved_by_a_resume(tiny_corpus, whole, tmp_path):
    out = tmp_path / "out"
    text = start(tiny_corpus, out, "--epochs", "1", before=FullDiskFor("best_checkpoint.pth")).finish(code=1)
    assert "saving the best checkpoint failed. Make room, then start the same command again, a training with" in text
    assert not (out / "best_checkpoint.pth").exists()
    start(tiny_corpus, out, "--epochs", "1").finish()
    assert torch.load(out / "best_checkpoint.pth", weights_only=True)["epoch"] == 0
    assert (out / "test_metrics.json").exists()
    assert len(disk.read_lines(out / "log.txt")) == 1


def test_a_run_whose_last_save_failed_does_not_claim_success(tmp_path):
    saves = Saves()

    def save(what, error=None):
        with saves.attempt(what, tmp_path / "x"):
            if error:
                raise error

    full = OSError(errno.ENOSPC, "No space left on device")
    save("the checkpoint", full)
    save("the state")
    with pytest.raises(ValueError, match="the run is done, but saving the checkpoint failed"):
        saves.finish()
    save("the checkpoint")
    saves.finish()
    with pytest.raises(TypeError):
        save("the state", TypeError("a defect"))
    assert not saves.failed["the state"]
    save("the state", full)
    save("the state", full)
    with pytest.raises(ValueError, match="saving the state failed 3 times .*/x cannot be wri"):
        save("the state", full)


def test_what_is_saved_in_a_thread_is_waited_for_and_counted(tmp_path):
    saves, go_on, done = Saves(), threading.Event(), []

    def write():
        go_on.wait(60)
        done.append("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    saves.begin("the state", tmp_path, write)
    assert not done
    go_on.set()
    with pytest.raises(ValueError, match="the run is done, but saving the state failed"):
        saves.finish()
    assert done
    assert saves.failed["the state"] == 1


# -- steps that are not finite ---------------------------------------------------------------------------------------


class Poison:
    """Make the loss, or one gradient, not finite in some forward passes of one rank."""

    def __init__(self, passes, what="loss", rank=0, limit=guards.MOST_SKIPPED):
        self.passes, self.what, self.rank, self.limit, self.seen = passes, what, rank, limit, 0

    def __call__(self):
        from models import Uni_Sign

        forward = Uni_Sign.forward
        guards.MOST_SKIPPED = self.limit

        def poisoned(model, src_input, tgt_input):
            output = forward(model, src_input, tgt_input)
            if model.training:
                self.seen += 1
                if self.seen in self.passes and int(os.environ.get("RANK", "0")) == self.rank:
                    if self.what == "loss":
                        output.loss = output.loss * float("nan")
                    else:
                        output.loss.register_hook(lambda gradient: gradient * float("inf"))
            return output

        Uni_Sign.forward = poisoned


@pytest.mark.parametrize(
    ("stage", "what", "n_processes"),
    [
        ("2", "loss", 2),
        ("0", "gradient", 1),
        pytest.param("0", "loss", 2, marks=pytest.mark.slow),
        pytest.param("1", "gradient", 2, marks=pytest.mark.slow),
        pytest.param("2", "gradient", 1, marks=pytest.mark.slow),
    ],
)
def test_a_step_that_is_not_finite_is_skipped(tiny_corpus, tmp_path, stage, what, n_processes):
    """One of its batches is bad on the last rank; the weights before and after are the same, and the run goes on."""
    out = tmp_path / "out"
    flags = ("--zero_stage", stage, "--epochs", "1", "--keep_last", "0")
    run = start(tiny_corpus, out, *flags, n_processes=n_processes, before=Poison([3], what, rank=n_processes - 1))
    text = run.finish()
    assert "step 2 is skipped: its loss or gradient is not finite" in text
    steps = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    if n_processes == 2:  # three micro-batches, so two steps
        assert [line["loss"] is None for line in steps] == [False, True]
    else:
        assert [line["loss"] is None for line in steps] == [False, True, False]
        assert steps[1]["lr"] == steps[2]["lr"]  # the schedule waits
    one, two = (torch.load(path / "weights.pt", weights_only=True) for path in sorted((out / "resume").iterdir())[:2])
    statistics = ("running_mean", "running_var", "num_batches_tracked", ".mean", ".n_batches")  # of what was seen
    assert all(torch.equal(one[name], two[name]) for name in one if not name.endswith(statistics))
    assert all(torch.isfinite(value).all() for value in two.values())
    assert disk.read_lines(out / "log.txt")[0]["loss"] > 1


def test_too_many_in_a_row_end_the_run(tiny_corpus, tmp_path):
    out = tmp_path / "out"
    run = start(tiny_corpus, out, "--epochs", "2", before=Poison(range(5, 99), limit=2))
    text = run.finish(code=1)
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: 2 steps in a row had a loss or gradient that is not finite")
    assert "the last is step 4: learning rate 0.00075" in line
    assert ", nan, nan, clips S" in line
    assert f"The state is saved in {out}/non_finite/step_00000004. Try a lower --lr" in line
    assert (out / "non_finite" / "step_00000004" / "weights.pt").is_file()


def engine_that(applied):
    return SimpleNamespace(
        optimizer=SimpleNamespace(),
        was_step_applied=lambda: applied,
    )


def test_skipped_steps_are_counted_in_a_row(monkeypatch):
    monkeypatch.setattr(guards, "MOST_SKIPPED", 2)
    steps = SkippedSteps()
    for loss, applied, taken, in_row in [
        (1.0, True, True, 0),
        (float("nan"), True, False, 1),
        (1.0, True, True, 0),
        (1.0, False, False, 1),
        (float("inf"), False, False, 2),
    ]:
        assert not steps.too_many
        assert steps.taken(engine_that(applied), loss) == taken
        assert steps.in_row == in_row
    assert steps.too_many


def test_a_skipped_step_leaves_no_trace_in_the_running_statistics():
    """A NaN would stay there for ever, and every later evaluation be one."""
    steps, norm = SkippedSteps(), torch.nn.BatchNorm1d(2)
    steps.remember(norm)
    norm(torch.full((4, 2), math.nan))
    assert norm.running_mean.isnan().all()
    assert not steps.taken(engine_that(applied=True), math.nan)
    assert [buffer.tolist() for buffer in norm.buffers()] == [[0, 0], [1, 1], 0]
    norm(torch.arange(8.0).view(4, 2))
    learnt = [buffer.clone() for buffer in norm.buffers()]
    assert steps.taken(engine_that(applied=True), 1.0)
    norm(torch.full((4, 2), math.inf))
    assert not steps.taken(engine_that(applied=False), 1.0)
    assert all(map(torch.equal, norm.buffers(), learnt))
    assert learnt[0].tolist() == pytest.approx([0.3, 0.4])


def test_an_overflow_in_fp16_is_no_fault_until_the_scale_is_at_its_end():
    engine = engine_that(applied=False)
    scaler = engine.optimizer.torch_autocast_gradscaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(1))  # makes its state
    steps = SkippedSteps()
    for scale, in_row in ((2.0, 0), (1.0, 0), (0.5, 1), (0.25, 2)):
        assert not steps.taken(engine, 1.0)
        assert scaler.get_scale() == scale
        assert steps.in_row == in_row
