"""Convolution over time for CPUs, in two fifths of the multiplications of the direct form: Winograd's F(4, 5).

Four frames of output depend on eight frames of input. These eight and the kernel's five are each transformed to eight
values, which are multiplied pairwise; the products are transformed to the four outputs. That is 8 products per pair of
channels instead of 20. In fp32 the rounding errors are as small as those of direct convolution; in lower precision they
would grow, so it is not used there.

The clips of all joints are laid out on one line of frames, which is divided into tiles of four. Frame i of the line is
in row i // 4 of plane i % 4, so that the transforms are matrix products of whole planes.

Shapes: V joints, B clips, N frames of all clips, C channels, M tiles.

Source: Winograd (1980); Lavin and Gray (2016), "Fast Algorithms for Convolutional Neural Networks".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

KERNEL = 5
TILE = 4
POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)  # and infinity
FEWEST = 32  # channels; with 16 torch's own convolution takes 0.6 of the time, with 128 twice the time
CHUNK = 256  # tiles processed at a time, so that intermediate results stay in the CPU cache


def _powers(degree: int) -> torch.Tensor:
    """Return the matrix that evaluates a polynomial with `degree` coefficients at all points, (8, degree)."""
    at_infinity = [0.0] * (degree - 1) + [1.0]
    return torch.tensor([*([point**i for i in range(degree)] for point in POINTS), at_infinity], dtype=torch.float64)


# Multiplying polynomials by their values at points, transposed.
_SCALE = _powers(KERNEL).abs().sum(1, keepdim=True)  # keeps kernel values at large points small
KERNEL_TRANSFORM = _powers(KERNEL) / _SCALE  # (8, 5)
INPUT_TRANSFORM = torch.linalg.inv(_powers(TILE + KERNEL - 1)).T * _SCALE  # (8, 8)
OUTPUT_TRANSFORM = _powers(TILE).T.contiguous()  # (4, 8)


def suits(x: torch.Tensor) -> bool:
    """Return whether to use this method for x, (V N, C): not on GPUs, which have a fast one, for few channels, where
    it is slower, in bf16 (rounding errors), or compiled.
    """
    lower = torch.is_autocast_enabled("cpu") or x.dtype not in (torch.float32, torch.float64)
    return x.device.type == "cpu" and x.shape[1] >= FEWEST and not lower and not torch.compiler.is_compiling()


def convolve(x: torch.Tensor, weight: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
    """Convolve the frames of each clip and joint with a kernel of size 5, with zeros beyond the clip's ends.

    Args:
        x: (V N, C), all frames of the first joint, then those of the next.
        weight: (C', C, 5).
        clips: (N,), each frame's clip, ascending.

    Returns:
        (V N, C').
    """
    line, joint_tiles = _line(clips)  # (N,)
    first_tiles = joint_tiles * torch.arange(len(x) // len(clips))  # (V,), of each joint
    n_tiles = joint_tiles * len(first_tiles)
    planes = x.new_zeros(TILE * n_tiles, x.shape[1])  # (4 M, C)
    planes = planes.index_copy(0, _rows(line, first_tiles, n_tiles), x).unflatten(0, (TILE, -1))  # (4, M, C)
    planes = _Convolution.apply(planes, weight.permute(2, 1, 0))  # (4, M - 1, C')
    starts = line - KERNEL // 2  # (N,), of each frame's window
    return planes.flatten(0, 1).index_select(0, _rows(starts, first_tiles, n_tiles - 1))  # (V N, C')


def _line(clips: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the position of each frame of one joint on the line, (N,), and the joint's number of tiles.

    Every clip begins with a tile, and a tile of zeros lies before and after it. So two neighbouring tiles never hold
    frames of two clips, and a clip's rounding does not depend on the rest of the batch.
    """
    lengths = torch.bincount(clips)  # (B,)
    tiles = 1 + (lengths + TILE - 1) // TILE  # (B,), of each clip, after one of zeros
    moved = TILE * (tiles.cumsum(0) - tiles + 1) - (lengths.cumsum(0) - lengths)  # (B,), from the packed frames
    return torch.arange(len(clips)) + moved[clips], int(tiles.sum()) + 1


def _rows(line: torch.Tensor, first_tiles: torch.Tensor, n_tiles: int) -> torch.Tensor:
    """Return the rows of all joints' positions, (V N,), in planes of n_tiles rows stored one after another."""
    return (first_tiles[:, None] + line % TILE * n_tiles + line // TILE).flatten()


class _Convolution(torch.autograd.Function):
    """Convolve (4, M, C) planes with a (5, C, C') kernel to (4, M - 1, C'): output i depends on inputs i to i + 4."""

    @staticmethod
    def forward(ctx: Any, planes: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        kernels = _product(KERNEL_TRANSFORM, kernel)  # (8, C, C')
        out = planes.new_empty(TILE, planes.shape[1] - 1, kernel.shape[2])  # (4, M - 1, C')
        for tiles, following in _chunks(planes):
            x = _transformed(planes[:, tiles], planes[:, following])  # (8, chunk, C)
            x = torch.bmm(x, kernels)  # (8, chunk, C')
            out[:, tiles] = _product(OUTPUT_TRANSFORM, x)  # (4, chunk, C')
        ctx.save_for_backward(planes, kernels)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        planes, kernels = ctx.saved_tensors
        grad_planes, grad_kernels = torch.zeros_like(planes), torch.zeros_like(kernels)
        for tiles, following in _chunks(planes):
            x = _transformed(planes[:, tiles], planes[:, following])  # (8, chunk, C)
            grad_out = _product(OUTPUT_TRANSFORM.T, grad[:, tiles])  # (8, chunk, C')
            grad_kernels.baddbmm_(x.mT, grad_out)  # (8, C, C')
            grad_x = _product(INPUT_TRANSFORM.T, torch.bmm(grad_out, kernels.mT))  # (8, chunk, C)
            grad_planes[:, tiles] += grad_x[:TILE]
            grad_planes[:, following] += grad_x[TILE:]
        return grad_planes, _product(KERNEL_TRANSFORM.T, grad_kernels)


def _chunks(planes: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the tiles of each chunk, and the tiles that follow each of them."""
    last = planes.shape[1] - 1
    for start in range(0, last, CHUNK):
        stop = min(start + CHUNK, last)
        yield slice(start, stop), slice(start + 1, stop + 1)


def _transformed(tiles: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Transform each tile's eight input frames, its own four and the four after them, (8, chunk, C)."""
    of_own, of_following = INPUT_TRANSFORM.to(tiles).split(TILE, dim=1)  # (8, 4) each
    x = (of_own @ tiles.flatten(1)).addmm_(of_following, following.flatten(1))  # (8, chunk C)
    return x.unflatten(1, tiles.shape[1:])


def _product(matrix: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """Multiply an (m, n) matrix by n planes; return m planes."""
    return (matrix.to(planes) @ planes.flatten(1)).unflatten(1, planes.shape[1:])
