"""Packs: what they give is what the files give; damage is one clear line; nothing is read that is not asked for."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clips import packs as packed
from clips.packs import DESCRIPTIONS, POSES, Content, DescriptionPack, PosePack, pack_pose, use_packs, write_pack
from config import DATASETS, DatasetSpec
from datasets import S2T_Dataset
from pose.keypoints import cut_clip, read_pose
from temporal_alignment import DescriptionCounts, DescriptionLoader
from tools.pack_dataset import main
from training.loader import BatchSampler, ClipLoader
from utils import Shard

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "dev", "test")


def same(a, b):
    """Two samples, bit for bit."""
    assert a._replace(pose_sample={}) == b._replace(pose_sample={})
    for part, x in a.pose_sample.items():
        assert x.dtype == b.pose_sample[part].dtype
        assert x.numpy().tobytes() == b.pose_sample[part].numpy().tobytes()


def sample_of(dataset, index):
    try:
        return dataset[index]
    except ValueError as error:
        return str(error)


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
    main(["--dataset_config", str(root / "spelling.toml"), "--root", str(root), "--out", "packs", "--workers", "1"])
    return DatasetSpec.from_toml(root / "spelling.toml"), root


# -- the same as the files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_samples_are_those_of_the_files(spelling, split):
    spec, root = spelling
    options = {"max_length": 40, "random_frames": split == "train", "use_descriptions": True}
    files = S2T_Dataset(spec.under(root), split, **options)
    packs = S2T_Dataset(use_packs(spec, "packs", root), split, **options)
    assert isinstance(packs.poses, PosePack)
    assert isinstance(packs.descriptions, DescriptionPack)
    assert np.count_nonzero(packs.descriptions.sizes(packs.names)) > len(packs) / 2
    for index in range(0, len(files), 3 if split == "train" else 1):
        same(files[index], packs[index])
    assert files.description_texts() == packs.description_texts() != set()
    assert packs.lengths.tolist() == files.lengths.tolist()
    assert packs.fingerprint["poses_sha256"] == files.fingerprint["poses_sha256"]


def test_every_kind_of_numbers_and_every_dialect(shared_real, tmp_path):
    """float16, 32 and 64, whole numbers, two dialects, start and end, several people: as `read_pose` gives them."""
    folder, rng = tmp_path / "poses", np.random.default_rng(0)
    shutil.copytree(shared_real / "isolated/pose_format", folder)
    for kind in (np.float16, np.float32, np.float64, np.longdouble, np.int32, np.uint8, ">f8"):
        keypoints, scores = rng.random((9, 2, 133, 2)), rng.random((9, 2, 133))
        name = np.dtype(kind).name + np.dtype(kind).str[0].replace("<", "l").replace(">", "b").replace("|", "n")
        content = {"keypoints": list(keypoints.astype(kind)), "scores": list(scores.astype(np.float32))}
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(content | {"start": 2, "end": 7}))
        np.savez(folder / f"{name}.npz", keypoints=keypoints.astype(kind), scores=scores.astype(kind))
    jobs = [(str(folder), path.name) for path in sorted(folder.iterdir())]
    write_pack(tmp_path / "pack", POSES, "poses", map(packed.pack_pose, jobs))
    pack, sizes = PosePack(tmp_path / "pack"), {}
    assert len(pack) == len(jobs) >= 26
    for _, name in jobs:
        expected, found = read_pose(folder / name), pack.read(pack.folder / name, {})
        assert (found.start, found.n_after) == (expected.start, expected.n_after)
        for key in ("keypoints", "scores"):
            a, b = getattr(expected, key), getattr(found, key)
            assert a.dtype == b.dtype
            assert a.tobytes() == b.tobytes()
        part = {"start": expected.start + 1, "end": expected.start + 3}
        same_part, found = cut_clip(name, expected, part), pack.read(pack.folder / name, part)
        assert (found.start, len(found), found.n_recorded) == (part["start"], 2, expected.n_recorded)
        assert found.keypoints.tobytes() == same_part.keypoints.tobytes()
        sizes[name] = pack.content(name)[1].nbytes
    assert sizes["float16l.pkl"] < sizes["float32l.pkl"] < sizes["float64l.pkl"]  # no more than the numbers need


def test_hostile_files_are_the_same_clips_that_cannot_be_read(shared_real, tmp_path):
    folder = shared_real / "hostile"
    names = sorted(path.stem for path in folder.glob("*.pkl"))
    (tmp_path / "labels.json").write_text(json.dumps([{"video": f"{name}.mp4", "text": "x"} for name in names]))
    (tmp_path / "poses").symlink_to(folder)
    spec = DatasetSpec("hostile", {"train": "labels.json"}, "poses")
    toml = tmp_path / "hostile.toml"
    toml.write_text('name = "hostile"\npose_dir = "poses"\n[labels]\ntrain = "labels.json"\n')
    main(["--dataset_config", str(toml), "--root", str(tmp_path), "--out", "packs", "--workers", "1"])
    files = S2T_Dataset(spec.under(tmp_path), "train", max_bad_clips=1.0)
    packs = S2T_Dataset(use_packs(spec, "packs", tmp_path), "train", max_bad_clips=1.0)
    refused = 0
    for index in range(len(names)):
        a, b = sample_of(files, index), sample_of(packs, index)
        if isinstance(a, str):
            assert b.startswith(a)
            assert "mend the file, and pack again" in b
            assert len(b.splitlines()) == 1
            refused += 1
        else:
            same(a, b)
    assert 15 < refused < len(names)
    assert not list(tmp_path.glob("**/PWNED"))


def test_messy_descriptions(shared_real, tmp_path):
    """Every file, whatever is wrong with it, gives the texts that the loader gives."""
    folder = shared_real / "descriptions" / "dev"
    names = sorted(path.stem for path in folder.iterdir())
    write_pack(
        tmp_path / "pack", DESCRIPTIONS, "d", filter(None, (packed.pack_descriptions((str(folder), n)) for n in names))
    )
    pack, loader = DescriptionPack(tmp_path / "pack"), DescriptionLoader(folder)
    for name in [*names, "not there"]:
        for frames in (None, range(20), range(5, 20)):
            a, b = loader.load(name, frames), pack.load(name, frames)
            assert list(a.items()) == list(b.items())
    assert pack.counts.frames == loader.counts.frames > 100
    assert pack.counts.files_missing == loader.counts.files_missing + loader.counts.files_unreadable


def test_clips_that_were_not_packed_are_missing(spelling):
    spec, root = spelling
    folder = root / "packs/poses/dev"
    pack = PosePack(folder)
    there = pack.names[5].decode()
    paths = [folder / there, folder / "gone.pkl", folder / ("z" * 300)]
    assert pack.sizes(paths).astype(bool).tolist() == [True, False, False]
    for path in paths[1:]:
        with pytest.raises(ValueError, match="is not in the pack"):
            pack.read(path, {})


def test_workers_share_a_pack_and_another_process_opens_its_own(spelling):
    spec, root = spelling
    dataset = S2T_Dataset(use_packs(spec, "packs", root), "dev", use_descriptions=True)
    sampler = BatchSampler(len(dataset), 16, 0, 1)
    alone, helped = (list(ClipLoader(dataset, sampler, n).epoch()) for n in (0, 2))
    for (a, _), (b, _) in zip(alone, helped, strict=True):
        assert a["descriptions"] == b["descriptions"]
        assert torch.equal(a["right"], b["right"])
    sent = pickle.dumps(dataset.poses)
    assert len(sent) < 1000
    assert len(pickle.loads(sent)) == len(dataset.poses)


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A pack of three clips."""
    rng = np.random.default_rng(0)
    (tmp_path / "poses").mkdir()
    for name in "abc":
        content = {"keypoints": list(rng.random((5, 1, 133, 2))), "scores": list(rng.random((5, 1, 133)))}
        (tmp_path / "poses" / f"{name}.pkl").write_bytes(pickle.dumps(content))
    jobs = [(str(tmp_path / "poses"), f"{name}.pkl") for name in "cab"]
    folder = tmp_path / "packs/poses/train"
    write_pack(folder, POSES, "poses", map(packed.pack_pose, jobs))
    return folder


