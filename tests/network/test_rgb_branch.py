"""The RGB-pose branch, from a video to a trained checkpoint; tests/test_models_parity.py has the official values."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fine_tuning
import utils
from config import DATASETS, ModelConfig
from datasets import S2T_Dataset
from models import Uni_Sign
from network import rgb_branch
from network.mt5 import load_mt5
from network.rgb_branch import efficientnet_b0, hand_fusion_modules
from network.vocabulary import Tokenizer
from pose.hand_crops import HANDS
from pose.keypoints import PART_JOINTS, read_pose
from tests.helpers.corpus import write_small_corpus
from tests.helpers.models import without_drop
from tests.helpers.videos import greys
from training import build as building
from training.weight_files import save_weights

av = pytest.importorskip("av", reason="needs the extra rgb")
pytest.importorskip("PIL", reason="needs the extra rgb")

LENGTHS = (30, 19, 25, 6)


# -- what holds by default -------------------------------------------------------------------------------------------


def take(batch, which):
    """Some clips of the batch, with their padding."""
    taken = {name: batch[name][which] for name in (*PART_JOINTS, "attention_mask")}
    longest = int(taken["attention_mask"].sum(1).max())
    taken = {name: value[:, :longest] for name, value in taken.items()}
    for side in HANDS:
        lengths = batch[f"{side}_rgb_len"].tolist()
        for field in ("hands", "sampled_indices", "skeletons_norm"):
            of_clips = batch[f"{side}_{field}"].split(lengths)
            taken[f"{side}_{field}"] = torch.cat([of_clips[i] for i in which])
        taken[f"{side}_rgb_len"] = batch[f"{side}_rgb_len"][which]
    return taken


@torch.no_grad()
def test_a_clip_in_a_batch_is_the_clip_alone(reference_model, reference_batch):
    model = reference_model(ModelConfig(rgb_support=True))
    together = model.encode_pose(reference_batch)
    for i, length in enumerate(LENGTHS):
        alone = model.encode_pose(take(reference_batch, [i]))[0]
        torch.testing.assert_close(together[i, :length], alone, rtol=1e-4, atol=1e-4)
    shuffled = model.encode_pose(take(reference_batch, [3, 1, 0]))
    torch.testing.assert_close(shuffled[2], together[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        together, reference_model(ModelConfig()).encode_pose(reference_batch), atol=0.1
    )  # crops count


def test_empty_crops_stay_out_of_batch_statistics(reference_model, reference_batch):
    config = ModelConfig(rgb_support=True)
    after = []
    # Clip 1 has no left hand and clip 3 no hand at all: its one empty crop a side must not matter.
    for which in ([0, 2], [0, 2, 3]):
        model = without_drop(reference_model(config))
        with torch.no_grad():
            model.encode_pose(take(reference_batch, which))
        after.append({name: x for name, x in model.rgb_support_backbone.state_dict().items() if "running" in name})
    for name, statistics in after[0].items():
        assert torch.equal(statistics, after[1][name]), name


def test_a_batch_without_a_hand_uses_every_weight(reference_model, reference_batch, reference_sentences):
    """As several processes need it; and nothing is learnt from the crops that are not there."""
    model = reference_model(ModelConfig(rgb_support=True)).train()
    before = {name: x.clone() for name, x in model.rgb_support_backbone.state_dict().items()}
    model(take(reference_batch, [3]), {"gt_sentence": reference_sentences[3:]}).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith(rgb_branch.PREFIXES) and parameter.requires_grad:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name
    assert all(torch.equal(x, before[name]) for name, x in model.rgb_support_backbone.state_dict().items())
    assert model.rgb_support_backbone.training
    model.eval()
    assert model.encode_pose(take(reference_batch, [3])).isfinite().all()


def test_a_new_gate_opens(reference_batch):
    """Nearly shut at first, and every weight before it learns within two steps."""
    torch.manual_seed(0)
    modules = nn.ModuleDict(hand_fusion_modules(256))
    gate, attention = modules["fusion_gate"], modules["fusion_pose_rgb_DA"]
    pose, maps = torch.randn(3, 21, 256), torch.randn(3, 256, 4, 4)
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.1)
    for step in range(2):
        found = attention(pose, maps, reference_batch["left_skeletons_norm"][:3])
        opened = gate(torch.cat([found, pose], dim=2).transpose(1, 2))
        if step == 0:
            assert torch.allclose(opened, torch.tensor(0.01).tanh())
        opened = opened.transpose(1, 2)
        optimizer.zero_grad()
        ((1 - opened) * pose + opened * found - found.detach()).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in (*gate.parameters(), *attention.parameters()))


def test_new_frequencies_are_the_same_in_every_process():
    """Each draws its new weights from a seed of its own; DeepSpeed makes parameters alike at the start, not buffers."""
    made = [torch.manual_seed(seed) and rgb_branch.FourierPositions(16) for seed in (1, 2)]
    assert torch.equal(*(positions.positional_encoding_gaussian_matrix for positions in made))


def test_stochastic_depth_keeps_the_mean():
    block = rgb_branch.MBConv(8, 8, 6, 3, 1, drop=0.25).train()
    block.block = nn.Identity()
    torch.manual_seed(0)
    x = torch.ones(4000, 8, 1, 1)
    added = block(x)[:, 0, 0, 0] - 1
    assert sorted(set(added.tolist())) == pytest.approx([0, 4 / 3])
    assert added.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(block.eval()(x), 2 * x)
    drops = [module.drop for module in efficientnet_b0().modules() if isinstance(module, rgb_branch.MBConv)]
    np.testing.assert_allclose(drops, np.arange(16) * 0.2 / 16)


def test_a_batch_without_crops_is_refused(small_mt5_folder):
    model = Uni_Sign(
        ModelConfig(hidden_dim=32, rgb_support=True), load_mt5(small_mt5_folder), Tokenizer(small_mt5_folder)
    )
    with pytest.raises(ValueError, match=r"left_hands not found in src_input.*rgb_support=True"):
        model.encode_pose(
            {p: torch.zeros(1, 4, len(j), 3) for p, j in PART_JOINTS.items()} | {"attention_mask": torch.ones(1, 4)}
        )


# -- from the command line -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filmed(write_video, tmp_path_factory):
    """A sample corpus with videos in Uni-Sign's folder."""
    root = write_small_corpus(tmp_path_factory.mktemp("filmed") / "sample", {"train": 6, "dev": 2, "test": 2})
    spec = DATASETS["CSL_Daily"].under(root)
    for split in spec.labels:
        dataset = S2T_Dataset(spec, split)
        for name, label in dataset.labels.items():
            write_video(spec.video_path(label), greys(len(read_pose(dataset.pose_paths[name])), 64, 64))
    return root


