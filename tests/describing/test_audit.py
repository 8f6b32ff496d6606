"""The audit of description files: every kind of fault is counted, and a cleaned copy has none."""

import json
import pickle
import shlex
import shutil

import numpy as np
import pytest

import describe
import utils
from clips.labels import read_labels
from config import DATASETS
from describing.audit import FAULTS, examine
from describing.files import Clip
from temporal_alignment import DescriptionLoader
from training import build

CONFIG = """
name = "some splits"
pose_dir = "fingerspelling/pose_format"
[labels]
"""


def audit(*arguments):
    return describe.main(["audit", *map(str, arguments), "--workers", "1"])


def rows(text):
    """Title -> cells of the printed table."""
    titles = {title: title for title in FAULTS.values()}
    found = {}
    for line in text.partition("\n\n")[0].splitlines()[1:]:
        title = next((title for title in titles if line.startswith(title)), line.split("  ")[0])
        found[title] = [cell.strip() for cell in line[len(title) :].split("  ") if cell.strip()]
    return found


@pytest.fixture
def messy(tmp_path):
    folder = tmp_path / "descriptions" / "train"
    folder.mkdir(parents=True)
    entry = lambda number, text: {"filename": f"{number:06d}.jpg", "description": text}  # noqa: E731
    files = {
        "good": [entry(0, "Right hand at the chin."), entry(4, "右手在下巴处。") | {"made_by": "rules 1 zh"}],
        "errors": [entry(0, "出错: Error code: 429"), entry(1, "A hand."), entry(1, "Another hand."), entry(2, " ")],
        "types": [entry(0, None), entry(1, 3), {"filename": "thumb.jpg", "description": "A hand."}],
        "same": [entry(number, "The same hand.") for number in range(9)],
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "short.json").write_text(json.dumps(files["good"])[:40])
    (folder / "nothing.json").write_text("")
    (folder / "word.json").write_text('"text"')
    return folder.parent


def test_counts(messy, capsys):
    assert audit(messy) == 0
    table = rows(capsys.readouterr().out)
    assert {title: table[title] for title in FAULTS.values()} == {
        "clips without a file": ["?"],
        "clips whose pose cannot be read": ["?"],
        "files that cannot be read": ["3"],
        "files without one valid text": ["1"],
        "API errors and refusals in place of texts": ["1"],
        "empty or blank texts": ["1"],
        "null, numbers or lists in place of texts": ["2"],
        "entries without a frame number": ["1"],
        "frames outside the clip": ["?"],
        "second texts of a frame": ["1"],
        "files with one text at 8 frames or more, and at most of them": ["1"],
    }
    assert table["files"] == ["7"]
    assert table["described"] == ["12"]
    assert table["numbered from"] == ["?"]
    assert table["clips"] == table["frames"] == table["coverage"] == ["?"]
    assert table["languages"] == ["en 11, zh 1"]
    assert table["distinct texts"] == ["4"]


def test_files_and_texts_behind_the_numbers(messy, capsys):
    for name in "abcd":
        (messy / "train" / f"{name}.json").write_text('{"0.jpg": " ", "1.jpg": "A hand."}')
    assert audit(messy) == 0
    *_, first = capsys.readouterr().out.split("\n\n")
    assert first.splitlines() == [
        "train, made by: unknown (15 frames); rules 1 zh (1 frames)",
        "train, texts of several clips: A hand. (5 clips)",
        "train, files that cannot be read: nothing: empty file; short: cut short; word: a str in place of an array",
        "train, files without one valid text: types",
        "train, API errors and refusals in place of texts: errors",
        "train, empty or blank texts: a; b; c; 2 more",
        "train, null, numbers or lists in place of texts: types",
        "train, entries without a frame number: types",
        "train, second texts of a frame: errors",
        "train, files with one text at 8 frames or more, and at most of them: same",
    ]


def test_a_report_is_small(tmp_path):
    """Half a million of them have to fit into memory."""
    entries = ({"filename": f"{frame}.jpg", "description": f"Hand {frame}." * 40} for frame in range(150))
    (tmp_path / "a.json").write_text(json.dumps([*entries]), encoding="utf-8")
    report = examine(Clip("a", None, None, tmp_path / "a.json"))
    assert len(report.lengths) == len(report.keys) == 150
    assert len(pickle.dumps(report)) < 4000


