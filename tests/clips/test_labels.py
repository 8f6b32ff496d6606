"""Label files of every kind give the same clips; which clips a split has; one clear line for every fault."""

import csv
import gzip
import json
import pickle

import numpy as np
import pytest

from clips.labels import check_column, read_labels, split_labels, target
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


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv"])
def test_endings_in_capitals(tmp_path, kind):
    path = written(tmp_path, kind)
    assert list(read_labels(path.rename(path.with_suffix(f".{kind.upper()}"))).values()) == CLIPS


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
    path.write_text('name ; text;gloss\na; "no" ;X\nb;"one; ""two""\nthree";\n\n;;\n', encoding="utf-8")
    labels = read_labels(path)
    assert [label["text"] for label in labels.values()] == ['"no"', 'one; "two"\nthree']
    assert "gloss" not in labels["b"]


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_what_separates_the_cells_of_csv(tmp_path, sign):
    path = tmp_path / "labels.csv"
    path.write_text(f'name{sign}text{sign}gloss\na{sign}"one{sign} two, three"{sign}\n', encoding="utf-8")
    assert read_labels(path)["a"]["text"] == f"one{sign} two, three"


def test_quotation_marks_of_tsv_are_text(tmp_path):
    """Read as csv's, the marks of the first and the last clip would make one cell of three lines."""
    path = tmp_path / "labels.tsv"
    path.write_text('name\ttext\na\t"Yes, he said.\nb\tno\nc\tthe end"\nd\t"one"\n', encoding="utf-8")
    texts = {name: label["text"] for name, label in read_labels(path).items()}
    assert texts == {"a": '"Yes, he said.', "b": "no", "c": 'the end"', "d": '"one"'}


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


# -- the clips of a split ----------------------------------------------------------------------------------------------


def news(n):
    return [{"video": f"{i}.mp4", "pose": f"{i}.pkl", "text": f"第{i}条"} for i in range(n)]


@pytest.mark.parametrize("n", [2, 99, 100, 101, 250])
def test_the_last_hundredth_is_held_out_as_in_uni_sign(tmp_path, n):
    """Uni-Sign: train is [0, int(0.99 n)), all else the rest."""
    path = str(written(tmp_path, "json", news(n)))
    spec = DatasetSpec("news", {"train": path, "dev": path, "test": path}, "p", held_out=DATASETS["CSL_News"].held_out)
    parts = {split: [int(name) for name in split_labels(spec, split)] for split in spec.labels}
    assert parts["train"] == list(range(int(n * 0.99)))
    assert parts["dev"] == parts["test"] == list(range(int(n * 0.99), n))


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


def test_a_dev_that_is_the_test_split_lies_in_its_folders():
    spec = DATASETS["How2Sign"]
    assert spec.labels["dev"] == spec.labels["test"]
    assert (spec.folder("train"), spec.folder("dev"), spec.folder("test")) == ("train", "test", "test")
    assert spec.for_split("dev").rgb_dir.endswith("rgb_format/test")
    assert [name for name, spec in DATASETS.items() if spec.dev_is_test] == ["How2Sign"]


def test_dev_and_test_of_one_file_with_a_column_of_splits_have_folders_of_their_own(tmp_path):
    clips = [{"name": split, "text": "t", "split": split} for split in ("dev", "test")]
    path = str(written(tmp_path, "csv", clips))
    spec = DatasetSpec("x", {"train": "train.csv", "dev": path, "test": path}, "p/{split}")
    assert spec.folder("dev") == "dev"
    assert spec.for_split("dev").pose_dir == "p/dev"
    assert list(split_labels(spec, "dev")) == ["dev"]


