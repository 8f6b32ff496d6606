"""What a command line asks for is what is built; whole runs are in test_fine_tuning.py."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from clips.labels import read_labels
from config import DATASETS, ModelConfig
from pose.keypoints import read_pose
from training import build as building
from training.weight_files import save_weights

SMALL = "--hidden_dim 16 --dtype fp32 --num_workers 0 --batch-size 4".split()


@pytest.fixture
def command(corpus):
    """Read a command line on the sample corpus: `command(*flags)`."""
    return lambda *flags: utils.parse_args(["--root", str(corpus), *SMALL, *map(str, flags)])


def build(args, state=None):
    return building.build_model(args, building.model_config(args, building.dataset_spec(args)), {}, state)


def test_the_model_is_that_of_the_flags(command):
    """Every switch of the model has its flag, and the value arrives."""
    given = {
        "hidden_dim": 8,
        "label_smoothing": 0.3,
        "max_target_tokens": 60,
        "use_descriptions": True,
        "text_dropout_p": 0.25,
        "text_encoder": "x",
        "text_max_tokens": 7,
        "description_alignment": 0.5,
        "rgb_support": True,
        "uni_sign_batch_norm": True,
        "uni_sign_padding": True,
    }
    flags = [
        word for name, value in given.items() for word in ([f"--{name}"] if value is True else [f"--{name}", value])
    ]
    config = building.model_config(command(*flags), DATASETS["How2Sign"])
    fixed = {"language": "English"}  # the data set's
    assert dataclasses.asdict(config) == dataclasses.asdict(ModelConfig(**given, **fixed))
    assert all(getattr(config, name) != getattr(ModelConfig(), name) for name in given | fixed)


@pytest.fixture
def evaluation(command, tmp_path):
    """Read the command line of an evaluation of a model: `evaluation(model, *flags)`."""

    def read(model, *flags, **facts):
        save_weights(tmp_path / "best_checkpoint.pth", model.state_dict(), model.config, **facts)
        line = ["--eval", "--finetune", tmp_path / "best_checkpoint.pth", *flags]
        args = utils.parse_args([*map(str, ["--root", command().root, "--dtype", "fp32", "--num_workers", 0, *line])])
        building.take_settings(args)
        return args

    return read


@pytest.mark.parametrize(("dataset", "task"), [("WLASL", "ISLR"), ("CSL_Daily", "SLT")])
def test_weights_without_settings_have_the_first_task_of_the_data_set(command, tmp_path, dataset, task):
    torch.save({"model": build(command()).state_dict()}, tmp_path / "released.pth")
    args = utils.parse_args(["--eval", "--finetune", str(tmp_path / "released.pth"), "--dataset", dataset])
    building.take_settings(args)
    assert args.task == task


def test_targets_that_are_cut_are_counted(command, caplog):
    """A sentence of the sample corpus has 7 to 24 tokens."""
    args = command("--max_target_tokens", 9)
    loaders = building.build_loaders(args, building.dataset_spec(args))
    config = building.model_config(args, building.dataset_spec(args))
    model = building.build_model(args, config, loaders)
    for split, loader in loaders.items():
        lengths = [len(model.tokenizer.encode(text, 1000)) for text in loader.dataset.targets()]
        cut = sum(length > 9 for length in lengths)
        assert 0 < cut < len(lengths)
        told = f"{split}: {cut} of {len(lengths)} targets are cut to 9 tokens, the longest has {max(lengths)}. Raise"
        assert told in caplog.text
    ids, mask = model.tokenizer.encode_batch(loaders["train"].dataset.targets(), config.max_target_tokens)
    assert ids.shape[1] == mask.sum(1).max() == 9
    caplog.clear()
    args = command()
    building.build_model(args, building.model_config(args, building.dataset_spec(args)), loaders)
    assert "targets are cut" not in caplog.text


def test_training_draws_anew_in_each_epoch_and_an_evaluation_repeats(command, evaluation):
    args = evaluation(build(command()), "--seed", 1)
    loaders = building.build_loaders(args, building.dataset_spec(args))
    assert list(loaders) == ["dev", "test"]
    loaders |= building.build_loaders(command("--seed", 1, "--no_test"), building.dataset_spec(args))
    for split, loader in loaders.items():
        assert loader.dataset.random_frames == (split == "train")
        assert (loader.sampler.batches(0) == loader.sampler.batches(1)) == (split != "train")


def test_an_evaluation_says_that_it_has_descriptions_and_how_to_do_without(command, evaluation, tmp_path, caplog):
    caplog.set_level("INFO")
    args = evaluation(build(command("--use_descriptions")))
    spec = building.dataset_spec(args)
    loaders = building.build_loaders(args, spec)
    assert "evaluating with descriptions, as the checkpoint was trained; to test without: let desc" in caplog.text
    assert any(text for clip in loaders["dev"].dataset for text in clip.descriptions)
    for split in ("dev", "test"):
        (tmp_path / "no_texts" / split).mkdir(parents=True)
    loaders = building.build_loaders(args, dataclasses.replace(spec, description_dir=str(tmp_path / "no_texts")))
    assert not any(text for loader in loaders.values() for clip in loader.dataset for text in clip.descriptions)
    caplog.clear()
    building.build_loaders(evaluation(build(command())), spec)
    assert "with descriptions" not in caplog.text


def test_a_task_that_nobody_knows_is_refused(command, evaluation):
    with pytest.raises(ValueError, match="--task POEM: the labels of CSL_Daily allow SLT"):
        evaluation(build(command()), task="POEM")


def test_dev_and_test_of_one_label_file_are_two_splits(corpus, tmp_path, caplog):
    spec = DATASETS["CSL_Daily"].under(corpus)
    labels = {split: read_labels(spec.labels[split]) for split in ("dev", "test")}
    clips = [label | {"name": name, "split": split} for split in labels for name, label in labels[split].items()]
    (tmp_path / "eval.json").write_text(json.dumps({clip["name"]: clip for clip in clips}))
    both = dict.fromkeys(("dev", "test"), str(tmp_path / "eval.json"))
    own = dataclasses.replace(spec, labels={"train": spec.labels["train"], **both})
    args = utils.parse_args([*SMALL, "--use_descriptions"])
    dev = building.build_loaders(args, own)["dev"].dataset
    assert (dev.names, dev.descriptions.directory.name) == (list(labels["dev"]), "dev")
    assert "no dev split" not in caplog.text


def test_a_run_says_that_it_goes_on_without_missing_poses(command, tmp_path, caplog):
    args = command("--max_bad_clips", 0.5)
    spec = building.dataset_spec(args)
    labels = read_labels(spec.labels["dev"])
    next(iter(labels.values()))["video_path"] = "nowhere.mp4"
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    building.build_loaders(args, dataclasses.replace(spec, labels={**spec.labels, "dev": str(path)}))
    assert "nowhere.pkl. They are left out." in caplog.text


def test_sizes_of_compressed_files_group_no_training_clips(command, tmp_path):
    """They tell what a clip shows: clips without a left hand, say, would share their batches."""
    args = command()
    spec = building.dataset_spec(args)
    poses = DATASETS["CSL_Daily"].under(args.root)
    for split in spec.labels:
        for label in read_labels(spec.labels[split]).values():
            pose = read_pose(poses.pose_path(label))
            path = tmp_path / Path(label["video_path"]).with_suffix(".npz")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, keypoints=pose.keypoints, scores=pose.scores)
    loaders = building.build_loaders(args, dataclasses.replace(spec, pose_dir=str(tmp_path), pose_suffix=".npz"))
    grouped = {split: loader.sampler.lengths is not None for split, loader in loaders.items()}
    assert grouped == {"train": False, "dev": True, "test": True}


def test_a_state_is_all_that_a_resumed_run_reads(command, tmp_path):
    """What --finetune and --fusion_checkpoint named may be gone: their weights are in the state, trained."""
    first = build(command("--use_descriptions"))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter += 0.25
    torch.save(first.state_dict(), tmp_path / "weights.pt")
    gone = ("--finetune", tmp_path / "gone.pth", "--fusion_checkpoint", tmp_path / "gone_too.pth")
    with pytest.raises(FileNotFoundError, match=r"--finetune: .*gone.pth does not exist"):
        build(command("--use_descriptions", *gone))
    model = build(command("--use_descriptions", *gone), tmp_path)
    wanted = first.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_the_fusion_checkpoint_comes_after_the_base(command, tmp_path):
    model = build(command("--use_descriptions"))
    weights = model.state_dict()
    save_weights(tmp_path / "base.pth", weights, model.config)
    changed = {name: value + 1 for name, value in weights.items() if name.startswith("gating_fusion.")}
    save_weights(tmp_path / "fusion.pth", {**weights, **changed}, model.config)
    flags = ("--finetune", tmp_path / "base.pth", "--fusion_checkpoint", tmp_path / "fusion.pth")
    loaded = build(command("--use_descriptions", *flags)).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in (weights | changed).items())


@pytest.mark.parametrize("fusion_alone", [("--trainable", "fusion"), ("--text_encoder_freeze",)])
def test_a_new_rgb_branch_is_not_frozen(command, tmp_path, fusion_alone):
    plain = build(command())
    save_weights(tmp_path / "base.pth", plain.state_dict(), plain.config)
    flags = ("--finetune", tmp_path / "base.pth", "--use_descriptions", "--rgb_support")
    with pytest.raises(ValueError, match=r"--rgb_support: .*base\.pth has no RGB branch.*--trainable all"):
        build(command(*flags, *fusion_alone))
    assert build(command(*flags, *fusion_alone, "--trainable", "all")).config.rgb_support


def test_descriptions_of_which_none_can_be_used_end_a_training(command, corpus, tmp_path, caplog):
    """Or it would be another experiment. What is evaluated may lack them."""
    args = command("--use_descriptions")
    spec = dataclasses.replace(building.dataset_spec(args), description_dir=str(tmp_path))
    for split in ("train", "dev", "test"):
        (tmp_path / split).mkdir()
    with pytest.raises(ValueError, match=r"--use_descriptions: no clip of train has a description file"):
        building.build_loaders(args, spec)
    name = next(iter(read_labels(spec.labels["train"])))
    (tmp_path / "train" / f"{name}.json").write_text('{"0.jpg": "The right hand."}')
    building.build_loaders(args, spec)
    assert "no clip of dev has a description file" in caplog.text
    assert "no clip of test has a description file" in caplog.text
