"""Label files of every kind give the same clips; which clips a split has; one clear line for every fault."""

import csv
import dataclasses
import gzip
import json
import pickle
import sys
import zipfile

import numpy as np
import pytest

from clips.labels import Shared, read_labels, renamed, shared_clips, split_labels, target
from clips.tables import read_rows
from config import DATASETS, DatasetSpec

CLIPS = [
    {"name": "a", "video_path": "a.mp4", "text": "Hello, you.", "gloss": "HELLO YOU", "frames": 12},
    {"name": "b", "video_path": "deep/b.1.mp4", "text": "再见。", "gloss": "再见", "pose": "other/b.npz"},
]


def written(folder, kind, clips=CLIPS):
    """The clips as a file of that kind."""
    path = folder / f"labels.{kind}"
    if kind == "train":
        path.write_bytes(gzip.compress(pickle.dumps({clip["name"]: clip for clip in clips})))
    elif kind == "json":
        path.write_text(json.dumps(clips, ensure_ascii=False), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(clip) + "\n\n" for clip in clips), encoding="utf-8")
    else:
        with open(path, "w", encoding="utf-8-sig" if kind == "csv" else "utf-8", newline="") as file:  # as Excel does
            fields = list(dict.fromkeys(field for clip in clips for field in clip))
            writer = csv.DictWriter(file, fields, delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(clips)
    return path


@pytest.mark.parametrize("kind", ["train", "json", "jsonl", "csv", "tsv"])
def test_every_kind_gives_the_same_clips(tmp_path, kind):
    labels = read_labels(written(tmp_path, kind))
    assert list(labels) == ["a", "b"]
    assert list(labels.values()) == CLIPS


def test_fields_that_nobody_asked_for_do_no_harm(tmp_path):
    clip = {"name": "a", "text": "t", "gloss": None, "boxes": np.zeros((2, 2)), "": 3}
    (label,) = read_labels(written(tmp_path, "train", [clip])).values()
    assert label["text"] == "t"
    assert "gloss" not in label


def test_json_by_name(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({clip.pop("name"): clip for clip in map(dict, CLIPS)}), encoding="utf-8")
    assert list(read_labels(path).values()) == [{**clip, "name": clip["name"]} for clip in CLIPS]


def test_semicolons_and_quotes(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('name ; text;gloss\na; "no" ;X\nb;"one; ""two""";\n\n;;\n', encoding="utf-8")
    labels = read_labels(path)
    assert [label["text"] for label in labels.values()] == ['"no"', 'one; "two"']
    assert "gloss" not in labels["b"]


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_what_separates_the_cells_of_csv(tmp_path, sign):
    path = tmp_path / "labels.csv"
    path.write_text(f'name{sign}text{sign}gloss\na{sign}"one{sign} two, three"{sign}\n', encoding="utf-8")
    assert read_labels(path)["a"]["text"] == f"one{sign} two, three"


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_quotation_marks_in_a_table_with_tabs(tmp_path, kind):
    """An open mark belongs to the text; a cell in quotation marks is their content."""
    lines = ['a\t"Yes, he said.', "b\tno", 'c\tthe end"', 'd\t"one"', 'e\t"He said ""go"" now"', 'f\t"so" he said']
    path = tmp_path / f"labels.{kind}"
    path.write_text("name\ttext\n" + "\n".join(lines), encoding="utf-8")
    assert {name: label["text"] for name, label in read_labels(path).items()} == {
        "a": '"Yes, he said.',
        "b": "no",
        "c": 'the end"',
        "d": "one",
        "e": 'He said "go" now',
        "f": '"so" he said',
    }


@pytest.mark.parametrize("sign", [",", ";", "|"])
def test_an_open_quotation_mark_elsewhere_is_a_fault(tmp_path, sign):
    """Also where it is closed in another line: a row is a line."""
    path = tmp_path / "labels.csv"
    path.write_text(f'name{sign}text\na{sign}Hello.\nb{sign}"So we begin.\nc{sign}He said: go."\nd{sign}"x" y\n')
    with pytest.raises(ValueError, match="line 3 has a quotation mark too many or too few") as error:
        read_labels(path)
    assert "line 5 has a quotation mark too many" in str(error.value)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_spreadsheet(tmp_path, streamed):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [
        (),
        ("name", "text", "frames", "start", None),
        (7, "Hello, you.", None, None),
        (),
        ("b.1", "再见", 12, 3.0, "beside the header"),
    ]:
        book.active.append(row)
    book.create_sheet("other").append(["x"])
    if streamed:  # then the file does not say how large the sheet is
        rows, book = list(book.active.values), openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet()
        for row in rows:
            sheet.append([cell for cell in row if cell is not None or row[0] is None] if row[0] == 7 else row)
    book.save(tmp_path / "labels.xlsx")
    assert read_labels(tmp_path / "labels.xlsx") == {
        "7": {"name": "7", "text": "Hello, you.", "video_path": "7.mp4"},
        "b.1": {"name": "b.1", "text": "再见", "frames": 12, "start": 3, "video_path": "b.1.mp4"},
    }
    (tmp_path / "labels.xlsx").write_bytes(b"name,text")
    with pytest.raises(ValueError, match="not a readable .xlsx file: File is not a zip file"):
        read_labels(tmp_path / "labels.xlsx")


@pytest.mark.parametrize(
    ("rows", "faults"),
    [
        ('<row r="1048576"/>', []),
        ("".join(f'<row r="{n}"><c r="XFD{n}"><v>1</v></c></row>' for n in range(2, 400)), []),
        ('<row r="2000000000"><c r="A2000000000"><v>1</v></c></row>', ["it spans more than 1048576 rows"]),
    ],
)
def test_a_spreadsheet_is_as_large_as_what_it_holds(tmp_path, rows, faults):
    """A few bytes may say that it spans 17 billion cells."""
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["name"])
    book.save(tmp_path / "small.xlsx")
    with zipfile.ZipFile(tmp_path / "small.xlsx") as source, zipfile.ZipFile(tmp_path / "a.xlsx", "w") as target:
        for name in source.namelist():
            content = source.read(name).replace(b'ref="A1:A1"', b'ref="A1:XFD1048576"')
            target.writestr(name, content.replace(b"</sheetData>", rows.encode() + b"</sheetData>"))
    found = read_rows(tmp_path / "a.xlsx")
    assert next(found) == ("row 1", ["name"])
    for fault in faults:
        with pytest.raises(ValueError, match=rf"a\.xlsx: not a readable \.xlsx file: {fault}"):
            next(found)
    assert list(found) == []


def test_a_spreadsheet_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    """Each row has as many cells as the header, however few of them are in the file."""
    openpyxl = pytest.importorskip("openpyxl")
    monkeypatch.setattr("clips.tables.MAX_CELLS", 50)
    book = openpyxl.Workbook()
    for row in ([f"column {i}" for i in range(20)], ["a"], ["b"]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match="it spans more than 50 cells, with 20 columns"):
        list(read_rows(tmp_path / "a.xlsx"))


def test_without_openpyxl(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "labels.xlsx").touch()
    with pytest.raises(ValueError, match=r'pip install -e "\.\[tables\]", or save the table as \.csv'):
        read_labels(tmp_path / "labels.xlsx")


@pytest.mark.parametrize(
    ("kind", "encoding"), [("json", "utf-8"), ("jsonl", "utf-8"), ("csv", "utf-8"), ("tsv", "utf-16")]
)
def test_packed_with_gzip(tmp_path, kind, encoding):
    """Also in UTF-16, which spreadsheets write."""
    path = written(tmp_path, kind)
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    packed = tmp_path / f"packed.{kind.upper()}.GZ"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_labels(packed).values()) == CLIPS
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match="packed.* cannot be unpacked: .* Copy or make it again"):
        read_labels(packed)


