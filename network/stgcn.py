"""Spatial-temporal graph convolutions over the joints of one part.

Frames are packed: the frames of all clips in a batch are concatenated in an (N, V, C) tensor without padding. So no
computation is spent on padding, batch normalisation sees real frames only, and (except for batch statistics) a
clip's result does not depend on the rest of the batch. `ClipLayout` stores where each frame belongs. Within a chain
the layout is joints first, (V, N, C), so that mixing joints, mixing channels and normalising need no copies.

Shapes: B clips, T frames of the longest clip, N frames of all clips, V joints, C channels, K partitions.
Parameter names and shapes match Uni-Sign's released weights.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from network import winograd

TEMPORAL_KERNEL = 5
REACH = TEMPORAL_KERNEL // 2  # frames that a temporal convolution sees on each side

_HAND_EDGES = [(start, start + 1) for finger in range(5) for start in range(4 * finger + 1, 4 * finger + 4)]
EDGES: dict[str, list[tuple[int, int]]] = {
    # nose 0, ears 1 2, shoulders 3 4, elbows 5 6, wrists 7 8
    "body": [(0, 1), (0, 2), (0, 3), (0, 4), (3, 5), (5, 7), (4, 6), (6, 8)],
    # wrist 0, then four joints per finger
    "hand": [(0, 4 * finger + 1) for finger in range(5)] + _HAND_EDGES,
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
    neighbours = np.zeros((n_joints, n_joints), np.float32)
    for v, w in edges:
        neighbours[v, w] = neighbours[w, v] = 1
    itself = np.eye(n_joints, dtype=np.float32)
    degree = (itself + neighbours).sum(axis=0)
    return torch.from_numpy(np.stack([itself, neighbours]) / degree)


class ClipLayout:
    """Maps between padded and packed frames of a batch.

    Args:
        mask: (B, T), non-zero on real frames. Best on the CPU, to avoid a GPU synchronisation.
        device: device of the frames; default: the mask's.
    """

    def __init__(self, mask: torch.Tensor, device: torch.device | None = None) -> None:
        self.shape = (int(mask.shape[0]), int(mask.shape[1]))
        rows = mask.flatten().nonzero().squeeze(1)
        self.rows = rows.to(device or mask.device, non_blocking=True)  # (N,), each frame's index in B x T
        self.clips = self.rows // self.shape[1]  # (N,), each frame's clip

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


class GraphConvolution(nn.Conv2d):
    """A 1 x 1 convolution into K groups of channels, each then mixed over the joints by its adjacency matrix.

    It subclasses Conv2d only for its parameters, their names and initialisation; `forward` has another signature.
    """

    def __init__(self, in_channels: int, out_channels: int, n_partitions: int) -> None:
        super().__init__(in_channels, out_channels * n_partitions, kernel_size=1)
        self.n_partitions = n_partitions

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Mix joints first, then channels: the same sum using matrix products only, without copies.

        Args:
            x: (V, N, C).
            adjacency: (K, V, V).

        Returns:
            (V, N, C').
        """
        assert self.bias is not None
        weight = self.weight.view(self.n_partitions, -1, self.in_channels)  # (K, C', C)
        bias = self.bias.view(self.n_partitions, -1)  # (K, C')
        out = None
        for k, weigh in enumerate(adjacency):
            mixed = (weigh.T @ x.flatten(1)).view(-1, self.in_channels)  # (V N, C)
            out = mixed @ weight[k].T if out is None else torch.addmm(out, mixed, weight[k].T)  # (V N, C')
        assert out is not None
        return out.unflatten(0, x.shape[:2]) + torch.einsum("kc,kvw->wc", bias, adjacency)[:, None]


