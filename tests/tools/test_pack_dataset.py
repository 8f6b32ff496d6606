"""The command that packs: what it writes and says, from `--help` to a training run on packs."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import describe
from system import lock
from tools.pack_dataset import main
from training import build
from utils import parse_args

ROOT = Path(__file__).resolve().parents[2]


def packed(corpus, out, *flags):
    main(["--root", str(corpus), "--out", str(out), "--workers", "1", *flags])


def test_it_tells_what_it_packed_and_verifies_it(corpus, tmp_path, capsys):
    packed(corpus, tmp_path / "packs")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert f"{tmp_path}/packs/poses/train: 24 clips, " in lines[0]
    assert "/descriptions/train: " in lines[1]
    packed(corpus, tmp_path / "packs", "--verify")
    assert [line.rpartition(", ")[2] for line in capsys.readouterr().out.splitlines()] == ["whole"] * 6


def test_several_processes_write_the_same_bytes(corpus, tmp_path):
    for workers in ("1", "2"):
        main(["--root", str(corpus), "--out", str(tmp_path / workers), "--workers", workers, "--splits", "train"])
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
    files.remove(Path(lock.FILE_NAME))
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


@pytest.mark.parametrize("shard", [[], ["--shard", "1/2"]])
def test_a_second_packer_ends_at_once(corpus, tmp_path, shard):
    """Two that write to the same files leave a damaged pack, and one of them reports success."""
    out = tmp_path / "packs"
    packed(corpus, out, *shard)  # this process is the first, and holds the folder as long as it lives
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    command = [sys.executable, "-m", "tools.pack_dataset", "--root", str(corpus), "--out", str(out), "--workers", "1"]
    second = subprocess.run([*command, *shard], cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert second.stderr == (
        f"error: --out {out}: another tools/pack_dataset.py is at work there (process {os.getpid()} on "
        f"{socket.gethostname()}). Give another folder, or wait for its end.\n"
    )
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_several_machines_pack_at_a_time(corpus, tmp_path):
    packed(corpus, tmp_path, "--splits", "dev", "--shard", "1/2")
    command = [sys.executable, "-m", "tools.pack_dataset", "--root", str(corpus), "--out", str(tmp_path)]
    other = [*command, "--workers", "1", "--splits", "dev", "--shard", "2/2"]
    said = subprocess.run(other, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"{tmp_path}/poses/dev/2_of_2: " in said
    packed(corpus, tmp_path, "--verify")


def test_missing_and_unreadable_clips_are_told(tmp_path, capsys):
    (tmp_path / "poses").mkdir()
    (tmp_path / "poses/a.pkl").write_bytes(b"no pickle")
    (tmp_path / "labels.json").write_text(json.dumps([{"video": f"{name}.mp4", "text": "x"} for name in "ab"]))
    toml = tmp_path / "own.toml"
    toml.write_text('name = "own"\npose_dir = "poses"\n[labels]\ntrain = "labels.json"\n')
    main(["--dataset_config", str(toml), "--root", str(tmp_path), "--out", "packs"])
    (line,) = capsys.readouterr().out.splitlines()
    assert "1 clips, 1 of them unreadable (a run leaves them out), 1 of the labels' clips missing" in line
    assert "a.pkl: not a readable pickle" in line


def test_dev_and_test_of_one_label_file_are_packed_and_described_each(corpus, tmp_path, capsys):
    pose = next(corpus.glob("dataset/CSL_Daily/pose_format/*.pkl")).read_bytes()
    for split in ("train", "dev", "test"):
        (tmp_path / "poses" / split).mkdir(parents=True)
        (tmp_path / "poses" / split / f"{split}0.pkl").write_bytes(pose)
    (tmp_path / "train.csv").write_text("name,text,split\ntrain0,x,train\n")
    (tmp_path / "eval.csv").write_text("name,text,split\ndev0,x,dev\ntest0,x,test\n")
    toml = tmp_path / "own.toml"
    labels = 'train = "train.csv"\ndev = "eval.csv"\ntest = "eval.csv"\n'
    toml.write_text(f'name = "own"\npose_dir = "poses/{{split}}"\ndescription_dir = "texts"\n[labels]\n{labels}')
    flags = ["--dataset_config", str(toml), "--root", str(tmp_path), "--workers", "1"]
    assert describe.main(flags) == 0
    assert {path.stem for path in tmp_path.glob("texts/*/*.json")} == {"train0", "dev0", "test0"}
    main([*flags, "--out", "packs"])
    assert len(list(tmp_path.glob("packs/*/*/pack.json"))) == 6
    capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--out packs --dataset_config no.toml", "--dataset_config: no.toml does not exist"),
        ("--out dataset --root CORPUS --splits train", "--out: .*dataset/poses/train is there and is no pack"),
        ("--out packs --dataset CSL_News --splits test", "--splits test: CSL_News has train, dev"),
    ],
)
def test_errors_are_one_line(corpus, tmp_path, flags, wanted, monkeypatch):
    if "dataset --root" in flags:
        place = corpus / "dataset/poses/train"
        place.mkdir(parents=True)
        (place / "mine").write_text("kept")
    with pytest.raises((ValueError, OSError), match=wanted) as error:
        main([*shlex.split(flags.replace("CORPUS", str(corpus))), "--workers", "1"])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_run_on_packs_is_the_run_on_files(corpus, tmp_path, split):
    """All that a batch holds is the same."""
    packed(corpus, tmp_path / "packs")
    flags = ["--root", str(corpus), "--use_descriptions", "--batch-size", "24", "--num_workers", "0"]
    runs = [parse_args(flags), parse_args([*flags, "--packed", str(tmp_path / "packs")])]
    loaders = [build.build_loaders(args, build.dataset_spec(args))[split] for args in runs]
    (a, text), (b, same_text) = (next(loader.epoch()) for loader in loaders)
    assert text == same_text
    assert all(torch.equal(a[key], b[key]) for key in ("body", "left", "right", "face_all", "attention_mask"))
    assert a["descriptions"] == b["descriptions"]