FLAGS = (
    "--rgb_support --hidden_dim 16 --epochs 1 --batch-size 3 --gradient-accumulation-steps 1 --dtype fp32 "
    "--num_workers 0 --num_beams 1 --max_new_tokens 4 --max_length 20"
).split()


def train(root, out, *flags):
    fine_tuning.main(utils.parse_args(["--root", str(root), *FLAGS, "--output_dir", str(out), *map(str, flags)]))
    return out


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.fixture(scope="module")
def fused(filmed, tmp_path_factory):
    """A finished run with crops and descriptions."""
    return train(filmed, tmp_path_factory.mktemp("fused"), "--use_descriptions", "--epochs", 2, "--save_steps", 1)


def with_crops(root, max_length=20, **more):
    return S2T_Dataset(DATASETS["CSL_Daily"].under(root), "train", max_length=max_length, rgb_support=True, **more)


def test_which_frames_are_drawn(filmed):
    """Of clips that are not sampled down: only the crops are drawn."""

    def chosen(epoch=0, **options):
        dataset = with_crops(filmed, max_length=256, **options)
        dataset.epoch = epoch
        return [dataset[i].rgb_dict["left_sampled_indices"].tolist() for i in range(6)]

    assert chosen(seed=1) == chosen(seed=2)  # evaluation repeats
    training = chosen(seed=1, random_frames=True)
    assert training == chosen(seed=1, random_frames=True)
    assert training != chosen(seed=1, random_frames=True, epoch=1)
    assert training != chosen(seed=2, random_frames=True)
    # The frames of a clip that is sampled down are those of a run without crops.
    poses = S2T_Dataset(DATASETS["CSL_Daily"].under(filmed), "train", max_length=20, seed=1, random_frames=True)
    crops = with_crops(filmed, seed=1, random_frames=True)
    assert torch.equal(poses[0].pose_sample["body"], crops[0].pose_sample["body"])


