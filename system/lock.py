"""A lock that allows one run per output folder at a time."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, 1 << 20, os.SEEK_SET)  # beyond the text, for nobody else can read a locked byte
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:  # whose number does not always say so
            raise BlockingIOError(errno.EAGAIN, "locked") from None
        finally:
            os.lseek(handle, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


logger = logging.getLogger(__name__)

FILE_NAME = "run.lock"
_held: dict[Path, int] = {}  # lock file -> open handle; closing it would release the lock


def hold(output_dir: str | Path) -> None:
    """Lock a folder for the lifetime of this process.

    The kernel releases the lock whenever its owner ends (docs/RELIABILITY.md). The file's text only names the owner.
    Data workers do not inherit the lock.

    Raises:
        ValueError: another run has the folder.
    """
    path = Path(output_dir).resolve() / FILE_NAME
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(handle)
    except OSError as error:
        owner = os.read(handle, 200).decode("utf-8", "replace").strip() or "of an unknown owner"
        os.close(handle)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logger.warning("%s: no locks on this file system (%s); start nothing more here.", path, error.strerror)
            return
        raise ValueError(
            f"--output_dir {output_dir}: a run is at work there ({owner}). Give another folder, or wait for its end."
        ) from None
    with contextlib.suppress(OSError):  # a full disk: the owner has no name then
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    _held[path] = handle
