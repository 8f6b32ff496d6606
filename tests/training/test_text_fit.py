"""Descriptions that belong to their clips are told from those that do not, before any training."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

import config
import pre_training_checklist
from clips.labels import split_labels
from config import DatasetSpec
from describing.control_texts import write_control_texts
from pose.keypoints import PoseFolder
from tests.helpers.corpus import write_small_corpus
from training.build import build_loaders, build_model, dataset_spec, model_config
from training.look import ENOUGH, log_look, look_at_files
from training.text_fit import PLACES, text_fit
from utils import parse_args

FEWER = 60


def places_of(clips):
    """Take what `text_fit` takes of clips, given keypoints and texts of all frames."""
    chosen = [(clip, np.linspace(0, len(clip[1]) - 1, PLACES).round().astype(int)) for clip in clips]
    return [(keypoints[at], [texts[i] for i in at]) for (keypoints, texts), at in chosen]


def clips_with(text_of, n_clips=60, seed=0):
    """Clips in which a hand goes through random heights, with the texts that `text_of` gives."""
    draw = np.random.default_rng(seed)
    clips = []
    for _ in range(n_clips):
        heights = draw.uniform(-1, 1, draw.integers(3, 9))
        keypoints = np.stack([heights, *draw.normal(size=(3, len(heights)))], 1)
        clips.append((keypoints, [text_of(height, draw) for height in heights]))
    return places_of(clips)


def up_or_down(height, draw):
    return "right hand up" if height > 0 else "right hand down"


def test_a_linear_relation_is_found_and_its_size_is_right():
    """The best linear guess at a sign from a uniform number explains 3/4 of its variance."""
    fit = text_fit(clips_with(up_or_down, n_clips=400))
    assert (fit.n_clips, fit.wrong) == (400, False)
    ridge = 0.5  # standardised keypoints and a ridge of 1 halve the weights: 2 w (1/2) - w^2 (1/4) of what they explain
    assert fit.own == pytest.approx(0.75 * (2 * ridge - ridge**2), abs=0.03)
    assert abs(fit.dealt) < 0.02
    assert fit.z > 50


@pytest.mark.parametrize(
    "text_of",
    [
        lambda height, draw: up_or_down(draw.uniform(-1, 1), draw),  # has nothing to do with the pose
        lambda height, draw: "a person signs",  # the same everywhere
        lambda height, draw: "".join(map(chr, draw.integers(0x4E00, 0x9FFF, 8))),  # another one for each frame
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_texts_that_poses_do_not_tell_are_wrong(text_of, seed):
    assert text_fit(clips_with(text_of, seed=seed)).wrong


def test_right_texts_in_two_languages_are_right():
    """The language explains more of the texts than the pose, and poses do not tell it."""

    def text_of(height, draw):
        return draw.choice([up_or_down(height, draw), "右手向上移动" if height > 0 else "右手向下移动"])

    assert not text_fit(clips_with(text_of, n_clips=ENOUGH)).wrong


def with_texts_of_the_next(clips):
    """Each clip with the texts of the next one, at about the same places."""
    moved = zip(clips, clips[1:] + clips[:1], strict=True)
    return [(pose, [texts[i * len(texts) // len(pose)] for i in range(len(pose))]) for (pose, _), (_, texts) in moved]


def test_one_text_a_clip_is_judged_too():
    draw = np.random.default_rng(0)
    sides = [(draw.choice([-1, 1]), draw.integers(2, 9)) for _ in range(60)]
    text = {-1: "他用右手", 1: "a left-handed signer"}
    clips = [(side + draw.normal(size=(n, 2)), [text[side]] * n) for side, n in sides]
    assert not text_fit(places_of(clips)).wrong
    assert text_fit(places_of(with_texts_of_the_next(clips))).wrong


def test_that_hands_rest_at_both_ends_of_a_clip_is_no_proof():
    """Texts of other clips say so at the right places."""
    draw = np.random.default_rng(0)
    signs = ["hand at the head", "hand to the left", "hand at the chin", "both hands"]
    clips = []
    for n in draw.integers(6, 12, ENOUGH):
        apart, sign = np.abs(np.linspace(-1, 1, n)), draw.integers(0, 4, n)
        pose = np.stack([apart, *np.eye(4)[sign].T], 1) + draw.normal(0, 0.1, (n, 5))
        clips.append((pose, ["hands rest" if apart[i] > 0.7 else signs[sign[i]] for i in range(n)]))
    assert not text_fit(places_of(clips)).wrong
    fit = text_fit(places_of(with_texts_of_the_next(clips)))
    assert fit.own > 0.1  # poses do tell something of them
    assert fit.wrong


@pytest.fixture(scope="module")
def large_corpus(tmp_path_factory):
    return write_small_corpus(tmp_path_factory.mktemp("large") / "sample", {"train": FEWER + 20, "dev": 2, "test": 2})


@pytest.fixture
def from_fewer_clips(monkeypatch):
    """Judge from fewer clips: the texts of the sample corpus are all right and in one language."""
    monkeypatch.setattr("training.look.ENOUGH", FEWER)


def flags_of(corpus, tmp_path, *flags):
    small = "--use_descriptions --hidden_dim 16 --num_workers 0 --no-pin-mem --batch-size 4 --dtype fp32"
    return [*small.split(), "--root", str(corpus), "--output_dir", str(tmp_path / "run"), *flags]


@pytest.fixture
def with_other_texts(large_corpus, tmp_path):
    """A data set's file that names the texts of other clips."""
    spec = config.DATASETS["CSL_Daily"].under(large_corpus)
    write_control_texts(spec, "shuffled", tmp_path / "texts")
    file = tmp_path / "shuffled.toml"
    spec = dataclasses.replace(spec, description_dir=str(tmp_path / "texts"))
    file.write_text(spec.to_toml(), encoding="utf-8")
    return file


