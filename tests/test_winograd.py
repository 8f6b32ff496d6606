"""The fast convolution against torch's own: values, gradients, and how much is lost to rounding."""

import pytest
import torch
import torch.nn.functional as F

import winograd
from winograd import TILE, convolve


def clips_on_a_line(lengths):
    """Where the frames of clips stand, and how long the line is; what is between is wider than it has to be."""
    slots, begin = [], TILE
    for n in lengths:
        slots += range(begin, begin + n)
        begin += n + 4
    return torch.tensor(slots), -(-begin // TILE) * TILE


def plainly(x, weight, slots, length):
    line = x.new_zeros(len(x), length, x.shape[2]).index_copy(1, slots, x)
    out = F.conv1d(line.transpose(1, 2), weight, padding=2)
    return out.transpose(1, 2)[:, slots]


def results(form, x, weight, slots, length):
    """The output, and the gradients of x and the weight."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = form(x, weight, slots, length)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out.detach(), *torch.autograd.grad((out * target).sum(), [x, weight])


@pytest.mark.parametrize("lengths", [(1,), (4,), (9, 2, 5), (300, 1, 222)])
@pytest.mark.parametrize(("n_in", "n_out"), [(3, 3), (2, 5)])
def test_it_is_the_convolution(lengths, n_in, n_out, monkeypatch):
    monkeypatch.setattr(winograd, "CHUNK", 64)
    torch.manual_seed(0)
    slots, length = clips_on_a_line(lengths)
    x = torch.randn(3, len(slots), n_in, dtype=torch.float64)
    weight = torch.randn(n_out, n_in, 5, dtype=torch.float64)
    for ours, plain in zip(*(results(form, x, weight, slots, length) for form in (convolve, plainly)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_rounding_is_that_of_fp32():
    """As far from the exact result as torch's own convolution, within a factor of eight."""
    torch.manual_seed(0)
    slots, length = clips_on_a_line((61, 40))
    x, weight = torch.randn(9, len(slots), 64).relu(), torch.randn(64, 64, 5) / 18
    exact = results(plainly, x.double(), weight.double(), slots, length)
    ours, plain = results(convolve, x, weight, slots, length), results(plainly, x, weight, slots, length)
    for value, other, truth in zip(ours, plain, exact, strict=True):
        error, usual = ((found - truth).norm() / truth.norm() for found in (value, other))
        assert error < 2e-6
        assert error < 8 * usual


def test_size_of_the_work():
    """Eight products of matrices for four frames of output, where the definition has twenty."""
    slots, length = torch.arange(4, 1020), 1024
    x, weight = torch.randn(1, len(slots), 64), torch.randn(64, 64, 5)
    seen = []
    bmm = torch.bmm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "bmm", lambda a, b: seen.append(a.shape[0] * a.shape[1]) or bmm(a, b))
        convolve(x, weight, slots, length)
    assert sum(seen) == 2 * length
