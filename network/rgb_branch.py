"""The optional RGB-pose branch: fuse the hands' pose features with crops of the hands, from `pose.hand_crops`.

An EfficientNet-B0 encodes each crop as a small feature map; every joint of the hand attends to this map near its
keypoint, and a gate weights the result against its pose feature.

Shapes: N crops of one hand in a batch, V joints of a hand (21), C channels, H and W height and width of a feature map.

Source: Uni-Sign (Li et al., ICLR 2025), section 3.3, "prior-guided fusion".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from network.state_dicts import differences
from network.stgcn import ClipLayout
from system.distributed import send, sum_over_processes

MAP = 4  # height and width of a crop's feature map
BACKBONE = "rgb_support_backbone."
PREFIXES = (BACKBONE, "rgb_proj.", "fusion_pose_rgb_linear.", "fusion_pose_rgb_DA.", "fusion_gate.")


def hand_fusion_modules(hidden_dim: int) -> dict[str, nn.Module]:
    """Build the modules of the branch, named as in the released weights, for pose features of a hand with C channels.

    A new gate starts nearly closed. (Uni-Sign's starts at exactly zero, where its ReLU has no gradient: trained from
    there, it would never open.)
    """
    unused = nn.Linear(hidden_dim, hidden_dim).requires_grad_(False)  # in the released weights, but unused
    first, last = nn.Conv1d(2 * hidden_dim, hidden_dim, 1), nn.Conv1d(hidden_dim, 1, 1)
    nn.init.zeros_(last.weight)
    last.bias = nn.Parameter(torch.full((1,), 0.01))
    return {
        "rgb_support_backbone": nn.Sequential(efficientnet_b0()),
        "rgb_proj": nn.Conv2d(BACKBONE_CHANNELS, hidden_dim, 1),
        "fusion_pose_rgb_linear": unused,
        "fusion_pose_rgb_DA": PriorGuidedAttention(hidden_dim),
        "fusion_gate": nn.Sequential(first, nn.GELU(), last, nn.Tanh(), nn.ReLU()),
    }


def fuse_hand(
    model: nn.Module,
    x: torch.Tensor,
    side: str,
    src_input: Mapping[str, Any],
    layout: ClipLayout,
    with_empty: bool,
) -> torch.Tensor:
    """Fuse a hand's pose features with its crops, for the whole batch at once.

    A batch without crops takes the same path with N = 0, since every process must use every weight in every step.

    Args:
        model: a module with `hand_fusion_modules`.
        x: (frames of all clips, V, C), the hand's pose features; those of frames that have a crop are replaced.
        side: left or right.
        src_input, layout: the batch, and where its frames lie.
        with_empty: include empty crops in the backbone's batch statistics, as Uni-Sign does.

    Raises:
        ValueError: the batch holds no crops.
    """
    if f"{side}_hands" not in src_input:
        raise ValueError(
            f"{side}_hands not found in src_input: this model looks at crops of the hands. Make the data set with "
            "rgb_support=True (flag --rgb_support), or use a model without the RGB branch."
        )
    crops, frames = src_input[f"{side}_hands"], src_input[f"{side}_sampled_indices"]  # (N, 3, 112, 112), (N,)
    clips = torch.arange(layout.shape[0]).repeat_interleave(src_input[f"{side}_rgb_len"])  # (N,)
    real = (frames >= 0).nonzero().squeeze(1)
    clips, frames, real = (send(index, x.device) for index in (clips[real], frames[real], real))
    maps = crop_features(model, crops)[real] if with_empty else crop_features(model, crops[real])  # (N, C, H, W)
    rows = layout.rows_of(clips, frames)  # (N,)
    pose = x[rows]  # (N, V, C)
    found = model.get_submodule("fusion_pose_rgb_DA")(pose, maps, src_input[f"{side}_skeletons_norm"][real])
    both = torch.cat([found, pose.to(found.dtype)], dim=2)  # (N, V, 2 C)
    gate = model.get_submodule("fusion_gate")(both.transpose(1, 2)).transpose(1, 2)  # (N, V, 1)
    return x.index_copy(0, rows, ((1 - gate) * pose + gate * found).to(x.dtype))


def crop_features(model: nn.Module, crops: torch.Tensor) -> torch.Tensor:
    """Encode crops, (N, 3, 112, 112) -> (N, C, 4, 4)."""
    backbone, project = model.get_submodule("rgb_support_backbone"), model.get_submodule("rgb_proj")
    trains = backbone.training
    # Batch statistics need at least one crop, over all processes when they are synchronised.
    backbone.train(trains and bool(sum_over_processes(torch.tensor(len(crops), device=crops.device)) > 0))
    maps = project(backbone(crops))
    backbone.train(trains)
    return maps


class PriorGuidedAttention(nn.Module):
    """Cross-attention of a hand's joints to positions in its crop, near the keypoints.

    Source: `fusion_pose_rgb_DA` of Uni-Sign; deformable attention after DAT (Xia et al., CVPR 2022).
    """

    HEADS = 8
    REACH = 2 / 3  # maximum offset, as a fraction of half the crop

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = dim // self.HEADS
        self.to_offsets = nn.Sequential(
            nn.Conv1d(width, width, 1, groups=width), nn.GELU(), nn.Conv1d(width, 2, 1, bias=False), nn.Tanh()
        )
        self.rel_pos_bias = DistanceBias(dim // 4)
        self.to_q = nn.Conv1d(dim, dim, 1, groups=self.HEADS, bias=False)
        self.to_k = nn.Conv2d(dim, dim, 1, groups=self.HEADS, bias=False)
        self.to_v = nn.Conv2d(dim, dim, 1, groups=self.HEADS, bias=False)
        self.to_out = nn.Conv1d(dim, dim, 1)
        self.cross_attn = nn.MultiheadAttention(dim, self.HEADS, batch_first=True)
        self.pe_layer = FourierPositions(dim)
        self.map_positions: torch.Tensor
        self.register_buffer("map_positions", sinusoids(MAP * MAP, dim), persistent=False)

    def forward(self, pose: torch.Tensor, maps: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
        """Attend from every joint to its crop, (N, V, C) -> (N, V, C).

        `maps` are (N, C, H, W); `prior`, (N, V, 2), are x and y of the joints in the crop, from 0 to 1.
        """
        n, heads = len(pose), self.HEADS

        def by_head(features: torch.Tensor) -> torch.Tensor:  # (N, C, ...) -> (N heads, C / heads, ...)
            return features.unflatten(1, (heads, -1)).flatten(0, 1)

        # First attend to the whole crop, to derive the queries and offsets,
        seen = maps.flatten(2).transpose(1, 2) + self.map_positions  # (N, H W, C)
        with sdpa_kernel(SDPBackend.MATH):  # GPU kernels fail on an empty batch
            context, _ = self.cross_attn(pose + self.pe_layer(prior), seen, seen, need_weights=False)  # (N, V, C)
        q = self.to_q((pose + context).transpose(1, 2))  # (N, C, V)
        # then, for each head, to a position near each joint.
        joints = (2 * prior - 1).repeat_interleave(heads, dim=0)  # (N heads, V, 2), from -1 to 1
        places = joints + self.REACH * self.to_offsets(by_head(q)).transpose(1, 2)  # (N heads, V, 2)
        found = F.grid_sample(by_head(maps).to(places.dtype), places[:, None], align_corners=False)
        found = found.unflatten(0, (n, heads)).flatten(1, 2)  # (N, C, 1, V)
        q, k, v = (
            features.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3)  # (N, heads, V, C / heads)
            for features in (q, self.to_k(found), self.to_v(found))
        )
        bias = self.rel_pos_bias(joints, places).unflatten(0, (n, heads))  # (N, heads, V, V)
        weights = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5 + bias).softmax(dim=3)  # (N, heads, V, V)
        x = weights.to(v.dtype) @ v  # (N, heads, V, C / heads)
        return self.to_out(x.transpose(2, 3).flatten(1, 2)).transpose(1, 2)


class DistanceBias(nn.Module):
    """A learned attention bias as a function of the logarithm of the distance between joint and position.

    Source: continuous relative position bias of Swin Transformer V2 (Liu et al., CVPR 2022).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Sequential(nn.Linear(2, dim), nn.ReLU()),
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU()),
            nn.Linear(dim, 1),
        )

    def forward(self, joints: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Compute the bias, (n, V, 2), (n, V', 2) -> (n, V, V')."""
        distance = joints[:, :, None] - places[:, None]  # (n, V, V', 2)
        return self.mlp(distance.sign() * distance.abs().log1p()).squeeze(3)


class FourierPositions(nn.Module):
    """Position encoding by sines and cosines with fixed random frequencies, which are saved with the weights.

    Source: Fourier features (Tancik et al., NeurIPS 2020).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        # A fixed seed makes them equal in all processes: DeepSpeed broadcasts parameters at the start, but not buffers.
        frequencies = torch.randn(2, dim // 2, generator=torch.Generator().manual_seed(0), device="cpu")
        self.positional_encoding_gaussian_matrix: torch.Tensor
        self.register_buffer("positional_encoding_gaussian_matrix", frequencies)

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        """Encode positions from 0 to 1, (..., 2) -> (..., C)."""
        # Not a matrix product, which autocast would round to 8 bits.
        angles = 2 * math.pi * ((2 * places - 1)[..., None] * self.positional_encoding_gaussian_matrix).sum(-2)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sinusoids(n: int, dim: int) -> torch.Tensor:
    """Return sinusoidal encodings of n positions, (n, C): sines in even channels, cosines in odd ones.

    Source: "Attention is all you need" (Vaswani et al., 2017).
    """
    angles = torch.arange(n)[:, None] / 10000 ** (torch.arange(dim // 2) * 2 / dim)  # (n, C / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


# -- EfficientNet-B0 -------------------------------------------------------------------------------------------------
# Implemented here because torchvision works with exactly one release and build of torch; with a mismatch even importing
# mT5 from transformers fails.

# For each stage: expansion, kernel, stride, channels, blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM_CHANNELS = 32
BACKBONE_CHANNELS = 1280
DROP_PATH = 0.2  # probability of skipping a block in training: grows linearly from 0 (first block) towards this


def efficientnet_b0() -> nn.Sequential:
    """Build EfficientNet-B0 without classifier, (N, 3, H, W) -> (N, 1280, H / 32, W / 32), with torchvision's names.

    Source: EfficientNet (Tan and Le, ICML 2019), table 1.
    """
    stages: list[nn.Module] = [_convolution(3, STEM_CHANNELS, 3, 2)]
    channels, block, n_blocks = STEM_CHANNELS, 0, sum(stage[-1] for stage in STAGES)
    for expansion, kernel, stride, width, n in STAGES:
        blocks = []
        for i in range(n):
            drop = DROP_PATH * block / n_blocks
            blocks.append(MBConv(channels, width, expansion, kernel, 1 if i else stride, drop))
            channels, block = width, block + 1
        stages.append(nn.Sequential(*blocks))
    network = nn.Sequential(*stages, _convolution(channels, BACKBONE_CHANNELS, 1))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), *([nn.SiLU()] if active else []))


class MBConv(nn.Module):
    """An inverted bottleneck: expansion, depthwise convolution, squeeze and excitation, projection."""

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int, drop: float
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.block = nn.Sequential(
            *([_convolution(in_channels, wide, 1)] if expansion > 1 else []),
            _convolution(wide, wide, kernel, stride, groups=wide),
            ChannelWeights(wide, in_channels // 4),
            _convolution(wide, out_channels, 1, active=False),
        )
        self.residual = stride == 1 and in_channels == out_channels
        self.drop = drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block, (N, C, H, W) -> (N, C', H', W')."""
        out = self.block(x)
        if not self.residual:
            return out
        if self.training and self.drop:
            kept = torch.rand(len(out), 1, 1, 1, device=out.device) >= self.drop
            out = out * kept / (1 - self.drop)
        return x + out


class ChannelWeights(nn.Module):
    """Squeeze and excitation: scale channels depending on their mean over the image."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale the channels, (N, C, H, W) -> (N, C, H, W)."""
        weights = self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True))))  # (N, C, 1, 1)
        return x * weights.sigmoid()


def load_backbone(model: nn.Module, weights: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Load torchvision's EfficientNet-B0, without classifier, as the hand backbone; ValueError for another network."""
    backbone = model.get_submodule("rgb_support_backbone.0")
    features = {name: value for name, value in weights.items() if not name.startswith("classifier.")}
    own = {f"features.{name}": value for name, value in backbone.state_dict().items()}
    if misfit := differences(features, own):
        raise ValueError(
            f"--rgb_backbone: {path} does not hold EfficientNet-B0 under torchvision's names: {misfit}. Give the file "
            "of torchvision.models.EfficientNet_B0_Weights."
        )
    backbone.load_state_dict({name.removeprefix("features."): value for name, value in features.items()})