def verify(folder):
    return main(["--verify", "--root", str(folder.parents[2]), "--out", folder.parents[1].name])


def test_a_changed_byte_is_found_where_it_is_read(small):
    content = small / "content.bin"
    data = bytearray(content.read_bytes())
    data[len(data) // 2] ^= 1  # in the second clip that was written, a
    content.write_bytes(data)
    pack = PosePack(small)
    pack.decode("b.pkl")
    pack.decode("c.pkl")
    with pytest.raises(ValueError, match=r"packs/poses/train: damaged: a.pkl is not what was written"):
        pack.decode("a.pkl")
    with pytest.raises(ValueError, match="--verify: 1 faults; the first: .*damaged"):
        verify(small)


def test_a_file_that_could_not_be_read_is_no_fault_of_the_pack(tmp_path):
    (tmp_path / "damaged.pkl").write_bytes(b"no pickle")
    content = pack_pose((str(tmp_path), "damaged.pkl"))
    write_pack(tmp_path / "pack", POSES, "poses", [content])
    assert PosePack(tmp_path / "pack").verify(iter) == []


def test_two_words_that_changed_places_are_found_by_verifying(small):
    """A sum does not see it; the SHA-256 of the whole does."""
    content = small / "content.bin"
    words = np.fromfile(content, np.uint64)
    words[[100, 101]] = words[[101, 100]]
    words.tofile(content)
    with pytest.raises(ValueError, match="content.bin is not what was written"):
        verify(small)


@pytest.mark.parametrize(
    ("file", "change", "wanted"),
    [
        ("content.bin", lambda data: data[:-64], "content.bin has .* bytes, not"),
        ("content.bin", lambda data: b"", "content.bin has 0 bytes, not"),
        ("content.bin", None, "content.bin has 0 bytes, not"),
        ("names.npy", lambda data: data[:-1] + b"z", "names.npy is not what was written"),
        ("clips.npy", lambda data: data[:-1] + b"z", "clips.npy is not what was written"),
        ("pack.json", lambda data: data[:40], "is damaged, or no pack's"),
        ("pack.json", lambda data: b"[]", "is damaged, or no pack's"),
        ("pack.json", lambda data: b"[" * 100_000, "is damaged, or no pack's"),
        ("pack.json", lambda data: data.replace(b'"size": ', b'"size": 1e400, "was": '), "is damaged, or no pack's"),
        ("pack.json", lambda data: data.replace(b"pack 3", b"pack 9"), "in the format 'uni-sign-pack 9'; wanted"),
        ("pack.json", lambda data: data.replace(b'"poses"', b'"words"', 1), "is a pack of 'words'"),
        ("pack.json", lambda data: data.replace(b'"kind"', b'"shards": 0, "kind"'), "is damaged, or no pack's"),
        ("pack.json", lambda data: data.replace(b'"kind"', b'"shards": 1000000000, "kind"'), "lacks the shards 1/100"),
    ],
)
def test_damage_is_one_clear_line(small, file, change, wanted):
    path = small / file
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=wanted) as error:
        PosePack(small)
    assert str(small) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_index_of_strangers_is_believed_nothing(small):
    """Offsets beyond the file, types that are no numbers, other arrays: errors, whatever the sums say."""
    pack = PosePack(small)
    pack._clips = pack._clips.copy()
    for offset, size in ((1 << 62, 100), (0, 1 << 62), (64, 3)):
        pack._clips["offset"], pack._clips["size"] = offset, size
        with pytest.raises(ValueError, match="damaged"):
            pack.decode("a.pkl")
    for data in (
        b"x",
        b"\xff" * 300,
        packed._POSE.pack(5, 0, 0, b"|O", b"|O", b"<f4", b"<f4") + bytes(9000),
        packed._POSE.pack(5, 0, 0, b",", b",", b",", b","),
    ):
        write_pack(small, POSES, "poses", [Content("a.pkl", 5, data)])
        with pytest.raises(ValueError, match="a.pkl is no pose"):
            PosePack(small).decode("a.pkl")
    manifest = json.loads((small / "pack.json").read_text())
    for array in (np.array(b"a.pkl"), np.array([[b"a.pkl"]]), np.array([None])):
        np.save(small / "names.npy", array, allow_pickle=True)
        content = (small / "names.npy").read_bytes()
        manifest["files"]["names.npy"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (small / "pack.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match="damaged: the index is of another form"):
            PosePack(small)


def of_pose(keypoint=0.5, score=0.5, frames=1):
    """The content of a pose of two frames that somebody else packed; in the last ones most points are elsewhere."""
    keypoints, scores = np.full((2, 133, 2), 0.5, np.float32), np.full((2, 133), 0.5, np.float32)
    keypoints[-frames:, 7:], scores[1, 7] = keypoint, score
    head = packed._POSE.pack(2, 0, 0, *[b"<f4"] * 4)
    return b"".join(
        part.ljust(packed._padded(len(part)), b"\0") for part in (head, keypoints.tobytes(), scores.tobytes())
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (of_pose(), None),
        (of_pose(keypoint=0), None),
        (of_pose(keypoint=np.nan), "1 frames hold NaN or infinite values, the first is 1"),
        (of_pose(keypoint=-np.inf), "1 frames hold NaN or infinite values, the first is 1"),
        (of_pose(score=np.nan), "1 frames hold NaN or infinite values, the first is 1"),
        (of_pose(score=100), "scores reach 100; wanted 0 to 1"),
        (of_pose(keypoint=700), None),
        (of_pose(keypoint=700, frames=2), "coordinates are in pixels"),
    ],
)
def test_the_values_of_a_pose_are_those_that_a_file_may_have(tmp_path, data, reason):
    write_pack(tmp_path / "pack", POSES, "poses", [Content("a.pkl", 2, data)])
    pack = PosePack(tmp_path / "pack")
    if reason is None:
        assert len(pack.decode("a.pkl")) == 2
        assert pack.verify(iter) == []
    else:
        with pytest.raises(ValueError, match=f"pack: damaged: a.pkl: {reason}"):
            pack.decode("a.pkl")
        assert len(pack.verify(iter)) == 1


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('[[0, 7], ["a", "\\ud83d\\ude00"]]', {0: "a", 7: "\U0001f600"}),
        ("[[], []]", {}),
        ("[" * 100_000, None),
        ("3", None),
        ("[[0], [5]]", None),
        ('[[0], [["x"]]]', None),
        ("[[0], [null]]", None),
        ('[[0], ["\\ud83d"]]', None),  # half a character, on which a tokenizer fails
        ('[[0.5], ["a"]]', None),
        ('[[0, "1"], ["a", "b"]]', None),
        ('[[true], ["a"]]', None),
        ('[[1e400], ["a"]]', None),
        ('[[0, 1], ["a"]]', None),
    ],
)
def test_texts_are_texts_of_frames(tmp_path, caplog, content, texts):
    write_pack(tmp_path / "pack", DESCRIPTIONS, "texts", [Content("a", 1, content.encode())])
    pack = DescriptionPack(tmp_path / "pack")
    assert pack.load("a") == (texts or {})
    if texts is None:  # as with a file that cannot be read, the clip has no text, and the run goes on
        assert pack.counts == DescriptionCounts(files_unreadable=1)
        pack.load("a")
        assert caplog.text.count("pack: damaged: a has no texts.") == 1


