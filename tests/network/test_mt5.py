"""What is run otherwise than in transformers gives the same numbers."""

import copy

import pytest
import torch
from transformers import MT5Config, MT5ForConditionalGeneration

from network.mt5 import cross_attention_mask, run_encoder, use_fused_activation

LENGTHS = (11, 4, 7)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = MT5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, dropout_rate=0.0)
    return MT5ForConditionalGeneration(config).train()


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    return torch.randn(3, 11, 16), (torch.arange(11) < torch.tensor(LENGTHS)[:, None]).long()


def test_activation_is_the_same_formula(model):
    fused = copy.deepcopy(model)
    use_fused_activation(fused)
    act = fused.encoder.block[0].layer[-1].DenseReluDense.act
    assert isinstance(act, torch.nn.GELU)
    x = torch.linspace(-9, 9, 999)
    torch.testing.assert_close(act(x), model.encoder.block[0].layer[-1].DenseReluDense.act(x), rtol=1e-5, atol=1e-6)


def test_encoder_states_and_gradients_are_the_same(model, batch):
    embeds, mask = batch
    weight = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    results = []
    for run in (
        lambda x: run_encoder(model.encoder, x, mask),
        lambda x: model.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state,
    ):
        x = embeds.clone().requires_grad_()
        states = run(x)[mask.bool()]
        results.append((states, *torch.autograd.grad(states.pow(2).sum(), (x, weight))))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_padding_counts_for_nothing(model, batch):
    embeds, mask = batch
    states = run_encoder(model.encoder, embeds, mask)
    for i, n in enumerate(LENGTHS):
        alone = run_encoder(model.encoder, embeds[i : i + 1, :n], mask[i : i + 1, :n])
        torch.testing.assert_close(states[i, :n], alone[0], rtol=1e-4, atol=1e-5)


def test_decoder_takes_the_mask_as_it_takes_transformers_own(model, batch):
    states, mask = batch
    ids = torch.randint(60, (3, 5))
    own, plain = (
        model.decoder(input_ids=ids, encoder_hidden_states=states, encoder_attention_mask=m, use_cache=False)[0]
        for m in (cross_attention_mask(mask), mask)
    )
    torch.testing.assert_close(own, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(model, batch, dtype):
    with torch.autocast("cpu", dtype=dtype):
        assert run_encoder(model.encoder, *batch).isfinite().all()
