"""The terminal that a program writes to, or the pipe in its place."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


def tell_interruption(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Show an uncaught error, for `sys.excepthook`: Ctrl-C during slow imports in one word."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


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


class Lasting:
    """A stream for what may be lost, such as a bar: the work goes on when its reader, `tee` for example, is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Return what else the stream has."""
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Write a text, if somebody reads it."""
        with contextlib.suppress(BrokenPipeError):
            self._stream.write(text)

    def flush(self) -> None:
        """Pass it on, if somebody reads it."""
        with contextlib.suppress(BrokenPipeError):
            self._stream.flush()
