"""Packed poses and descriptions: a memory-mapped folder of four files instead of one file per clip.

    pack.json     what is packed, from where, a sketch of the labels, and size and SHA-256 of the other files
    names.npy     the sorted keys, as byte strings of equal length
    clips.npy     for each key: offset, size and checksum of its content, number of frames or texts, size of its file
    content.bin   the concatenated contents

A pack that was written in N shards has a pack.json with their number, and a folder I_of_N of four files for each.

Clips are found by bisection and read in place: opening a pack reads only its index, and all processes on a machine
share one copy in the system's page cache. Nothing in a pack is ever executed. A pack gives bit-identical results to
the original files; for an unreadable file it stores the error message.

`open_poses` and `open_descriptions` accept a pack or a folder of files. Shapes: F frames of a clip.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
import logging
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import DatasetSpec
from pose.keypoints import N_KEYPOINTS, Pose, PoseFolder, check_values, cut_clip, read_pose
from system.disk import UNFINISHED, new_folder, sha256, to_json, write_text, write_whole
from system.faults import CLIP_FAULTS, in_one_line
from temporal_alignment import DescriptionCounts, DescriptionLoader
from utils import WHOLE, Shard

logger = logging.getLogger(__name__)

FORMAT = "uni-sign-pack 3"
POSES, DESCRIPTIONS = "poses", "descriptions"
SKETCHED = 100  # clips whose labels tell a corpus from another with the same folders and names
ALIGN = 64  # alignment of contents: a CPU cache line
_FILES = ("names.npy", "clips.npy", "content.bin")
_CLIP = np.dtype([("offset", "<u8"), ("size", "<u8"), ("sum", "<u8"), ("length", "<u4"), ("file_size", "<u8")])
_POSE = struct.Struct("<III4s4s4s4s")  # F, start, n_after; dtypes: keypoints, as stored; scores, as stored


class Content(NamedTuple):
    """The packed content of a clip.

    Attributes:
        key: the key to find it by.
        length: number of frames or texts; 0 means unreadable, and `data` is the error message.
        data: the content.
        file_size: size of the original file in bytes, by which clips are sorted.
    """

    key: str
    length: int
    data: bytes
    file_size: int = 1


def is_pack(folder: str | Path) -> bool:
    """Return whether a folder is a pack, intact or damaged."""
    return (Path(folder) / "pack.json").is_file()


def packs_in(place: Path) -> list[Path]:
    """Return the packs written by `tools/pack_dataset.py --out`, without unfinished ones."""
    folders = [path.parent for path in sorted(place.glob("*/*/pack.json"))]
    return [folder for folder in folders if not folder.name.startswith(UNFINISHED)]


def use_packs(spec: DatasetSpec, folder: str, root: str | Path) -> DatasetSpec:
    """Return a data set's record with paths under `root`, and poses and descriptions from packs.

    Args:
        spec: the record, as configured.
        folder: the folder given to `tools/pack_dataset.py --out`.
        root: start of relative paths.

    Raises:
        FileNotFoundError: there are no packs.
        ValueError: they were made from other folders than those of the record.
    """
    place = Path(root) / folder
    packs = packs_in(place)
    if not packs:
        raise FileNotFoundError(
            f"--packed: {place} holds no packs. Make them: python -m tools.pack_dataset --out {folder}."
        )
    for pack in packs:
        kind = pack.parent.name
        wanted = {POSES: spec.pose_dir, DESCRIPTIONS: spec.description_dir}.get(kind)
        if wanted and (source := _manifest(pack, kind)["source"]) != wanted:
            raise ValueError(
                f"--packed: {pack} was packed from {source}, but the data set {spec.name} has its {kind} in {wanted}. "
                "Pack that folder, or drop --packed."
            )
    packed = dataclasses.replace(
        spec,
        pose_dir=f"{folder}/{POSES}/{{split}}",
        description_dir=f"{folder}/{DESCRIPTIONS}" if spec.description_dir else "",
    )
    return packed.under(root)


def open_poses(folder: str | Path) -> PosePack | PoseFolder:
    """Open a folder of poses, packed or in files.

    Raises:
        ValueError: the pack is damaged.
    """
    return PosePack(folder) if is_pack(folder) else PoseFolder()


def open_descriptions(folder: str | Path) -> DescriptionPack | DescriptionLoader:
    """Open a split's folder of descriptions, packed or in files.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the pack is damaged.
    """
    return DescriptionPack(folder) if is_pack(folder) else DescriptionLoader(folder)


def _manifest(folder: Path, kind: str) -> dict[str, Any]:
    """Read and check pack.json."""
    path = folder / "pack.json"
    try:
        manifest = json.loads(path.read_bytes())
        found = manifest["format"], manifest["kind"], str(manifest["source"])
        shards = int(manifest.get("shards", 1))
        if shards < 1:
            raise ValueError("no number of shards")
        files = {} if shards > 1 else {name: manifest["files"][name] for name in _FILES}
        sizes = {name: (int(file["size"]), str(file["sha256"])) for name, file in files.items()}
        sketched = dict(manifest.get("sketch", {}))
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder}: no pack of {kind} is there. Make it with tools/pack_dataset.py.") from None
    except CLIP_FAULTS:
        raise ValueError(f"{path}: is damaged, or no pack's. Pack again with tools/pack_dataset.py.") from None
    if found[:2] != (FORMAT, kind):
        raise ValueError(
            f"{path}: is a pack of {found[1]!r} in the format {found[0]!r}; wanted {kind!r} in {FORMAT!r}."
        )
    return {"source": found[2], "sketch": sketched, "shards": shards, "files": sizes}


def _parts(folder: Path, n: int) -> list[Path]:
    """Return the folders of a pack's files: of its n shards, or its own if it is whole."""
    lacks = (f"{i}/{n}" for i in range(1, n + 1) if not is_pack(folder / Shard(i, n).name))
    if few := list(islice(lacks, 20)):
        raise ValueError(
            f"{folder}: lacks the shards {' '.join(few)}. Make each as the others were made: python -m "
            f"tools.pack_dataset with --shard {few[0]}."
        )
    return [folder / Shard(i, n).name for i in range(1, n + 1)]


