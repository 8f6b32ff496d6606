"""Safe reading of untrusted pickles: only containers, numbers, text and numpy arrays, and no execution of code.

Uni-Sign's labels and poses are pickles, and a pickle may name any function to call. This reader resolves a fixed list
of names, since even a whole package cannot be trusted: `numpy.testing.runstring` would execute text. These names do not
map to numpy's own functions, which trust what the file says about memory.

A hostile file can still cause a denial of service: a dict key of a million nested tuples keeps Python's hash function
busy or crashes the process.
"""

from __future__ import annotations

import gzip
import io
import pickle
import pickletools
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from system.disk import MAX_BYTES, check_unpacked, read_unpacked
from system.faults import in_one_line

MAX_NUMBER = 1 << 10  # bytes of a number; Python writes none of twice as many
MAX_EMPTY = 1 << 16  # maximum side length of an empty array; a frame without people has (0, 133, 2)


class Dtype:
    """Replaces `numpy.dtype`, and accepts only a number or text type and its byte order from the file.

    numpy's own also accepts internal flags; wrong ones make it use numbers in the file as addresses.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        if not re.fullmatch("[biufcSU][1-9][0-9]*", code):  # kind and size in bytes, as written by numpy
            raise pickle.UnpicklingError(f"it has an array of type {code!r:.60}, and only numbers and text are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array filled from a file, with `Dtype` as its dtype."""

    count: Callable[[int], None]

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, fortran_order, data = state
        vars(self).pop("count")(len(data))  # numpy copies bytes of the other order
        np.ndarray.__setstate__(self, (version, shape, dtype.dtype, fortran_order, data))
        check_empty(self)

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()  # pickles as an ordinary array


def _from_bytes(data: Any, dtype: Dtype, shape: Any = (), order: Any = "C", axes: Any = None) -> np.ndarray:
    if not isinstance(data, (bytes, bytearray)):  # another array's memory could be freed under this one
        raise pickle.UnpicklingError(f"an array's content is given as {type(data).__name__}, not as bytes")
    array = np.frombuffer(data, dtype.dtype)
    array = array.reshape(shape, order=order) if axes is None else array.reshape(shape).transpose(axes)
    check_empty(array)
    return array


def scalar(dtype: Dtype, data: Any) -> Any:
    """Replaces `numpy.core.multiarray.scalar`, which makes a number."""
    return _from_bytes(data, dtype)[()]


def check_empty(array: np.ndarray) -> None:
    """Raise ValueError for huge empty arrays: a list of their rows would fill the memory, from no bytes in the file."""
    if not array.size and max(array.shape) > MAX_EMPTY:
        raise ValueError(f"it has an empty array of the shape {array.shape}")


# Opcode -> bytes of its argument, or a negative number of pickletools that says how the file gives them.
_ARGUMENT = {ord(op.code): op.arg.n if op.arg else 0 for op in pickletools.opcodes}
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_LONG4 = pickle.LONG4[0]
_PUT, _LONG_BINPUT, _STOP = pickle.PUT[0], pickle.LONG_BINPUT[0], pickle.STOP[0]
# Bytes of an instruction by its opcode; 0 if the file gives them, if more is to be checked, and for no opcode.
_SIZE = [max(0, 1 + _ARGUMENT.get(op, -1)) for op in range(256)]
_SIZE[_LONG_BINPUT] = _SIZE[_STOP] = 0


def _check_memory(data: bytes) -> None:
    """Refuse lengths and memo indices that would make the unpickler allocate more memory than the file can fill.

    Otherwise a file of twelve bytes could request a table of 32 GB.
    """
    place, end = 0, len(data)
    while place < end:
        op = data[place]
        if size := _SIZE[op]:  # of nearly all: a pose file of 300 frames has 14,000 instructions
            place += size
        elif op == _LONG_BINPUT:
            if int.from_bytes(data[place + 1 : place + 5], "little") > end:
                break
            place += 5
        elif (argument := _ARGUMENT.get(op)) in _LENGTH_BYTES:
            begin = place + 1 + _LENGTH_BYTES[argument]
            size = int.from_bytes(data[place + 1 : begin], "little")
            if op == _LONG4 and size > MAX_NUMBER:
                break
            place = begin + size
        elif argument == pickletools.UP_TO_NEWLINE:
            line = place = place + 1
            for _ in range(2 if op in pickle.GLOBAL + pickle.INST else 1):
                place = data.find(b"\n", place) + 1 or end
            if op == _PUT and int(data[line:place]) > end:
                break
        else:
            return  # the end, or not a pickle: the unpickler reports it
    raise pickle.UnpicklingError("it is cut short, or asks for more memory than its size can need")


