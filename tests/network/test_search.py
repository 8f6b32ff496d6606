"""The search finds what transformers' own finds, clip by clip and together, and works on open clips alone."""

import copy

import pytest
import torch
from torch import nn
from transformers import MT5Config, MT5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from network import search as search_module
from network.mt5 import load_mt5
from network.output_layer import OutputLayer
from network.search import search
from network.vocabulary import EOS, PAD


def up_to_end(ids):
    ids = ids.tolist()
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def make(seed, end=6.0, vocab_size=40):
    """A random mT5 that ends its sentences now and then, and clips of unequal length: (mT5, states, mask)."""
    torch.manual_seed(seed)
    config = MT5Config(
        vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=12,
        decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS,
    )  # fmt: skip
    mt5 = MT5ForConditionalGeneration(config).eval()
    mt5.lm_head.weight = nn.Parameter(mt5.shared.weight.detach().clone())
    for parameter in mt5.decoder.parameters():
        parameter.data *= 3
    mt5.lm_head.weight.data *= 0.5
    mt5.lm_head.weight.data[EOS] *= end
    mt5.lm_head = OutputLayer(mt5.lm_head.weight)
    lengths = torch.randint(3, 12, (6,))
    states = torch.randn(6, 12, 32)
    return mt5, states, (torch.arange(12) < lengths[:, None]).long()


def theirs(mt5, states, mask, num_beams, max_new_tokens, n_best=1):
    return mt5.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=mask,
        num_beams=num_beams,
        num_return_sequences=n_best,
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )


@torch.no_grad()
@pytest.mark.parametrize(("num_beams", "n_best"), [(1, 1), (2, 1), (4, 1), (4, 4), (7, 3)])
def test_hypotheses_are_those_of_transformers(num_beams, n_best):
    lengths = set()
    for seed, end in enumerate((3.0, 6.0, 9.0, 40.0, 0.0)):  # with 40 an end comes first, with 0 it never comes
        mt5, states, mask = make(seed, end)
        for limit in (1, 5, 40):
            expected = theirs(mt5, states, mask, num_beams, limit, n_best)
            found = search(mt5, states, mask, num_beams, limit, n_best)
            assert list(map(up_to_end, found)) == list(map(up_to_end, expected)), (seed, limit)
            assert found.shape[1] <= limit + 1
            lengths |= {len(up_to_end(row)) for row in found}
    assert len(lengths) > 5  # some end early, some late, some are cut
    assert max(lengths) == 41


@torch.no_grad()
def test_more_beams_than_tokens_are_refused():
    mt5, states, mask = make(0, vocab_size=6)
    search(mt5, states, mask, 3, 4)
    with pytest.raises(ValueError, match="--num_beams 4: must be at most half of the model's 6 tokens"):
        search(mt5, states, mask, 4, 4)


@torch.no_grad()
def test_a_clip_alone_and_in_any_company():
    mt5, states, mask = make(4)
    together = list(map(up_to_end, search(mt5, states, mask, 4, 40)))
    assert len(set(map(len, together))) > 2
    order = [5, 2, 0, 3, 1, 4]
    assert [together[i] for i in order] == list(map(up_to_end, search(mt5, states[order], mask[order], 4, 40)))
    for i in range(6):
        n = int(mask[i].sum())
        assert up_to_end(search(mt5, states[i : i + 1, :n], mask[i : i + 1, :n], 4, 40)[0]) == together[i]


@torch.no_grad()
def test_clips_that_are_done_leave(monkeypatch):
    """The work is the sum of what each clip needs alone, not the longest for all."""
    mt5, states, mask = make(2)
    rows = []
    step = search_module._Decoder.step
    monkeypatch.setattr(
        search_module._Decoder, "step", lambda self, tokens: rows.append(len(tokens)) or step(self, tokens)
    )
    alone = []
    for i in range(6):
        search(mt5, states[i : i + 1], mask[i : i + 1], 4, 40)
        alone.append(len(rows))
        rows.clear()
    search(mt5, states, mask, 4, 40)
    assert sum(rows) == sum(alone)
    assert len(rows) == max(alone) > min(alone)
    assert rows == sorted(rows, reverse=True)


@torch.no_grad()
def test_a_real_tokenizers_model_in_lower_precision(small_mt5_folder):
    """With autocast both forms round in their own places: scores differ in the third digit, so few sentences do."""
    mt5 = load_mt5(small_mt5_folder).eval()
    torch.manual_seed(0)
    states, mask = torch.randn(12, 9, 32), torch.ones(12, 9, dtype=torch.long)
    plain = copy.deepcopy(mt5)
    mt5.lm_head = OutputLayer(mt5.lm_head.weight)
    assert list(map(up_to_end, search(mt5, states, mask, 4, 20))) == list(
        map(up_to_end, theirs(plain, states, mask, 4, 20))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = search(mt5, states, mask, 4, 20), theirs(plain, states, mask, 4, 20)
    same = sum(up_to_end(a) == up_to_end(b) for a, b in zip(found, expected, strict=True))
    assert same > 6