def test_a_run_with_crops_and_descriptions(fused, filmed, tmp_path):
    saved = weights(fused / "best_checkpoint.pth")
    rgb = {name for name in saved if name.startswith(rgb_branch.PREFIXES)}
    modules = {"rgb_support_backbone", "rgb_proj", "fusion_pose_rgb_linear", "fusion_pose_rgb_DA", "fusion_gate"}
    assert {name.split(".")[0] for name in rgb} == modules
    assert {"gating_fusion", "mask_embedding"} <= {name.split(".")[0] for name in saved}
    scores = [json.loads(line) for line in (fused / "log.txt").read_text().splitlines()]
    flags = ("--use_descriptions", "--eval", "--finetune", fused / "checkpoint_1.pth")
    again = json.loads((train(filmed, tmp_path, *flags) / "dev_metrics.json").read_text())
    assert again["nll"] == pytest.approx(scores[1]["dev_nll"], rel=1e-5)


def test_a_resumed_run_is_as_never_stopped(fused, filmed, tmp_path):
    """Frames, crops, stochastic depth and batch statistics go on where they were."""
    out = shutil.copytree(fused, tmp_path / "out")
    state = sorted((out / "resume").iterdir())[0]
    train(filmed, out, "--use_descriptions", "--epochs", 2, "--save_steps", 1, "--resume", state)
    before, after = weights(fused / "checkpoint_1.pth"), weights(out / "checkpoint_1.pth")
    assert state.name == "step_00000003"
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_with_and_without_crops(fused, filmed, tmp_path, caplog):
    """Uni-Sign's stage 2 starts from poses alone; the other way round would drop what was learnt."""
    caplog.set_level("INFO")
    path = fused / "checkpoint_1.pth"
    whole = weights(path)
    poses = {name: x for name, x in whole.items() if not name.startswith(rgb_branch.PREFIXES)}
    config = ModelConfig(hidden_dim=16, use_descriptions=True)
    save_weights(tmp_path / "poses.pth", poses, config)
    args = utils.parse_args(["--root", str(filmed), *FLAGS, "--use_descriptions"])

    def build(rgb_support, file, **more):
        changed = dict(vars(args), rgb_support=rgb_support, finetune=str(file), **more)
        return building.build_model(type(args)(**changed), dataclasses.replace(config, rgb_support=rgb_support), {})

    model = build(True, path)
    assert all(torch.equal(x, whole[name]) for name, x in model.state_dict().items())
    assert "hand backbone" not in caplog.text
    build(True, tmp_path / "poses.pth")
    assert "new is rgb_support_backbone (358 tensors), rgb_proj (2 tensors), fusion_pose_rgb_linear" in caplog.text
    assert "the hand backbone starts from random weights. For ImageNet's, save https://download.pytorch" in caplog.text
    with pytest.raises(ValueError, match=r"checkpoint_1.pth is an RGB-pose checkpoint; add --rgb_support"):
        build(False, path)
    del whole["rgb_proj.weight"]
    save_weights(tmp_path / "hole.pth", whole, config)
    with pytest.raises(ValueError, match=r"missing: rgb_proj.weight\."):
        build(True, tmp_path / "hole.pth")
    with pytest.raises(ValueError, match=r"--eval: .*poses.pth has no .*rgb_support_backbone\. Drop .*--rgb_support"):
        build(True, tmp_path / "poses.pth", eval=True)
    with pytest.raises(ValueError, match="drop --rgb_backbone"):
        build(True, path, rgb_backbone="x.pth")


