"""The command that packs: what it writes and says, from `--help` to a training run on packs."""

import json
import shlex
import zipfile

import pytest
import torch

import describe
from tools.pack_dataset import main
from training import build
from utils import parse_args


def packed(corpus, out, *flags):
    main(["--root", str(corpus), "--out", str(out), *flags])


def test_it_tells_what_it_packed_and_anybody_can_verify_it(corpus, tmp_path, capsys):
    packed(corpus, tmp_path / "packs")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert f"{tmp_path}/packs/poses/train: 24 files, " in lines[0]
    assert "/descriptions/train: " in lines[1]
    files = list(tmp_path.glob("packs/*/*/pack.zip"))
    assert len(files) == 6
    assert all(zipfile.ZipFile(file).testzip() is None for file in files)
    again = {file: file.read_bytes() for file in files}
    packed(corpus, tmp_path / "packs")
    assert again == {file: file.read_bytes() for file in files}


def test_missing_and_unreadable_clips_are_told(tmp_path, capsys):
    (tmp_path / "poses").mkdir()
    (tmp_path / "poses/a.pkl").write_bytes(b"no pickle")
    (tmp_path / "labels.json").write_text(json.dumps([{"video": f"{name}.mp4", "text": "x"} for name in "ab"]))
    toml = tmp_path / "own.toml"
    toml.write_text('name = "own"\npose_dir = "poses"\n[labels]\ntrain = "labels.json"\n')
    flags = ["--dataset_config", str(toml), "--root", str(tmp_path), "--out", "packs"]
    main(flags)
    (line,) = capsys.readouterr().out.splitlines()
    assert "train: 1 files, 0.0 MB; 1 are missing, the first is b.pkl" in line
    (tmp_path / "poses/a.pkl").unlink()
    for name in "ab":
        (tmp_path / f"poses/{name}.pkl").mkdir()
    reason = "cannot be read: it is no regular file"
    with pytest.raises(ValueError, match=rf"poses/a\.pkl: {reason}; .*poses/b\.pkl: {reason}\. Mend them, or remove"):
        main(flags)


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
    flags = ["--dataset_config", str(toml), "--root", str(tmp_path)]
    assert describe.main([*flags, "--workers", "1"]) == 0
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
def test_errors_are_one_line(corpus, flags, wanted):
    if "dataset --root" in flags:
        place = corpus / "dataset/poses/train"
        place.mkdir(parents=True)
        (place / "mine").write_text("kept")
    with pytest.raises((ValueError, OSError), match=wanted) as error:
        main(shlex.split(flags.replace("CORPUS", str(corpus))))
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
