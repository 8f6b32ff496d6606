"""Pickles from strangers: containers, numbers, text and numpy arrays come out; nothing else is ever executed.

Uni-Sign's labels and poses are pickles, and a pickle may name any function to call. The reader here resolves an exact
list of names, since a whole package cannot be trusted either: `numpy.testing.runstring` would execute text.
"""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 30  # of an unpacked file; a real one has a few MB

# numpy moved these functions from numpy.core to numpy._core in version 2; files of both kinds are about.
_NUMPY_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
_BUILTIN_NAMES = {("collections", "OrderedDict"), ("_codecs", "encode")}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _BUILTIN_NAMES:
            return super().find_class(module, name)
        if (module, name) in _NUMPY_NAMES:
            import numpy  # noqa: ICN001 -- whichever of the two spellings this numpy has

            core = "numpy._core" if hasattr(numpy, "_core") else "numpy.core"
            return super().find_class(module.replace("numpy._core", "numpy.core").replace("numpy.core", core), name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data does not need")


def load_pickle(path: str | Path, *, compressed: bool = False) -> Any:
    """Read one pickle of plain data.

    Args:
        path: the file.
        compressed: whether it is packed with gzip, as label files are.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, too large, not a pickle, or asks for code to be run; one line that names it.
    """
    try:
        if compressed:
            with gzip.open(path) as file:
                data = file.read(MAX_BYTES + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except gzip.BadGzipFile:
        raise ValueError(f"{path}: not packed with gzip. Label files are gzip-compressed pickles.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {error}. Copy or download it again.") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES} bytes unpacked. This is no label or pose file.")
    if not data:
        raise ValueError(f"{path}: the file is empty. Copy or download it again.")
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply for plain data.") from None
    except Exception as error:  # noqa: BLE001 -- a damaged pickle raises nearly anything; each becomes one line
        raise ValueError(f"{path}: not a readable pickle: {error}. Copy or download it again.") from None
