"""Configuration of data sets and models.

Edit the paths here if your data lies elsewhere, or describe a data set of your own in a TOML file
(`--dataset_config my.toml`, see `DatasetSpec.from_toml`). Relative paths start from `--root` (default: the current
folder), so that several corpora can be kept side by side.

One `DatasetSpec` per data set holds everything that depends on it. The dictionaries below `DATASETS` are views of
these records, with the names used in Uni-Sign.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from system.disk import to_json

SPLITS = ("train", "dev", "test")
SPLIT_NAMES = {split: split for split in SPLITS} | dict.fromkeys(("val", "valid", "validation"), "dev")
TASKS = ("SLT", "ISLR", "CSLR")
TEXT_UNITS = ("char", "word")
BLEU_TOKENIZERS = ("13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none")
POSE_SUFFIXES = (".pkl", ".npz", ".pose")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")  # in lower case
PICTURES_CURE = (
    "Make a video of a folder of pictures: ffmpeg -framerate 25 -pattern_type glob -i 'NAME/*.png' -crf 10 NAME.mp4."
)
EXTRACTORS = ("rtmlib", "mediapipe")  # of poses from videos (--extractor); by default, whichever is installed
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "linear", "constant")
ASPECTS = (0.2, 5)  # minimum and maximum width / height of a video
LETTERS = {
    "Japanese": re.compile("[\u3040-\u30ff]"),
    "Korean": re.compile("[\uac00-\ud7af]"),
    "Thai": re.compile("[\u0e00-\u0e7f]"),
    "Chinese": re.compile("[\u4e00-\u9fff]"),
}
UNSPACED = ("Chinese", "Japanese", "Thai")  # no spaces between words
MODEL_JSON = "model.json"  # config and other facts of a model that tools/export.py has written
# Model and recipe of `tools/demo.py` and `tools/ablate.py`: minutes on a CPU. The released weights' size needs a GPU.
SMALL_MODEL = (
    "--hidden_dim 16 --epochs 6 --warmup-epochs 0.6 --batch-size 32 --gradient-accumulation-steps 1 "
    "--dtype fp32 --num_workers 1 --num_beams 2 --max_new_tokens 40"
)
SAMPLE_CLIPS = {"train": 2000, "dev": 100, "test": 200}  # of the sample corpus, by default
ONE_PERSON = "--person: MediaPipe finds one person only; take --extractor rtmlib."

mt5_path = "./pretrained_weight/mt5-base"
rgb_backbone = "./pretrained_weight/efficientnet_b0.pth"  # read for a new RGB branch, if it is there
GET_BACKBONE = (
    "https://download.pytorch.org/models/efficientnet_b0_rwightman-7f5810bc.pth"  # as torchvision publishes it
)
GET_MT5 = (
    "Put mT5 there (google/mt5-base) or name its folder with --mt5_path; or try the sample corpus, which has a small "
    "mT5: python -m tools.sample_data --out sample, then --root sample; or make a small one of your own texts: "
    "python -m tools.small_mt5 --out small_mt5 --texts LABELS, then --mt5_path small_mt5."
)


CURES = {  # for what a data set lacks
    "labels": "Put the label file there, or set --root or config.py.",
    "poses": (
        "Put the poses there (with --packed, pack them), or find them in videos: python -m tools.extract_poses, or set "
        "--root."
    ),
    "videos": "Put the videos there, or set --root.",
    "--use_descriptions": ("Put the JSON files there (with --packed, pack them), or train without --use_descriptions."),
}


@dataclass(frozen=True)
class DatasetSpec:
    """A data set's paths, and how its sentences are split into units and scored."""

    name: str  # that is given to `--dataset`
    # Split -> label file: Uni-Sign's gzip pickle, .json, .jsonl, .csv, .tsv or .xlsx (see `clips/labels.py`).
    labels: Mapping[str, str]
    # Folder of pose files, named like `video_path` but with `pose_suffix`; "{split}" in it becomes train, dev or test.
    pose_dir: str
    rgb_dir: str = ""  # folder of videos, likewise; "" if there are none
    description_dir: str = ""  # folder with one sub-folder of JSON files per split, or ""
    language: str = "English"  # named in mT5's prompt
    # The unit of scoring: "char" (text is split into characters) for languages without spaces between words such as
    # Chinese, Japanese and Thai, otherwise "word".
    text_unit: str = "word"
    # sacrebleu's. "13a" gets text split by `text_unit`, as in the published scores; the others get the original text:
    # "intl" (all Unicode punctuation), "char", "zh", "ja-mecab", "ko-mecab" (common in those languages), "none".
    bleu_tokenizer: str = "13a"
    tasks: tuple[str, ...] = ("SLT",)  # that the labels support
    pose_suffix: str = ".pkl"  # or .npz or .pose
    # If train shares its label file with other splits, the fraction at its end that is dev and test, half of it each.
    held_out: float = 0.0
    dev_is_test: bool = False  # whether dev is the test split under another name, with the same folders

    def __post_init__(self) -> None:
        """Raise ValueError for a value that is not allowed."""
        if unknown := sorted(set(self.labels) - set(SPLITS)):
            raise ValueError(f"data set {self.name}: labels for {unknown}; the splits are {', '.join(SPLITS)}.")
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise ValueError(f"data set {self.name}: tasks {unknown}; known are {', '.join(TASKS)}.")
        known = {"text_unit": TEXT_UNITS, "bleu_tokenizer": BLEU_TOKENIZERS, "pose_suffix": POSE_SUFFIXES}
        for key, values in known.items():
            if getattr(self, key) not in values:
                raise ValueError(f"data set {self.name}: {key} is {getattr(self, key)!r}; it is {' or '.join(values)}.")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"data set {self.name}: held_out is {self.held_out}; it lies in [0, 1).")

    def under(self, root: str | Path) -> DatasetSpec:
        """Return a copy in which relative paths start from `root`."""

        def at(path: str) -> str:
            return str(Path(root) / path) if path else ""

        return dataclasses.replace(
            self,
            labels={split: at(path) for split, path in self.labels.items()},
            pose_dir=at(self.pose_dir),
            rgb_dir=at(self.rgb_dir),
            description_dir=at(self.description_dir),
        )

    def folder(self, split: str) -> str:
        """Return the name of a split's folders: its own name, or "test" for dev if `dev_is_test`."""
        return "test" if split == "dev" and self.dev_is_test else split

    def for_split(self, split: str) -> DatasetSpec:
        """Return a copy with "{split}" replaced in the pose and video folders."""
        places = {key: getattr(self, key).replace("{split}", self.folder(split)) for key in ("pose_dir", "rgb_dir")}
        return dataclasses.replace(self, **places)

    def check_task(self, task: str) -> None:
        """Raise ValueError if the labels do not support a task."""
        if task not in self.tasks:
            raise ValueError(f"--task {task}: the labels of {self.name} allow {', '.join(self.tasks)}.")

    def absent(self, *splits: str, poses: bool = True, videos: bool = False, descriptions: bool = False) -> list[str]:
        """Return sentences on the label files of some splits, and on their wanted folders, that do not exist."""
        places = [self.for_split(split) for split in splits]
        described = [str(Path(self.description_dir) / self.folder(split)) for split in splits]
        wanted = {
            "labels": [self.labels[split] for split in splits],
            "poses": [place.pose_dir for place in places] if poses else [],
            "videos": [place.rgb_dir for place in places] if videos else [],
            "--use_descriptions": described if descriptions and self.description_dir else [],
        }
        faults = []
        for kind, paths in wanted.items():
            if missing := [path for path in dict.fromkeys(paths) if path and not Path(path).exists()]:
                faults.append(f"{kind}: {', '.join(missing)} not found. {CURES[kind]}")
        if descriptions and not self.description_dir:
            faults.append(f"--use_descriptions: {self.name} has no folder of descriptions. Name it: description_dir.")
        return faults

    def choose(self, splits: Sequence[str]) -> list[str]:
        """Return those of some splits that there are, but only one that shares a folder; call it on a resolved record.

        Raises:
            ValueError: none is there.
            FileNotFoundError: labels or poses of one do not exist.
        """
        there = [split for split in splits if split in self.labels]
        if not there:
            raise ValueError(f"--splits {' '.join(splits)}: {self.name} has {', '.join(self.labels)} alone.")
        if faults := self.absent(*there):
            raise FileNotFoundError(" ".join(faults))
        return list({self.folder(split): split for split in there}.values())

    def pose_path(self, label: Mapping[str, Any]) -> Path:
        """Return the path of a clip's pose file; call it on a record from `for_split`."""
        file = label.get("pose") or without_suffix(label["video_path"])
        return Path(self.pose_dir) / (file if file.lower().endswith(POSE_SUFFIXES) else file + self.pose_suffix)

    def video_path(self, label: Mapping[str, Any]) -> Path:
        """Return the path of a clip's video; call it on a record from `for_split`."""
        return Path(self.rgb_dir) / label["video_path"]

    def to_toml(self, notes: Mapping[str, str] = MappingProxyType({})) -> str:
        """Format the record as `from_toml` reads it, with comments on some keys."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if value}
        labels = values.pop("labels")
        lines = [f"{key} = {to_json(value)}{notes.get(key, '')}" for key, value in values.items()]
        paths = [f"{split} = {to_json(path)}" for split, path in labels.items()]
        return "\n".join([*lines, "", "[labels]", *paths, ""])

    @classmethod
    def from_toml(cls, path: str | Path) -> DatasetSpec:
        """Read a data set of your own; the keys are the attributes above, `[labels]` is a table.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: not TOML, an unknown key, a missing required key, or a value of the wrong type.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"--dataset_config: {path} does not exist.")
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            hint = " Put paths with \\ into single quotes." if "\\" in str(error) else ""
            raise ValueError(f"--dataset_config: {path} is not TOML: {error}.{hint}") from None
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(fields)):
            raise ValueError(f"--dataset_config: {path} has unknown keys {unknown}; known are {', '.join(fields)}.")
        required = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in values]:
            raise ValueError(f"--dataset_config: {path} lacks {', '.join(missing)}.")
        kinds = {
            "labels": (dict, "a table of texts"),
            "tasks": (list, "a list of texts"),
            "held_out": (float, "a number such as 0.01"),
            "dev_is_test": (bool, "true or false"),
        }
        for key, value in values.items():
            kind, wanted = kinds.get(key, (str, "a text"))
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
            if not isinstance(value, kind) or not all(isinstance(part, str) for part in parts):
                raise ValueError(f"--dataset_config: {path}: {key} is {value!r}; wanted {wanted}.")
        labels = {SPLIT_NAMES.get(split, split): file for split, file in values["labels"].items()}
        if len(labels) < len(values["labels"]):
            raise ValueError(
                f"--dataset_config: {path}: labels has {', '.join(values['labels'])}; val and dev are one split."
            )
        values["labels"] = labels
        values["tasks"] = tuple(values.get("tasks", ("SLT",)))
        return cls(**values)


