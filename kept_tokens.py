"""Which of mT5's 250,112 tokens a model has (`--trim_vocab`), and moving their rows between vocabularies.

A trimmed model numbers its tokens anew, in the old order; `Tokenizer` and the matrices that have a row per token go
with it. The tensor `kept_tokens` among its weights holds the full number of each of its tokens, so that whatever reads
the weights knows. None stands for all tokens.

Letters: V tokens of the trimmed vocabulary, D mT5's d_model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch

from config import ModelConfig
from tokenizer import SPACE, Tokenizer

logger = logging.getLogger(__name__)

KEPT_TOKENS = "kept_tokens"  # name of the tensor among the weights
MATRICES = ("shared.weight", "embed_tokens.weight", "lm_head.weight")  # those of mT5 with a row per token
MULTIPLE = 8  # of which a matrix's height must be one, for a GPU to multiply in bf16 at full speed

# ASCII, then punctuation of Chinese and of printed text: general, CJK symbols, full-width forms.
CHARACTERS = {
    chr(code)
    for first, last in ((0x20, 0x7E), (0x2010, 0x2027), (0x2030, 0x203A), (0x3000, 0x3020), (0xFF01, 0xFF5E))
    for code in range(first, last + 1)
}


def choose(tokenizer: Tokenizer, texts: Iterable[str], also: torch.Tensor | None = None) -> torch.Tensor:
    """The tokens that texts need, with ASCII, punctuation, bytes and special tokens.

    Args:
        tokenizer: with all tokens.
        texts: whatever must be read and written without detours.
        also: tokens to keep beside them.

    Returns:
        (V,) int64, sorted; V is a multiple of 8, filled up with the vocabulary's first pieces, its most frequent.
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
    # What an unknown character costs depends on the worst score: with it, texts are divided as before.
    kept.add(max(lowest, 0))
    others = (token for token in range(len(pieces)) if token not in kept)
    kept |= {token for token, _ in zip(others, range(-len(kept) % MULTIPLE), strict=False)}
    return torch.tensor(sorted(kept))


def coverage(full: Tokenizer, kept: torch.Tensor, texts: Iterable[str]) -> tuple[int, int, int, int]:
    """How much of some texts a trimmed vocabulary writes as the full one does.

    Returns:
        Tokens of the texts, those of them that are kept, texts, those of them that are kept whole.
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
    """Tell how large the vocabulary is, and what of other texts is outside of it.

    Args:
        full: the tokenizer with all tokens.
        kept: (V,).
        groups: what the texts are, and the texts.
    """
    logger.info("vocabulary: %d of %d tokens are kept.", len(kept), len(full.pieces))
    for what, texts in groups.items():
        tokens, inside, n_texts, whole = coverage(full, kept, texts)
        rest = "; the others are written with smaller pieces or bytes" if inside < tokens else ""
        shares = 100 * inside / max(tokens, 1), tokens, 100 * whole / max(n_texts, 1), n_texts
        text = "vocabulary: %s: %.2f %% of %d tokens are kept, %.2f %% of %d texts have no other%s."
        logger.info(text, what, *shares, rest)


def matrices(weights: Mapping[str, torch.Tensor], config: ModelConfig) -> list[str]:
    """Names of the weights with a row per token of mT5's vocabulary: also those of a text encoder that is mT5's own."""
    modules = ("mt5_model.",) if config.text_encoder else ("mt5_model.", "text_encoder.encoder.")
    return [name for name in weights if name.startswith(modules) and name.endswith(MATRICES)]


def move_rows(
    rows: torch.Tensor, tokens: torch.Tensor | None, into: torch.Tensor, into_tokens: torch.Tensor | None
) -> torch.Tensor:
    """Put the rows of one vocabulary into the matrix of another; tokens that the first lacks stay as they are there.

    Args:
        rows: (V, D).
        tokens: (V,) their full numbers; None for all.
        into: (V', D), copied.
        into_tokens: (V',); None for all.

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
