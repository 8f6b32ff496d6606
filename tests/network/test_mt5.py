"""Loading mT5; and what is run otherwise than in transformers gives the same numbers."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MT5Config, MT5ForConditionalGeneration

from network.mt5 import load_mt5, run_decoder, run_encoder, use_fused_layers

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


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def change(small_mt5_folder, tmp_path):
    """Copy the mT5 folder, with other weights or another config.json: `change(weights, key=value)` edits them."""
    folder = shutil.copytree(small_mt5_folder, tmp_path / "mt5")

    def apply(edit=lambda weights: None, **config):
        weights = load_file(small_mt5_folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        content = json.loads((small_mt5_folder / "config.json").read_text(encoding="utf-8")) | config
        (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    return apply


def test_every_weight_is_the_files(small_mt5_folder):
    """Above all the output layer, which transformers would replace by the embeddings."""
    mt5, weights = load_mt5(small_mt5_folder), load_file(small_mt5_folder / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"], weights["shared.weight"])
    own = mt5.state_dict()
    assert all(torch.equal(own[name], value) for name, value in weights.items())
    assert set(own) - set(weights) == {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    for half in (mt5.encoder, mt5.decoder):
        assert half.embed_tokens.weight is mt5.shared.weight


def test_without_weights_the_output_layer_is_one_of_its_own(small_mt5_folder):
    mt5 = load_mt5(small_mt5_folder, with_weights=False)
    assert mt5.lm_head.weight is not mt5.shared.weight
    assert mt5.encoder.embed_tokens.weight is mt5.decoder.embed_tokens.weight is mt5.shared.weight


def test_all_that_does_not_fit_is_told_at_once(change):
    def drop(weights):
        for name in ("lm_head.weight", "encoder.final_layer_norm.weight"):
            del weights[name]

    with pytest.raises(ValueError, match="missing: encoder.final_layer_norm.weight, lm_head.weight. Get its files"):
        load_mt5(change(drop))
    with pytest.raises(ValueError, match=r"no pair; unknown: decoder\.block\.1\..* and 8 more\. Get its files again"):
        load_mt5(change(num_decoder_layers=1))
    with pytest.raises(ValueError, match=r"missing: encoder\.block\.2\..*; unknown: decoder\.block\.1\."):
        load_mt5(change(num_layers=3, num_decoder_layers=1))
    with pytest.raises(
        ValueError, match=r"of another shape: decoder\.block.* \(32, 32\) for \(32, 24\),.* and \d+ more"
    ):
        load_mt5(change(d_model=24))
    with pytest.raises(ValueError, match=r"mt5: NaN or infinity in shared\.weight\. Get its files again.*--mt5_path"):
        load_mt5(change(lambda weights: weights["shared.weight"][3].fill_(torch.nan)))
    for with_weights in (False, True):
        with pytest.raises(ValueError, match="config.json .*damaged"):
            load_mt5(change(d_model=10**14), with_weights=with_weights)
    assert load_mt5(change()).config.d_model == 32
    folder = change()
    (folder / "generation_config.json").write_text('{"num_beams": 7}')  # not read
    assert load_mt5(folder).generation_config.num_beams != 7


LFS = "version https://git-lfs.github.com/spec/v1\n"


@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        ({}, FileNotFoundError, r"mt5/config\.json does not exist"),
        ({"config.json": '{"model_type": "t5"}'}, ValueError, r"config\.json: model_type is 't5'"),
        ({"config.json": "["}, ValueError, "model_type is None"),
        ({"config.json": '{"model_type": "mt5"}'}, FileNotFoundError, r"model\.safetensors"),
        ({"config.json": '{"model_type": "mt5"}', "model.safetensors": LFS}, ValueError, "damaged or no pair"),
    ],
)
def test_what_is_no_mt5_is_refused_in_one_line(tmp_path, files, kind, words):
    (tmp_path / "mt5").mkdir()
    for name, content in files.items():
        (tmp_path / "mt5" / name).write_text(content, encoding="utf-8")
    with pytest.raises(kind, match=f"{words}.*--mt5_path") as error:
        load_mt5(tmp_path / "mt5")
    assert "\n" not in str(error.value)
