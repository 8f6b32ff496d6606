"""A table and a folder become a data set: which column is what, which row is which file, and which clip goes where."""

import csv
import re
import shlex
import shutil
from collections import Counter

import numpy as np
import pytest

import describe
import utils
from clips.labels import read_labels, split_labels
from config import DatasetSpec
from datasets import S2T_Dataset
from tests.helpers.videos import greys
from tools import extract_poses, import_table, report, small_mt5


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with fifty files in my_videos, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_videos" / "deep").mkdir(parents=True)
    for number in range(50):
        (tmp_path / "my_videos" / f"{'deep/' if number % 2 else ''}rec.{number}.mp4").touch()
    return tmp_path


def write_table(path, rows):
    if path.suffix == ".xlsx":
        openpyxl = pytest.importorskip("openpyxl", reason="needs the extra tables")
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(path)
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)
    return path


def imported(table, *flags):
    """The exit status, the data set, and all clips."""
    status = import_table.main([str(table), "--videos", "my_videos", "--out", "my_data", *flags])
    return status, DatasetSpec.from_toml("my_data/dataset.toml"), read_labels("my_data/labels.csv")


def fifty(file="rec.{}", **columns):
    rows = [[file.format(n), f"Sentence {n}.", *(value(n) for value in columns.values())] for n in range(50)]
    return [["File", "SENTENCE", *columns], *rows]


@pytest.mark.parametrize("kind", ["csv", "tsv", "xlsx"])
def test_a_table_with_other_names_of_columns(place, kind, capsys):
    rows = fifty(Signer=lambda n: f"P{n % 5}", notes=lambda n: "a longer text than the sentence")
    for number, row in enumerate(rows[1:]):
        row[0] = f"C:\\my_videos\\{'deep' if number % 2 else '.'}\\rec.{number}.MP4"
    rows[8][1], rows[9][0], rows[10][1] = None, "elsewhere.mp4", 'He said:  "Go, now."'
    status, spec, labels = imported(write_table(place / f"sheet.{kind}", rows))
    said = capsys.readouterr().out
    assert status == 1
    assert "video    is column 'File'\ntext     is column 'SENTENCE'\nsigner   is column 'Signer'\n" in said
    assert re.search("row left out: (row|line) 9: deep/rec.7.mp4 has no text", said)
    assert re.search("row left out: (row|line) 10: no file is named 'elsewhere.mp4'", said)
    assert "not used: 'notes'; to use one, rename its header to signer, text, gloss, split, start or end\n" in said
    assert "file not used: rec.8.mp4" in said
    assert len(labels) == 48
    assert labels["deep/rec.9"] == {
        "name": "deep/rec.9",
        "video_path": "deep/rec.9.mp4",
        "text": 'He said: "Go, now."',
        "signer": "P4",
        "split": labels["deep/rec.9"]["split"],
    }
    assert spec == DatasetSpec(
        name="my_data",
        labels=dict.fromkeys(("train", "dev", "test"), "my_data/labels.csv"),
        pose_dir="my_data/poses",
        rgb_dir="my_videos",
        description_dir="my_data/descriptions",
    )
    assert spec.pose_path(labels["deep/rec.9"]).as_posix() == "my_data/poses/deep/rec.9.pkl"
    signers = {split: {label["signer"] for label in split_labels(spec, split).values()} for split in spec.labels}
    assert [len(of_split) for of_split in signers.values()] == [3, 1, 1]
    assert set.union(*signers.values()) == {f"P{n}" for n in range(5)}


@pytest.mark.parametrize("most", ["A", "B", "C"])
def test_who_signs_most_is_in_train_and_each_split_has_somebody(place, most):
    others = iter("ABC".replace(most, ""))
    rows = fifty(signer=lambda n: next(others) if n in (20, 30) else most)
    _, spec, _ = imported(write_table(place / "sheet.csv", rows))
    clips = {split: split_labels(spec, split).values() for split in spec.labels}
    assert {split: len(labels) for split, labels in clips.items()} == {"train": 48, "dev": 1, "test": 1}
    assert {label["signer"] for label in clips["train"]} == {most}


def test_two_files_of_one_name(place, capsys):
    (place / "my_videos" / "other").mkdir()
    (place / "my_videos" / "other" / "rec.1.mp4").touch()
    rows = fifty()
    rows[4][0], rows[6][0] = "x/deep/REC.3", r"x\rec.5"
    status, _, labels = imported(write_table(place / "sheet.csv", rows))
    assert (status, len(labels), labels["deep/rec.3"]["text"]) == (1, 48, "Sentence 3.")
    said = capsys.readouterr().out
    assert "row left out: line 3: more than one file is named 'rec.1'; give its path in my_videos\n" in said
    assert "row left out: line 7: no file is named 'x\\rec.5'\n" in said  # which deep/rec.5 is not