def _uni_sign_layout(name: str, labels: Mapping[str, str], **values: Any) -> DatasetSpec:
    """Build a record with Uni-Sign's folder layout: labels under ./data, poses and videos under ./dataset."""
    folders: dict[str, Any] = {"pose_dir": f"./dataset/{name}/pose_format"}
    return DatasetSpec(
        name=name,
        labels={split: f"./data/{name}/{file}" for split, file in labels.items()},
        **(folders | values),
    )


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        _uni_sign_layout(
            "CSL_Daily",
            {"train": "labels.train", "dev": "labels.dev", "test": "labels.test"},
            rgb_dir="./dataset/CSL_Daily/sentence-crop",
            description_dir="./description/CSL-Daily/split_data",
            language="Chinese",
            text_unit="char",
            tasks=("SLT", "CSLR"),
        ),
        _uni_sign_layout(
            "CSL_News",
            {"train": "CSL_News_Labels.json", "dev": "CSL_News_Labels.json"},
            rgb_dir="./dataset/CSL_News/rgb_format",
            description_dir="./description/CSL-News/split_data",
            language="Chinese",
            text_unit="char",
            held_out=0.01,
        ),
        _uni_sign_layout(
            "WLASL",
            {"train": "labels-2000.train", "dev": "labels-2000.dev", "test": "labels-2000.test"},
            pose_dir="./dataset/WLASL/pose_format/{split}",
            rgb_dir="./dataset/WLASL/rgb_format/{split}",
            description_dir="./description/WLASL/split_data",
            tasks=("ISLR",),
        ),
        # No dev split was published: the best checkpoint is chosen on test, and the run logs this.
        _uni_sign_layout(
            "How2Sign",
            {"train": "labels.train", "dev": "labels.test", "test": "labels.test"},
            rgb_dir="./dataset/How2Sign/rgb_format/{split}",
            description_dir="./description/How2Sign/split_data",
            dev_is_test=True,
        ),
        _uni_sign_layout(
            "OpenASL",
            {"train": "labels.train", "dev": "labels.dev", "test": "labels.test"},
            rgb_dir="./dataset/OpenASL/rgb_format/{split}",
            description_dir="./description/OpenASL/split_data",
        ),
    )
}

