"""Writing files so that a kill, a full disk or a power cut leaves them whole or absent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished"  # in the name of what is not whole yet


class _Hashing:
    """A file that takes the sum of what is written, and remembers why a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sum.update(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        self.file.flush()


def write_whole(path: str | Path, write: Callable[[Any], object], *, sync: bool = True) -> str:
    """Write a file under another name, and give it its own when all of it is on the disk.

    Args:
        path: the file; an older one stays as it is until the new one takes its place.
        write: is given the open file.
        sync: wait for the disk. Not for thousands of small files that can be made again after a power cut.

    Returns:
        The content's SHA-256.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    unfinished, raw = _open_unfinished(path)
    with raw:
        try:
            file = _Hashing(raw)
            try:
                write(file)
            except RuntimeError:  # torch hides what the file said
                raise file.error or RuntimeError from None
            raw.flush()
            if sync:
                os.fsync(raw.fileno())
            os.replace(unfinished, path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
    if sync:
        sync_folder(Path(path).parent)
    return file.sum.hexdigest()


def _open_unfinished(path: str | Path) -> tuple[Path, BinaryIO]:
    """Open what is to become a file, under a name that no other process writes to.

    The name is the same after a kill, so what that left is used up. Only who finds another process at it takes a name
    of its own.
    """
    unfinished = Path(f"{path}.{UNFINISHED}")
    raw = open(unfinished, "ab")  # noqa: SIM115 - it is handed on
    try:
        fcntl.flock(raw, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(raw.fileno()), unfinished.stat()):
            raw.truncate(0)
            return unfinished, raw
    except (BlockingIOError, FileNotFoundError):  # the other one is at work, or has just ended
        pass
    except OSError:  # a file system without locks: all take names of their own there, and this one is nobody's
        with contextlib.suppress(OSError):
            unfinished.unlink()
    raw.close()
    unfinished = Path(f"{path}.{os.getpid()}_{secrets.token_hex(4)}.{UNFINISHED}")
    return unfinished, open(unfinished, "xb")


def write_text(path: str | Path, text: str, *, sync: bool = True) -> str:
    """Write a text file as `write_whole` does, in a folder that is made if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, lambda file: file.write(text.encode("utf-8")), sync=sync)


def sync_file(path: str | Path) -> None:
    """Bring to the disk what a library has written by its name."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def require_room(path: str | Path, n_bytes: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        path: to be written; what it replaces does not count, for it goes when the new is whole.
        n_bytes: needed.

    Raises:
        ValueError: there is less.
    """
    free = shutil.disk_usage(_folder_of(path)).free
    if free < n_bytes:
        raise ValueError(f"{path}: needs {n_bytes / 1e6:.0f} MB; {free / 1e6:.0f} MB are free there. Make room first.")


def _folder_of(path: str | Path) -> Path:
    """The folder that exists already and that a path lies or will lie in."""
    place = Path(path).absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return place


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder to the disk; a file's content alone would not survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sizes(paths: Iterable[Path]) -> np.ndarray:
    """Bytes of each file, 0 where there is none."""
    return np.array([_file_size(path) for path in paths])


def _file_size(path: Path) -> int:
    try:
        found = path.stat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder under another name; at the end of the block it gets its own, or nothing is left of it."""
    unfinished = folder.with_name(f"{UNFINISHED}_{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        sync_folder(unfinished)
        remove_folder(folder)
        os.rename(unfinished, folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill leaves it whole or under a name that says it is not."""
    if folder.is_dir():
        going = folder.with_name(f"{UNFINISHED}_removal_{folder.name}")
        shutil.rmtree(going, ignore_errors=True)
        os.rename(folder, going)
        shutil.rmtree(going)


def explain(error: OSError, path: str | Path) -> str:
    """One line that says what could not be written, why, and how much room there is."""
    place = _folder_of(path)
    try:
        room = f"{shutil.disk_usage(place).free / 1e6:.0f} MB are free there"
    except OSError:
        room = f"{place} does not answer"
    return f"{error.filename or path} cannot be written: {error.strerror or error}; {room}."


class Lines:
    """A file of JSON lines that grows with the run. What a full disk does not take is written with the next line."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._waiting: list[str] = []

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line."""
        self._waiting.append(json.dumps(line, ensure_ascii=False) + "\n")
        try:
            with open(self.path, "ab", buffering=0) as file:
                end = file.tell()
                content = "".join(self._waiting).encode("utf-8")
                if file.write(content) != len(content):
                    file.truncate(end)  # half a line would spoil the next
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if len(self._waiting) == 1:
                logger.warning("%s What it should hold is kept until it can.", explain(error, self.path))
        else:
            self._waiting.clear()


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; [] where there is none. A last line that a kill has cut is left out."""
    if not Path(path).is_file():
        return []
    lines = []
    # Not splitlines(), which ends a line within a sentence that holds U+2028 or the like.
    for line in Path(path).read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n"):
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