@pytest.mark.parametrize("kind", ["train", "json", "csv", "tsv"])
def test_parts_of_a_recording(tmp_path, kind):
    clips = [
        {"video": "v.mp4", "text": "t", "start": start, "end": end} for start, end in [(0, 60), (60, "120.0"), (-1, -1)]
    ]
    labels = read_labels(written(tmp_path, kind, [{"name": str(i), **clip} for i, clip in enumerate(clips)]))
    assert [(label.get("start"), label.get("end")) for label in labels.values()] == [(0, 60), (60, 120), (None, None)]
    if kind != "train":  # whose clips have names
        assert list(read_labels(written(tmp_path, kind, clips))) == ["v-0-60", "v-60-120", "v"]


@pytest.mark.parametrize(
    ("written_as", "words"),
    [
        ("['GOOD', 'DAY']", ["GOOD", "DAY"]),
        ('["\\u4f60", "it\'s"]', ["你", "it's"]),
        ("['GOOD' 'DAY'  'ALL']", ["GOOD", "DAY", "ALL"]),  # numpy's
        ("('GOOD',)", ["GOOD"]),
        ("[]", []),
        ("[MALE] GOOD", "[MALE] GOOD"),
        ("['GOOD'", "['GOOD'"),
        ("['\\x']", "['\\x']"),
        (["GOOD", 1], ["GOOD", 1]),
    ],
)
def test_a_list_of_glosses(tmp_path, written_as, words):
    for kind in ("train", "json", "csv"):
        label = read_labels(written(tmp_path, kind, [{"name": "a", "gloss": written_as}]))["a"]
        if isinstance(written_as, str) or kind != "csv":
            assert label["gloss"] == words
            assert target(label, "CSLR") == (words if isinstance(words, str) else " ".join(map(str, words)))


