"""Packed poses and descriptions: a split's files in one zip, stored as they are, beside a note of what was packed.

    pack.zip     the files, not compressed, under their paths in the packed folder
    pack.json    where they are from, and a sketch of the labels

A network disk takes milliseconds to open a file; a pack is opened once, and all processes on a machine share one copy
in the system's page cache. What is read is a file's content, by the same reader: a pack gives what the files give. Its
CRC-32 is compared each time; `python -m zipfile -t pack.zip` compares all of them.

`open_poses` and `open_descriptions` accept a pack or a folder of files.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import mmap
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clips.labels import Label, gloss
from config import DatasetSpec
from pose.keypoints import PoseFolder
from system.disk import UNFINISHED, new_folder, to_json, write_text
from system.faults import CLIP_FAULTS, in_one_line
from temporal_alignment import DescriptionLoader

logger = logging.getLogger(__name__)

POSES, DESCRIPTIONS = "poses", "descriptions"
SKETCHED = 100  # clips whose labels tell a corpus from another with the same folders and names
AGAIN = "Copy the pack again, or pack again with tools.pack_dataset."


def is_pack(folder: str | Path) -> bool:
    """Return whether a folder is a pack, intact or damaged."""
    return (Path(folder) / "pack.json").is_file()


def use_packs(spec: DatasetSpec, folder: str, root: str | Path) -> DatasetSpec:
    """Return a data set's record with paths under `root`, and poses and descriptions from packs.

    Args:
        spec: the record, as configured.
        folder: the folder given to `tools.pack_dataset --out`.
        root: start of relative paths.

    Raises:
        FileNotFoundError: there are no packs.
        ValueError: they were made from other folders than those of the record.
    """
    place = Path(root) / folder
    sources = {POSES: spec.pose_dir, DESCRIPTIONS: spec.description_dir}
    packs = {
        path.parent: source
        for kind, source in sources.items()
        for path in place.glob(f"{kind}/*/pack.json")
        if not path.parent.name.startswith(UNFINISHED)  # what a killed packing left
    }
    if not packs:
        raise FileNotFoundError(
            f"--packed: {place} holds no packs. Make them: python -m tools.pack_dataset --out {folder}."
        )
    for pack, wanted in packs.items():
        if wanted and (source := _note(pack)["source"]) != wanted:
            raise ValueError(
                f"--packed: {pack} was packed from {source}, but the data set {spec.name} has {wanted} there. "
                "Pack that folder, or drop --packed."
            )
    packed = dataclasses.replace(
        spec,
        pose_dir=f"{folder}/{POSES}/{{split}}",
        description_dir=f"{folder}/{DESCRIPTIONS}" if spec.description_dir else "",
    )
    return packed.under(root)


def open_poses(folder: str | Path, labels: Mapping[str, Label]) -> PoseFolder:
    """Open a split's folder of poses, packed or in files; ValueError if the pack is damaged or of other labels."""
    return PosePack(folder, labels) if is_pack(folder) else PoseFolder()


def open_descriptions(folder: str | Path, labels: Mapping[str, Label]) -> DescriptionLoader:
    """Open a split's folder of descriptions, packed or in files.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the pack is damaged, or of other labels.
    """
    return DescriptionPack(folder, labels) if is_pack(folder) else DescriptionLoader(folder)


def _note(folder: Path) -> dict[str, Any]:
    path = folder / "pack.json"
    try:
        note = json.loads(path.read_bytes())
        return {"source": str(note["source"]), "sketch": dict(note["sketch"])}
    except CLIP_FAULTS:
        raise ValueError(f"{path}: is damaged, or no pack's. {AGAIN}") from None


