"""Winograd convolution over time for CPUs, with two fifths of the multiplications of the direct method.

Four output frames depend on eight input frames. Input and kernel are treated as polynomials and multiplied at eight
points: 8 products per pair of channels instead of 20. Frames are stored in four planes, frame r in row r // 4 of
plane r % 4, so that all transforms are matrix products of whole planes. In fp32 the rounding errors are as small as
those of direct convolution; in lower precision they would grow, so it is not used there.

Shapes: V joints, N frames of all clips, C channels, T tiles of four frames.

Source: Winograd (1980); Lavin and Gray (2016), "Fast Algorithms for Convolutional Neural Networks": F(4, 5).
"""

from __future__ import annotations

from typing import Any

import torch

KERNEL = 5
TILE = 4
POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)  # and infinity
CHUNK = 256  # tiles processed at a time, so that intermediate results stay in the CPU cache


def _powers(degree: int) -> torch.Tensor:
    """Return the matrix that evaluates a polynomial with `degree` coefficients at all points, (8, degree)."""
    at_infinity = [0.0] * (degree - 1) + [1.0]
    return torch.tensor([*([point**i for i in range(degree)] for point in POINTS), at_infinity], dtype=torch.float64)


_SCALE = _powers(KERNEL).abs().sum(1, keepdim=True)  # keeps kernel values at large points small
OF_KERNEL = _powers(KERNEL) / _SCALE  # (8, 5)
OF_FRAMES = torch.linalg.inv(_powers(TILE + KERNEL - 1)).T * _SCALE  # (8, 8)
TO_FRAMES = _powers(TILE).T.contiguous()  # (4, 8)


def suits(x: torch.Tensor) -> bool:
    """Return whether to use this method for x: not on GPUs, which have a fast one, nor in bf16 (rounding errors)."""
    lower = torch.is_autocast_enabled("cpu") or x.dtype not in (torch.float32, torch.float64)
    return x.device.type == "cpu" and not lower


def convolve(x: torch.Tensor, weight: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
    """Convolve the frames of each clip and joint with a kernel of size 5, with zeros beyond a clip's ends.

    Args:
        x: (V, N, C).
        weight: (C', C, 5).
        clips: (N,), the index of each frame's clip, ascending.

    Returns:
        (V, N, C').
    """
    n_joints, n_frames, n_channels = x.shape
    frames, n_tiles = _line(clips, n_joints)  # (V N,)
    line = x.new_zeros(TILE * n_tiles, n_channels).index_copy(0, _rows(frames, n_tiles), x.flatten(0, 1))
    out = _Convolution.apply(line.unflatten(0, (TILE, -1)), weight.permute(2, 1, 0))  # (4, T - 1, C')
    out = out.flatten(0, 1).index_select(0, _rows(frames - KERNEL // 2, n_tiles - 1))  # (V N, C')
    return out.view(n_joints, n_frames, -1)


def _line(clips: torch.Tensor, n_joints: int) -> tuple[torch.Tensor, int]:
    """Place all joints' clips on one line of tiles; return the position of each frame, (V N,), and the number of tiles.

    No tile holds frames of two clips, and a tile of zeros is before, between and after clips. So a clip's rounding does
    not depend on the rest of the batch.
    """
    lengths = torch.bincount(clips)  # (B,)
    tiles = (lengths + TILE - 1) // TILE + 1  # (B,), each clip's and one of zeros
    moved = TILE * (tiles.cumsum(0) - tiles + 1) - (lengths.cumsum(0) - lengths)  # (B,)
    n_tiles = int(tiles.sum()) + 1  # of one joint
    frames = torch.arange(len(clips)) + moved[clips]  # (N,), of the first joint
    return (TILE * n_tiles * torch.arange(n_joints)[:, None] + frames).flatten(), n_joints * n_tiles


def _rows(positions: torch.Tensor, n_tiles: int) -> torch.Tensor:
    """Return the row of each position in the flattened planes of a line."""
    return positions % TILE * n_tiles + positions // TILE


class _Convolution(torch.autograd.Function):
    """Convolve (4, T, C) planes with a (5, C, C') kernel to (4, T - 1, C'); output row i begins at input row i.

    The type: ignore comments are needed because torch declares both methods with arbitrary arguments.
    """

    @staticmethod
    def forward(ctx: Any, planes: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        kernels = _product(OF_KERNEL, kernel)  # (8, C, C')
        out = planes.new_empty(TILE, planes.shape[1] - 1, kernel.shape[2])
        for tiles in _chunks(planes):
            at_points = torch.bmm(_at_points(planes, tiles), kernels)  # (8, chunk, C')
            out[:, tiles] = _product(TO_FRAMES, at_points)
        ctx.save_for_backward(planes, kernels)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        planes, kernels = ctx.saved_tensors
        of_planes, of_kernels = torch.zeros_like(planes), torch.zeros_like(kernels)
        for tiles in _chunks(planes):
            at_points = _product(TO_FRAMES.T, grad[:, tiles])  # (8, chunk, C')
            of_kernels.baddbmm_(_at_points(planes, tiles).transpose(1, 2), at_points)
            of_tiles = _product(OF_FRAMES.T, torch.bmm(at_points, kernels.transpose(1, 2)))  # (8, chunk, C)
            of_planes[:, tiles] += of_tiles[:TILE]
            of_planes[:, _next(tiles)] += of_tiles[TILE:]
        return of_planes, _product(OF_KERNEL.T, of_kernels)


def _chunks(planes: torch.Tensor) -> list[slice]:
    n_tiles = planes.shape[1] - 1
    return [slice(start, min(start + CHUNK, n_tiles)) for start in range(0, n_tiles, CHUNK)]


def _next(tiles: slice) -> slice:
    return slice(tiles.start + 1, tiles.stop + 1)


def _at_points(planes: torch.Tensor, tiles: slice) -> torch.Tensor:
    """Evaluate each tile's eight input frames at the points, (8, chunk, C)."""
    own, following = OF_FRAMES.to(planes).split(TILE, dim=1)
    seen = own @ planes[:, tiles].flatten(1)
    return seen.addmm_(following, planes[:, _next(tiles)].flatten(1)).unflatten(1, (-1, planes.shape[2]))


def _product(matrix: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """Multiply an (m, n) matrix by n planes; return m planes."""
    return (matrix.to(planes) @ planes.flatten(1)).unflatten(1, planes.shape[1:])
