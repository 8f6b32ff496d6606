"""The fast convolution against torch's own: values, gradients, and how much is lost to rounding."""

import pytest
import torch
import torch.nn.functional as F

from network import winograd
from network.winograd import convolve


def plainly(x, weight, lengths):
    """The same convolution by torch, one clip after the other."""
    clips = x.transpose(1, 2).split(lengths, dim=2)  # (V, C, T) each
    return torch.cat([F.conv1d(clip, weight, padding=2) for clip in clips], dim=2).transpose(1, 2)


def fast(x, weight, lengths):
    clips = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return convolve(x.flatten(0, 1), weight, clips).unflatten(0, (len(x), -1))


def results(form, x, weight, lengths):
    """The output, and the gradients of x and the weight."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = form(x, weight, lengths)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out.detach(), *torch.autograd.grad((out * target).sum(), [x, weight])


@pytest.mark.parametrize("lengths", [(1,), (4,), (9, 2, 5), (3, 4, 8, 7), (300, 1, 222)], ids=str)
@pytest.mark.parametrize(("n_in", "n_out"), [(3, 3), (2, 5)])
def test_it_is_the_convolution(lengths, n_in, n_out, monkeypatch):
    monkeypatch.setattr(winograd, "CHUNK", 64)
    torch.manual_seed(0)
    x = torch.randn(3, sum(lengths), n_in, dtype=torch.float64)
    weight = torch.randn(n_out, n_in, 5, dtype=torch.float64)
    for ours, plain in zip(*(results(form, x, weight, lengths) for form in (fast, plainly)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_clips_and_joints_share_no_tile(length):
    """Not even a NaN spreads from one to another, though it does to all frames of its tile."""
    lengths = (length, length, length)
    x = torch.zeros(3, 3 * length, 1)
    x[1, length : 2 * length] = float("nan")
    assert torch.equal(fast(x, torch.ones(1, 1, 5), lengths).isnan(), x.isnan())


def test_rounding_is_that_of_fp32():
    """As far from the exact result as torch's own convolution, within a factor of eight."""
    torch.manual_seed(0)
    lengths = (61, 40)
    x, weight = torch.randn(9, sum(lengths), 64).relu(), torch.randn(64, 64, 5) / 18
    exact = results(plainly, x.double(), weight.double(), lengths)
    ours, plain = results(fast, x, weight, lengths), results(plainly, x, weight, lengths)
    for value, other, truth in zip(ours, plain, exact, strict=True):
        error, usual = ((found - truth).norm() / truth.norm() for found in (value, other))
        assert error < 2e-6
        assert error < 8 * usual