# -- writing -----------------------------------------------------------------------------------------------------------


def test_a_packing_that_stops_leaves_what_was_there(small):
    def stops():
        yield Content("x.pkl", 1, b"1234")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pack(small, POSES, "poses", stops())
    assert len(PosePack(small)) == 3
    assert [path.name for path in small.parent.iterdir()] == ["train"]
    with pytest.raises(ValueError, match="holds no poses of this split's clips"):
        write_pack(small, POSES, "poses", iter(()))
    assert len(PosePack(small)) == 3


def test_a_folder_that_is_no_pack_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(ValueError, match="is there and is no pack"):
        write_pack(tmp_path, POSES, "poses", [Content("a", 1, b"x")])
    assert (tmp_path / "thesis.txt").read_text() == "three years"


def test_packs_of_another_folder_are_refused(small):
    """Otherwise a run would read other descriptions than its record names: another experiment."""
    spec = DatasetSpec("x", {"train": "labels"}, "other_poses")
    with pytest.raises(ValueError, match="was packed from poses, but the data set x has its poses in other_poses"):
        use_packs(spec, "packs", small.parents[2])
    with pytest.raises(FileNotFoundError, match="--packed: .*nothing holds no packs"):
        use_packs(spec, "nothing", small.parents[2])


@pytest.mark.parametrize(("share", "refused"), [(0.3, False), (1, True)])
def test_packs_of_another_corpus_with_the_same_names_are_refused(corpus, tmp_path, share, refused):
    """Some labels may be mended without packing again."""
    main(["--root", str(corpus), "--out", str(tmp_path / "packs"), "--splits", "train", "--workers", "1"])
    spec = use_packs(DATASETS["CSL_Daily"], str(tmp_path / "packs"), corpus)
    labels = pickle.loads(gzip.decompress(Path(spec.labels["train"]).read_bytes()))
    for name in list(labels)[: int(share * len(labels))]:
        labels[name]["text"] += "!"
    (tmp_path / "labels.train").write_bytes(gzip.compress(pickle.dumps(labels)))
    other = dataclasses.replace(spec, labels={"train": str(tmp_path / "labels.train")})
    for described in (False, True):
        wanted = f"--packed: {tmp_path}.* is of another corpus: 24 of 24 clips have other labels"
        with pytest.raises(ValueError, match=wanted) if refused else contextlib.nullcontext():
            S2T_Dataset(other, "train", use_descriptions=described)


