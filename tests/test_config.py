"""Records of data sets and models: what they refuse, and what the old dictionaries show."""

import dataclasses

import pytest

import config
import utils
from config import DATASETS, DatasetSpec, ModelConfig, under_root

GOOD = """
name = "Own"
pose_dir = "poses"
description_dir = "texts"
language = "Czech"
text_unit = "char"
bleu_tokenizer = "intl"
pose_suffix = ".npz"
held_out = 0.05
tasks = ["SLT", "ISLR"]

[labels]
train = "labels.train"
test = "/elsewhere/labels.test"
"""


def written(folder, text):
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("spec", DATASETS.values(), ids=DATASETS)
def test_a_record_survives_its_file(spec, tmp_path):
    spec = dataclasses.replace(spec, description_dir='a "b" \\c 中')
    written = spec.to_toml({"name": "  # of the data"})
    assert written.startswith(f'name = "{spec.name}"  # of the data\n')
    (tmp_path / "own.toml").write_text(written, encoding="utf-8")
    assert DatasetSpec.from_toml(tmp_path / "own.toml") == spec


def test_toml(tmp_path):
    assert DatasetSpec.from_toml(written(tmp_path, GOOD)) == DatasetSpec(
        name="Own",
        labels={"train": "labels.train", "test": "/elsewhere/labels.test"},
        pose_dir="poses",
        rgb_dir="",
        description_dir="texts",
        language="Czech",
        text_unit="char",
        bleu_tokenizer="intl",
        tasks=("SLT", "ISLR"),
        pose_suffix=".npz",
        held_out=0.05,
    )


@pytest.mark.parametrize("key", ["val", "valid", "validation"])
def test_toml_with_another_name_of_dev(tmp_path, key):
    spec = DatasetSpec.from_toml(written(tmp_path, GOOD.replace("test =", f"{key} =")))
    assert spec.labels == {"train": "labels.train", "dev": "/elsewhere/labels.test"}
    with pytest.raises(ValueError, match=f"labels has train, dev, {key}; val and dev are one split"):
        DatasetSpec.from_toml(written(tmp_path, GOOD.replace("test =", f"dev = 'a'\n{key} =")))


