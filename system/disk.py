"""Atomic file writes: after a kill, a full disk or a power cut, a file is complete or absent."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import logging
import math
import os
import re
import secrets
import shutil
import stat
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MAX_BYTES = 1 << 30  # of what any file is unpacked to; real labels and poses have a few MB
PLENTY = 1 << 26  # bytes that even a small file may ask for
PACKED = 20  # times smaller than its content a file may be; floats and texts are packed to a half and a tenth

UNFINISHED = "unfinished"  # part of the name of unfinished files and folders
LONGEST_NAME = 255 - len(f".12345678.{UNFINISHED}")  # bytes; file systems allow 255


def write_whole(path: str | Path, write: Callable[[Any], object], *, sync: bool = True) -> None:
    """Write a file under a temporary name and rename it when it is complete.

    Args:
        path: the file; an older one stays in place until it is replaced.
        write: called with the open file.
        sync: wait for the disk; turn it off for thousands of small files that can be recreated after a power cut.

    Raises:
        OSError: the file cannot be written; the temporary file is removed.
    """
    # Of its own name: no other process is writing it, and no link of somebody else leads from there.
    unfinished = Path(f"{path}.{secrets.token_hex(4)}.{UNFINISHED}")
    try:
        with open(unfinished, "xb") as file:
            try:
                write(file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # the file's own, which torch hides
                    raise error.__context__ from None
                raise
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError) and error.errno and error.filename is None:  # as that of a full disk
            error.filename = str(path)
        raise
    if sync:
        sync_folder(Path(path).parent)


def remove_unfinished(folder: str | Path, hours: float = 0) -> None:
    """Remove what killed processes have left of files in a folder; so long nobody else has been writing there."""
    for left in Path(folder).glob(f"*.{UNFINISHED}"):
        with contextlib.suppress(FileNotFoundError):  # another run removes it, too
            if time.time() - left.stat().st_mtime >= 3600 * hours:
                left.unlink()


def check_name(path: str | Path) -> None:
    """Raise ValueError for a file name too long to be written: what else is wrong there concerns all clips."""
    if (size := len(os.fsencode(Path(path).name))) > LONGEST_NAME:
        raise ValueError(f"{path}: the name has {size} bytes; wanted up to {LONGEST_NAME}. Rename the clip.")


def write_bytes(path: str | Path, data: bytes, *, sync: bool = True) -> None:
    """Write a file with `write_whole`, creating its folder if needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(data), sync=sync)


def write_text(path: str | Path, text: str, *, sync: bool = True) -> None:
    """Write a UTF-8 text file with `write_bytes`; half a character becomes an escape sequence, as in JSON."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), sync=sync)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk; without them a new file would not survive a power cut.

    Windows opens no folder, and NTFS keeps a journal of its entries.
    """
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: str | Path) -> str:
    """Return a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sizes(paths: Iterable[Path]) -> list[int]:
    """Return the size of each file in bytes, 0 if it is missing; by threads, as a network disk takes ms to answer."""
    todo = list(paths)
    with ThreadPoolExecutor(16) as pool:
        chunks = pool.map(_sizes, (todo[i : i + 1000] for i in range(0, len(todo), 1000)))
        return [size for chunk in chunks for size in chunk]


def _sizes(paths: Iterable[Path]) -> list[int]:
    sizes = []
    for path in paths:
        try:
            sizes.append(regular_size(path))
        except (OSError, ValueError):
            sizes.append(0)
    return sizes


def most_bytes(size: int) -> int:
    """Return how much memory a file of a size in bytes may ask for: a few KB must not fill the machine."""
    return max(PLENTY, PACKED * size)


def check_unpacked(n_bytes: int, size: int) -> None:
    """Raise ValueError if a file of labels or poses asks for more memory than it may; the caller names it."""
    if n_bytes > (most := min(MAX_BYTES, most_bytes(size))):
        raise ValueError(f"larger than {most} bytes unpacked")


def regular_size(path: str | Path) -> int:
    """Return a file's size; ValueError if it is none: to open a pipe would be to wait for its writer."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    return status.st_size


def check_zip(data: bytes) -> None:
    """Check that a zip file claims no more than `check_unpacked` allows."""
    with zipfile.ZipFile(io.BytesIO(data)) as parts:
        check_unpacked(sum(part.file_size for part in parts.infolist()), len(data))


