"""mT5's tokenizer: sentencepiece and a closing </s>.

Plain sentencepiece gives the ids of the official tokenizer on every text, byte pieces included; the tokenizer class of
transformers 5 gives <unk> for characters outside the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
import torch

PAD, EOS, UNK = 0, 1, 2
# What the tokenizer class of transformers reads in an mT5 folder. By default it would add a hundred ids (`extra_ids`)
# that the model has no rows for.
TOKENIZER_CONFIG = {
    "tokenizer_class": "T5Tokenizer",
    "extra_ids": 0,
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
SPACE = "\u2581"  # in a piece, the blank before a word


class Tokenizer:
    """Text to ids and back.

    Args:
        folder: an mT5 folder; its `spiece.model` is read.
        kept: (V,) the tokens to have, sorted, where they are not all: ids are their places then. What is outside of
            them is written with smaller pieces, down to single bytes, of which there are pieces for everything.

    Raises:
        FileNotFoundError: no `spiece.model` there.
        ValueError: it is none.
    """

    def __init__(self, folder: str | Path, kept: torch.Tensor | None = None) -> None:
        path = Path(folder) / "spiece.model"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist. Put mT5's files there (google/mt5-base: config.json, spiece.model and the "
                "weights), or name their folder with --mt5_path."
            )
        self.kept = kept
        self.model = path.read_bytes()  # what `spiece.model` holds, for these tokens
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
        """Ids of a text, at most `max_tokens`, the closing </s> included."""
        return [*self.pieces.encode(text)[: max_tokens - 1], EOS]

    def encode_batch(self, texts: Sequence[str], max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (n, L) and mask (n, L), int64, padded to the longest of these texts."""
        rows = [self.encode(text, max_tokens) for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids, mask

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids up to the first </s>; padding, <unk> and ids beyond the vocabulary are left out."""
        kept: list[int] = []
        for token in ids:
            if token == EOS:
                break
            if token not in (PAD, UNK) and token < len(self.pieces):
                kept.append(int(token))
        return self.pieces.decode(kept).strip()  # as the official tokenizer does; a cut can leave a space at the end


def keep_pieces(model: bytes, kept: torch.Tensor) -> bytes:
    """The sentencepiece model with some of its pieces, in their order; all else stays, above all their scores.

    A model is a protobuf message; each piece is a field 1 of it. Where tokens go beyond its pieces, as mT5's last
    twelve do, nothing is lost.

    Args:
        model: a whole one, as sentencepiece has read it.
        kept: (V,) numbers of pieces, sorted.
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
    """A number of protobuf, and where the next begins."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