def sketch(labels: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a hash of the text and glosses of some clips."""
    chosen = list(labels)[:: -(-len(labels) // SKETCHED) or 1]
    return {name: _text_hash(labels[name]) for name in chosen}


def _text_hash(label: Mapping[str, Any]) -> str:
    content = json.dumps([label.get("text"), label.get("gloss")], ensure_ascii=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class DamagedPackError(ValueError):
    """A pack's content differs from what was written."""


class Pack(abc.ABC):
    """A pack of one kind, open for reading, without caching.

    Args:
        folder: the pack's folder.

    Raises:
        FileNotFoundError: there is no pack.
        ValueError: the pack is damaged, or of another kind or format.
    """

    kind = ""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = _manifest(self.folder, self.kind)
        self.sketch = manifest["sketch"]
        self._parts = _parts(self.folder, manifest["shards"])
        names, clips, self._contents = zip(*map(self._open, self._parts), strict=True)
        self.names, self._clips = names[0], clips[0]
        if len(names) > 1:  # of shards: sorted into the index of the whole pack, though in memory
            order = np.argsort(np.concatenate(names))
            self.names, self._clips = np.concatenate(names)[order], np.concatenate(clips)[order]
        if not len(self):
            raise ValueError(f"{self.folder}: holds no clips. Pack again with tools/pack_dataset.py.")

    def _open(self, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return names, clips and content of a whole pack or of a shard."""
        for name, (size, digest) in _manifest(folder, self.kind)["files"].items():
            path = folder / name
            seen = path.stat().st_size if path.is_file() else 0
            if seen != size or not size:
                raise self.damaged(f"{path.relative_to(self.folder)} has {seen} bytes, not {size}")
            if name != "content.bin" and sha256(path) != digest:  # the index is small enough to verify each time
                raise self.damaged(f"{path.relative_to(self.folder)} is not what was written")
        try:
            names, clips = (np.asarray(np.load(folder / name, "r", allow_pickle=False)) for name in _FILES[:2])
        except (ValueError, EOFError):
            raise self.damaged("the index is of another form") from None
        shaped = names.ndim == 1 and names.shape == clips.shape
        if names.dtype.kind != "S" or clips.dtype != _CLIP or not shaped:
            raise self.damaged("the index is of another form")
        return names, clips, np.asarray(np.memmap(folder / "content.bin", np.uint8, "r"))

    def __reduce__(self) -> Any:
        """Pickle only the folder: another process opens the files itself."""
        return type(self), (self.folder,)

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.names)

    def check_labels(self, labels: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse the pack of another corpus with the same names; some labels may have been changed since.

        Raises:
            ValueError: most clips have other texts than when they were packed.
        """
        common = self.sketch.keys() & labels.keys()
        others = sum(self.sketch[name] != _text_hash(labels[name]) for name in common)
        if 2 * others > len(common):
            raise ValueError(
                f"--packed: {self.folder} is of another corpus: {others} of {len(common)} clips have other labels "
                "here. Pack this one with tools/pack_dataset.py, or drop --packed."
            )

    def damaged(self, what: str) -> DamagedPackError:
        """Return a one-line error about this pack."""
        return DamagedPackError(
            f"{self.folder}: damaged: {what}. Copy the pack again, or pack again with tools/pack_dataset.py."
        )

    def rows(self, keys: Sequence[str]) -> np.ndarray:
        """Return each clip's row in the index, (n,); -1 if it is not in the pack."""
        wanted = np.array([_encoded(key) for key in keys], np.bytes_)
        rows = np.searchsorted(self.names, wanted.astype(self.names.dtype))
        rows[rows == len(self)] = 0
        return np.where(self.names[rows] == wanted, rows, -1)

    def file_sizes(self, keys: Sequence[str]) -> np.ndarray:
        """Return the sizes of the original files in bytes, 0 for a clip that is not in the pack."""
        rows = self.rows(keys)
        return np.where(rows < 0, 0, self._clips["file_size"][rows]).astype(np.int64)

    def content(self, key: str) -> tuple[int, np.ndarray] | None:
        """Return a clip's length and stored bytes; None if it is not in the pack.

        Raises:
            ValueError: the content is damaged, or the clip's file was unreadable when it was packed.
        """
        (row,) = self.rows([key])
        if row < 0:
            return None
        offset, size, expected, length, _ = self._clips[row].item()
        content = self._contents[Shard.number(key, len(self._contents)) - 1]
        padded = content[offset : offset + _padded(size)]
        if len(padded) != _padded(size) or _sum(padded) != expected:
            raise self.damaged(f"{key} is not what was written")
        data = padded[:size]
        if not length:
            reason = data.tobytes().decode("utf-8", "replace")
            raise ValueError(f"{reason} So it was when {self.folder} was packed: mend the file, and pack again.")
        return length, data

    def verify(self, progress: Callable[[Iterable[str]], Iterable[str]]) -> list[str]:
        """Decode every clip, and compare the checksum of content.bin.

        Args:
            progress: wraps the iteration over keys.

        Returns:
            The faults, one line each.
        """
        faults = []
        for key in progress([name.decode("utf-8", "surrogatepass") for name in self.names.tolist()]):
            try:
                self.decode(key)
            except DamagedPackError as error:
                faults.append(str(error))
            except ValueError:
                pass  # the file was unreadable when it was packed: not a fault of the pack
        for part in () if faults else self._parts:
            path, (_, digest) = part / "content.bin", _manifest(part, self.kind)["files"]["content.bin"]
            if sha256(path) != digest:
                faults.append(str(self.damaged(f"{path.relative_to(self.folder)} is not what was written")))
        return faults

    @abc.abstractmethod
    def decode(self, key: str) -> Any:
        """Return a clip's decoded content."""


class PosePack(Pack):
    """Packed poses; the key is the file's path relative to the packed folder."""

    kind = POSES

    def decode(self, key: str) -> Pose:
        """Return a clip's pose, without copying where the stored dtype allows.

        Raises:
            ValueError: it is missing, damaged, or was unreadable when it was packed.
        """
        found = self.content(key)
        if found is None:
            raise ValueError(f"{self.folder / key} is not in the pack. Pack again with tools/pack_dataset.py.")
        length, data = found
        try:
            n_frames, start, n_after, *kinds = _POSE.unpack_from(data.data)
            dtypes = [np.dtype(kind.rstrip(b"\0").decode("ascii")) for kind in kinds]
            if n_frames != length or any(dtype.kind not in "fiu" for dtype in dtypes):
                raise ValueError("not a pose")
            places = np.frombuffer(data, dtypes[1], n_frames * N_KEYPOINTS * 2, ALIGN).reshape(-1, N_KEYPOINTS, 2)
            sure = np.frombuffer(data, dtypes[3], n_frames * N_KEYPOINTS, ALIGN + _padded(places.nbytes))
        except (ValueError, TypeError, SyntaxError, struct.error):  # the third: numpy reads "(,)f" as Python
            raise self.damaged(f"{key} is no pose") from None
        keypoints = places.astype(dtypes[0], copy=False)
        scores = sure.reshape(-1, N_KEYPOINTS).astype(dtypes[2], copy=False)
        pose = Pose(keypoints, scores, start, n_after)
        try:
            check_values(key, pose)  # packing has done it, if nobody else wrote the pack
        except ValueError as error:
            raise self.damaged(str(error).rstrip(".")) from None
        return pose

    def read(self, path: Path, label: Mapping[str, Any]) -> Pose:
        """Do the same as `PoseFolder.read`, from the pack."""
        return cut_clip(path, self.decode(self._key(path)), label)

    def sizes(self, paths: Sequence[Path]) -> np.ndarray:
        """Return the size of each clip's original file in bytes, 0 if it is missing."""
        return self.file_sizes([self._key(path) for path in paths])

    def _key(self, path: Path) -> str:
        return path.as_posix().removeprefix(f"{self.folder.as_posix()}/")


class DescriptionPack(Pack):
    """Packed valid descriptions; the key is the clip's name.

    Attributes:
        counts: the same as `DescriptionLoader.counts`, except for entries skipped when packing.
    """

    kind = DESCRIPTIONS

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.counts = DescriptionCounts()
        self._told: set[str] = set()

    def decode(self, key: str) -> dict[int, str]:
        """Return all texts of a clip, {} if there are none.

        Raises:
            ValueError: the content is damaged.
        """
        found = self.content(key)
        if found is None:
            return {}
        try:
            frames, texts = json.loads(found[1].tobytes())
            if not {*map(type, frames)} <= {int}:  # neither 0.5, True nor "0"
                raise TypeError("not frame numbers")
            "".join(texts).encode()  # raises for what is no text, and for half a character
            return dict(zip(frames, texts, strict=True))
        except (ValueError, TypeError, RecursionError):
            raise self.damaged(f"{key} has no texts") from None

    def load(self, name: str, frames: range | None = None) -> dict[int, str]:
        """Do the same as `DescriptionLoader.load`, from the pack: a clip whose texts are damaged has none."""
        try:
            found = self.decode(name)
        except ValueError as error:
            if name not in self._told:
                self._told.add(name)
                logger.warning("%s Until then the clip has no text.", error)
            self.counts += DescriptionCounts(files_unreadable=1)
            return {}
        texts = found if frames is None else {frame: text for frame, text in found.items() if frame in frames}
        there = bool(found) or self.rows([name])[0] >= 0
        self.counts += DescriptionCounts(
            files_found=int(there),
            files_missing=int(not there),
            entries=len(found),
            out_of_range=len(found) - len(texts),
            frames=len(texts),
        )
        return texts

    def sizes(self, names: Sequence[str]) -> np.ndarray:
        """Return the size of each clip's original file in bytes, 0 if it is missing."""
        return self.file_sizes(names)


# -- encoding ----------------------------------------------------------------------------------------------------------


def pack_pose(job: tuple[str, str]) -> Content | None:
    """Read a pose file for a pack; None if it does not exist.

    Args:
        job: the folder to pack, and the file's path in it.
    """
    folder, key = job
    path = Path(folder) / key
    try:
        pose = read_pose(path)
    except FileNotFoundError:
        return None
    except CLIP_FAULTS as error:
        return Content(key, 0, in_one_line(error).encode(), _file_size(path))
    arrays = [(values, _narrowed(values)) for values in (pose.keypoints, pose.scores)]
    kinds = [values.dtype.str.encode("ascii") for pair in arrays for values in pair]
    head = _POSE.pack(len(pose), pose.start, pose.n_after, *kinds)
    parts = [head, *(np.ascontiguousarray(stored).tobytes() for _, stored in arrays)]
    data = b"".join(part.ljust(_padded(len(part)), b"\0") for part in parts)
    return Content(key, len(pose), data, _file_size(path))


def pack_descriptions(job: tuple[str, str]) -> Content | None:
    """Read a description file for a pack; None if it is missing or unreadable.

    Args:
        job: the folder to pack, and the clip's name.
    """
    folder, name = job
    loader = DescriptionLoader(folder)
    texts = loader.load(name)
    if not loader.counts.files_found:
        return None
    data = to_json([list(texts), list(texts.values())]).encode("utf-8")
    return Content(name, max(len(texts), 1), data, _file_size(loader.directory / f"{name}.json"))


def write_pack(
    folder: Path,
    kind: str,
    source: str,
    contents: Iterable[Content],
    sketched: Mapping[str, str] | None = None,
    shard: Shard = WHOLE,
) -> Path:
    """Write a pack, or a shard of it, atomically; an older one stays in place until then.

    Args:
        folder: the pack's folder.
        kind: `POSES` or `DESCRIPTIONS`.
        source: the packed folder, as named in the data set's record.
        contents: the clips' contents, in any order; those of the shard.
        sketched: the labels' `sketch`.
        shard: which part of the pack.

    Returns:
        The folder of the files that were written.

    Raises:
        ValueError: there are no contents, the folder exists and is not a pack, or it is one of other shards or labels.
        OSError: the pack cannot be written.
    """
    part = folder / shard.name
    if part.exists() and not is_pack(part) and any(part.iterdir()):
        raise ValueError(f"--out: {part} is there and is no pack. Name another folder, or remove it.")
    head = {"format": FORMAT, "kind": kind, "source": source, "sketch": dict(sketched or {})}
    if shard.n > 1:
        shared = to_json(head | {"shards": shard.n}, indent=1) + "\n"
        if is_pack(folder) and (folder / "pack.json").read_bytes() != shared.encode():
            raise ValueError(
                f"--out: {folder} holds a pack that is whole, of other than {shard.n} shards, or of other labels. "
                "Remove it, or name another folder."
            )
        write_text(folder / "pack.json", shared)
    index: list[tuple[bytes, tuple[int, int, int, int, int]]] = []

    def write_contents(file: Any) -> None:
        offset = 0
        for content in contents:
            data = content.data.ljust(_padded(len(content.data)), b"\0")
            file.write(data)
            words = _sum(np.frombuffer(data, np.uint8))
            place = offset, len(content.data), words, content.length, content.file_size
            index.append((_encoded(content.key), place))
            offset += len(data)
        if shard.n > 1 and not index:
            file.write(bytes(ALIGN))  # a small part may have no clips, but an empty file cannot be mapped
        elif not index:
            raise ValueError(f"{source}: holds no {kind} of this split's clips. Nothing is packed.")

    with new_folder(part) as unfinished:
        write_whole(unfinished / "content.bin", write_contents)
        index.sort()
        arrays = {
            "names.npy": np.array([name for name, _ in index], np.bytes_),
            "clips.npy": np.array([c for _, c in index], _CLIP),
        }
        for name, array in arrays.items():
            write_whole(unfinished / name, partial(np.save, arr=array))
        written = [unfinished / name for name in ("content.bin", *arrays)]
        files = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in written}
        write_text(unfinished / "pack.json", to_json(head | {"clips": len(index), "files": files}, indent=1) + "\n")
    return part


def _file_size(path: Path) -> int:
    """Return a file's size in bytes, at least 1, since 0 means missing."""
    return max(1, path.stat().st_size)


def _encoded(key: str) -> bytes:
    name = key.encode("utf-8", "surrogatepass")
    if b"\0" in name or not name:
        raise ValueError(f"clip {key!r}: such a name cannot be packed. Rename it in the labels.")
    return name


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _sum(data: np.ndarray) -> int:
    """Return the checksum of a content: the sum of its 64-bit words, as fast as reading them."""
    return int(np.add.reduce(data.view(np.uint64), dtype=np.uint64))


def _narrowed(values: np.ndarray) -> np.ndarray:
    """Convert to the smallest floating-point dtype that holds the values exactly."""
    for kind in (np.float16, np.float32):
        if values.dtype.kind == "f" and values.dtype.itemsize > np.dtype(kind).itemsize:
            with np.errstate(over="ignore"):
                fewer = values.astype(kind)
            if np.array_equal(fewer, values):
                return fewer
    return values
