"""The terminal that a program writes to, or the pipe in its place."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def ending_with_its_reader() -> Iterator[None]:
    """End the program in silence, with the status of other tools, if the reader of its output leaves, as `head` does.

    Other pipes that break, to a data worker for example, remain errors.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # now, since at the interpreter's exit it could not be caught
    except BrokenPipeError:
        try:
            os.write(sys.stdout.fileno(), b"\n")
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
            raise SystemExit(141) from None  # 128 + SIGPIPE
        raise  # another pipe