@pytest.mark.parametrize(
    ("clips", "held_out", "said"),
    [
        ([{"name": "a"}, {"name": "b"}], 0.0, "serves train and another split. Give its clips a field 'split'"),
        ([{"name": "a", "split": "train"}, {"name": "b"}], 0.5, "1 clips have no 'split', the first is 'b'"),
        ([{"name": "a", "split": "val"}], 0.0, "clip 'a' has the split 'val'; wanted train, dev, test"),
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
        ("labels.json", '[{"name": "a"}, {"name": "a"}]', "the clip 'a' is there twice, the second time at entry 2"),
        ("labels.json", '{"a": {"text": "s"}, "a": {"text": "t"}}', "the file has 'a' twice in one object. Remove one"),
        ("labels.jsonl", '{"name": "a", "text": "s", "text": "t"}', "line 1 has 'text' twice in one object"),
        ("labels.json", '[{"name": "a", "frames": "12.5"}]', "clip 'a' has '12.5' frames; wanted a whole number"),
        ("labels.json", '[{"name": "a", "frames": true}]', "clip 'a' has True frames"),
        ("labels.json", '[{"name": "a", "text": NaN}]', "clip 'a' has the text nan; wanted a text"),
        ("labels.json", '[{"name": "a", "gloss": NaN}]', "clip 'a' has the gloss nan; wanted a text, or a list"),
        ("labels.json", '[{"name": "a", "text": ["t"]}]', "clip 'a' has the text ['t']; wanted a text"),
        ("labels.json", '[{"name": "../a"}]', "points out of the data folder: '../a'"),
        ("labels.json", '[{"name": "a", "pose": "/b.pkl"}]', "points out of the data folder: '/b.pkl'"),
        ("labels.json", '[{"name": "a", "video": "c:\\\\..\\\\b"}]', "points out of the data folder"),
        ("labels.json", '[{"name": "a", "video": "D:\\\\clips\\\\b.mp4"}]', r"data folder: 'D:\\clips\\b.mp4'"),
        ("labels.jsonl", '{"name": "a"}\n{"name": ', "line 2 is not JSON"),
        ("labels.csv", "", "holds no clips"),
        ("labels.csv", "name,text\n", "holds no clips"),
        ("labels.csv", "id,text\n1,t\n", "line 2 has neither name nor video; its fields are 'id', 'text'"),
        ("labels.csv", "name,text\na,one, two\n", "line 2 has 3 cells, the header 2: 'name', 'text'"),
        ("labels.csv", 'name,text\na,"t\n', "line 2: unexpected end of data"),
        ("labels.csv", "name,text\na,\u00fc\n".encode("latin1"), "is not UTF-8 text"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="labels") as error:
        read_labels(path)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["labels.exec", "labels.not_gzip", "labels.text", "labels.truncated_gzip", "labels.traversal"]
)
def test_hostile_labels_give_one_line(shared_real, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=name) as error:
        read_labels(shared_real / "hostile" / name)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "PWNED").exists()


def test_missing_fields_are_left_to_who_needs_them(shared_real):
    labels = read_labels(shared_real / "hostile" / "labels.missing_fields")
    assert [name for name, label in labels.items() if "text" not in label] == ["b", "d"]
    assert "gloss" not in labels["c"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("labels.json", '[{"a\u0085b\u2028c": 1}]'), ("labels.csv", '"na\nme",text\n1,2,3\n')],
)
def test_field_names_do_not_break_a_message(tmp_path, name, content):
    """A line break of any kind, as unicode counts them, in a field's name."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="labels") as refused:
        read_labels(tmp_path / name)
    assert len(str(refused.value).splitlines()) == 1


def test_tables_are_asked_for_a_column_and_other_kinds_are_not(tmp_path):
    path = written(tmp_path, "csv")
    check_column(path, "text")
    path.write_text('name;"a\nb"\n1;2\n', encoding="utf-8")
    with pytest.raises(ValueError, match="no column 'text'; the columns are name, a b. "):
        check_column(path, "text")
    for kind in ("train", "json", "jsonl"):
        check_column(written(tmp_path, kind), "elsewhere")


def test_blanks_that_no_tokenizer_writes_twice():
    label = {"text": " thank  you "}
    assert target(label, "ISLR") == "thank you"  # right as a whole, or not
    assert target(label, "SLT") == " thank  you "  # scored as it is written
