"""mT5's tokenizer: sentencepiece followed by </s>.

Plain sentencepiece gives the official tokenizer's ids for every text, including byte pieces; the tokenizer class of
transformers 5 gives <unk> for characters outside the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sentencepiece

if TYPE_CHECKING:
    import torch

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


class Tokenizer:
    """Converts text to token ids and back.

    Args:
        folder: an mT5 folder with `spiece.model`.
        kept: (V,), sorted ids of the tokens to keep, which are then renumbered from 0; None for all. Other text is
            encoded with smaller pieces, down to single bytes.

    Raises:
        FileNotFoundError: there is no `spiece.model`.
        ValueError: it is not a sentencepiece model.
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
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
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

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids up to the first </s>; padding, <unk> and ids beyond the vocabulary are skipped."""
        kept: list[int] = []
        for token in ids:
            if token == EOS:
                break
            if token not in (PAD, UNK) and token < len(self.pieces):
                kept.append(int(token))
        return self.pieces.decode(kept).strip()  # like the official one; truncation can leave a final space


def keep_pieces(model: bytes, kept: torch.Tensor) -> bytes:
    """Reduce a sentencepiece model to some of its pieces, in their order, with scores and settings unchanged.

    A model is a protobuf message whose pieces are fields with number 1. Tokens beyond its pieces, such as mT5's last
    twelve, are ignored.

    Args:
        model: a complete sentencepiece model.
        kept: (V,), sorted ids of the pieces to keep.
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
