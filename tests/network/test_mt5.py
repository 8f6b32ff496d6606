"""What is run otherwise than in transformers gives the same numbers."""

import copy

import pytest
import torch
from transformers import MT5Config, MT5ForConditionalGeneration

from network.mt5 import run_decoder, run_encoder, use_fused_layers

LENGTHS = (11, 4, 7)


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    config = MT5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, dropout_rate=0.0)
    model = MT5ForConditionalGeneration(config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # the norms' weights too
    return model


@pytest.fixture(scope="module")
def fused(plain):
    model = copy.deepcopy(plain)
    use_fused_layers(model)
    return model


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    return torch.randn(3, 11, 16), (torch.arange(11) < torch.tensor(LENGTHS)[:, None]).long()


def gradients(states, stack, x):
    """The gradients of the input and of every weight that has one, by name."""
    weights = {name: weight for name, weight in stack.named_parameters() if "embed_tokens" not in name}
    found = torch.autograd.grad(states.pow(2).sum(), (x, *weights.values()))
    return dict(zip(("input", *weights), found, strict=True))


def test_names_and_weights_stay(plain, fused):
    assert list(fused.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(dict(fused.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    once = copy.deepcopy(fused)
    use_fused_layers(once)
    assert list(once.state_dict()) == list(plain.state_dict())


def test_encoder_states_and_gradients_are_the_same(plain, fused, batch):
    x, mask = batch[0].clone().requires_grad_(), batch[1]
    own = run_encoder(fused.encoder, x, mask)[mask.bool()]
    expected = plain.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    pair = gradients(own, fused.encoder, x), gradients(expected, plain.encoder, x)
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


def test_decoder_states_and_gradients_are_the_same(plain, fused, batch):
    x, mask = batch[0].clone().requires_grad_(), batch[1]
    ids = torch.randint(60, (3, 5))
    own = run_decoder(fused.decoder, fused.shared(ids), x, mask)
    expected = plain.decoder(
        input_ids=ids, encoder_hidden_states=x, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    pair = gradients(own, fused.decoder, x), gradients(expected, plain.decoder, x)
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


def test_padding_counts_for_nothing(fused, batch):
    embeds, mask = batch
    states = run_encoder(fused.encoder, embeds, mask)
    for i, n in enumerate(LENGTHS):
        alone = run_encoder(fused.encoder, embeds[i : i + 1, :n], mask[i : i + 1, :n])
        torch.testing.assert_close(states[i, :n], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_and_finite(fused, batch, dtype):
    """Products alone are rounded: what is added up along the layers stays in fp32, and so do the gradients."""
    x, mask = batch[0].clone().requires_grad_(), batch[1]
    exact = run_encoder(fused.encoder, x, mask)
    with torch.autocast("cpu", dtype=dtype):
        states = run_encoder(fused.encoder, x, mask)
        decoded = run_decoder(fused.decoder, batch[0][:, :5], states, mask)
    assert states.dtype == decoded.dtype == torch.float32
    assert decoded.isfinite().all()
    assert (states - exact).norm() < 0.03 * exact.norm()
    expected = gradients(exact, fused.encoder, x)
    for name, own in gradients(states, fused.encoder, x).items():
        assert own.dtype == torch.float32, name
        assert (own - expected[name]).norm() < 0.1 * expected[name].norm(), name
