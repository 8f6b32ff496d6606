"""mT5's tokens: the tokenizer, and vocabulary trimming (`--trim_vocab`).

The tokenizer is sentencepiece followed by </s>. Plain sentencepiece gives the official tokenizer's ids for every text,
including byte pieces; the tokenizer class of transformers 5 gives <unk> for characters outside the vocabulary.

A trimmed model has some of mT5's 250,112 tokens. It renumbers them in the original order, as do `Tokenizer` and all
matrices with a row per token. The tensor `kept_tokens` among its weights stores each token's original id, for all
readers of the weights. None means all tokens.

Shapes: V tokens of the trimmed vocabulary, D mT5's d_model, L tokens of a text.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentencepiece

from config import ModelConfig

if TYPE_CHECKING:
    import torch  # elsewhere imported when needed: the sample corpus is written without it

logger = logging.getLogger(__name__)

PAD, EOS, UNK = 0, 1, 2
# Configuration for transformers' tokenizer class in an mT5 folder. By default it adds a hundred ids (`extra_ids`) for
# which the model has no rows.
TOKENIZER_CONFIG = {
    "tokenizer_class": "T5Tokenizer",
    "extra_ids": 0,
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
SPACE = "\u2581"  # marks the space before a word in a piece

# In transformers these fetch and run code from the folder, or from packages and repositories that it names.
NOT_OBEYED = {"auto_map", "attn_implementation", "_attn_implementation", "quantization_config"}

KEPT_TOKENS = "kept_tokens"  # name of the tensor among the weights
MATRICES = ("shared.weight", "embed_tokens.weight", "lm_head.weight")  # mT5's matrices with a row per token
# A model may have a few more rows than its tokenizer has pieces: mT5 has 250,112 and 250,100, T5 32,128 and 32,000.
MORE_ROWS = 128
MULTIPLE = 8  # the number of rows must be a multiple of this for fast bf16 products on a GPU

# ASCII, typographic and Chinese punctuation: general, CJK symbols, full-width forms.
CHARACTERS = {
    chr(code)
    for first, last in ((0x20, 0x7E), (0x2010, 0x2027), (0x2030, 0x203A), (0x3000, 0x3020), (0xFF01, 0xFF5E))
    for code in range(first, last + 1)
}


class Tokenizer:
    """Converts text to token ids and back.

    Args:
        folder: an mT5 folder with `spiece.model`.
        kept: (V,), sorted ids of the tokens to keep, which are then renumbered from 0; None for all. Other text is
            encoded with smaller pieces, down to single bytes.

    Raises:
        FileNotFoundError: there is no `spiece.model`.
        ValueError: it is not a sentencepiece model, or not that of the folder's mT5.
    """

    def __init__(self, folder: str | Path, kept: torch.Tensor | None = None) -> None:
        path = Path(folder) / "spiece.model"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist. Put mT5's files there (google/mt5-base: config.json, spiece.model and the "
                "weights), or name their folder with --mt5_path."
            )
        self.kept = kept
        self.model = path.read_bytes()  # content of `spiece.model`, reduced to these tokens
        self.sha256 = hashlib.sha256(self.model).hexdigest()  # of the file
        try:
            self.pieces = sentencepiece.SentencePieceProcessor()
            self.pieces.LoadFromSerializedProto(self.model)  # its own reader of files takes names in UTF-8 alone
            rows = folder_config(path.parent).get("vocab_size")
            if isinstance(rows, int) and not 0 <= rows - len(self.pieces) <= MORE_ROWS:
                raise ValueError(
                    f"{path} has {len(self.pieces)} pieces, and the model beside it {rows} tokens (vocab_size in "
                    "config.json): they do not belong together. Get both again from one place, google/mt5-base for "
                    "example."
                )
            if kept is not None:
                self.model = keep_pieces(self.model, kept)
                self.pieces = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError:
            raise ValueError(
                f"{path}: is damaged, or no sentencepiece model. Get it again from google/mt5-base."
            ) from None

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Return a text's ids, at most `max_tokens` including </s>."""
        return [*self.pieces.encode(text)[: max_tokens - 1], EOS]

    def encode_batch(self, texts: Sequence[str], max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids, (n, L), and mask, (n, L), int64, padded to the longest text."""
        import torch

        rows = [self.encode(text, max_tokens) for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids, mask

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of each text's tokens, including </s>, none cut."""
        return [len(ids) + 1 for ids in self.pieces.encode(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids up to the first </s>; padding, <unk> and ids beyond the vocabulary are skipped."""
        kept: list[int] = []
        for token in ids:
            if token == EOS:
                break
            if token not in (PAD, UNK) and token < len(self.pieces):
                kept.append(int(token))
        return self.pieces.decode(kept).strip()  # like the official one; truncation can leave a final space


def folder_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json but for `NOT_OBEYED`; {} if it is missing or no JSON object."""
    try:
        text = (folder / "config.json").read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=lambda pairs: {k: v for k, v in pairs if k not in NOT_OBEYED})
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


_NORMALISER = sentencepiece.SentencePieceNormalizer(
    rule_name="nmt_nfkc", add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=False
)


def normalise(text: str) -> str:
    """Rewrite a text as mT5's tokenizer does before splitting it; no decoded text has other forms.

    >>> normalise("ｶﾞ１２！…")
    'ガ12!...'
    """
    return _NORMALISER.normalize(text)


def keep_pieces(model: bytes, kept: torch.Tensor) -> bytes:
    """Reduce a whole sentencepiece model to some pieces, (V,) sorted ids, with their scores and its settings unchanged.

    A model is a protobuf message whose pieces are fields with number 1. Tokens beyond its pieces, such as mT5's last
    twelve, are ignored.
    """
    wanted = set(kept.tolist())
    parts, place, number = [], 0, 0
    while place < len(model):
        start = place
        tag, place = _varint(model, place)
        assert tag & 7 == 2, "sentencepiece's ModelProto has messages alone"
        length, place = _varint(model, place)
        place += length
        is_piece = tag >> 3 == 1
        if not is_piece or number in wanted:
            parts.append(model[start:place])
        number += is_piece
    return b"".join(parts)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Read a protobuf varint; return it and the position after it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


# -- trimming --------------------------------------------------------------------------------------------------------


def choose(tokenizer: Tokenizer, texts: Iterable[str], also: torch.Tensor | None = None) -> torch.Tensor:
    """Choose the tokens that texts need and those `also` given, plus ASCII, punctuation, bytes and special tokens.

    Returns:
        (V,) int64, sorted; V is padded to a multiple of 8 with the full vocabulary's first (most frequent) pieces.
    """
    import torch

    pieces = tokenizer.pieces
    kept = set() if also is None else set(also.tolist())
    for text in texts:
        kept.update(pieces.encode(text))
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


def log_coverage(full: Tokenizer, kept: torch.Tensor, held_out: Sequence[str]) -> None:
    """Log the vocabulary's size, and how many tokens of the sentences of dev and test are in it."""
    known = set(kept.tolist())
    tokens = [token in known for ids in full.pieces.encode(held_out) for token in ids]
    share = 100 * sum(tokens) / max(len(tokens), 1)
    text = "vocabulary: %d of %d tokens are kept, and %.2f %% of those of dev and test; others are written with bytes."
    logger.info(text, len(kept), len(full.pieces), share)


def matrices(weights: Mapping[str, torch.Tensor], config: ModelConfig) -> list[str]:
    """Return the names of weights with a row per token of mT5, including those of a text encoder from mT5."""
    modules = ("mt5_model.",) if config.text_encoder else ("mt5_model.", "text_encoder.encoder.")
    return [name for name in weights if name.startswith(modules) and name.endswith(MATRICES)]


def move_rows(
    rows: torch.Tensor, tokens: torch.Tensor | None, into: torch.Tensor, into_tokens: torch.Tensor | None
) -> torch.Tensor:
    """Copy rows, (V, D), of some tokens into a copy of another matrix, (V', D), of other tokens; the rest of it stays.

    `tokens`, (V,), and `into_tokens`, (V',), are the original ids; None for all.
    """
    import torch

    tokens = torch.arange(len(rows)) if tokens is None else tokens
    into_tokens = torch.arange(len(into)) if into_tokens is None else into_tokens
    places = torch.full((int(max(tokens.max(), into_tokens.max())) + 1,), -1)
    places[into_tokens] = torch.arange(len(into_tokens))
    targets = places[tokens]
    found = targets >= 0
    moved = into.clone()
    moved[targets[found]] = rows[found].to(into.dtype)
    return moved