@pytest.mark.usefixtures("from_fewer_clips")
def test_a_training_with_texts_of_other_clips_is_refused(large_corpus, with_other_texts, tmp_path, caplog):
    def look(*flags):
        args = parse_args(flags_of(large_corpus, tmp_path, *flags))
        spec = dataset_spec(args)
        loaders = build_loaders(args, spec)
        log_look(loaders, build_model(args, model_config(args, spec), loaders), "")

    caplog.set_level("INFO")
    look()
    assert "of their own texts" in caplog.text
    other = "--dataset_config", str(with_other_texts)
    with pytest.raises(ValueError, match="fit their clips no better than those of other clips"):
        look(*other)
    caplog.clear()
    look(*other, "--description_alignment", "0")
    assert "! descriptions do not belong to their clips" in caplog.text


@pytest.mark.usefixtures("from_fewer_clips")
def test_the_checklist_says_so_beforehand(large_corpus, with_other_texts, tmp_path, capsys):
    flags = flags_of(large_corpus, tmp_path, "--dataset_config", str(with_other_texts))
    assert pre_training_checklist.main(flags) == 1
    said = capsys.readouterr().out
    assert said.count("✗ descriptions do not belong to their clips") == 1
    assert "Not ready. Descriptions are those of other clips" in said


def test_messy_descriptions_of_real_signers_belong_to_them(shared_real):
    """Half in English, half in Chinese, a sixth of the files damaged."""
    spec = DatasetSpec("letters", {"train": str(shared_real / "fingerspelling/labels.train")}, "")
    labels = split_labels(spec, "train")
    paths = {name: shared_real / "fingerspelling/pose_format" / f"{name}.pkl" for name in labels}
    texts = shared_real / "descriptions/train"
    fit = look_at_files("x", labels, paths, np.ones(len(labels)), PoseFolder(), texts, ENOUGH).fit
    assert not fit.wrong
    assert fit.own == pytest.approx(0.085, abs=0.02)


def test_damaged_files_do_not_switch_it_off(large_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("training.look.ENOUGH", 35)
    spec = config.DATASETS["CSL_Daily"].under(large_corpus)
    folder = tmp_path / "texts"
    shutil.copytree(Path(spec.description_dir) / "train", folder)
    for path in sorted(folder.iterdir())[:10]:
        path.write_text("[]")
    labels = split_labels(spec, "train")
    paths = {name: spec.pose_path(label) for name, label in labels.items()}
    sizes = np.ones(len(labels))
    assert look_at_files("x", labels, paths, sizes, PoseFolder(), folder, 70).fit.n_clips >= 35