# -- shards ------------------------------------------------------------------------------------------------------------


def write_shard(folder, shard, keys="abcdefgh", sketched=None):
    contents = [Content(key, 1, key.encode() * 9, ord(key)) for key in keys if key in shard]
    return write_pack(folder, POSES, "poses", contents, sketched, shard)


def test_shards_are_read_as_the_whole(spelling, tmp_path):
    """In any order, and again: the same index, contents, samples and fingerprint."""
    spec, root = spelling
    flags = ["--dataset_config", str(root / "spelling.toml"), "--root", str(root), "--workers", "1"]
    for i in (3, 1, 2, 1):
        main([*flags, "--out", str(tmp_path / "shards"), "--splits", "dev", "--shard", f"{i}/3"])
    for kind, opened in ((POSES, PosePack), (DESCRIPTIONS, DescriptionPack)):
        whole, shards = (opened(place / kind / "dev") for place in (root / "packs", tmp_path / "shards"))
        sizes = [len(opened(part)) for part in sorted(shards.folder.glob("*_of_3"))]
        assert len(sizes) == 3
        assert sum(sizes) == len(whole) > max(sizes)
        assert shards.names.tobytes() == whole.names.tobytes()
        keys = [name.decode() for name in whole.names]
        assert shards.file_sizes(keys).tolist() == whole.file_sizes(keys).tolist()
        for (n, a), (m, b) in ((whole.content(key), shards.content(key)) for key in keys):
            assert (n, a.tobytes()) == (m, b.tobytes())
        assert shards.verify(iter) == []
    a, b = (
        S2T_Dataset(use_packs(spec, str(place), root), "dev", use_descriptions=True)
        for place in ("packs", tmp_path / "shards")
    )
    for index in range(len(a)):
        same(a[index], b[index])
    assert a.fingerprint == b.fingerprint


