"""Packs: what they give is what the files give; damage is one clear line; nothing is read that is not asked for."""

import contextlib
import dataclasses
import gzip
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from clips.packs import DescriptionPack, Pack, PosePack, use_packs, write_pack
from config import DATASETS, DatasetSpec
from datasets import S2T_Dataset
from pose.keypoints import PoseFolder
from temporal_alignment import DescriptionLoader
from tests.helpers.poses import write_pose
from tools.pack_dataset import main
from training.loader import BatchSampler, ClipLoader

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "dev", "test")


def same(a, b):
    """Two samples, bit for bit."""
    assert a._replace(pose_sample={}) == b._replace(pose_sample={})
    for part, x in a.pose_sample.items():
        assert x.dtype == b.pose_sample[part].dtype
        assert x.numpy().tobytes() == b.pose_sample[part].numpy().tobytes()


@pytest.fixture(scope="module")
def spelling(shared_real, tmp_path_factory):
    """A data set of real poses and messy descriptions, and its packs: (record, root)."""
    root = tmp_path_factory.mktemp("packed") / "root"
    root.mkdir()
    for folder in ("fingerspelling", "descriptions"):
        (root / folder).symlink_to(shared_real / folder)
    lines = [
        'name = "spelling"',
        'pose_dir = "fingerspelling/pose_format"',
        'description_dir = "descriptions"',
        "[labels]",
        *(f'{split} = "fingerspelling/labels.{split}"' for split in SPLITS),
    ]
    (root / "spelling.toml").write_text("\n".join(lines))
    main(["--dataset_config", str(root / "spelling.toml"), "--root", str(root), "--out", "packs"])
    return DatasetSpec.from_toml(root / "spelling.toml"), root


def read_by(reader, path, label):
    """What a reader gives of a pose file, or what it says of it."""
    try:
        pose = reader.read(path, label)
    except ValueError as error:
        return str(error).replace(str(path.parent), "")
    return pose.keypoints.tobytes(), pose.scores.tobytes(), pose.start, pose.n_after


def pack_folder(folder, out):
    """Pack all files of a folder."""
    write_pack(out, ((path.name, path.read_bytes()) for path in sorted(folder.iterdir())), "x", {})


# -- the same as the files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_samples_are_those_of_the_files(spelling, split):
    spec, root = spelling
    options = {"max_length": 40, "random_frames": split == "train", "use_descriptions": True}
    files = S2T_Dataset(spec.under(root), split, **options)
    packs = S2T_Dataset(use_packs(spec, "packs", root), split, **options)
    assert isinstance(packs.poses, PosePack)
    assert isinstance(packs.descriptions, DescriptionPack)
    for index in range(0, len(files), 3 if split == "train" else 1):
        same(files[index], packs[index])
    assert files.description_texts() == packs.description_texts() != set()
    assert packs.lengths.tolist() == files.lengths.tolist()
    assert packs.fingerprint == files.fingerprint


def test_every_file_is_read_or_refused_as_without_a_pack(shared_real, tmp_path):
    """Each kind of file, parts of a recording, and what is hostile."""
    folder = tmp_path / "poses"
    shutil.copytree(shared_real / "hostile", folder)
    shutil.copytree(shared_real / "isolated/pose_format", folder, dirs_exist_ok=True)
    pose = {"keypoints": np.random.default_rng(0).random((9, 133, 2)), "scores": np.ones((9, 133))}
    np.savez(folder / "a.npz", **pose)
    (folder / "b.pkl.gz").write_bytes(gzip.compress(pickle.dumps(pose)))
    (folder / "b.pkl.gz").rename(folder / "b.pkl")
    with contextlib.suppress(ImportError):
        write_pose(folder / "c.pose", {"BODY": []}, np.zeros((3, 1, 0, 2)), np.zeros((3, 1, 0)))
    pack_folder(folder, tmp_path / "pack")
    files, pack = PoseFolder(), PosePack(tmp_path / "pack", {})
    paths = [path for path in sorted(folder.iterdir()) if path.suffix in (".pkl", ".npz", ".pose")]
    packed = [tmp_path / "pack" / path.name for path in paths]
    assert pack.sizes([*packed, tmp_path / "pack/gone.pkl"]).tolist() == [*files.sizes(paths), 0]
    found = [
        [read_by(reader, path, label) for path in paths_of_reader for label in ({}, {"start": 2, "end": 3})]
        for reader, paths_of_reader in ((files, paths), (pack, packed))
    ]
    assert found[0] == found[1]
    assert 30 < sum(isinstance(value, str) for value in found[0]) < len(found[0]) - 20
    assert not list(tmp_path.glob("**/PWNED"))
    with pytest.raises(FileNotFoundError, match=r"pack/gone\.pkl is not in the pack\. Pack again"):
        pack.read(tmp_path / "pack/gone.pkl", {})


