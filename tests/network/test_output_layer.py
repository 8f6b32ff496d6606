"""The loss over the vocabulary against torch's own, value and gradients, in every precision and chunking."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from network import output_layer
from network.output_layer import OutputLayer

N, V, D = 23, 57, 8


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(output_layer, "CHUNK", 5 * V)  # 23 tokens are four chunks of 5 and one of 3


def inputs(dtype=torch.float32):
    states = torch.randn(N, D, dtype=dtype, requires_grad=True)
    weight = nn.Parameter(torch.randn(V, D, dtype=dtype))
    return states, weight, torch.randint(V, (N,))


def plain(states, weight, targets, smoothing):
    logits = F.linear(states, weight)
    return F.cross_entropy(logits, targets, label_smoothing=smoothing), F.cross_entropy(logits, targets)


def gradients(loss, *values):
    return torch.autograd.grad(loss, values)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_is_torchs(dtype, smoothing):
    states, weight, targets = inputs(dtype)
    loss, nll = OutputLayer(weight)(states, targets, smoothing)
    expected, expected_nll = plain(states, weight, targets, smoothing)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, expected_nll)
    assert not nll.requires_grad
    # A loss that is scaled, as accumulation and fp16 do it.
    torch.testing.assert_close(gradients(3 * loss, states, weight), gradients(3 * expected, states, weight))


@pytest.mark.parametrize("frozen", ["weight", "states"])
def test_what_is_frozen_gets_no_gradient(frozen):
    states, weight, targets = inputs()
    (weight if frozen == "weight" else states).requires_grad_(False)
    loss, _ = OutputLayer(weight)(states, targets, 0.1)
    loss.backward()
    expected, _ = plain(states, weight, targets, 0.1)
    trained = states if frozen == "weight" else weight
    torch.testing.assert_close(trained.grad, gradients(expected, trained)[0])
    assert (weight if frozen == "weight" else states).grad is None


def test_without_gradient_no_gradient_is_made(monkeypatch):
    states, weight, targets = inputs()
    monkeypatch.setattr(torch.Tensor, "scatter_add_", lambda *_: pytest.fail("a gradient was made"))
    with torch.no_grad():
        loss, nll = OutputLayer(weight)(states, targets, 0.2)
    torch.testing.assert_close((loss, nll), plain(states, weight, targets, 0.2))


def test_under_autocast_products_alone_are_rounded():
    states, weight, targets = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = OutputLayer(weight)(states, targets, 0.2)
    rounded = [value.detach().bfloat16().double().requires_grad_() for value in (states, weight)]
    expected, _ = plain(*rounded, targets, 0.2)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-2, atol=1e-2)
    for own, other in zip(gradients(loss, states, weight), gradients(expected, *rounded), strict=True):
        assert own.dtype == torch.float32
        assert (own.double() - other).norm() < 0.01 * other.norm()


def test_half_precision_keeps_small_slopes(monkeypatch):
    """Divided by the number of tokens the slopes would be lost in fp16; they are divided in fp32."""
    states, weight, _ = inputs()
    many = 4096
    targets = torch.randint(V, (many,))
    monkeypatch.setattr(output_layer, "CHUNK", many * V)
    wide = (1e-3 * torch.randn(many, D)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        loss, _ = OutputLayer(weight)(wide, targets, 0.2)
    expected, _ = plain(wide, weight, targets, 0.2)
    own, other = gradients(loss, wide)[0], gradients(expected, wide)[0]
    assert (own - other).norm() < 0.01 * other.norm()


def test_gradients_are_used_once():
    states, weight, targets = inputs()
    loss, _ = OutputLayer(weight)(states, targets, 0.2)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="used up"):
        loss.backward()