_CONTAINERS = (dict, list, tuple, set, frozenset)


def _spread_out(value: Any, known: dict[int, int]) -> int:
    """Return about how many bytes a value has when what it holds many times is counted as often.

    Ten lists, each of ten times the next, have 10^10 items for whoever reads or shows them.
    """
    if not isinstance(value, _CONTAINERS):
        return _n_bytes(value)
    if id(value) not in known:
        known[id(value)] = MAX_BYTES  # while it is counted: it may hold itself
        items = [*value, *value.values()] if isinstance(value, dict) else value
        inner = sum(_spread_out(item, known) if isinstance(item, _CONTAINERS) else _n_bytes(item) for item in items)
        known[id(value)] = inner + 8 * len(items)
    return known[id(value)]


def _n_bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, (str, bytes, bytearray)) else 8


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.size, self.n_bytes = len(data), 0

    def _count(self, n_bytes: int) -> None:
        """Count what is made of the file's bytes: one object of it may be named, and copied, again and again."""
        self.n_bytes += n_bytes
        check_unpacked(self.n_bytes, self.size)

    def _new_array(self, *_: Any) -> _Array:
        array = _Array(0)
        array.count = self._count
        return array

    def _scalar(self, dtype: Dtype, data: Any) -> Any:
        self._count(len(data))
        return scalar(dtype, data)

    def _encode(self, text: str, _: Any) -> bytes:
        self._count(len(text))
        return text.encode("latin1")

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 renamed `core`; both kinds of files exist. The functions are created for each file, since a
        # pickle can also change the attributes of what it names.
        stand_ins = {
            ("numpy", "dtype"): Dtype,
            ("numpy", "ndarray"): "numpy.ndarray",  # the array type to make: only one exists
            ("numpy.core.multiarray", "_reconstruct"): self._new_array,
            ("numpy.core.multiarray", "scalar"): self._scalar,
            ("numpy.core.numeric", "_frombuffer"): lambda *values: _from_bytes(*values),
            ("collections", "OrderedDict"): dict,
            # Bytes in protocols 0 to 2, and empty ones.
            ("_codecs", "encode"): self._encode,
            ("__builtin__", "bytes"): lambda: b"",
        }
        known = module.replace("numpy._core.", "numpy.core."), name
        if known not in stand_ins:
            wanted = f"{module}.{name}"[:100]  # quoted, so that it cannot forge lines
            raise pickle.UnpicklingError(f"it asks for {wanted!r}, which plain data does not need")
        return stand_ins[known]


def load_pickle(path: str | Path, *, compressed: bool = False, data: bytes | None = None) -> Any:
    """Read one pickle of plain data; with `compressed` it must be packed with gzip, as label files are, others may be.

    `data` is what the file holds, if it has been read already.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, too large, not a pickle, or requests code execution; one line that names it.
    """
    try:
        data = read_unpacked(path, compressed or None, data)
    except FileNotFoundError:
        raise
    except gzip.BadGzipFile:
        raise ValueError(
            f"{path}: not packed with gzip, as pickles of labels are. The names of other label files end in .json, "
            ".jsonl, .csv, .tsv or .xlsx."
        ) from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}. Copy or download it again.") from None
    if not data:
        raise ValueError(f"{path}: the file is empty. Copy or download it again.")
    try:
        _check_memory(data)
        content = _PlainUnpickler(data).load()
        check_unpacked(_spread_out(content, {}), len(data))
        return content
    except Exception as error:  # noqa: BLE001 -- a damaged pickle raises nearly anything; each becomes one line
        reason = in_one_line(error, 300).rstrip(".")
        cure = "Save it as plain numpy arrays, or get it again from a source you trust."
        raise ValueError(f"{path}: not a readable pickle of plain data: {reason}. {cure}") from None
