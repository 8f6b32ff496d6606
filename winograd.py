"""The convolution over time on a CPU: two fifths of the multiplications that it seems to need.

Four frames of output depend on eight of input. Both are seen as polynomials, multiplied at eight points instead of term
by term: 8 products of C x C' a channel pair where the definition has 20. Frames lie in four planes, frame r in row
r // 4 of plane r % 4: then moving to the points and back are matrix products of whole planes, as all the rest is.
The rounding errors are those of fp32 by the other way too; in lower precision they would grow, so that is not for here.

Letters: V joints, N frames of all clips, C channels, T tiles of four frames.

Source: Winograd (1980); Lavin and Gray (2016), "Fast Algorithms for Convolutional Neural Networks": F(4, 5).
"""

from __future__ import annotations

from typing import Any

import torch

KERNEL = 5
TILE = 4
POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)  # and infinity
CHUNK = 256  # tiles that are worked on at a time: what is between stays in the processor's cache


def _powers(degree: int) -> torch.Tensor:
    """Evaluates a polynomial of so many coefficients at all points, (8, degree)."""
    at_infinity = [0.0] * (degree - 1) + [1.0]
    return torch.tensor([*([point**i for i in range(degree)] for point in POINTS), at_infinity], dtype=torch.float64)


_SCALE = _powers(KERNEL).abs().sum(1, keepdim=True)  # kernels at large points get no larger than at small ones
OF_KERNEL = _powers(KERNEL) / _SCALE  # (8, 5)
OF_FRAMES = torch.linalg.inv(_powers(TILE + KERNEL - 1)).T * _SCALE  # (8, 8)
TO_FRAMES = _powers(TILE).T.contiguous()  # (4, 8)


def precise_on_cpu(x: torch.Tensor) -> bool:
    """Whether this is the way to convolve x: a GPU has a fast one of its own, and bf16 would round too much here."""
    lower = torch.is_autocast_enabled("cpu") or x.dtype not in (torch.float32, torch.float64)
    return x.device.type == "cpu" and not lower


def convolve(x: torch.Tensor, weight: torch.Tensor, slots: torch.Tensor, length: int) -> torch.Tensor:
    """Convolve the frames of each joint with a kernel of five.

    Args:
        x: (V, N, C).
        weight: (C', C, 5).
        slots: (N,) where each frame stands on a line of zeros; the first two and the last two places are free.
        length: of the line; a multiple of `TILE`.

    Returns:
        (V, N, C').
    """
    n_joints, n_frames, n_channels = x.shape
    n_tiles = n_joints * length // TILE
    rows = (torch.arange(n_joints, device=x.device)[:, None] * length + slots).flatten()  # (V N,), of one long line
    planes = x.new_zeros(TILE * (n_tiles + 1), n_channels)  # one tile more, into which the last one reaches
    planes = planes.index_copy(0, rows % TILE * (n_tiles + 1) + rows // TILE, x.flatten(0, 1))
    out = _Convolution.apply(planes.unflatten(0, (TILE, -1)), weight.permute(2, 1, 0))  # (4, T, C')
    rows = rows - KERNEL // 2
    return out.flatten(0, 1).index_select(0, rows % TILE * n_tiles + rows // TILE).view(n_joints, n_frames, -1)


class _Convolution(torch.autograd.Function):
    """(4, T + 1, C) planes and a (5, C, C') kernel -> (4, T, C'); row i of the output begins at row i of the input.

    Torch declares both functions for any arguments; naming them is what the type check calls an override.
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
    """The eight frames that each tile's output depends on, seen at the points, (8, chunk, C)."""
    own, following = OF_FRAMES.to(planes).split(TILE, dim=1)
    seen = own @ planes[:, tiles].flatten(1)
    return seen.addmm_(following, planes[:, _next(tiles)].flatten(1)).unflatten(1, (-1, planes.shape[2]))


def _product(matrix: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """(m, n) times n planes -> m planes."""
    return (matrix.to(planes) @ planes.flatten(1)).unflatten(1, planes.shape[1:])