def test_messy_descriptions(shared_real, tmp_path):
    """Every file, whatever is wrong with it, gives the texts that the loader gives, and is counted as there."""
    folder = tmp_path / "files"
    shutil.copytree(shared_real / "descriptions/dev", folder)
    (folder / "empty.json").touch()
    pack_folder(folder, tmp_path / "pack")
    pack, loader = DescriptionPack(tmp_path / "pack", {}), DescriptionLoader(folder)
    names = [*(path.stem for path in folder.iterdir()), "not there"]
    for name in names:
        for frames in (None, range(20), range(5, 20)):
            assert list(loader.load(name, frames).items()) == list(pack.load(name, frames).items())
    assert pack.counts == loader.counts
    assert loader.counts.frames > 100
    other = pack.counting_anew()  # which opens nothing
    assert other.pack is pack.pack
    assert any(other.load(name) for name in names)
    assert pack.counts == loader.counts != other.counts
    assert pack.sizes(names).tolist() == loader.sizes(names).tolist()


def test_workers_share_a_pack_and_another_process_opens_its_own(spelling):
    spec, root = spelling
    dataset = S2T_Dataset(use_packs(spec, "packs", root), "dev", use_descriptions=True)
    sampler = BatchSampler(len(dataset), 16, 0, 1)
    alone, helped = (list(ClipLoader(dataset, sampler, n).epoch()) for n in (0, 2))
    for (a, _), (b, _) in zip(alone, helped, strict=True):
        assert a["descriptions"] == b["descriptions"]
        assert torch.equal(a["right"], b["right"])
    assert len(pickle.dumps((dataset.poses, dataset.descriptions))) < 2000


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A pack of three files."""
    folder = tmp_path / "packs/poses/train"
    write_pack(folder, [(f"{name}.pkl", name.encode() * 1000) for name in "abc"], "poses", {})
    return folder


def test_a_changed_byte_is_found_where_it_is_read(small):
    path = small / "pack.zip"
    path.write_bytes(path.read_bytes().replace(b"b" * 9, b"bbbbbbbbc", 1))
    pack = Pack(small, {})
    assert pack.content("a.pkl") == b"a" * 1000
    with pytest.raises(ValueError, match=r"packs/poses/train: damaged: b\.pkl is not what was written\. Copy the pack"):
        pack.content("b.pkl")


def test_a_damaged_description_is_one_that_cannot_be_read(tmp_path, caplog):
    write_pack(tmp_path, [(f"{name}.json", b'{"0": "a text"}') for name in "ab"], "texts", {})
    path = tmp_path / "pack.zip"
    path.write_bytes(path.read_bytes().replace(b"a text", b"b text", 1))
    pack = DescriptionPack(tmp_path, {})
    assert [pack.load(name) for name in "ab"] == [{}, {0: "a text"}]
    assert (pack.counts.files_unreadable, pack.counts.files_found) == (1, 1)
    assert "damaged: a.json is not what was written" in caplog.text


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("pack.zip", lambda data: data[:-64]),
        ("pack.zip", lambda data: data[: len(data) // 2]),
        ("pack.zip", lambda data: b""),
        ("pack.zip", None),
        ("pack.json", lambda data: data[:20]),
        ("pack.json", lambda data: b"[]"),
        ("pack.json", lambda data: b"[" * 100_000),
        ("pack.json", lambda data: b'{"format": "uni-sign-pack 3"}'),
    ],
)
def test_damage_is_one_clear_line(small, file, change):
    path = small / file
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path}: is damaged.*pack again with tools\.pack_dataset\.$") as error:
        PosePack(small, {})
    assert len(str(error.value).splitlines()) == 1


def test_an_index_of_strangers_is_believed_nothing(small):
    """Places beyond the file, and what is compressed: errors, and nothing is unpacked."""
    pack = Pack(small, {})
    for place in ((1 << 62, 100, 1), (0, 1 << 62, 1), (-64, 3, 1)):
        pack._places[:] = place
        with pytest.raises(ValueError, match="damaged"):
            pack.content("a.pkl")
    path = small / "pack.zip"
    whole = path.read_bytes()
    for place in range(len(whole) - 300, len(whole)):  # the zip's index
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        with contextlib.suppress(ValueError):
            Pack(small, {}).content("c.pkl")
    with zipfile.ZipFile(path, "w"):
        pass
    assert Pack(small, {}).sizes(["a.pkl"]).tolist() == [-1]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("a.pkl", bytes(1 << 20))
    with pytest.raises(ValueError, match="damaged"):
        Pack(small, {}).content("a.pkl")


# -- writing -----------------------------------------------------------------------------------------------------------


def test_a_packing_that_stops_leaves_what_was_there(small):
    def stops():
        yield "x.pkl", b"1234"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pack(small, stops(), "poses", {})
    with pytest.raises(ValueError, match="poses: holds no files of this split's clips"):
        write_pack(small, iter(()), "poses", {})
    assert Pack(small, {}).content("c.pkl") == b"c" * 1000
    assert [path.name for path in small.parent.iterdir()] == ["train"]


def test_a_folder_that_is_no_pack_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(ValueError, match="is there and is no pack"):
        write_pack(tmp_path, [("a", b"x")], "poses", {})
    assert (tmp_path / "thesis.txt").read_text() == "three years"


# -- packs of something else -------------------------------------------------------------------------------------------


def test_packs_of_another_folder_are_refused(small):
    """Otherwise a run would read other descriptions than its record names: another experiment."""
    spec = DatasetSpec("x", {"train": "labels"}, "other_poses")
    with pytest.raises(ValueError, match="was packed from poses, but the data set x has other_poses there"):
        use_packs(spec, "packs", small.parents[2])
    with pytest.raises(FileNotFoundError, match="--packed: .*nothing holds no packs"):
        use_packs(spec, "nothing", small.parents[2])
    small.rename(small.with_name("unfinished_removal_train"))  # by a packing that was killed
    with pytest.raises(FileNotFoundError, match="--packed: .*packs holds no packs"):
        use_packs(spec, "packs", small.parents[2])


@pytest.mark.parametrize(("share", "refused"), [(0.3, False), (1, True)])
def test_packs_of_another_corpus_with_the_same_names_are_refused(corpus, tmp_path, share, refused):
    """Some labels may be mended without packing again."""
    main(["--root", str(corpus), "--out", str(tmp_path / "packs"), "--splits", "train"])
    spec = use_packs(DATASETS["CSL_Daily"], str(tmp_path / "packs"), corpus)
    labels = pickle.loads(gzip.decompress(Path(spec.labels["train"]).read_bytes()))
    for name in list(labels)[: int(share * len(labels))]:
        labels[name]["text"] += "!"
    (tmp_path / "labels.train").write_bytes(gzip.compress(pickle.dumps(labels)))
    spec = dataclasses.replace(spec, labels={"train": str(tmp_path / "labels.train")})
    poses_in_files = dataclasses.replace(spec, pose_dir=DATASETS["CSL_Daily"].under(corpus).pose_dir)
    for other, described in ((spec, False), (poses_in_files, True)):
        wanted = f"--packed: {tmp_path}.* is of another corpus: 24 of 24 clips have other labels"
        with pytest.raises(ValueError, match=wanted) if refused else contextlib.nullcontext():
            S2T_Dataset(other, "train", use_descriptions=described)


# -- scale -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc/self/statm")
def test_memory_follows_what_is_read(tmp_path):
    """A process that opens a pack of 64 MB and reads one clip of a thousand holds little more than the clip."""
    write_pack(tmp_path, ((f"{i}.pkl", bytes([i % 256]) * (1 << 16)) for i in range(1000)), "poses", {})
    code = """
import sys
from clips import packs
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4
before = held()
pack = packs.Pack(sys.argv[1], {})
opened = held()
pack.content("500.pkl")
print(opened - before, held() - opened)
"""
    command = [sys.executable, "-c", code, tmp_path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    opening, reading = map(int, run.stdout.split())
    assert opening < 4000  # KB
    assert reading < 4000
