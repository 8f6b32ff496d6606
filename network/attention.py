"""Words over frames: how much each frame counted for each word of a sentence, read from mT5's cross-attention.

Shapes: N sentences, L tokens, T frames, H attention heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from network.vocabulary import EOS, Tokenizer

# Scripts written without spaces: Thai and Lao, Burmese, Khmer, Japanese and Chinese.
SPACELESS = ("\u0e00", "\u0eff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff"), ("\u3040", "\u9fff"), ("\uf900", "\ufaff")


class Word(NamedTuple):
    """A word of a sentence, and the share of each frame in its attention, (T,), which sum to 1."""

    text: str
    frames: list[float]


class _CrossAttention(TorchFunctionMode):
    """Keeps the attention to the encoder's states that is computed within it, layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[torch.Tensor] = []  # (N, H, L, encoder states) each

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            q, k, _, bias = (x.float() for x in args[:4])
            if bias.shape[-2] == 1 < k.shape[-2]:  # without positions, unlike the bias between tokens
                self.layers.append((q @ k.transpose(-1, -2) * kwargs["scale"] + bias).softmax(-1))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def attention_to_frames(model: Any, encoded: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return how much each frame counted for each token, (N, L, T), as shares that sum to 1; 0 on padded frames.

    The mean over the heads of all layers of mT5's decoder, without the prompt. docs/INFERENCE.md says how well it
    points at the signs. `encoded` is the result of `model.encode` for N clips in evaluation mode; `labels`, (N, L), are
    the sentences' token ids.
    """
    with _CrossAttention() as attention:
        model.decode(encoded.encoder_states, encoded.attention_mask, labels)
    n_prompt = len(model.prompt())
    frames = torch.stack(attention.layers).mean((0, 2))[..., n_prompt:]  # (N, L, T)
    return frames / frames.sum(-1, keepdim=True)


def words(tokenizer: Tokenizer, ids: Sequence[int], shares: torch.Tensor) -> list[Word]:
    """Join a sentence's L token ids, without the start token, to words, with the mean of their shares, (L, T).

    A word ends at a space; in scripts without spaces each token is a word, as the vocabulary has it. Punctuation
    belongs to the word before it, without a share.
    """
    texts: list[str] = []
    rows: list[list[int]] = []
    before = ""
    for i in range(ids.index(EOS) if EOS in ids else len(ids)):
        text = tokenizer.decode(ids[: i + 1])
        new, before = text[len(before) :], text
        if not text:  # a space in front of the first word
            continue
        means = not new or any(map(str.isalnum, new))
        begins = new[:1].isspace() or _spaceless(new[:1]) or _spaceless(texts[-1][-1:] if texts else "")
        if not texts or (means and begins):
            texts.append(new.strip())
            rows.append([i])
        else:
            texts[-1] += new
            rows[-1] += [i] if means else []
    return [Word(text, shares[own].mean(0).tolist()) for text, own in zip(texts, rows, strict=True)]


def _spaceless(character: str) -> bool:
    return any(first <= character <= last for first, last in SPACELESS)