def sketch(labels: Mapping[str, Label]) -> dict[str, str]:
    """Return the texts and glosses of some clips."""
    chosen = list(labels)[:: max(1, len(labels) // SKETCHED)]
    return {name: _said(labels[name]) for name in chosen}


def _said(label: Label) -> str:
    return f"{label.get('text', '')} {gloss(label)}".strip()


class Pack:
    """An open pack.

    Args:
        folder: the pack's folder.
        labels: those of the split. Some may have been changed since it was packed.

    Raises:
        ValueError: the pack is damaged, or that of another corpus with the same names.
    """

    def __init__(self, folder: str | Path, labels: Mapping[str, Label]) -> None:
        self.folder = Path(folder)
        packed = _note(self.folder)["sketch"]
        common = packed.keys() & labels.keys()
        others = sum(packed[name] != _said(labels[name]) for name in common)
        if 2 * others > len(common):
            raise ValueError(
                f"--packed: {self.folder} is of another corpus: {others} of {len(common)} clips have other labels "
                "here. Pack this one with tools.pack_dataset, or drop --packed."
            )
        path = self.folder / "pack.zip"
        try:
            with zipfile.ZipFile(path) as parts, open(path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                places = [(part.header_offset, part.file_size, part.CRC) for part in parts.filelist]
                self._places = np.array([*places, (0, -1, 0)], np.int64)  # the last is of files that are not there
                self._rows = {part.filename: row for row, part in enumerate(parts.filelist)}
        except CLIP_FAULTS as error:
            raise ValueError(f"{path}: is damaged: {in_one_line(error)}. {AGAIN}") from None

    def __reduce__(self) -> Any:
        """Pickle only the folder: another process opens the file itself."""
        return type(self), (self.folder, {})

    def sizes(self, names: Iterable[str]) -> np.ndarray:
        """Return the size of each file in bytes, -1 if it is not in the pack."""
        return self._places[[self._rows.get(name, -1) for name in names], 1]

    def content(self, name: str) -> bytes | None:
        """Return a file's content, None if it is not in the pack; ValueError if it is damaged."""
        if name not in self._rows:
            return None
        header, size, checksum = self._places[self._rows[name]].tolist()
        # At 26 and 28 of the 30 bytes of a file's header: the lengths of its name and of an extra field, which follow.
        lengths = (self._data[header + at : header + at + 2] for at in (26, 28))
        begin = header + 30 + sum(int.from_bytes(length, "little") for length in lengths)
        content = self._data[begin : begin + size]
        if zlib.crc32(content) != checksum:
            raise ValueError(f"{self.folder}: damaged: {name} is not what was written. {AGAIN}")
        return content


class PosePack(PoseFolder):
    """Packed poses. Paths are those that the files would have in the pack's folder."""

    def __init__(self, folder: str | Path, labels: Mapping[str, Label]) -> None:
        self.pack = Pack(folder, labels)

    def content(self, path: Path) -> bytes | None:
        """Return a file's content; FileNotFoundError if it is not in the pack, ValueError if it is damaged."""
        content = self.pack.content(self._name(path))
        if content is None:
            raise FileNotFoundError(f"{path} is not in the pack. Pack again with tools.pack_dataset.")
        return content

    def sizes(self, paths: Sequence[Path]) -> np.ndarray:
        """Return the size of each file in bytes, 0 if it is missing."""
        return np.maximum(self.pack.sizes(map(self._name, paths)), 0)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.pack.folder).as_posix()


class DescriptionPack(DescriptionLoader):
    """Packed description files."""

    def __init__(self, folder: str | Path, labels: Mapping[str, Label]) -> None:
        super().__init__(folder)
        self.pack = Pack(folder, labels)

    def content(self, name: str) -> bytes | None:
        """Return the content of a clip's file, None if it is not in the pack.

        If it is damaged, the clip has no text, and the run goes on, as with a file that cannot be read.
        """
        try:
            return self.pack.content(f"{name}.json")
        except ValueError as error:
            logger.warning("%s Until then the clip has no text.", error)
            return b""

    def sizes(self, names: Sequence[str]) -> np.ndarray:
        """Return the size of each clip's file in bytes: 0 if it is missing, 1 if it exists but is empty."""
        sizes = self.pack.sizes(f"{name}.json" for name in names)
        return np.where(sizes < 0, 0, np.maximum(sizes, 1))


def write_pack(folder: Path, files: Iterable[tuple[str, bytes]], source: str, labels: Mapping[str, Label]) -> int:
    """Write a pack atomically; an older one stays in place until then.

    Args:
        folder: the pack's folder.
        files: names and contents of the files.
        source: the packed folder, as named in the data set's record.
        labels: of the split, for a sketch of them.

    Returns:
        How many files were packed.

    Raises:
        ValueError: there are no files, or the folder exists and is not a pack.
        OSError: the pack cannot be written.
    """
    if folder.exists() and not is_pack(folder) and any(folder.iterdir()):
        raise ValueError(f"--out: {folder} is there and is no pack. Name another folder, or remove it.")
    with new_folder(folder) as unfinished:
        with zipfile.ZipFile(unfinished / "pack.zip", "w") as parts:
            for name, content in files:
                parts.writestr(zipfile.ZipInfo(name), content)
            n_files = len(parts.filelist)
        if not n_files:
            raise ValueError(f"{source}: holds no files of this split's clips. Nothing is packed.")
        write_text(unfinished / "pack.json", to_json({"source": source, "sketch": sketch(labels)}, indent=1) + "\n")
    return n_files