def test_shards_that_are_missing_are_named(tmp_path):
    folder = tmp_path / "packs/poses/train"
    for i in (1, 3):
        write_shard(folder, Shard(i, 4))
    wanted = f"{folder}: lacks the shards 2/4 4/4. Make each as .* python -m tools.pack_dataset with --shard 2/4."
    with pytest.raises(ValueError, match=wanted):
        PosePack(folder)
    with pytest.raises(ValueError, match="--verify: 1 faults; the first: .*lacks the shards 2/4 4/4"):
        verify(folder)
    for i in (2, 4):
        write_shard(folder, Shard(i, 4))
    assert PosePack(folder).names.tolist() == [key.encode() for key in "abcdefgh"]


@pytest.mark.parametrize("other", [{"shard": Shard(2, 3)}, {"shard": Shard()}, {"sketched": {"a": "other"}}])
def test_shards_of_another_packing_are_refused(tmp_path, other):
    folder = tmp_path / "train"
    write_shard(folder, **{"shard": Shard(1, 2)} | other)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="--out: .*train holds a pack that is whole, of other than 2 shards, or of"):
        write_shard(folder, Shard(2, 2))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_whole_pack_replaces_shards(tmp_path):
    for i in (1, 2):
        write_shard(tmp_path / "train", Shard(i, 2))
    write_shard(tmp_path / "train", Shard())
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == sorted(["pack.json", *packed._FILES])
    assert len(PosePack(tmp_path / "train")) == 8


