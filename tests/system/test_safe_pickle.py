"""Pickles that run nothing, and the dialects of plain ones."""

import gzip
import pickle
import pickletools
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from system import safe_pickle
from system.safe_pickle import load_pickle


def assert_same(got: Any, expected: Any) -> None:
    """Equal in type, dtype, shape and every value, at any depth."""
    if isinstance(expected, np.ndarray):
        assert isinstance(got, np.ndarray)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(got, expected)
        return
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        got, expected = list(got.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    else:
        assert got == expected


def assert_refused(path: Path, wanted: str = "", *, compressed: bool = False) -> None:
    """Refused in one line that starts with the file."""
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{wanted}") as caught:
        load_pickle(path, compressed=compressed)
    assert len(str(caught.value).splitlines()) == 1


class _Call:
    """Pickles as a call of `function`, and then as a state that is given to what it returned."""

    def __init__(self, function: Any, *values: Any, state: Any = None) -> None:
        self.parts = (function, values, state) if state is not None else (function, values)

    def __reduce__(self) -> Any:
        return self.parts


_RECONSTRUCT = np.zeros(1).__reduce__()[0]  # numpy moved this function; here it is, wherever it lies
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]


def _dtype(code: str, flags: int) -> _Call:
    return _Call(np.dtype, code, False, True, state=(3, "|", None, None, None, -1, -1, flags))


def _array(dtype: Any, data: Any, shape: tuple[int, ...] = (2,)) -> _Call:
    return _Call(_RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, data))


def test_every_dialect_loads_as_with_the_plain_reader(shared_real: Path) -> None:
    folder = shared_real / "fingerspelling"
    labels = load_pickle(folder / "labels.dev", compressed=True)
    assert_same(labels, pickle.loads(gzip.decompress((folder / "labels.dev").read_bytes())))
    dialects = dict.fromkeys((b"numpy.core.multiarray", b"numpy._core.multiarray", b"_frombuffer"), 0)
    for name in labels:
        path = folder / "pose_format" / f"{name}.pkl"
        data = path.read_bytes()
        assert_same(load_pickle(path), pickle.loads(data))
        for dialect in dialects:
            dialects[dialect] += dialect in data
    assert min(dialects.values()) > 20, dialects


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_all_protocols_and_plain_types(tmp_path: Path, protocol: int) -> None:
    big = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    content = {
        "arrays": [big, big.T, big.transpose(1, 0, 2), big[:, ::2], big[:0], np.array(1.5), np.array(["é", "ab"])],
        "types": [big.astype(code) for code in ("<f2", ">f4", "<f8", ">i2", "u1", "?", "c8")],
        "scalars": (np.float64(0.1), np.float32(2), np.int64(7), np.bool_(True), np.str_("é")),
        "plain": [None, True, -1, 10**30, 0.5, "汉字", b"\x00\xff", (1, [2, {3: 4}])],
    }
    path = tmp_path / "content.pkl"
    data = pickle.dumps(content, protocol=protocol)
    path.write_bytes(data)
    got = load_pickle(path)
    assert_same(got, pickle.loads(data))
    np.testing.assert_array_equal(got["types"], content["types"])
    again = pickle.loads(pickle.dumps(got["arrays"]))
    assert_same(again, content["arrays"])
    assert type(again[0]) is np.ndarray


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_ordered_dict_is_a_dict(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "content.pkl"
    path.write_bytes(pickle.dumps(OrderedDict(b=[1], a=OrderedDict(c=2)), protocol=protocol))
    assert_same(load_pickle(path), {"b": [1], "a": {"c": 2}})


def test_a_pickle_cannot_change_what_dicts_do(tmp_path: Path) -> None:
    path = tmp_path / "change.pkl"
    path.write_bytes(b"\x80\x02ccollections\nOrderedDict\n}X\x03\x00\x00\x00popNsb.")
    assert_refused(path)
    assert {1: 2}.pop(1) == 2


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(_array(_dtype("O8", 0), b"A" * 16), id="addresses taken from the file"),
        pytest.param(_array(np.dtype("O"), [1, 2]), id="an array of objects"),
        pytest.param(_array(np.dtype([("a", "O")]), [(1,), (2,)]), id="objects in a record"),
        pytest.param(_Call(_FROM_BUFFER, np.arange(3.0), np.dtype("f8"), (3,), "C"), id="a view of another array"),
        pytest.param(_Call(np.ndarray, (3,)), id="memory that was never written"),
        pytest.param(_Call(_FROM_BUFFER, b"", np.dtype("f8"), (1 << 40, 0), "C"), id="a trillion empty rows"),
        pytest.param(_array(np.dtype("f8"), b"", (1 << 40, 0)), id="a trillion empty rows, the older way"),
        pytest.param(_array(np.dtype("S0"), b"", (1 << 40,)), id="a trillion texts of no length"),
        pytest.param(_Call(np.dtype, ["f8"]), id="a type that is no text"),
        pytest.param(_array(np.dtype("f8"), b"A" * 15), id="too few bytes"),
    ],
)
def test_arrays_cannot_reach_memory_that_is_not_theirs(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "array.pkl"
    path.write_bytes(pickle.dumps(content, protocol=4))
    assert_refused(path)


def test_a_pickle_may_be_packed_though_it_need_not_be(tmp_path: Path) -> None:
    content = {"keypoints": np.arange(6.0)}
    (tmp_path / "a.pkl").write_bytes(gzip.compress(pickle.dumps(content)))
    assert_same(load_pickle(tmp_path / "a.pkl"), content)


def test_arrays_of_other_packages_are_named_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"keypoints": np.ma.masked_less(np.arange(3.0), 1)}))
    assert_refused(path, r"asks for 'numpy\.ma\..*Save it as plain numpy arrays, or get it")