def test_at_random_three_ways_and_always_the_same(place, capsys):
    table = write_table(place / "sheet.csv", fifty(signer=lambda n: f"P{n % 5}"))
    status, spec, labels = imported(table, "--split", "random")
    assert status == 0
    assert Counter(label["split"] for label in labels.values()) == {"train": 40, "dev": 5, "test": 5}
    assert "at random" in capsys.readouterr().out
    shutil.rmtree("my_data")
    assert imported(table, "--split", "random")[2] == labels


def test_poses_in_place_of_their_videos_get_the_same_split(place):
    rows = fifty(start=lambda n: n, end=lambda n: n + 9)
    table = write_table(place / "sheet.csv", [*rows, *([row[0], "And.", 60, 70] for row in rows[1:])])
    _, _, of_videos = imported(table)
    for path in sorted((place / "my_videos").rglob("*.mp4")):
        path.rename(path.with_suffix(".pkl"))
    shutil.rmtree("my_data")
    _, _, of_poses = imported(table)
    assert len(of_videos) == 100
    assert {name: label["split"] for name, label in of_poses.items()} == {
        name: label["split"] for name, label in of_videos.items()
    }


@pytest.mark.parametrize("name", ["Who", "wer", "Speaker"])
def test_who_signs_has_several_names_and_a_renamed_header_overrides_the_guess(place, name, capsys):
    rows = fifty(**{"Translation": lambda n: f"Satz {n}", name: lambda n: f"P{n % 5}"})
    _, _, labels = imported(write_table(place / "sheet.csv", rows))
    assert (labels["rec.4"]["text"], labels["rec.4"]["signer"]) == ("Sentence 4.", "P4")
    assert "not used: 'Translation'; to use one, rename its header" in capsys.readouterr().out
    rows[0][2] = "text"
    shutil.rmtree("my_data")
    _, _, labels = imported(write_table(place / "sheet.csv", rows))
    assert labels["rec.4"]["text"] == "Satz 4"


def test_the_clips_of_a_video_stay_together(place):
    rows = [["video", "text", "start", "end"]]
    rows += [[f"rec.{n % 10}", f"t {n}", 100 * n, 100 * n + 50] for n in range(50)]
    _, _, labels = imported(write_table(place / "sheet.csv", rows))
    splits = Counter((label["video_path"], label["split"]) for label in labels.values())
    assert set(splits.values()) == {5}
    assert Counter(label["split"] for label in labels.values()) == {"train": 40, "dev": 5, "test": 5}
    assert labels["rec.4-1400-1450"]["start"] == 1400
    shutil.rmtree("my_data")
    _, _, labels = imported(write_table(place / "sheet.csv", [rows[0], *(["rec.4", *row[1:]] for row in rows[1:])]))
    assert Counter(label["split"] for label in labels.values()) == {"train": 40, "dev": 5, "test": 5}  # of one video


@pytest.mark.parametrize(
    ("set_of", "how"), [(("Train", "VAL", "test"), "as the column 'Set' says"), (("1", "2"), "at r")]
)
def test_the_split_of_the_table(place, capsys, set_of, how):
    _, _, labels = imported(write_table(place / "sheet.csv", fifty(Set=lambda n: set_of[n % len(set_of)])))
    assert f"clips ({how}" in capsys.readouterr().out
    if len(set_of) == 3:
        assert [label["split"] for label in labels.values()] == (["train", "dev", "test"] * 17)[:50]


@pytest.mark.parametrize(
    ("set_of", "seen"),
    [
        (("train", "test"), "25 train, 0 dev, 25 test, 0 other"),
        (("train", "dev", "test", "train", ""), "20 train, 10 dev, 10 test, 10 other"),
    ],
)
def test_a_split_that_is_not_whole_is_not_divided_anew(place, set_of, seen):
    """Else clips of the official test set would be trained on."""
    table = write_table(place / "sheet.csv", fifty(Set=lambda n: set_of[n % len(set_of)]))
    with pytest.raises(ValueError, match=f"the column 'Set' has {seen}; wanted train, dev and test"):
        imported(table)
    _, _, labels = imported(table, "--split", "random")
    assert set(Counter(label["split"] for label in labels.values())) == {"train", "dev", "test"}


