"""Description files as people have them: every JSON form, and everything that is not a description."""

import ast
import json
import re
from pathlib import Path

import pytest

import temporal_alignment
from temporal_alignment import DescriptionCounts, DescriptionLoader, read_descriptions

DESCRIPTION_DIR = Path(__file__).resolve().parents[1] / "description"


def load(folder: Path, content: object, n_frames: int | None = None) -> tuple[dict[int, str], DescriptionCounts]:
    """Write one file (bytes as they are, anything else as JSON), load it, and check that the counts agree."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "clip.json").write_bytes(data)
    loader = DescriptionLoader(folder)
    texts = loader.load("clip", n_frames and range(n_frames))
    check_sums(loader.counts, n_loads=1)
    assert loader.counts.frames == len(texts)
    return texts, loader.counts


def check_sums(counts: DescriptionCounts, n_loads: int) -> None:
    """Every file and every entry is counted once."""
    assert counts.files_found + counts.files_missing + counts.files_unreadable == n_loads
    parts = ("error_texts", "blank", "not_text", "bad_frame", "out_of_range", "duplicates", "frames")
    assert counts.entries == sum(getattr(counts, part) for part in parts)


# The corpus


def manifest(shared_real: Path) -> dict:
    return json.loads((shared_real / "descriptions" / "MANIFEST.json").read_text(encoding="utf-8"))


def test_every_messy_file_keeps_exactly_its_valid_frames(shared_real):
    everything = manifest(shared_real)
    files = everything["files"]
    assert len(files) == sum(totals["messy"] for totals in everything["totals"].values())
    wrong = {}
    for file, record in files.items():
        split, name = file.removesuffix(".json").split("/")
        loader = DescriptionLoader(shared_real / "descriptions" / split)
        texts = loader.load(name, range(record["clip_frames"]))
        check_sums(loader.counts, n_loads=1)
        if list(texts) != sorted(record["valid_frames"]) or len(texts) != record["n_valid_frames"]:
            wrong[file] = (record["problem"], list(texts))
    assert not wrong


# The forms

WANTED = {3: "up", 12: "down"}
FORMS = {
    "array": [{"filename": "000012.jpg", "description": "down"}, {"filename": "000003.jpg", "description": "up"}],
    "object of file names": {"000003.jpg": "up", "000012.jpg": "down"},
    "object of numbers": {"12": "down", "3": "up"},
    "frames object": {"frames": {"3": "up", "12": "down"}},
    "frames object of file names": {"fps": 25, "frames": {"a/000003.jpg": "up", "a/000012.jpg": "down"}},
    "frames list": {"frames": [{"frame_id": 3, "description": "up"}, {"frame_id": 12, "description": "down"}]},
    "list of written numbers": [{"frame_id": "3", "description": "up"}, {"frame_id": "012", "description": "down"}],
}
FORMS |= {f"descriptions, {name}": {"descriptions": form, "model": "vlm"} for name, form in FORMS.items()}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_each_form(tmp_path, form):
    texts, counts = load(tmp_path, form)
    assert texts == WANTED
    assert list(texts) == [3, 12]
    assert counts == DescriptionCounts(files_found=1, entries=2, frames=2)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings(tmp_path, encoding):
    texts, _ = load(tmp_path, json.dumps({"4": "右手"}, ensure_ascii=False).encode(encoding))
    assert texts == {4: "右手"}


@pytest.mark.parametrize(
    "name",
    ["000012.jpg", "12.jpg", "12", "000012", "clip/000012.PNG", "/a/b.c/12.jpeg", r"C:\clip\000012.jpg", "0012.webp"],
)
def test_file_names_that_carry_frame_12(tmp_path, name):
    assert load(tmp_path, [{"filename": name, "description": "x"}])[0] == {12: "x"}
    assert load(tmp_path, {name: "x"})[0] == {12: "x"}


@pytest.mark.parametrize(
    "name",
    ["thumbnail.jpg", "-00001.jpg", "+1.jpg", "", ".jpg", "12.5", "12.5.jpg", "1e3.jpg", "12/", "000012_1.jpg", "0x1f"]
    + ["frame 12.jpg", " 12.jpg", "12.jpg\n.5", "１２.jpg", "².jpg", "1_2.jpg", "9" * 19, "9" * 5000 + ".jpg"],
)
def test_file_names_without_a_frame_number(tmp_path, name):
    for content in ([{"filename": name, "description": "x"}], {name: "x"}, [{"frame_id": name, "description": "x"}]):
        texts, counts = load(tmp_path, content)
        assert texts == {}
        assert counts.bad_frame == 1


@pytest.mark.parametrize("frame_id", [True, False, 1.0, 1.5, -1, None, [1], {"1": 2}, 10**18])
def test_frame_ids_that_are_no_whole_number(tmp_path, frame_id):
    texts, counts = load(tmp_path, {"frames": [{"frame_id": frame_id, "description": "x"}]})
    assert texts == {}
    assert counts.bad_frame == 1


@pytest.mark.parametrize("entry", [None, "text", 5, [], {}, {"description": "x"}, {"filename": 12, "description": "x"}])
def test_array_entries_without_a_frame(tmp_path, entry):
    texts, counts = load(tmp_path, [entry, {"filename": "000001.jpg", "description": "y"}])
    assert texts == {1: "y"}  # the frame number, not the place in the array
    assert counts.bad_frame == 1


def test_descriptions_outrank_a_list_of_frames_beside_them(tmp_path):
    content = {"frames": ["000003.jpg", "000012.jpg"], "descriptions": {"000003.jpg": "up", "000012.jpg": "down"}}
    assert load(tmp_path, content)[0] == WANTED


def test_a_file_name_outranks_a_number_beside_it(tmp_path):
    assert load(tmp_path, [{"frame_id": 0, "filename": "000040.jpg", "description": "x"}])[0] == {40: "x"}
    assert load(tmp_path, [{"frame_id": 0, "filename": "cover.jpg", "description": "x"}])[0] == {}


# What is no description


@pytest.mark.parametrize("value", [None, 17, 1.5, True, ["a", "list"], {"text": "x"}])
def test_values_that_are_not_text(tmp_path, value):
    for content in ([{"filename": "0.jpg", "description": value}], {"0": value}):
        texts, counts = load(tmp_path, content)
        assert texts == {}
        assert counts.not_text == 1


@pytest.mark.parametrize(
    "text", ["", " ", " \t\n", "\u3000", "\u00a0\u3000", "\ufeff", "\u200b", "\0", "\ud800", "...", "-", "12.5", "_"]
)
def test_blank_texts(tmp_path, text):
    texts, counts = load(tmp_path, {"0": text})
    assert texts == {}
    assert counts.blank == 1


def test_frames_beyond_the_clip_are_dropped_only_when_its_length_is_known(tmp_path):
    content = {"0": "a", "9": "b", "10": "c", "999": "d"}
    texts, counts = load(tmp_path, content, n_frames=10)
    assert texts == {0: "a", 9: "b"}
    assert counts.out_of_range == 2
    assert list(load(tmp_path, content)[0]) == [0, 9, 10, 999]


def test_the_first_valid_text_of_a_frame_stays(tmp_path):
    texts = ["", "出错: Error code: 429", None, "first", "second", "first", " "]
    content = [{"filename": "000007.jpg", "description": text} for text in texts]
    result, counts = load(tmp_path, content)
    assert result == {7: "first"}
    expected = DescriptionCounts(files_found=1, entries=7, error_texts=1, blank=2, not_text=1, duplicates=2, frames=1)
    assert counts == expected


@pytest.mark.parametrize(
    "content", [b'{"7": "first", "7": "second"}', b'{"frames": {"7": "first", "07.jpg": "second"}}']
)
def test_equal_keys_of_an_object_are_duplicates(tmp_path, content):
    result, counts = load(tmp_path, content)
    assert result == {7: "first"}
    assert counts.duplicates == 1


def test_characters_that_stop_a_tokenizer_are_taken_out(tmp_path):
    texts, _ = load(tmp_path, b'{"0": "right \\ud83d hand\\u0000", "1": "\\ud83d\\udc4d thumb", "2": " chin\\u3000"}')
    assert texts == {0: "right   hand", 1: "👍 thumb", 2: "chin"}
    for text in texts.values():
        text.encode("utf-8")


def test_error_texts_are_counted(tmp_path):
    errors = ["出错: Request timed out.", " \n出错", "[Error code: 429]", "I'm sorry, but I can't help."]
    descriptions = ["The hand moves 429 pixels.", " \n429 pixels from the left the hand opens."]
    texts, counts = load(tmp_path, {str(i): text for i, text in enumerate(errors + descriptions)})
    assert counts.error_texts == len(errors)
    assert list(texts.values()) == [text.strip() for text in descriptions]


# Files that are no description files


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[",
        b'[{"filename": "000000.jpg", "descr',
        b"<html></html>",
        "右手".encode("gbk"),
        b"\xff\xfe\x00",
        b"\0" * 9,
    ]
    + [b'"text"', '"出错: Connection error."'.encode(), b"12", b"null", b"true", b"NaN", b"[] []", b"9" * 5000]
    + [b"[" * 200_000, b'{"a":' * 200_000, b"[" * 200_000 + b"]" * 200_000],
)
def test_unreadable_files(tmp_path, content):
    texts, counts = load(tmp_path, content)
    assert texts == {}
    assert counts == DescriptionCounts(files_unreadable=1)


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b'{"frames": {}}', b'{"frames": []}', b'{"descriptions": {"frames": []}}']
)
def test_empty_documents_are_read_and_hold_nothing(tmp_path, content):
    assert load(tmp_path, content) == ({}, DescriptionCounts(files_found=1))


def test_files_that_are_too_large_are_not_parsed(tmp_path, monkeypatch):
    content = json.dumps({"0": "x" * 100}).encode()
    monkeypatch.setattr(temporal_alignment, "MAX_BYTES", len(content))
    assert load(tmp_path, content)[1].files_found == 1
    monkeypatch.setattr(temporal_alignment, "MAX_BYTES", len(content) - 1)
    assert load(tmp_path, content)[1] == DescriptionCounts(files_unreadable=1)


def test_a_missing_file_and_a_folder_in_its_place(tmp_path):
    (tmp_path / "folder.json").mkdir()
    loader = DescriptionLoader(tmp_path)
    assert loader.load("nobody") == {}
    assert loader.counts == DescriptionCounts(files_missing=1)
    assert loader.load("folder") == {}
    assert loader.load("n" * 5000) == {}
    assert loader.load("half a pair \ud800") == {}
    assert loader.counts == DescriptionCounts(files_missing=1, files_unreadable=3)


def test_counts_add_up_over_files(tmp_path):
    for name, content in {"a": {"0": "x", "1": ""}, "b": {"0": "y", "5": "z"}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    loader = DescriptionLoader(tmp_path)
    for name in "abc":
        loader.load(name, range(5))
    assert loader.counts == DescriptionCounts(
        files_found=2, files_missing=1, entries=4, blank=1, out_of_range=1, frames=2
    )


@pytest.mark.parametrize(
    "name",
    ["../outside", "a/../../outside", "..\\outside", "/etc/passwd", "C:\\outside", "C:outside", "\\\\host\\share\\a"]
    + ["", "..", ".", "a/..", "a\0b"],
)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    (tmp_path / "outside.json").write_text('{"0": "secret"}')
    (tmp_path / "inside" / "a").mkdir(parents=True)
    loader = DescriptionLoader(tmp_path / "inside")
    with pytest.raises(ValueError, match="leaves .*inside") as error:
        loader.load(name)
    assert "\n" not in str(error.value)
    assert loader.counts == DescriptionCounts()


@pytest.mark.parametrize(
    "name", ["S000020_P0000_T00", "a-00:00:31.350-00:00:33", "v1.2", "news/2020", "..a", "a b", "手语"]
)
def test_names_that_real_data_sets_have(tmp_path, name):
    file = tmp_path / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"0": "x"}')
    assert DescriptionLoader(tmp_path).load(name) == {0: "x"}


def test_a_missing_folder_is_an_error_that_names_the_cure(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "split_data" / "train", tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match=f"--use_descriptions: folder {path} not found. Put the JSON files"):
            DescriptionLoader(path)


def test_one_file(tmp_path):
    (tmp_path / "a.json").write_text('{"0": "x", "9": "y"}')
    counts = DescriptionCounts(files_found=1, entries=2, frames=2)
    assert read_descriptions(tmp_path / "a.json") == ({0: "x", 9: "y"}, {0: "", 9: ""}, counts, "")
    assert read_descriptions(tmp_path / "a.json", range(5)).texts == {0: "x"}
    assert read_descriptions(tmp_path / "b.json") == ({}, {}, DescriptionCounts(files_missing=1), "")


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        ('[{"filename": "1.j', "cut short"),
        ('[{"filename": "1.jpg"},', "cut short"),
        ("", "empty file"),
        ('"text"', "a str in place of an array"),
        ("[1] 2", "no JSON: Extra data: line 1 column 5 (char 4)"),
        ('[{"filename": "1.jpg", "description": "t"}, 3]', ""),
    ],
)
def test_why_a_file_cannot_be_read(tmp_path, content, damage):
    (tmp_path / "a.json").write_text(content)
    found = read_descriptions(tmp_path / "a.json")
    assert (found.damage, found.counts.files_unreadable) == (damage, int(damage != ""))


# The user's manual


def test_the_examples_give_what_the_manual_shows():
    manual = (DESCRIPTION_DIR / "README.md").read_text(encoding="utf-8")
    shown = ast.literal_eval(re.search(r"```python\n(.*?)```", manual, re.DOTALL)[1])
    as_json = json.loads(re.search(r"```json\n(.*?)```", manual, re.DOTALL)[1])
    examples = sorted((DESCRIPTION_DIR / "examples").glob("*.json"))
    assert re.findall(r"^\| `(\w+\.json)` \|", manual, re.MULTILINE) != []
    assert {path.name for path in examples} == set(re.findall(r"^\| `(\w+\.json)` \|", manual, re.MULTILINE))
    loader = DescriptionLoader(DESCRIPTION_DIR / "examples")
    for path in examples:
        assert loader.load(path.stem) == shown, path.name
    clean = DescriptionCounts(files_found=len(examples), entries=2 * len(examples), frames=2 * len(examples))
    assert loader.counts == clean
    assert as_json == json.loads((DESCRIPTION_DIR / "examples" / "array.json").read_text(encoding="utf-8"))