@pytest.mark.parametrize("kind", ["train", "json", "csv"])
def test_paths_of_windows_and_names_of_dev(tmp_path, kind):
    clips = [
        {"name": "x\\a", "video": "train\\a.mp4", "pose": "p\\a.npz", "split": "Val"},
        {"name": "b", "split": "valid"},
    ]
    first, second = read_labels(written(tmp_path, kind, clips)).values()
    assert first == {"name": "x/a", "video_path": "train/a.mp4", "pose": "p/a.npz", "split": "dev"}
    assert second["split"] == "dev"


def test_pictures_of_phoenix(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(
        "name|video|start|end|speaker|orth|text\n11August_2010-1|11August_2010-1/1/*.png|-1|-1|S|ABEND|heute\n"
    )
    (label,) = read_labels(path).values()
    assert DatasetSpec("x", {}, "p").pose_path(label).as_posix() == "p/11August_2010-1.pkl"
    assert (label["video_path"], "start" in label) == ("11August_2010-1.mp4", False)


@pytest.mark.parametrize(
    ("entry", "name", "video"),
    [
        ({"name": "x"}, "x", "x.mp4"),
        ({"name": "x", "video": "v.mp4"}, "x", "v.mp4"),
        ({"video": "Common-Concerns_2020.11_0-287.mp4"}, "Common-Concerns_2020.11_0-287", None),
        ({"video_path": "d/v.mp4"}, "d/v", "d/v.mp4"),
        ({"pose": "d/p.npz"}, "d/p", "d/p.mp4"),
    ],
)
def test_names_and_videos(tmp_path, entry, name, video):
    (label,) = read_labels(written(tmp_path, "json", [{**entry, "text": "t"}])).values()
    assert (label["name"], label["video_path"]) == (name, video or entry["video"])
    assert label.get("pose") == entry.get("pose")


def test_where_the_pose_file_lies(tmp_path):
    spec = DatasetSpec("x", {}, "poses/{split}", rgb_dir="videos/{split}", pose_suffix=".npz").for_split("dev")
    assert (spec.pose_dir, spec.rgb_dir) == ("poses/dev", "videos/dev")
    first, second = read_labels(written(tmp_path, "json")).values()
    assert spec.pose_path(first).as_posix() == "poses/dev/a.npz"
    assert spec.pose_path(second).as_posix() == "poses/dev/other/b.npz"
    del second["pose"]
    assert spec.pose_path(second).as_posix() == "poses/dev/deep/b.1.npz"
    assert spec.pose_path({"video_path": "rec.1"}).as_posix() == "poses/dev/rec.1.npz"
    assert spec.pose_path({"video_path": "v.mp4", "pose": "rec.1"}).as_posix() == "poses/dev/rec.1.npz"
    assert spec.pose_path({"video_path": "rec.2.MOV"}).as_posix() == "poses/dev/rec.2.npz"


# -- the clips of a split ----------------------------------------------------------------------------------------------


def news(n):
    return [{"video": f"{i}.mp4", "pose": f"{i}.pkl", "text": f"第{i}条"} for i in range(n)]


def split_numbers(path, splits, **values):
    spec = DatasetSpec("news", dict.fromkeys(splits, str(path)), "p", **values)
    return {split: [int(name) for name in split_labels(spec, split)] for split in spec.labels}


@pytest.mark.parametrize("n", [2, 99, 100, 101, 250])
def test_the_last_hundredth_is_held_out_as_in_uni_sign(tmp_path, n):
    """Uni-Sign: train is [0, int(0.99 n)), all else the rest."""
    assert DATASETS["CSL_News"].labels.keys() == {"train", "dev"}
    parts = split_numbers(written(tmp_path, "json", news(n)), ("train", "dev"), held_out=DATASETS["CSL_News"].held_out)
    assert parts == {"train": list(range(int(n * 0.99))), "dev": list(range(int(n * 0.99), n))}


def test_what_is_held_out_is_shared_by_dev_and_test(tmp_path):
    path, three = written(tmp_path, "json", news(25)), ("train", "dev", "test")
    train, dev, test = list(range(20)), [20, 21], [22, 23, 24]
    assert split_numbers(path, three, held_out=0.2) == {"train": train, "dev": dev, "test": test}
    assert split_numbers(path, ("test", "train"), held_out=0.2) == {"train": train, "test": dev + test}
    same = split_numbers(path, three, held_out=0.2, dev_is_test=True)
    assert same == {"train": train, "dev": dev + test, "test": dev + test}
    assert split_numbers(path, three[:2], held_out=0.2, dev_is_test=True) == {"train": train, "dev": dev + test}
    same = split_numbers(path, three[1:], dev_is_test=True)
    assert same["dev"] == same["test"] == list(range(25))
    with pytest.raises(ValueError, match="serves dev and test. Give its clips a field 'split', or set dev_is_test"):
        split_numbers(path, three[1:], held_out=0.2)


def test_one_file_with_a_column_of_splits(tmp_path):
    clips = [{"name": str(i), "text": "t", "split": split} for i, split in enumerate(["dev", "train", "test", "train"])]
    path = str(written(tmp_path, "csv", clips))
    spec = DatasetSpec("x", {"train": path, "dev": path, "test": path}, "p/{split}", held_out=0.5)
    assert {split: list(split_labels(spec, split)) for split in spec.labels} == {
        "train": ["1", "3"],
        "dev": ["0"],
        "test": ["2"],
    }
    assert spec.for_split("dev").pose_dir == "p/dev"
    written(tmp_path, "csv", clips[:3])  # the file has changed
    assert list(split_labels(spec, "train")) == ["1"]
    assert list(split_labels(dataclasses.replace(spec, dev_is_test=True), "dev")) == ["2"]


def test_a_file_of_several_splits_is_read_once(tmp_path, monkeypatch):
    path = str(written(tmp_path, "csv", [{"name": "a", "text": "t", "split": split} for split in ("dev",)]))
    spec, read = DatasetSpec("x", dict.fromkeys(("train", "dev"), path), "p"), []
    monkeypatch.setattr("clips.labels.read_labels", lambda path: read.append(path) or {"a": {"split": "dev"}})
    for _ in range(2):
        assert list(split_labels(spec, "dev")) == ["a"]
    assert read == [path]


@pytest.mark.parametrize(
    ("clips", "held_out", "said"),
    [
        (
            [{"name": "a"}, {"name": "b"}],
            0.0,
            "serves train and dev. Give its clips a field 'split', or set held_out to the share",
        ),
        ([{"name": "a", "split": "train"}, {"name": "b"}], 0.5, "1 clips have no 'split', the first is 'b'"),
        ([{"name": "a", "split": "all"}], 0.0, "clip 'a' has the split 'all'; wanted train, dev, test"),
        ([{"name": "a", "split": "dev"}], 0.0, "has no clips for the split 'train'"),
        ([{"name": "a"}], 0.5, "has no clips for the split 'train'"),
    ],
)
def test_splits_that_cannot_be_told(tmp_path, clips, held_out, said):
    path = str(written(tmp_path, "jsonl", clips))
    with pytest.raises(ValueError, match=r"labels\.jsonl: ") as error:
        split_labels(DatasetSpec("x", {"train": path, "dev": path}, "p", held_out=held_out), "train")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_clips_that_two_splits_share():
    def clip(pose, text, **part):
        return {"video_path": "v.mp4", "pose": pose, "text": text, **part}

    labels = {
        "train": {"a": clip("1.pkl", "one"), "b": clip("2.pkl", "two", start=0, end=60)},
        "dev": {"a": clip("3.pkl", "three"), "c": clip("2.pkl", "four", start=60), "d": clip("x/../1.pkl", "two")},
        "test": {"e": clip("2.pkl", "three", start=59, end=61), "f": clip("4.pkl", "five")},
    }
    labels = {split: {name: {"name": name, **clip} for name, clip in clips.items()} for split, clips in labels.items()}
    dev, test, both = shared_clips(DatasetSpec("x", {}, "p"), labels, "SLT")
    assert dev == Shared("dev", "train", names=["a"], poses=["d"], targets=["d"])
    assert test == Shared("test", "train", names=[], poses=["e"], targets=[])
    assert both == Shared("test", "dev", names=[], poses=["e"], targets=["e"])
    apart = shared_clips(DatasetSpec("x", {}, "p/{split}"), labels, "SLT")
    assert [shared.poses for shared in apart] == [[], [], []]
    found = shared_clips(DatasetSpec("x", {}, "p", dev_is_test=True), labels, "SLT")
    assert [(shared.split, shared.other) for shared in found] == [("dev", "train"), ("test", "train")]


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.json", "", "the file is not JSON"),
        ("labels.json", "[" * 100_000, "the file is not JSON"),
        ("labels.json", "3", "holds 3; wanted a list of clips, or a dict"),
        ("labels.json", "[]", "holds no clips"),
        ("labels.json", "[1]", "entry 1 is 1; wanted the fields"),
        ("labels.json", '{"a": 1}', "'a' is 1; wanted the fields"),
        ("labels.json", '[{"text": "t"}]', "entry 1 has neither name nor video; its fields are 'text'"),
        ("labels.json", '[{"name": "a"}, {"name": "a"}]', "clip 'a' is there twice, the second time at entry 2"),
        ("labels.json", '{"a": {"text": "s"}, "a": {"text": "t"}}', "the file has 'a' twice in one object. Remove one"),
        ("labels.jsonl", '{"name": "a", "text": "s", "text": "t"}', "line 1 has 'text' twice in one object"),
        ("labels.json", '[{"name": "a", "frames": "12.5"}]', "clip 'a' has frames '12.5'; wanted a whole number"),
        ("labels.json", '[{"name": "a", "frames": true}]', "clip 'a' has frames True; wanted"),
        ("labels.json", '[{"name": "a", "start": 1.5}]', "has start 1.5; wanted a whole number of frames (seconds x"),
        ("labels.json", '[{"name": "a", "start": 9, "end": 9}]', "begins at frame 9 and ends at 9; wanted start < end"),
        ("labels.json", '[{"name": "a", "text": "hi \\ud83d"}]', "half a character in its text, as of an emoji cut in"),
        ("labels.json", '[{"name": "a", "gloss": ["A", "\\ude00"]}]', "half a character in its gloss"),
        ("labels.json", '[{"name": "a", "gloss": [["A"]]}]', "has the gloss [['A']]; wanted a text, or a list"),
        ("labels.json", '[{"name": "a\\u0000b"}]', "has 'a\\x00b' as a path; wanted names of up to 230 bytes without"),
        ("labels.json", '[{"name": "a", "pose": "\\ud83d"}]', "has '\\ud83d' as a path"),
        ("labels.json", '[{"name": "%s"}]' % ("长" * 81), "as a path; wanted names of up to 230 bytes"),
        ("labels.json", '[{"video": "C:\\\\a.mp4"}]', "points out of the data folder: 'C:/a.mp4'. Give its path in"),
        ("labels.csv", "name,text,text,x,x\na,s,t,1,2\n", "line 1 has 2 columns 'text'. Rename or remove one"),
        ("labels.json", '[{"name": "a", "text": NaN}]', "clip 'a' has the text nan; wanted a text"),
        ("labels.json", '[{"name": "a", "gloss": NaN}]', "clip 'a' has the gloss nan; wanted a text, or a list"),
        ("labels.json", '[{"name": "a", "text": ["t"]}]', "clip 'a' has the text ['t']; wanted a text"),
        ("labels.json", '[{"name": "../a"}]', "points out of the data folder: '../a'"),
        ("labels.json", '[{"name": "a", "pose": "/b.pkl"}]', "points out of the data folder: '/b.pkl'"),
        ("labels.json", '[{"name": "a", "video": "c:\\\\..\\\\b"}]', "points out of the data folder"),
        ("labels.jsonl", '{"name": "a"}\n{"name": ', "line 2 is not JSON"),
        ("labels.csv", "", "holds no clips"),
        ("labels.csv", "name,text\n", "holds no clips"),
        ("labels.csv", "id,text\n1,t\n", "line 2 has neither name nor video; its fields are 'id', 'text'"),
        ("labels.csv", "name,text\na,one, two\n", "line 2 has 3 cells, the header 2: 'name', 'text'"),
        ("labels.csv", 'name,text\na,"t\n', "line 2 has a quotation mark too many or too few (unexpected end of data)"),
        ("labels.csv", '"name,text\n', "line 1 has a quotation mark too many or too few"),
        ("labels.jsonl.gz", "[]", "cannot be unpacked: Not a gzipped file"),
        ("labels.csv", "name,text\na,\u00fc\n".encode("latin1"), "is not UTF-8 text"),
        # A line break of any kind, as unicode counts them, in a field's name.
        ("labels.json", '[{"a\u0085b\u2028c": 1}]', "has neither name nor video"),
        ("labels.csv", '"na\nme",text\n1,2,3\n', "line 1 has a quotation mark too many or too few"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="labels") as error:
        read_labels(path)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_missing_fields_are_left_to_who_needs_them(shared_real):
    labels = read_labels(shared_real / "hostile" / "labels.missing_fields")
    assert [name for name, label in labels.items() if "text" not in label] == ["b", "d"]
    assert "gloss" not in labels["c"]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv"])
def test_all_faults_of_a_file_at_once(tmp_path, kind):
    path = written(tmp_path, kind, [{"file": f"{i}.mp4", "sentence": "t"} for i in range(50)])
    with pytest.raises(ValueError, match=r"\(49 more are so\)\.$") as error:
        read_labels(path)
    assert "rename 'file' to 'video', 'sentence' to 'text'" in str(error.value)
    clips = [{"name": "a", "split": "x"}, {"name": "b", "frames": "?"}, {"name": "b"}, {"name": "../c", "split": "x"}]
    with pytest.raises(ValueError, match="labels") as error:
        read_labels(written(tmp_path, kind, clips))
    said = str(error.value)
    assert "clip 'a' has the split 'x'; wanted train, dev, test (1 more are so)." in said
    assert "clip 'b' has frames '?'; wanted a whole number" in said
    assert "clip 'b' is there twice" in said
    assert "clip '../c' points out of the data folder" in said
    assert "\n" not in said


def test_names_that_others_give_to_the_fields():
    assert renamed(["文件名", "File Name", "翻译", "Orth", "signer"]) == {
        "File Name": "video",
        "翻译": "text",
        "Orth": "gloss",
    }
    assert renamed(["Name", "SENTENCE", "label", "Set"]) == {"Name": "name", "SENTENCE": "text", "Set": "split"}
    assert renamed(["name", "text", "video_path", "label", "id"]) == {}


def test_blanks_that_no_tokenizer_writes_twice():
    label = {"text": " thank  you "}
    assert target(label, "ISLR") == "thank you"  # right as a whole, or not
    assert target(label, "SLT") == " thank  you "  # scored as it is written