def test_seconds_become_frames(place, write_video, capsys):
    for number in range(3):
        write_video(place / "my_videos" / f"rec.{2 * number}.mp4", greys(4, 36, 64))  # 25 a second
    rows = [["video", "start", "end", "text"], ["rec.0", "1.2", "0:02.0", "a"], ["rec.2", "0:01:00", "61", "b"]]
    rows += [["rec.4", "3", "4.04", "c"], ["rec.6", "soon", "5", "d"]]
    status, _, labels = imported(write_table(place / "sheet.csv", rows))
    assert status == 1
    assert "row left out: line 5: begins or ends at 'soon'; wanted a frame, seconds, or" in capsys.readouterr().out
    assert [(label["start"], label["end"]) for label in labels.values()] == [(30, 50), (1500, 1525), (75, 101)]
    assert list(labels) == ["rec.0-30-50", "rec.2-1500-1525", "rec.4-75-101"]


def test_numbers_are_frames(place):
    rows = [["video", "start", "end", "text"], *([f"rec.{n}", "3", "4", "a"] for n in range(3)), ["rec.3", -1, -1, "b"]]
    _, _, labels = imported(write_table(place / "sheet.csv", rows))
    assert [label.get("end") for label in labels.values()] == [4, 4, 4, None]


def test_columns_without_a_known_name(place):
    """Files are found by their names, and sentences are the longest cells."""
    rows = [["a", "b", "c"], *([n, f"我喜欢猫 {n}", f"my_videos/rec.{n}.mp4"] for n in range(0, 20, 2))]
    _, spec, labels = imported(write_table(place / "sheet.csv", rows))
    assert labels["rec.4"]["text"] == "我喜欢猫 4"
    assert (spec.language, spec.text_unit) == ("Chinese", "char")


def test_what_is_printed_can_be_run(place, shared_real, write_video, capsys):
    """From a folder of poses to samples, and every command with flags that its program has."""
    names = [path.stem for path in sorted((shared_real / "fingerspelling/pose_format").iterdir())[:20]]
    shutil.rmtree("my_videos")
    for name in names:
        write_video(place / "my_videos" / f"{name}.mp4", greys(2, 36, 64))
    table = write_table(place / "sheet.csv", [["id", "translation"], *([name, "A word."] for name in names)])
    status, spec, _ = imported(table)
    assert status == 0
    said = capsys.readouterr().out
    commands = [shlex.split(line)[1:] for line in said.splitlines() if line.startswith("  python ")]
    parsers = {"tools.extract_poses": extract_poses.parse_args, "describe.py": describe.parse_args}
    parsers |= {"tools.small_mt5": small_mt5.main, "tools.report": report.parse_args}
    (place / "my_data" / "descriptions").mkdir()
    programs = []
    for words in commands:
        program, flags = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
        args = parsers.get(program, utils.parse_args)(flags)
        programs.append(program)
        if program == "describe.py":
            assert (args.dataset_config, args.aspect) == ("my_data/dataset.toml", 1.778)
        if program == "pre_training_checklist.py":
            assert (args.batch_size, args.gradient_accumulation_steps) == (1, 1)
        if program == "fine_tuning.py":
            assert (args.batch_size, args.gradient_accumulation_steps, args.output_dir) == (1, 1, "./output_my_data")
    own = ["pre_training_checklist.py", "fine_tuning.py"]
    assert programs == ["tools.extract_poses", "describe.py", "tools.small_mt5", *own, "tools.report"]
    assert args.runs == ["./output_my_data"]
    assert (place / "small_mt5" / "config.json").is_file()
    for name in names:
        (place / "my_data" / "poses").mkdir(exist_ok=True)
        shutil.copy(shared_real / f"fingerspelling/pose_format/{name}.pkl", "my_data/poses")
    assert [len(S2T_Dataset(spec, split)) for split in spec.labels] == [16, 2, 2]