def read_unpacked(path: str | Path, packed: bool | None = None, data: bytes | None = None) -> bytes:
    """Return the content of a file that is packed with gzip (None: perhaps), as `check_unpacked` allows.

    `data` is what the file holds, if it has been read already.
    """
    if data is None:
        size = regular_size(path)
        with open(path, "rb") as file:
            data = file.read(min(size, MAX_BYTES) + 1)
    content = data
    if packed or (packed is None and data[:2] == b"\x1f\x8b"):
        content = gzip.GzipFile(fileobj=io.BytesIO(data)).read(min(MAX_BYTES, most_bytes(len(data))) + 1)
    check_unpacked(len(content), len(data))
    return content


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder under a name of its own; it is renamed at the end of the block, or removed after an error.

    What has the name already is removed last, as far as the system lets it be: what somebody reads may stay on NFS.
    """
    _remove_old(folder)
    unfinished = folder.with_name(f"{UNFINISHED}_{secrets.token_hex(4)}_{folder.name}")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        sync_folder(unfinished)
        going = _put(unfinished, folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(going, ignore_errors=True)


def _remove_old(folder: Path, hours: float = 24) -> None:
    """Remove what killed processes have left of a folder; what is newer another process may be writing."""
    name = re.compile(rf"{UNFINISHED}_(removal_)?[0-9a-f]{{8}}_{re.escape(folder.name)}")
    for left in folder.parent.glob(f"{UNFINISHED}_*"):
        with contextlib.suppress(OSError):  # another process removes it, too
            if name.fullmatch(left.name):
                newest = max(path.lstat().st_mtime for path in (left, *left.rglob("*")))
                if time.time() - newest >= 3600 * hours:
                    shutil.rmtree(left, ignore_errors=True)


def _put(unfinished: Path, folder: Path, tries: int = 10) -> Path:
    """Rename a folder, and return where that is now which had the name; the last of several writers wins."""
    going = _set_aside(folder)
    try:
        os.rename(unfinished, folder)
    except OSError as error:
        if tries and error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another's has just taken the place
            shutil.rmtree(going, ignore_errors=True)
            return _put(unfinished, folder, tries - 1)
        if going.is_dir():
            os.rename(going, folder)
        raise
    return going


def _set_aside(folder: Path) -> Path:
    """Give a folder that is there another name, and return that."""
    going = folder.with_name(f"{UNFINISHED}_removal_{secrets.token_hex(4)}_{folder.name}")
    if folder.is_dir():
        with contextlib.suppress(OSError):
            os.utime(folder)  # new under this name: see `_remove_old`
        with contextlib.suppress(FileNotFoundError):  # another process has just done so
            os.rename(folder, going)
    return going


def remove_folder(folder: Path) -> None:
    """Remove a folder after renaming it, so that a kill never leaves a partial folder under its name."""
    if (going := _set_aside(folder)).is_dir():
        shutil.rmtree(going)


def explain(error: OSError, path: str | Path) -> str:
    """Return one line: what could not be written, why, and how much space is free, if the disk answers."""
    room = ""
    with contextlib.suppress(OSError, StopIteration):  # the disk may have gone
        place = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
        room = f"; {shutil.disk_usage(place).free / 1e6:.0f} MB are free there"
    return f"{path} cannot be written: {error.strerror or error}{room}."


def to_json(content: Any, **options: Any) -> str:
    """Write JSON text, with null for NaN and infinity, which JSON does not have; options as for `json.dumps`.

    >>> to_json({"loss": float("nan"), "lr": 0.1})
    '{"loss": null, "lr": 0.1}'
    """

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(content), ensure_ascii=False, allow_nan=False, **options)


class Lines:
    """A growing file of JSON lines. Lines that cannot be written, e.g. on a full disk, are retried with the next."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._waiting: list[str] = []

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line."""
        self._waiting.append(to_json(line) + "\n")
        try:
            with open(self.path, "ab", buffering=0) as file:
                end = file.tell()
                content = "".join(self._waiting).encode("utf-8", "backslashreplace")
                if file.write(content) != len(content):
                    file.truncate(end)  # a partial line would corrupt the next
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if len(self._waiting) == 1:
                logger.warning("%s What it should hold is kept until it can.", explain(error, self.path))
        else:
            self._waiting.clear()


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines up to the first invalid one, e.g. cut by a kill; [] if the file is missing."""
    if not Path(path).is_file():
        return []
    lines = []
    # Not splitlines(), which also splits at U+2028 and the like within a sentence.
    for line in Path(path).read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n"):
        try:
            lines.append(dict(json.loads(line).items()))
        except (ValueError, AttributeError):
            break
    return lines