def test_a_shard_without_clips_is_one_all_the_same(tmp_path):
    """Of a small split, or where the descriptions of its few clips are missing."""
    for i in (1, 2, 3):
        write_shard(tmp_path, Shard(i, 3), "a")
    assert PosePack(tmp_path).content("a")[1].tobytes() == b"a" * 9
    for i in (1, 2, 3):
        write_shard(tmp_path, Shard(i, 3), "")
    with pytest.raises(ValueError, match=f"{tmp_path}: holds no clips"):
        PosePack(tmp_path)


def test_a_shard_that_was_damaged_is_named(small):
    contents = [pack_pose((str(small.parents[2] / "poses"), f"{name}.pkl")) for name in "abc"]
    folder = small.with_name("dev")
    for shard in (Shard(i, 5) for i in range(1, 6)):
        write_pack(folder, POSES, "poses", [content for content in contents if content.key in shard], shard=shard)
    verify(folder)
    path = folder / "5_of_5/content.bin"  # that of c
    words = np.fromfile(path, np.uint64)
    words[[100, 101]] = words[[101, 100]]
    words.tofile(path)
    with pytest.raises(ValueError, match="damaged: 5_of_5/content.bin is not what was written"):
        verify(folder)
    path.unlink()
    with pytest.raises(ValueError, match="damaged: 5_of_5/content.bin has 0 bytes, not"):
        PosePack(folder)


# -- scale -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc/self/statm")
def test_memory_follows_what_is_read(tmp_path):
    """A process that opens a pack of 64 MB and reads one clip of a thousand holds little more than the clip."""
    contents = (Content(f"clip{i}", 1, bytes([i % 256]) * (1 << 16)) for i in range(1000))
    write_pack(tmp_path / "train", POSES, "poses", contents)
    code = """
import sys
from clips import packs
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4
before = held()
pack = packs.PosePack(sys.argv[1])
opened = held()
pack.content("clip500")
print(opened - before, held() - opened)
"""
    command = [sys.executable, "-c", code, tmp_path / "train"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    opening, reading = map(int, run.stdout.split())
    assert opening < 4000  # KB
    assert reading < 4000