def test_a_folder_of_poses(place, capsys):
    shutil.rmtree("my_videos")
    (place / "my_videos").mkdir()
    for number in range(10):
        np.savez(place / "my_videos" / f"rec.{number}.npz", keypoints=np.ones((4, 133, 2)), scores=np.ones((4, 133)))
    rows = [["name", "gloss"], *([f"rec.{n}", "['GOOD', 'DAY']"] for n in range(10))]
    _, spec, _ = imported(write_table(place / "sheet.csv", rows))
    assert (spec.pose_dir, spec.rgb_dir, spec.tasks) == ("my_videos", "", ("CSLR",))
    assert S2T_Dataset(spec, "train", task="CSLR")[0].gloss == "GOOD DAY"
    assert "tools.extract_poses" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        ([], "", "no cell names a file of --videos, such as 'deep/rec.1.mp4'; the first row holds nothing"),
        ([["a"], ["x.mp4"]], "", "no cell names a file of --videos, .*the first row holds 'x.mp4'"),
        ([["a"], ["rec.0"]], "", "no column holds sentences; the columns are a. Add 'text'"),
        ([["a", "Word", "Word"], ["rec.0", "s", "t"]], "", "line 1 has 2 columns 'Word'. Rename or remove one"),
        ([["a", "text"], ["rec.0", "t"]], "", "1 clips cannot be split into train, dev and test"),
        ([["a", "text"], ["rec.0", ""]], "", "no row can be used. line 2: rec.0.mp4 has no text"),
        (fifty(), "--split signer", "wanted a column 'signer' with three signers or more.* it has 0"),
        (fifty(), "--videos nowhere", "--videos: nowhere is not a folder"),
        (fifty(), "--videos empty", r"--videos: empty holds no videos \(.mp4, .*\) nor pose files"),
        (fifty()[1:], "", "sheet.csv: has no header: its first row names the file 'rec.0'. Put a row of names above"),
    ],
)
def test_what_cannot_be_imported_is_one_line(place, rows, flags, said):
    table = write_table(place / "sheet.csv", rows)
    (place / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        imported(table, *flags.split())
    assert "\n" not in str(error.value)
    assert not (place / "my_data").exists()


def test_a_table_of_faults_alone_tells_the_first_ones(place):
    rows = "".join(f'rec.{n},"A sentence\nin two lines."\n' for n in range(9))
    (place / "sheet.csv").write_text(f"file,text\n{rows}")
    with pytest.raises(ValueError, match=r"sheet.csv: no row can be used. line 2: has a quotation mark too") as error:
        imported("sheet.csv")
    assert ". line 3: has 1 cells, the header 2: 'file', 'text'. line 4: " in str(error.value)
    assert "line 12" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_on_the_second_sheet_is_told_to_be_on_the_first(place):
    openpyxl = pytest.importorskip("openpyxl", reason="needs the extra tables")
    book = openpyxl.Workbook()
    second = book.create_sheet()
    for row in fifty():
        second.append(row)
    book.save(place / "sheet.xlsx")
    with pytest.raises(ValueError, match=r"ending. Only the first sheet is read: put the table there.$"):
        imported("sheet.xlsx")


def test_a_cell_of_many_folders(place):
    deep = "/".join(map(str, range(100)))
    (place / "many" / deep).mkdir(parents=True)
    (place / "many" / deep / "rec.mp4").touch()
    files = import_table.Files(str(place / "many"))
    assert files.find(f"{deep}/rec") == files.find("98/99/rec.mp4") == files.find("rec") == f"{deep}/rec.mp4"
    assert files.find("a/" * 60_000) is None


def test_rows_with_faults_are_listed_and_left_out(place, capsys):
    rows = fifty()
    rows[1][1], rows[3] = "hi \ud83d", ["rec.2", "again", "more"]
    rows[4][0] = "rec.4"
    lines = [",".join(map(str, row)) for row in rows]
    (place / "sheet.csv").write_bytes("\n".join([*lines, 'rec.9,"open', "rec.10,x"]).encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        imported("sheet.csv")
    lines[1] = "rec.0,hi"
    (place / "sheet.csv").write_text("\n".join([*lines, 'rec.9,"open', "rec.10,x"]))
    status, _, labels = imported("sheet.csv")
    said = capsys.readouterr().out
    assert (status, len(labels)) == (1, 48)
    assert "line 4: has 3 cells, the header 2" in said
    assert "line 6: rec.4 is there twice" in said
    assert "line 52: has a quotation mark too many or too few" in said
    assert "line 53: rec.10 is there twice" in said


def test_a_name_forges_no_line(place, capsys):
    (place / "my_videos" / "a\ntest 99 clips\x1b[2J.mp4").touch()
    imported(write_table(place / "t.csv", fifty(Signer=lambda n: f"P{n % 5}\x1b[2J")))
    said = capsys.readouterr().out
    assert "file not used: a\\ntest 99 clips\\x1b[2J.mp4\n" in said
    assert "\x1b" not in said


def test_only_tables_and_nothing_is_written_over(place):
    (place / "sheet.ods").touch()
    with pytest.raises(ValueError, match=r"sheet.ods: wanted a table, .csv, .tsv, .xlsx. Save it as one"):
        imported("sheet.ods")
    with pytest.raises(FileNotFoundError, match="sheet.csv does not exist"):
        imported("sheet.csv")
    table = write_table(place / "sheet.csv", fifty())
    imported(table)
    with pytest.raises(ValueError, match="--out: my_data/labels.csv and my_data/dataset.toml exist"):
        imported(table)