train_label_paths = {name: spec.labels["train"] for name, spec in DATASETS.items() if "train" in spec.labels}
dev_label_paths = {name: spec.labels["dev"] for name, spec in DATASETS.items() if "dev" in spec.labels}
test_label_paths = {name: spec.labels["test"] for name, spec in DATASETS.items() if "test" in spec.labels}
pose_dirs = {name: spec.pose_dir for name, spec in DATASETS.items()}
rgb_dirs = {name: spec.rgb_dir for name, spec in DATASETS.items() if spec.rgb_dir}
description_dirs = {name: spec.description_dir for name, spec in DATASETS.items() if spec.description_dir}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of `Uni_Sign`, stored in every checkpoint."""

    hidden_dim: int = 256  # width of a part; the graph convolutions have hidden_dim / 4, / 2 and / 1 channels
    language: str = "Chinese"  # of the prompt
    label_smoothing: float = 0.2  # of the training loss
    max_target_tokens: int = 50  # target sentences are truncated to so many, including </s>
    use_descriptions: bool = False  # whether the model has the text branch
    text_dropout_p: float = 0.1  # probability in training that a clip loses all its texts, and a frame its own
    text_encoder: str = ""  # Hugging Face folder of the text encoder; "" for mT5's own
    text_max_tokens: int = 128  # descriptions are truncated to so many
    # Weight of the loss of a mapper that predicts a frame's text feature from its pose, and stands in for a missing
    # text; 0 for no mapper.
    description_alignment: float = 0.3
    rgb_support: bool = False  # whether the model uses crops of the hands
    # In training, normalise each hand by its own batch statistics, as Uni-Sign does. Evaluation has one set of running
    # statistics for both, so by default both hands share them in training, too.
    uni_sign_batch_norm: bool = False
    uni_sign_padding: bool = False  # process padded frames and empty crops like real ones, as Uni-Sign does

    def __post_init__(self) -> None:
        """Raise ValueError for a value that is not allowed, under the name of its flag."""
        if self.hidden_dim < 4 or self.hidden_dim % 4:
            raise ValueError(f"--hidden_dim {self.hidden_dim}: must be a positive multiple of 4.")
        if self.rgb_support and self.hidden_dim % 8:
            raise ValueError(f"--hidden_dim {self.hidden_dim}: must be a multiple of 8 with --rgb_support.")
        if not self.language.isprintable():
            raise ValueError(f"--language {self.language!r:.60}: must be a name in printable characters.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"--label_smoothing {self.label_smoothing}: must lie in [0, 1).")
        if not 0 <= self.text_dropout_p <= 1:
            raise ValueError(f"--text_dropout_p {self.text_dropout_p}: must lie in [0, 1].")
        if not 0 <= self.description_alignment < math.inf:
            raise ValueError(f"--description_alignment {self.description_alignment}: must not be negative.")
        for flag, value in (("max_target_tokens", self.max_target_tokens), ("text_max_tokens", self.text_max_tokens)):
            if value < 2:
                raise ValueError(f"--{flag} {value}: must be at least 2.")

    @property
    def prompt(self) -> str:
        """Return the prompt that precedes the frames in mT5's input."""
        return f"Translate sign language video to {self.language}: "

    @property
    def uses_mapper(self) -> bool:
        """Return whether the model predicts text features from poses."""
        return self.use_descriptions and self.description_alignment > 0


def description_language(language: str) -> str:
    """Return the language of `describe.py`'s descriptions for a data set with sentences in `language`: "zh" or "en"."""
    return "zh" if language == "Chinese" else "en"


def guess_language(texts: Sequence[str]) -> str:
    """Return the language whose letters most texts have, English for all that share their letters."""
    n_with = {name: sum(map(bool, map(letters.search, texts))) for name, letters in LETTERS.items()}
    return next((name for name, n in n_with.items() if n > len(texts) / 2), "English")


def dataset_of(name: str, toml: str) -> DatasetSpec:
    """Return the data set of a TOML file if given, else of a name; raises as `from_toml`. Paths are unresolved."""
    return DatasetSpec.from_toml(toml) if toml else DATASETS[name]


def without_suffix(path: str) -> str:
    """Return a path without the ending of a video or pose file; any other dot belongs to the name."""
    stem, suffix = os.path.splitext(path)
    return stem if suffix.lower() in VIDEO_SUFFIXES + POSE_SUFFIXES else path


def under_root(root: str | Path, path: str) -> str:
    """Return a configured path, relative to `--root` unless it is absolute."""
    return os.path.normpath(Path(root) / path)
