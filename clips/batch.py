"""Collate samples into a batch: padding and masks of every field are defined here.

Shapes: B clips, T frames of the batch's longest clip, V joints of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NotRequired, TypedDict, cast

import torch
from torch.nn.utils.rnn import pad_sequence

from pose.keypoints import PART_JOINTS, PartKeypoints
from system.distributed import send


class Sample(NamedTuple):
    """One clip, an item of `S2T_Dataset`: the documented 7-tuple."""

    name_sample: str  # the clip's name
    pose_sample: PartKeypoints  # part -> (T, V, 3) float32
    text: str  # the model's target: the sentence or, for CSLR, the glosses
    gloss: str  # the glosses, joined by spaces; "" if there are none
    rgb_dict: dict[str, torch.Tensor]  # of the RGB branch (see `pose.hand_crops.HandCrops.load`); empty without it
    descriptions: list[str | None] | None  # T texts or None; None without descriptions
    has_description: list[int] | None  # T values 0 or 1; None without descriptions


class BadClip(NamedTuple):
    """Replaces a sample whose clip cannot be read: a value, not an exception, so that the main process can decide."""

    name: str  # the clip's
    reason: str  # one line that names the file and the error
    empty: Sample  # one empty frame with all fields of the data set, for a batch without any readable clip


class SrcInput(TypedDict):
    """The model's input. Padding repeats a clip's last frame; the mask is 0 there.

    If no clip of a batch can be read, it has no names and holds one empty clip: its loss has weight 0, but the process
    can take part in the step.
    """

    body: torch.Tensor  # (B, T, 9, 3) float32
    left: torch.Tensor  # (B, T, 21, 3)
    right: torch.Tensor  # (B, T, 21, 3)
    face_all: torch.Tensor  # (B, T, 18, 3)
    attention_mask: torch.Tensor  # (B, T) int64
    name_batch: list[str]
    src_length_batch: torch.Tensor  # (B,) int64
    descriptions: NotRequired[list[list[str | None]]]  # B lists of T
    has_description: NotRequired[list[list[int]]]  # B lists of T
    bad_clips: NotRequired[list[BadClip]]  # clips left out of the batch
    # Crops of all clips, concatenated; the same for the right hand.
    left_hands: NotRequired[torch.Tensor]  # (N, 3, 112, 112) float32
    left_sampled_indices: NotRequired[torch.Tensor]  # (N,) int64, frame within the clip; -1: empty crop, no hand
    left_skeletons_norm: NotRequired[torch.Tensor]  # (N, 21, 2) float32, joints within the crop
    left_rgb_len: NotRequired[torch.Tensor]  # (B,) int64, number of crops per clip
    right_hands: NotRequired[torch.Tensor]
    right_sampled_indices: NotRequired[torch.Tensor]
    right_skeletons_norm: NotRequired[torch.Tensor]
    right_rgb_len: NotRequired[torch.Tensor]


class TgtInput(TypedDict):
    """The model's targets."""

    gt_sentence: list[str]
    gt_gloss: list[str]


def collate_fn(slots: Sequence[Sample | BadClip]) -> tuple[SrcInput, TgtInput]:
    """Pad samples of one data set to the longest; unreadable clips are left out and listed in `bad_clips`."""
    bad_clips = [slot for slot in slots if isinstance(slot, BadClip)]
    names = [slot.name_sample for slot in slots if isinstance(slot, Sample)]
    samples = [slot for slot in slots if isinstance(slot, Sample)] or [bad_clips[0].empty]
    lengths = torch.tensor([len(sample.pose_sample["body"]) for sample in samples])
    longest = int(lengths.max())
    frames = torch.arange(longest)
    parts = {part: _pad_with_last([sample.pose_sample[part] for sample in samples]) for part in PART_JOINTS}
    src_input = SrcInput(
        body=parts["body"],
        left=parts["left"],
        right=parts["right"],
        face_all=parts["face_all"],
        attention_mask=(frames < lengths[:, None]).long(),
        name_batch=names,
        src_length_batch=lengths,
    )
    if samples[0].descriptions is not None:
        for sample, length in zip(samples, lengths.tolist(), strict=True):
            fields = len(sample.descriptions or []), len(sample.has_description or [])
            assert fields == (length, length), f"{sample.name_sample}: {fields} descriptions for {length} frames"
        src_input["descriptions"] = [_pad(sample.descriptions, None, longest) for sample in samples]
        src_input["has_description"] = [_pad(sample.has_description, 0, longest) for sample in samples]
    crops = {field: torch.cat([sample.rgb_dict[field] for sample in samples]) for field in samples[0].rgb_dict}
    src_input |= cast(SrcInput, crops)  # the data set decides which of these fields exist
    if bad_clips:
        src_input["bad_clips"] = bad_clips
    tgt_input = TgtInput(gt_sentence=[sample.text for sample in samples], gt_gloss=[sample.gloss for sample in samples])
    return src_input, tgt_input


def empty_sample(described: bool, rgb_dict: dict) -> Sample:
    """Return a clip of one empty frame, with the description fields or without, and the RGB branch's fields."""
    pose = {part: torch.zeros(1, len(joints), 3) for part, joints in PART_JOINTS.items()}
    return Sample("", pose, "", "", rgb_dict, [None] if described else None, [0] if described else None)


def _pad_with_last(clips: Sequence[torch.Tensor]) -> torch.Tensor:
    padded = pad_sequence(list(clips), batch_first=True)
    for row, clip in zip(padded, clips, strict=True):
        row[len(clip) :] = clip[-1]
    return padded


def _pad(values: list | None, filler: str | int | None, length: int) -> list:
    return (values or []) + [filler] * (length - len(values or []))


# Kept on the CPU: reading their values from the GPU would force a synchronisation.
ON_THE_CPU = {"attention_mask", "src_length_batch"}
ON_THE_CPU |= {f"{side}_{key}" for side in ("left", "right") for key in ("sampled_indices", "rgb_len")}


def to_device(src_input: SrcInput, device: torch.device | str) -> SrcInput:
    """Move tensors except `ON_THE_CPU` to a device; dtypes are kept, so that frame numbers are not rounded to bf16."""
    moved = {
        key: send(value, torch.device(device))
        for key, value in src_input.items()
        if isinstance(value, torch.Tensor) and key not in ON_THE_CPU
    }
    return src_input | cast(SrcInput, moved)