def test_toml_with_the_required_keys_alone(tmp_path):
    spec = DatasetSpec.from_toml(written(tmp_path, 'name = "x"\npose_dir = "p"\nlabels = {dev = "d"}\n'))
    assert spec == DatasetSpec(name="x", labels={"dev": "d"}, pose_dir="p")
    assert (spec.language, spec.text_unit, spec.tasks) == ("English", "word", ("SLT",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("pose_dir", "pose_folder"), "unknown keys ['pose_folder']"),
        (GOOD.replace('pose_dir = "poses"\n', ""), "lacks pose_dir"),
        ("", "lacks name, labels, pose_dir"),
        ("labels: yaml", "is not TOML"),
        ("x = " + "[" * 100_000, "is not TOML: maximum recursion depth"),
        (GOOD.replace('"poses"', '"C:\\poses"'), "(at line 3, column 17). Put paths with \\ into single quotes."),
        (GOOD.replace('"poses"', "3"), "pose_dir is 3; wanted a text"),
        (GOOD.replace('["SLT", "ISLR"]', '"SLT"'), "tasks is 'SLT'; wanted a list of texts"),
        (GOOD.replace('["SLT", "ISLR"]', "[1]"), "tasks is [1]; wanted a list of texts"),
        (GOOD.replace('"labels.train"', "[1]"), "wanted a table of texts"),
        ('name = "x"\npose_dir = "p"\nlabels = "l"\n', "labels is 'l'; wanted a table of texts"),
        (GOOD.replace("train =", "training ="), "labels for ['training']; the splits are train, dev, test"),
        (GOOD.replace("ISLR", "SLR"), "tasks ['SLR']; known are SLT, ISLR, CSLR"),
        (GOOD.replace('"char"', '"letter"'), "text_unit is 'letter'; it is char or word"),
        (GOOD.replace('"intl"', '"spm"'), "bleu_tokenizer is 'spm'; it is 13a or intl"),
        (GOOD.replace('".npz"', '"npz"'), "pose_suffix is 'npz'; it is .pkl or .npz or .pose"),
        (GOOD.replace("0.05", '"5 %"'), "held_out is '5 %'; wanted a number"),
        (GOOD.replace("0.05", "1.0"), "held_out is 1.0; it lies in [0, 1)"),
    ],
)
def test_bad_toml_is_one_line(tmp_path, text, said):
    with pytest.raises(ValueError, match="Own|own.toml") as error:
        DatasetSpec.from_toml(written(tmp_path, text))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_text_file_is_not_toml(tmp_path):
    (tmp_path / "own.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(ValueError, match="own.toml is not TOML"):
        DatasetSpec.from_toml(tmp_path / "own.toml")


def test_missing_toml(tmp_path):
    with pytest.raises(FileNotFoundError, match="--dataset_config: .*none.toml does not exist"):
        DatasetSpec.from_toml(tmp_path / "none.toml")


def test_under_moves_relative_paths_alone(tmp_path):
    spec = DatasetSpec.from_toml(written(tmp_path, GOOD))
    moved = spec.under("/data")
    assert moved.labels == {"train": "/data/labels.train", "test": "/elsewhere/labels.test"}
    assert (moved.pose_dir, moved.description_dir) == ("/data/poses", "/data/texts")
    assert moved.rgb_dir == ""  # "" says that there are none; it must not become the root
    kept = ("name", "language", "text_unit", "tasks")
    assert [getattr(moved, key) for key in kept] == [getattr(spec, key) for key in kept]
    assert spec.pose_dir == "poses"


def test_the_documented_paths():
    assert config.description_dirs["CSL_Daily"] == "./description/CSL-Daily/split_data"
    assert config.train_label_paths["CSL_Daily"] == "./data/CSL_Daily/labels.train"
    assert config.pose_dirs["How2Sign"] == "./dataset/How2Sign/pose_format"
    assert config.test_label_paths["WLASL"] == "./data/WLASL/labels-2000.test"
    assert config.mt5_path == "./pretrained_weight/mt5-base"


def test_defaults_of_the_model_are_those_of_the_flags():
    flags = vars(utils.parse_args([]))
    assert {name: flags.get(name, "Chinese") for name in utils.MODEL_FLAGS | {"language"}} == vars(ModelConfig())


@pytest.mark.parametrize(
    "bad",
    [
        {"hidden_dim": 0},
        {"hidden_dim": 30},
        {"hidden_dim": -4},
        {"label_smoothing": 1.0},
        {"label_smoothing": -0.1},
        {"text_dropout_p": 1.01},
        {"text_dropout_p": -0.01},
        {"text_dropout_p": float("nan")},
        {"description_alignment": -1.0},
        {"description_alignment": float("inf")},
        {"max_target_tokens": 1},
        {"text_max_tokens": 0},
    ],
    ids=str,
)
def test_sizes_no_model_can_have(bad):
    [(name, value)] = bad.items()
    with pytest.raises(ValueError, match=f"--{name} {value}: must "):
        ModelConfig(**bad)


def test_eight_heads_share_a_hand():
    assert ModelConfig(hidden_dim=36).hidden_dim == 36
    with pytest.raises(ValueError, match="--hidden_dim 36: must be a multiple of 8 with --rgb_support"):
        ModelConfig(hidden_dim=36, rgb_support=True)


def test_a_data_set_without_a_folder_of_descriptions_says_so(tmp_path, monkeypatch):
    """And takes no folder "train" that happens to be there."""
    monkeypatch.chdir(tmp_path)
    for folder in ("poses", "train"):
        (tmp_path / folder).mkdir()
    (tmp_path / "labels").touch()
    spec = DatasetSpec("Own", {"train": "labels"}, "poses").under(tmp_path)
    wanted = "--use_descriptions: Own has no folder of descriptions. Name it: description_dir."
    assert spec.absent("train", descriptions=True) == [wanted]


def test_paths_under_root():
    assert under_root("sample", "./pretrained_weight/mt5-base") == "sample/pretrained_weight/mt5-base"
    assert under_root("sample", "/elsewhere") == "/elsewhere"


def test_only_a_dev_that_is_said_to_be_test_has_its_folders(tmp_path):
    """One file may serve both with a column that tells their clips apart."""
    both = {"train": "train.csv", "dev": "eval.csv", "test": "eval.csv"}
    spec = DatasetSpec("Own", both, "poses/{split}")
    assert [spec.folder(split) for split in both] == ["train", "dev", "test"]
    assert [DATASETS["How2Sign"].folder(split) for split in both] == ["train", "test", "test"]
    (tmp_path / "own.toml").write_text(GOOD.replace("[labels]", "dev_is_test = true\n[labels]"))
    assert DatasetSpec.from_toml(tmp_path / "own.toml").folder("dev") == "test"
    (tmp_path / "own.toml").write_text(GOOD.replace("[labels]", 'dev_is_test = "yes"\n[labels]'))
    with pytest.raises(ValueError, match="dev_is_test is 'yes'; wanted true or false"):
        DatasetSpec.from_toml(tmp_path / "own.toml")