def test_a_cleaned_copy(messy, tmp_path, capsys):
    before = {path: path.read_bytes() for path in messy.rglob("*.json")}
    assert audit(messy, "--repair", tmp_path / "clean") == 0
    assert {path: path.read_bytes() for path in messy.rglob("*.json")} == before
    clean = tmp_path / "clean" / "train"
    assert sorted(path.stem for path in clean.iterdir()) == ["errors", "good", "same"]
    for path in clean.iterdir():
        there, here = DescriptionLoader(messy / "train"), DescriptionLoader(clean)
        assert here.load(path.stem) == there.load(path.stem)
        assert here.counts.entries == here.counts.frames
    assert json.loads((clean / "good.json").read_text())[1]["made_by"] == "rules 1 zh"
    with pytest.raises(ValueError, match=r"--repair: .* is there already"):
        audit(messy, "--repair", tmp_path / "clean")
    capsys.readouterr()


def test_a_name_that_is_too_long_is_left_out_of_the_copy(messy, tmp_path, capsys, caplog):
    shutil.copy(messy / "train" / "good.json", messy / "train" / f"{'a' * 245}.json")
    assert audit(messy, "--repair", tmp_path / "clean") == 0
    assert sorted(path.stem for path in (tmp_path / "clean" / "train").iterdir()) == ["errors", "good", "same"]
    assert "left out: " in caplog.text
    assert "the name has 250 bytes; wanted up to 235." in caplog.text
    capsys.readouterr()


def test_a_folders_name_forges_no_line(messy, capsys):
    (messy / "train").rename(messy / "x\nclips 9\x1b[2J")
    assert audit(messy) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.strip() == r"x\nclips 9\x1b[2J"
    assert len({len(line) for line in (head, *lines[:5])}) == 1
    assert sum(line.startswith("clips") for line in lines) == 4