def test_backbone_from_imagenet(filmed, tmp_path, monkeypatch):
    """A file as torchvision publishes it, classifier included."""
    own = {f"features.{name}": x for name, x in efficientnet_b0().state_dict().items()}
    torch.save(own | {"classifier.1.weight": torch.zeros(1000, 1280)}, tmp_path / "b0.pth")
    args = utils.parse_args(["--root", str(filmed), *FLAGS, "--rgb_backbone", str(tmp_path / "b0.pth")])
    config = ModelConfig(hidden_dim=16, rgb_support=True)
    model = building.build_model(args, config, {})
    assert all(
        torch.equal(x, own[f"features.{name}"]) for name, x in model.rgb_support_backbone[0].state_dict().items()
    )
    monkeypatch.setattr(building, "rgb_backbone", str(tmp_path / "b0.pth"))  # the usual place
    model = building.build_model(utils.parse_args(["--root", str(filmed), *FLAGS]), config, {})
    assert torch.equal(model.rgb_support_backbone[0].state_dict()["8.1.bias"], own["features.8.1.bias"])
    del own["features.8.1.bias"]
    torch.save(own, tmp_path / "b0.pth")
    with pytest.raises(ValueError, match=r"--rgb_backbone: .*b0.pth does not .*: missing: features.8.1.bias\."):
        building.build_model(args, config, {})


def test_missing_videos_stop_the_run_before_training(filmed, tmp_path):
    copy = shutil.copytree(filmed, tmp_path / "copy")
    gone = next(iter(S2T_Dataset(DATASETS["CSL_Daily"].under(copy), "train", rgb_support=True).video_paths.values()))
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=rf"videos: 1 of 6 files of the split 'train' .*{gone.name}"):
        train(copy, tmp_path / "out")
    shutil.rmtree(gone.parent)
    with pytest.raises(FileNotFoundError, match=r"videos: .*sentence-crop not found"):
        train(copy, tmp_path / "out")
    with pytest.raises(ValueError, match="names no folder of videos; set its rgb_dir"):
        S2T_Dataset(dataclasses.replace(DATASETS["CSL_Daily"].under(filmed), rgb_dir=""), "dev", rgb_support=True)


@pytest.fixture(scope="module")
def partly_filmed(filmed, tmp_path_factory):
    """The same, but in every second training clip no hand is found."""
    root = shutil.copytree(filmed, tmp_path_factory.mktemp("partly") / "sample")
    dataset = S2T_Dataset(DATASETS["CSL_Daily"].under(root), "train")
    for path in list(dataset.pose_paths.values())[::2]:
        pose = read_pose(path)
        pose.scores[:, 91:] = 0.1
        content = {"keypoints": list(pose.keypoints[:, None]), "scores": list(pose.scores[:, None])}
        path.write_bytes(pickle.dumps(content))
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [["--zero_stage", "0"], ["--zero_stage", "2"], ["--zero_stage", "2", "--dtype", "bf16", "--use_descriptions"]],
    ids=" ".join,
)
def test_two_processes_of_which_one_may_see_no_hand(partly_filmed, tmp_path, flags):
    """Clip by clip: in most steps only one of the two has crops, and every process learns from them."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "fine_tuning.py", "--root", partly_filmed, *FLAGS, "--batch-size", "1", *flags]
    mine = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    run = subprocess.run(
        [*map(str, command), "--output_dir", str(tmp_path)],
        cwd=Path(fine_tuning.__file__).parent,
        env=mine | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    saved = weights(tmp_path / "checkpoint_0.pth")
    assert all(x.isfinite().all() for x in saved.values())
    assert saved["fusion_gate.2.weight"].any()  # it was zero at the start
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3]