class TemporalConvolution(nn.Conv2d):
    """A convolution over time, separate for each joint, that does not cross clip boundaries.

    It subclasses Conv2d for the same reasons as `GraphConvolution`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=(TEMPORAL_KERNEL, 1))

    def forward(self, x: torch.Tensor, layout: ClipLayout) -> torch.Tensor:  # type: ignore[override]
        """(V, N, C) -> (V, N, C)."""
        assert self.bias is not None
        if winograd.suits(x):
            return winograd.convolve(x, self.weight.squeeze(3), layout.clips) + self.bias
        n_joints, n_frames, n_channels = x.shape
        n_clips, _ = layout.shape
        # One line of all frames, with REACH zeros before each clip and after the last, so that no window spans two.
        starts = torch.arange(n_frames, device=x.device) + REACH * layout.clips  # (N,), of each frame's window
        line = x.new_zeros(n_joints, n_frames + REACH * (n_clips + 1), n_channels)  # (V, line, C)
        line = line.index_copy(1, starts + REACH, x)
        line = line[None].permute(0, 3, 1, 2)  # (1, C, V, line), channels last in memory
        line = F.conv2d(line, self.weight.transpose(2, 3), self.bias)  # (1, C, V, line - 2 REACH)
        return line[0].permute(1, 2, 0).index_select(1, starts)  # (V, N, C)


class GraphUnit(nn.Module):
    """Graph convolution with a learned adjacency, batch normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, graph: str) -> None:
        super().__init__()
        self.A = nn.Parameter(adjacency(graph))
        self.conv = GraphConvolution(in_channels, out_channels, n_partitions=len(self.A))
        self.bn = nn.BatchNorm1d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(V, N, C) -> (V, N, C')."""
        x = self.conv(x, self.A)
        return normalised(self.bn, x).relu_().view_as(x)


def normalised(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Batch-normalise (V, N, C) over joints and frames; return rows (V N, C) that may be modified in place."""
    return norm(x.flatten(0, 1))


class STGCNBlock(nn.Module):
    """A graph unit, followed in temporal chains by a convolution over time, with a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, graph: str, temporal: bool) -> None:
        super().__init__()
        self.gcn = GraphUnit(in_channels, out_channels, graph)
        self.tcn = nn.ModuleList([TemporalConvolution(out_channels), nn.BatchNorm1d(out_channels)] if temporal else [])
        self.residual = nn.ModuleList(
            [nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm1d(out_channels)]
            if in_channels != out_channels
            else []
        )

    def forward(self, x: torch.Tensor, layout: ClipLayout) -> torch.Tensor:
        """(V, N, C) -> (V, N, C')."""
        shortcut = x.flatten(0, 1)  # (V N, C')
        if self.residual:
            project, norm = self.residual
            assert isinstance(project, nn.Conv2d)
            shortcut = normalised(norm, F.linear(x, project.weight.flatten(1), project.bias))
        x = self.gcn(x)
        if not self.tcn:
            return F.relu(x + shortcut.view_as(x))
        convolve, norm = self.tcn
        return normalised(norm, convolve(x, layout)).add_(shortcut).relu_().view_as(x)


class STGCNChain(nn.ModuleDict):
    """A sequence of blocks named layer{i}_{j}, as in the released weights."""

    @classmethod
    def spatial(cls, graph: str, hidden_dim: int) -> STGCNChain:
        """Build the per-frame chain: hidden_dim / 4 -> / 4 -> / 2 -> hidden_dim channels."""
        widths = [hidden_dim // 4, hidden_dim // 4, hidden_dim // 2, hidden_dim]
        return cls(
            {f"layer{i}_0": STGCNBlock(widths[i], widths[i + 1], graph, temporal=False) for i in range(3)},
        )

    @classmethod
    def temporal(cls, graph: str, hidden_dim: int) -> STGCNChain:
        """Build the chain over time: three blocks of hidden_dim channels."""
        return cls({f"layer0_{i}": STGCNBlock(hidden_dim, hidden_dim, graph, temporal=True) for i in range(3)})

    def forward(self, x: torch.Tensor, layout: ClipLayout) -> torch.Tensor:
        """(N, V, C) -> (N, V, hidden_dim)."""
        x = x.transpose(0, 1).contiguous()  # (V, N, C)
        for block in self.values():
            x = block(x, layout)
        return x.transpose(0, 1)