def test_what_cannot_be_looked_at(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no \.json files"):
        audit(tmp_path)


def test_coverage_of_a_data_set(corpus, capsys):
    assert audit(corpus / "description" / "CSL-Daily" / "split_data", "--dataset", "CSL_Daily", "--root", corpus) == 0
    table = rows(capsys.readouterr().out)
    assert table["clips"] == ["24", "9", "7"]
    share = [100 * int(part) / int(whole) for part, whole in zip(table["described"], table["frames"], strict=True)]
    assert table["coverage"] == [f"{value:.1f} %" for value in share]


def test_no_coverage_where_a_length_is_not_known(corpus, tmp_path, capsys):
    copy = shutil.copytree(corpus, tmp_path / "copy")
    for pose in sorted((copy / "dataset").rglob("*.pkl")):
        pose.write_bytes(b"no pickle")
    assert audit(copy / "description" / "CSL-Daily" / "split_data", "--dataset", "CSL_Daily", "--root", copy) == 0
    table = rows(capsys.readouterr().out)
    assert (table["clips"], set(table["frames"]), set(table["coverage"])) == (["24", "9", "7"], {"?"}, {"?"})


def write_data_set(folder, clips, **cut):
    """Write clips, name -> (number of frames, entries of its description file); return the flags that name them."""
    for place in ("poses", "texts/train"):
        (folder / place).mkdir(parents=True)
    (folder / "labels.json").write_text(json.dumps([{"video": f"{name}.mp4", "text": "x"} for name in clips]))
    record = 'name = "own"\npose_dir = "poses"\ndescription_dir = "texts"\n'
    (folder / "own.toml").write_text(record + '[labels]\ntrain = "labels.json"\n')
    for name, (length, entries) in clips.items():
        pose = {"keypoints": [np.full((1, 133, 2), 0.5)] * length, "scores": [np.ones((1, 133))] * length, **cut}
        (folder / f"poses/{name}.pkl").write_bytes(pickle.dumps(pose))
        (folder / f"texts/train/{name}.json").write_text(json.dumps(entries))
    return ["--dataset_config", folder / "own.toml", "--root", folder]


def test_coverage_of_a_clip_cut_from_a_recording(tmp_path, capsys):
    """Texts are numbered in the recording: those before the clip are none of its own."""
    flags = write_data_set(tmp_path, {"a": (12, {str(frame): "A hand." for frame in range(12)})}, start=8, end=12)
    assert audit(tmp_path / "texts", *flags, "--repair", tmp_path / "clean") == 0
    table = rows(capsys.readouterr().out)
    assert (table["described"], table["frames"], table["coverage"]) == (["4"], ["4"], ["100.0 %"])
    assert table["frames outside the clip"] == ["8"]
    assert list(DescriptionLoader(tmp_path / "clean/train").load("a")) == [8, 9, 10, 11]


def test_frames_numbered_from_one_are_renumbered(tmp_path, capsys, caplog):
    """ffmpeg's pictures begin with 000001: the text of the last frame would lie beyond the end."""
    clips = {}
    for length, name in enumerate("abcd", start=4):
        numbers = range(1, length + 1) if name != "d" else range(2, 5)
        entries = [{"filename": f"{n:06d}.jpg", "description": f"Picture {n}.", "made_by": f"m{n}"} for n in numbers]
        clips[name] = length, entries
    flags = write_data_set(tmp_path, clips)
    command = shlex.split(build.renumber_command(utils.parse_args([*map(str, flags)])))  # as the checklist gives it
    assert command[:4] == ["python", "describe.py", "audit", str(tmp_path / "texts")]
    assert audit(*command[3:]) == 0
    (tmp_path / "texts_from_0").rename(tmp_path / "clean")
    assert rows(capsys.readouterr().out)["numbered from"] == ["1"]
    loader = DescriptionLoader(tmp_path / "clean/train")
    assert loader.load("a") == {frame: f"Picture {frame + 1}." for frame in range(4)}
    assert loader.load("d") == {frame: f"Picture {frame + 1}." for frame in (1, 2, 3)}
    assert json.loads((tmp_path / "clean/train/a.json").read_text())[0]["made_by"] == "m1"
    assert audit(tmp_path / "clean", *flags) == 0
    assert rows(capsys.readouterr().out)["numbered from"] == ["0"]
    assert "not renumbered" not in caplog.text
    assert audit(tmp_path / "texts", "--repair", tmp_path / "as_it_was") == 0  # nobody knows how long the clips are
    assert "not renumbered: whether frames count from 1 shows with --dataset or --dataset_config only." in caplog.text
    assert min(DescriptionLoader(tmp_path / "as_it_was/train").load("a")) == 1


def test_after_renumbering_a_clip_has_a_file_where_one_of_its_texts_is_valid(tmp_path, capsys):
    """A last frame's text alone is valid in the copy alone; one before a clip's start in the old numbers alone."""
    clips = {name: (8, {str(n): "A hand." for n in (5, 8)}) for name in "abc"}
    clips |= {"last": (8, {"8": "A hand."}), "first": (8, {"4": "A hand."}), "no_pose": (8, {"0": "A hand."})}
    flags = write_data_set(tmp_path, clips, start=4, end=8)
    (tmp_path / "poses/no_pose.pkl").write_bytes(b"no pickle")
    assert audit(tmp_path / "texts", *flags, "--repair", tmp_path / "clean") == 0
    assert rows(capsys.readouterr().out)["numbered from"] == ["1"]
    assert sorted(path.stem for path in (tmp_path / "clean/train").iterdir()) == ["a", "b", "c", "last"]
    loader = DescriptionLoader(tmp_path / "clean/train")
    assert (list(loader.load("a")), list(loader.load("last"))) == ([4, 7], [7])


def test_a_pose_that_cannot_be_read_is_no_fault_of_the_descriptions(corpus, tmp_path, capsys):
    copy = shutil.copytree(corpus, tmp_path / "copy")
    first, second = list(read_labels(DATASETS["CSL_Daily"].under(copy).labels["test"]))[:2]
    (copy / f"dataset/CSL_Daily/pose_format/{first}.pkl").write_bytes(b"no pickle")
    (copy / f"dataset/CSL_Daily/pose_format/{second}.pkl").unlink()
    texts = copy / "description/CSL-Daily/split_data"
    assert audit(texts, "--dataset", "CSL_Daily", "--root", copy) == 0
    out = capsys.readouterr().out
    table = rows(out)
    assert table["clips whose pose cannot be read"] == ["0", "0", "2"]
    assert table["files that cannot be read"] == ["0", "0", "0"]
    assert table["coverage"][2].endswith(" % of 5 clips")
    assert "without --dataset" not in out
    assert f"test, clips whose pose cannot be read: {first}: " in out
    assert audit(texts) == 0
    assert "\n?: cannot be known without --dataset" in capsys.readouterr().out


@pytest.mark.parametrize("splits", [("dev", "test"), pytest.param(("train",), marks=pytest.mark.slow)])
def test_totals_of_real_files(shared_real, tmp_path, capsys, splits):
    manifest = json.loads((shared_real / "descriptions" / "MANIFEST.json").read_text())["totals"]
    labels = "".join(f'{split} = "fingerspelling/labels.{split}"\n' for split in splits)
    (tmp_path / "config.toml").write_text(CONFIG + labels)
    arguments = ["--dataset_config", tmp_path / "config.toml", "--root", shared_real]
    assert audit(shared_real / "descriptions", *arguments) == 0
    table = rows(capsys.readouterr().out)
    for number, split in enumerate(splits):
        seen = {title: cells[number] for title, cells in table.items()}
        total = {key: str(value) for key, value in manifest[split].items()}
        assert seen["clips"] == total["clips"]
        assert seen["files"] == total["files"]
        assert seen["frames"] == total["clip_frames"]
        assert seen["described"] == total["valid_described_frames"]
        assert seen["clips without a text"] == total["clips_with_no_valid_frame"]
