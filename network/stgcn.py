"""Spatial-temporal graph convolutions over the joints of one part.

Frames are packed: the frames of all clips in a batch are concatenated without padding, (V, N, C). So no
computation is spent on padding, batch normalisation sees real frames only, and (except for batch statistics) a
clip's result does not depend on the rest of the batch. `ClipLayout` stores where each frame belongs. Within a chain
a row is one joint in one frame, (V N, C), all frames of the first joint before those of the next: so mixing joints,
mixing channels and normalising need no copies.

Shapes: B clips, T frames of the longest clip, N frames of all clips, V joints, C channels, K partitions.
Parameter names and shapes match Uni-Sign's released weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from system.distributed import send

TEMPORAL_KERNEL = 5
REACH = TEMPORAL_KERNEL // 2  # frames that a temporal convolution sees on each side

EDGES: dict[str, list[tuple[int, int]]] = {
    # nose 0, ears 1 2, shoulders 3 4, elbows 5 6, wrists 7 8
    "body": [(0, 1), (0, 2), (0, 3), (0, 4), (3, 5), (5, 7), (4, 6), (6, 8)],
    # wrist 0, then four joints per finger
    "hand": [(0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, 21)],
    # jaw 0-8, lips 9-16 (a ring), tip of the nose 17, connected to all
    "face": [(i, i + 1) for i in range(8)]
    + [(9 + i, 9 + (i + 1) % 8) for i in range(8)]
    + [(i, 17) for i in range(17)],
}
PART_GRAPH = {"body": "body", "left": "hand", "right": "hand", "face_all": "face"}


def adjacency(graph: str) -> torch.Tensor:
    """Build a skeleton's adjacency with "distance" partitioning: each joint itself, then its neighbours.

    Args:
        graph: a key of `EDGES`.

    Returns:
        (2, V, V) float32; [k, v, w] is joint v's weight in joint w. For each w, the weights of both k sum to one.

    >>> adjacency("hand")[:, :, 4].sum().item()  # the tip of the thumb: itself and one neighbour
    1.0

    Source: ST-GCN (Yan et al., 2018), "distance" partitioning with one hop.
    """
    edges = EDGES[graph]
    n_joints = 1 + max(max(edge) for edge in edges)
    itself, neighbours = torch.eye(n_joints), torch.zeros(n_joints, n_joints)
    for v, w in edges:
        neighbours[v, w] = neighbours[w, v] = 1
    degree = (itself + neighbours).sum(0)  # (V,)
    return torch.stack([itself, neighbours]) / degree


class ClipLayout:
    """Maps between padded and packed frames of a batch.

    Args:
        mask: (B, T), non-zero on real frames. Best on the CPU, to avoid a GPU synchronisation.
        device: device of the frames; default: the mask's.
        bucket: if above 1, the least step in which the line of all frames is lengthened, so that there are few lengths:
            two from one power of two to the next.
    """

    def __init__(self, mask: torch.Tensor, device: torch.device | None = None, bucket: int = 1) -> None:
        self.shape = (int(mask.shape[0]), int(mask.shape[1]))
        rows = mask.flatten().nonzero().squeeze(1)
        self.rows = send(rows, device or mask.device)  # (N,), each frame's index in B x T
        clips = self.rows // self.shape[1]  # (N,), each frame's clip
        # (N,), each frame's place on a line of all frames, with REACH places between clips
        self.places = torch.arange(len(self.rows), device=self.rows.device) + REACH * clips
        length = len(rows) + REACH * (self.shape[0] - 1)
        step = max(bucket, 1 << max(0, length.bit_length() - 2)) if bucket > 1 else 1
        self.line_length = step * math.ceil(length / step)

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Remove padding, (B, T, ...) -> (N, ...)."""
        return x.flatten(0, 1)[self.rows]

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """Restore padding as zeros, (N, ...) -> (B, T, ...)."""
        out = x.new_zeros(self.shape[0] * self.shape[1], *x.shape[1:])
        return out.index_copy(0, self.rows, x).unflatten(0, self.shape)

    def rows_of(self, clips: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Return the packed indices, (n,), of frames given by clip, (n,), and frame within the clip, (n,)."""
        return torch.searchsorted(self.rows, clips * self.shape[1] + frames)


def spread(x: torch.Tensor, places: torch.Tensor, length: int) -> torch.Tensor:
    """Copy frames to distinct places among zeros, (V, N, C), (N,) -> (V, length, C)."""
    return x.new_zeros(len(x), length, x.shape[2]).index_copy(1, places, x)


def select(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Copy the frames at distinct places, (V, length, C), (N,) -> (V, N, C)."""
    return _Select.apply(x, places)


class _Select(torch.autograd.Function):
    """Its gradient is `spread`: torch's own adds up with atomics, as if places could repeat."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.length = x.shape[1]
        return x.index_select(1, places)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places,) = ctx.saved_tensors
        return spread(grad, places, ctx.length), None


class GraphConvolution(nn.Conv2d):
    """A 1 x 1 convolution into K groups of channels, each then mixed over the joints by its adjacency matrix.

    It subclasses Conv2d only for its parameters, their names and initialisation; `forward` has another signature.
    """

    bias: torch.Tensor  # never None

    def __init__(self, in_channels: int, out_channels: int, n_partitions: int) -> None:
        super().__init__(in_channels, out_channels * n_partitions, kernel_size=1)

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        """Mix channels for each partition, then joints and partitions in one product.

        Args:
            x: (V N, C).
            adjacency: (K, V, V).

        Returns:
            (V N, C').
        """
        n_partitions, n_joints, _ = adjacency.shape
        weight = self.weight.view(n_partitions, -1, self.in_channels)  # (K, C', C)
        bias = self.bias.view(n_partitions, 1, -1)  # (K, 1, C')
        x = torch.baddbmm(bias, x.expand(n_partitions, -1, -1), weight.mT)  # (K, V N, C')
        x = adjacency.flatten(0, 1).T @ x.view(n_partitions * n_joints, -1)  # (V, N C')
        return x.view(-1, bias.shape[2])


class TemporalConvolution(nn.Conv2d):
    """A convolution over time, separate for each joint, that does not cross clip boundaries.

    It subclasses Conv2d for the same reasons as `GraphConvolution`.
    """

    bias: torch.Tensor  # never None

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=(TEMPORAL_KERNEL, 1))

    def forward(self, x: torch.Tensor, layout: ClipLayout, n_joints: int) -> torch.Tensor:
        """(V N, C) -> (V N, C)."""
        # All frames on one line, with REACH zeros between clips, so that no window spans two of them.
        x = x.unflatten(0, (n_joints, -1))  # (V, N, C)
        line = spread(x, layout.places, layout.line_length)  # (V, line, C)
        line = line[None].permute(0, 3, 1, 2)  # (1, C, V, line), channels last in memory
        line = F.conv2d(line, self.weight.transpose(2, 3), self.bias, padding=(0, REACH))  # (1, C, V, line)
        return select(line.squeeze(0).permute(1, 2, 0), layout.places).flatten(0, 1)


class Projection(nn.Conv2d):
    """A 1 x 1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(V N, C) -> (V N, C')."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class GraphUnit(nn.Module):
    """Graph convolution with a learned adjacency, batch normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, graph: str) -> None:
        super().__init__()
        self.A = nn.Parameter(adjacency(graph))
        self.conv = GraphConvolution(in_channels, out_channels, n_partitions=len(self.A))
        self.bn = nn.BatchNorm1d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(V N, C) -> (V N, C')."""
        x = self.conv(x, self.A)
        return self.bn(x).relu_()


class STGCNBlock(nn.Module):
    """A graph unit, followed in temporal chains by a convolution over time, with a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, graph: str, temporal: bool) -> None:
        super().__init__()
        self.gcn = GraphUnit(in_channels, out_channels, graph)
        self.tcn = nn.ModuleList([TemporalConvolution(out_channels), nn.BatchNorm1d(out_channels)] if temporal else [])
        self.residual = nn.Sequential()  # empty: the identity
        if in_channels != out_channels:
            self.residual = nn.Sequential(Projection(in_channels, out_channels), nn.BatchNorm1d(out_channels))

    def forward(self, x: torch.Tensor, layout: ClipLayout) -> torch.Tensor:
        """(V N, C) -> (V N, C')."""
        shortcut = self.residual(x)  # (V N, C')
        x = self.gcn(x)  # (V N, C')
        if self.tcn:
            convolve, norm = self.tcn
            x = norm(convolve(x, layout, self.gcn.A.shape[1]))  # (V N, C')
        return (x + shortcut).relu_()


class STGCNChain(nn.ModuleDict):
    """A sequence of blocks named layer{i}_{j}, as in the released weights."""

    @classmethod
    def spatial(cls, graph: str, hidden_dim: int) -> STGCNChain:
        """Build the per-frame chain: hidden_dim / 4 -> / 4 -> / 2 -> hidden_dim channels."""
        widths = [hidden_dim // 4, hidden_dim // 4, hidden_dim // 2, hidden_dim]
        return cls({f"layer{i}_0": STGCNBlock(widths[i], widths[i + 1], graph, temporal=False) for i in range(3)})

    @classmethod
    def temporal(cls, graph: str, hidden_dim: int) -> STGCNChain:
        """Build the chain over time: three blocks of hidden_dim channels."""
        return cls({f"layer0_{i}": STGCNBlock(hidden_dim, hidden_dim, graph, temporal=True) for i in range(3)})

    def forward(self, x: torch.Tensor, layout: ClipLayout) -> torch.Tensor:
        """(V, N, C) -> (V, N, hidden_dim)."""
        n_joints, n_frames, _ = x.shape
        x = x.flatten(0, 1)  # (V N, C)
        for block in self.values():
            x = block(x, layout)  # (V N, C')
        return x.view(n_joints, n_frames, -1)
