"""Words over frames."""

import pytest
import torch

from clips.batch import Sample, collate_fn
from models import IGNORE, tokens_before
from network.attention import attention_to_frames, words
from network.vocabulary import EOS
from pose.keypoints import PART_JOINTS
from tests.helpers.models import as_in_transformers, new_model


def test_the_shares_are_those_of_transformers(small_mt5_folder):
    torch.manual_seed(0)
    model = new_model(small_mt5_folder)
    poses = [{part: torch.rand(n, len(joints), 3) for part, joints in PART_JOINTS.items()} for n in (9, 5)]
    src_input, tgt_input = collate_fn(
        [Sample("", pose, text, "", {}, None, None) for pose, text in zip(poses, "早安", strict=True)]
    )
    labels = model.labels(tgt_input["gt_sentence"])
    encoded = model.encode(src_input)
    shares = attention_to_frames(model, encoded, labels)

    mt5 = as_in_transformers(model.mt5_model)
    mt5.set_attn_implementation("eager")
    found = mt5.decoder(
        input_ids=tokens_before(labels), encoder_hidden_states=encoded.encoder_states,
        encoder_attention_mask=encoded.attention_mask, output_attentions=True, use_cache=False,
    ).cross_attentions  # fmt: skip
    expected = torch.stack(found).mean((0, 2))[..., len(model.prompt()) :]
    torch.testing.assert_close(shares, expected / expected.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert shares[1, :, 5:].abs().max() == 0
    torch.testing.assert_close(shares.sum(-1), torch.ones(labels.shape))
    assert IGNORE not in labels[:, 0]
    assert attention_to_frames(model, encoded, labels[:, :1]).shape == (2, 1, 9)  # both sentences are empty


class Pieces:
    """A tokenizer whose ids count its pieces from 2."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, ids):
        return "".join(self.pieces[i - 2] for i in ids).replace("▁", " ").strip()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ("▁Die ▁Kin der ▁essen .", {"Die": [0], "Kinder": [1, 2], "essen.": [3]}),
        ("▁ 我 今天 想 在 学校 。", {"我": [1], "今天": [2], "想": [3], "在": [4], "学校。": [5]}),
        ("▁ 他 用 Py thon ▁3 ?", {"他": [1], "用": [2], "Python": [3, 4], "3?": [5]}),
        ("▁나는 ▁학교 에", {"나는": [0], "학교에": [1, 2]}),
    ],
)
def test_tokens_are_joined_to_words(pieces, expected):
    pieces = pieces.split()
    ids = [*range(2, 2 + len(pieces)), EOS, 0]
    shares = torch.eye(len(ids))
    found = words(Pieces(pieces), ids, shares)
    assert [word.text for word in found] == list(expected)
    for word, rows in zip(found, expected.values(), strict=True):
        assert word.frames == pytest.approx(shares[rows].mean(0).tolist())
