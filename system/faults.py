"""What a file of others may raise, and how errors are told: in printable text, as files may be named and filled."""

from __future__ import annotations

import lzma
import re
import struct
import zipfile
import zlib

# What is wrong with one clip in every program that reads many: the clip is left out, and this is the reason.
_BESIDE_OURS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, RuntimeError,
    TypeError,
)  # fmt: skip
_OF_LIBRARIES = (lzma.LZMAError, struct.error, zipfile.BadZipFile, zlib.error)
CLIP_FAULTS = (ValueError, OSError, *_OF_LIBRARIES, *_BESIDE_OURS)

# Control characters, ends of lines, halves of characters, and what turns the direction of writing around: none of them
# is in a name, and a terminal obeys many.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, kept: str = "\n\t") -> str:
    r"""Write out what a terminal would obey, except ends of lines and tabs; keep none of them of a name in a line.

    >>> printable("a\x1b[2J\n"), printable("a\nb", kept="")
    ('a\\x1b[2J\n', 'a\\nb')
    """
    return UNPRINTABLE.sub(lambda found: found[0] if found[0] in kept else ascii(found[0])[1:-1], text)


def in_one_line(error: BaseException, longest: int = 1000) -> str:
    """Return what an error says, or its kind if that says more."""
    text = printable(" ".join(str(error).split()))[:longest]
    return f"{type(error).__name__}: {text}".rstrip(": ") if isinstance(error, _BESIDE_OURS) or not text else text


def shown(value: object) -> str:
    """Return a file's value for a message, or its kind: what a list is written as has no limit."""
    return f"{value!r:.60}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
