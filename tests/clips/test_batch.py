"""Padding and masks, for every field of a batch."""

import json

import numpy as np
import pytest
import torch

from clips.batch import Sample, collate_fn, to_device
from pose.keypoints import PART_JOINTS


def sample(name, length, descriptions=None, has_description=None):
    """A clip whose values say which clip, frame and part they are from."""
    number = float(ord(name[0]))
    pose = {
        part: number + torch.arange(length)[:, None, None] / 100 + torch.zeros(length, len(joints), 3) + k / 1000
        for k, (part, joints) in enumerate(PART_JOINTS.items())
    }
    return Sample(name, pose, f"text {name}", f"gloss {name}", {}, descriptions, has_description)


@pytest.mark.parity
def test_collation_is_the_official_one(shared_reference):
    parts, expected = np.load(shared_reference / "load_part_kp.npz"), np.load(shared_reference / "batch_pose.npz")
    info = json.loads((shared_reference / "batch_info.json").read_text(encoding="utf-8"))
    samples = [
        Sample(
            f"clip{i}", {part: torch.from_numpy(parts[f"clip{i}.{part}"]) for part in PART_JOINTS}, s, g, {}, None, None
        )
        for i, (s, g) in enumerate(zip(info["sentences"], info["glosses"], strict=True))
    ]
    src_input, tgt_input = collate_fn(samples)
    for key in expected.files:
        assert str(src_input[key].dtype) == f"torch.{expected[key].dtype}", key
        np.testing.assert_array_equal(src_input[key].numpy(), expected[key], err_msg=key)
    assert set(src_input) == {*expected.files, "name_batch"}
    assert tgt_input == {"gt_sentence": info["sentences"], "gt_gloss": info["glosses"]}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_padding_by_hand(order):
    clips = [sample("a", 2), sample("b", 4), sample("c", 1)]
    src_input, tgt_input = collate_fn([clips[i] for i in order])
    lengths = [(2, 4, 1)[i] for i in order]
    assert src_input["name_batch"] == ["abc"[i] for i in order]
    assert src_input["src_length_batch"].tolist() == lengths
    assert src_input["attention_mask"].tolist() == [[1] * n + [0] * (4 - n) for n in lengths]
    assert tgt_input == {
        "gt_sentence": [f"text {'abc'[i]}" for i in order],
        "gt_gloss": [f"gloss {'abc'[i]}" for i in order],
    }
    assert "descriptions" not in src_input
    assert "has_description" not in src_input
    for part in PART_JOINTS:
        assert src_input[part].shape == (3, 4, len(PART_JOINTS[part]), 3)
        for row, i, n in zip(src_input[part], order, lengths, strict=True):
            own = clips[i].pose_sample[part]
            assert torch.equal(row[:n], own)
            assert torch.equal(row[n:], own[-1].expand(4 - n, -1, -1))


def test_descriptions_are_padded_in_both_fields():
    src_input, _ = collate_fn(
        [
            sample("a", 2, ["up", "down"], [1, 0]),
            sample("b", 4, ["x", None, "y", "z"], [1, 0, 1, 1]),
            sample("c", 1, [None], [0]),
        ]
    )
    assert src_input["descriptions"] == [["up", "down", None, None], ["x", None, "y", "z"], [None] * 4]
    assert src_input["has_description"] == [[1, 0, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]]


def test_a_batch_in_which_no_clip_has_text_still_has_the_field():
    src_input, _ = collate_fn([sample("a", 1, [None], [0]), sample("b", 2, [None, None], [0, 0])])
    assert (src_input["descriptions"], src_input["has_description"]) == ([[None] * 2] * 2, [[0, 0]] * 2)


def test_to_device_keeps_dtypes_and_what_is_counted_stays():
    src_input, _ = collate_fn([sample("a", 300, ["up"] * 300, [1] * 300), sample("b", 257, [None] * 257, [0] * 257)])
    moved = to_device(src_input, "meta")
    assert moved.keys() == src_input.keys()
    for key, value in src_input.items():
        if isinstance(value, torch.Tensor):
            stays = key in ("attention_mask", "src_length_batch")
            assert (moved[key].device.type, moved[key].dtype) == ("cpu" if stays else "meta", value.dtype)
            assert value.device.type == "cpu"
        else:
            assert moved[key] is value
    assert moved["src_length_batch"].dtype == moved["attention_mask"].dtype == torch.int64
    assert to_device(src_input, "cpu")["src_length_batch"].tolist() == [300, 257]
