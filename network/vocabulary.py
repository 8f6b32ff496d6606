"""Vocabulary trimming (`--trim_vocab`): choose tokens of mT5's 250,112, and move rows between vocabularies.

A trimmed model renumbers its tokens in the original order, as do `Tokenizer` and all matrices with a row per token.
The tensor `kept_tokens` among its weights stores each token's original id, for all readers of the weights. None means
all tokens.

Shapes: V tokens of the trimmed vocabulary, D mT5's d_model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch

from config import ModelConfig
from network.tokenizer import SPACE, Tokenizer

logger = logging.getLogger(__name__)

KEPT_TOKENS = "kept_tokens"  # name of the tensor among the weights
MATRICES = ("shared.weight", "embed_tokens.weight", "lm_head.weight")  # mT5's matrices with a row per token
MULTIPLE = 8  # the number of rows must be a multiple of this for fast bf16 products on a GPU

# ASCII, typographic and Chinese punctuation: general, CJK symbols, full-width forms.
CHARACTERS = {
    chr(code)
    for first, last in ((0x20, 0x7E), (0x2010, 0x2027), (0x2030, 0x203A), (0x3000, 0x3020), (0xFF01, 0xFF5E))
    for code in range(first, last + 1)
}


def choose(tokenizer: Tokenizer, texts: Iterable[str], also: torch.Tensor | None = None) -> torch.Tensor:
    """Choose the tokens that texts need, plus ASCII, punctuation, bytes and special tokens.

    Args:
        tokenizer: the full tokenizer.
        texts: texts that must be tokenised as before.
        also: further tokens to keep.

    Returns:
        (V,) int64, sorted; V is padded to a multiple of 8 with the vocabulary's first (most frequent) pieces.
    """
    pieces = tokenizer.pieces
    kept = set().union([] if also is None else also.tolist(), *map(pieces.encode, texts))
    lowest, lowest_score = -1, 0.0
    for token in range(len(pieces)):
        if pieces.is_unknown(token) or pieces.is_control(token) or pieces.is_byte(token):
            kept.add(token)
        elif not pieces.is_unused(token):
            piece, score = pieces.id_to_piece(token), pieces.get_score(token)
            if piece.removeprefix(SPACE) in CHARACTERS or piece == SPACE:
                kept.add(token)
            if score < lowest_score:
                lowest, lowest_score = token, score
    # The penalty of unknown characters depends on the lowest score: keep that piece, so that texts split as before.
    kept.add(max(lowest, 0))
    others = (token for token in range(len(pieces)) if token not in kept)
    kept |= {token for token, _ in zip(others, range(-len(kept) % MULTIPLE), strict=False)}
    return torch.tensor(sorted(kept))


def coverage(full: Tokenizer, kept: torch.Tensor, texts: Iterable[str]) -> tuple[int, int, int, int]:
    """Count how much of some texts a trimmed vocabulary tokenises like the full one.

    Returns:
        Numbers of tokens, kept tokens, texts, and texts with kept tokens only.
    """
    known = set(kept.tolist())
    tokens = inside = n_texts = whole = 0
    for text in texts:
        ids = full.pieces.encode(text)
        n_kept = sum(token in known for token in ids)
        tokens, inside = tokens + len(ids), inside + n_kept
        n_texts, whole = n_texts + 1, whole + (n_kept == len(ids))
    return tokens, inside, n_texts, whole


def log_coverage(full: Tokenizer, kept: torch.Tensor, groups: Mapping[str, Iterable[str]]) -> None:
    """Log the vocabulary's size and its coverage of other texts.

    Args:
        full: the full tokenizer.
        kept: (V,), the kept tokens.
        groups: title -> texts.
    """
    logger.info("vocabulary: %d of %d tokens are kept.", len(kept), len(full.pieces))
    for what, texts in groups.items():
        tokens, inside, n_texts, whole = coverage(full, kept, texts)
        rest = "; the others are written with smaller pieces or bytes" if inside < tokens else ""
        shares = 100 * inside / max(tokens, 1), tokens, 100 * whole / max(n_texts, 1), n_texts
        text = "vocabulary: %s: %.2f %% of %d tokens are kept, %.2f %% of %d texts have no other%s."
        logger.info(text, what, *shares, rest)


def matrices(weights: Mapping[str, torch.Tensor], config: ModelConfig) -> list[str]:
    """Return the names of weights with a row per token of mT5, including those of a text encoder from mT5."""
    modules = ("mt5_model.",) if config.text_encoder else ("mt5_model.", "text_encoder.encoder.")
    return [name for name in weights if name.startswith(modules) and name.endswith(MATRICES)]


def move_rows(
    rows: torch.Tensor, tokens: torch.Tensor | None, into: torch.Tensor, into_tokens: torch.Tensor | None
) -> torch.Tensor:
    """Copy rows of one vocabulary into a matrix of another; tokens missing from the first keep their rows.

    Args:
        rows: (V, D).
        tokens: (V,), original ids of the rows; None for all.
        into: (V', D); it is copied, not modified.
        into_tokens: (V',), original ids of `into`; None for all.

    >>> move_rows(torch.tensor([[4.0], [7.0]]), torch.tensor([4, 7]), torch.zeros(3, 1), torch.tensor([2, 4, 5])).T
    tensor([[0., 4., 0.]])
    """
    tokens = torch.arange(len(rows)) if tokens is None else tokens
    into_tokens = torch.arange(len(into)) if into_tokens is None else into_tokens
    places = torch.full((int(max(tokens.max(), into_tokens.max())) + 1,), -1)
    places[into_tokens] = torch.arange(len(into_tokens))
    targets = places[tokens]
    found = targets >= 0
    moved = into.clone()
    moved[targets[found]] = rows[found].to(into.dtype)
    return moved