def test_internal_flags_in_a_file_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "flags.pkl"
    path.write_bytes(pickle.dumps(_array(_dtype("f8", 0x3F), np.array([1.0, 2.0]).tobytes()), protocol=4))
    assert_same(load_pickle(path), np.array([1.0, 2.0]))
    assert load_pickle(path).dtype.flags == np.dtype("f8").flags


def _one_of(op: pickletools.OpcodeInfo) -> bytes:
    """A short instruction, whose argument looks like the instruction LONG_BINPUT where it can."""
    code, size = op.code.encode("latin1"), op.arg.n if op.arg else 0
    if op.name in ("GLOBAL", "INST"):
        return code + b"\n\n"
    if size == pickletools.UP_TO_NEWLINE:
        return code + b"1\n"
    if size >= 0:
        return code + b"r\0\0\0\0\0\0\0"[:size]
    return code + (3).to_bytes({-2: 1, -3: 4, -4: 4, -5: 8}[size], "little") + b"rrr"


@pytest.mark.parametrize("op", [op for op in pickletools.opcodes if op.name != "STOP"], ids=lambda op: op.name)
def test_no_instruction_hides_a_bomb_behind_it(op: pickletools.OpcodeInfo) -> None:
    harmless = 200 * b"N" + _one_of(op)
    safe_pickle._check_memory(harmless + b".")
    for bomb in (b"r\xff\xff\xff\x7f", b"p2000000000\n", b"\x8e" + (1 << 40).to_bytes(8, "little")):
        with pytest.raises(pickle.UnpicklingError, match="more memory than its size can need"):
            safe_pickle._check_memory(harmless + bomb + b".")


def test_a_pickle_cannot_change_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "change.pkl"
    # The state (None, {"__defaults__": (1,)}) would be set on the function that the pickle names.
    path.write_bytes(b"cnumpy.core.numeric\n_frombuffer\n(N(dS'__defaults__'\n(I1\ntstb.")
    before = safe_pickle._from_bytes.__defaults__
    load_pickle(path)
    assert safe_pickle._from_bytes.__defaults__ == before


def test_a_name_cannot_forge_further_lines(tmp_path: Path) -> None:
    path = tmp_path / "name.pkl"
    name = "x\n\x1b[2Jall is well" + "y" * 1000
    path.write_bytes(pickle.PROTO + b"\x04" + pickle.dumps("os", 4)[11:-1] + pickle.dumps(name, 4)[11:-1] + b"\x93.")
    assert_refused(path, r"asks for 'os\.x\\n\\x1b\[2Jall is welly+'")
    with pytest.raises(ValueError, match="asks for") as caught:
        load_pickle(path)
    assert len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404</html>", "not a readable pickle"),
        (pickle.dumps({"a": [1, 2, 3]})[:-5], "not a readable pickle"),
        (b"PK\x03\x04", "not a readable pickle"),
    ],
)
def test_damaged_files_give_one_line_packed_or_not(tmp_path: Path, data: bytes, wanted: str) -> None:
    plain, packed = tmp_path / "pose.pkl", tmp_path / "labels.train"
    plain.write_bytes(data)
    assert_refused(plain, wanted)
    packed.write_bytes(gzip.compress(data))
    assert_refused(packed, wanted, compressed=True)


def test_damaged_compression_gives_one_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.train"
    good = gzip.compress(pickle.dumps({"a": list(range(1000))}))
    for data, wanted in (
        (b"", "the file is empty"),
        (b"<html>", r"not packed with gzip.*\.json, \.jsonl, \.csv, \.tsv or \.xlsx"),
        (good[: len(good) // 2], "cannot be read"),
        (good[:30] + bytes(20) + good[50:], "cannot be read"),
    ):
        path.write_bytes(data)
        assert_refused(path, wanted, compressed=True)


def test_missing_folder_and_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for compressed in (False, True):
        with pytest.raises(FileNotFoundError, match="no_such.pkl"):
            load_pickle(tmp_path / "no_such.pkl", compressed=compressed)
        assert_refused(tmp_path, "no regular file", compressed=compressed)
    monkeypatch.setattr("system.disk.MAX_BYTES", 100)
    path = tmp_path / "labels.train"
    path.write_bytes(gzip.compress(pickle.dumps("x" * 1000)))
    assert_refused(path, "larger than 100 bytes", compressed=True)
    path.write_bytes(pickle.dumps("x" * 1000))
    assert_refused(path, "larger than 100 bytes")
