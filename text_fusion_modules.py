"""The text branch: descriptions of frames are encoded and added to the pose features through a learned gate.

Letters: B clips, T frames (padded), D mT5's d_model, W the text encoder's width, n distinct texts of a batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoTokenizer, MT5EncoderModel, PreTrainedModel

from disk import sha256
from mt5 import keep_rows, model_type, read_architecture, read_pretrained, run_encoder, use_fused_activation
from tokenizer import Tokenizer

CALL_TOKENS = 1 << 14  # tokens of a call of the text encoder, padding included
OPEN = 4.0  # the last bias of a gate that starts open, at sigmoid(4) = 0.98
NO_TEXT = 0  # the row of the mask embedding in a table of text features


class EncodesTexts(Protocol):
    """What gives features for texts: the encoder itself, or a cache of what it gave."""

    width: int

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """n texts -> (n, W)."""


class TextEncoder(nn.Module):
    """A pretrained encoder and the mean over its tokens.

    Args:
        folder: an mT5 folder (only its encoder is loaded) or any Hugging Face text encoder (BERT, XLM-R, MiniLM ...).
        max_tokens: a text is cut to this many tokens.
        with_weights: False leaves an mT5's weights out, for an encoder that gets them from a checkpoint.
        kept: (V,) the tokens that an mT5 is to have, where they are not all.

    Raises:
        FileNotFoundError: no such folder, or files missing in it.
        ValueError: files that cannot be read, or lack weights, or have no positions for so many tokens.
    """

    def __init__(
        self, folder: str | Path, max_tokens: int = 128, *, with_weights: bool = True, kept: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.encoder, self._tokenize = _load_encoder(Path(folder), with_weights, kept)
        if (longest := _longest_text(self.encoder)) < max_tokens:
            raise ValueError(f"--text_max_tokens {max_tokens}: {folder} takes texts of up to {longest} tokens.")
        self.width = int(self.encoder.config.hidden_size)

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode n texts; those of like length go together, so that little of a call is padding.

        Returns:
            (n, W): the mean of the encoder's last states over each text's own tokens.
        """
        ids, mask = self._tokenize(texts, self.max_tokens)
        lengths = mask.sum(1)
        order = lengths.argsort(stable=True)
        features = [
            self._means(ids[rows, : lengths[rows[-1]]], mask[rows, : lengths[rows[-1]]])
            for rows in order.split(calls_within(lengths[order].tolist(), CALL_TOKENS))
        ]
        return torch.cat(features)[order.argsort().to(features[0].device, non_blocking=True)]

    def _means(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        device = next(self.encoder.parameters()).device
        ids, mask = ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        if isinstance(self.encoder, MT5EncoderModel):
            states = run_encoder(self.encoder.encoder, self.encoder.get_input_embeddings()(ids), mask)  # (n, L, W)
        else:
            states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).float()  # (n, L, 1)
        return (states.float() * weights).sum(1) / weights.sum(1)


def calls_within(lengths: Sequence[int], budget: int) -> list[int]:
    """Divide texts, sorted by length, into calls of at most `budget` tokens, padding included.

    Returns:
        How many texts each call takes; at least one.

    >>> calls_within([2, 3, 3, 8, 9], budget=10)
    [3, 1, 1]
    """
    sizes: list[int] = []
    for length in lengths:
        if sizes and (sizes[-1] + 1) * length <= budget:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return sizes


def _load_encoder(folder: Path, with_weights: bool, kept: torch.Tensor | None) -> tuple[PreTrainedModel, Any]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"text encoder: {folder}/config.json does not exist. Name a folder with --text_encoder."
        )
    if model_type(folder) == "mt5":
        read = read_pretrained if with_weights else read_architecture
        encoder = read(MT5EncoderModel, folder, "--text_encoder")
        use_fused_activation(encoder)
        if kept is not None:
            keep_rows(encoder, kept)
        return encoder, Tokenizer(folder, kept).encode_batch
    encoder = read_pretrained(AutoModel, folder, "--text_encoder")
    if encoder.config.is_encoder_decoder:
        encoder = encoder.get_encoder()
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # unused weights get no gradient, which data-parallel training does not forgive
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="right")  # it is cut off
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes up where there is no vocabulary
        raise FileNotFoundError(f"text encoder: {folder} has no vocabulary. Put tokenizer.json or vocab.txt there.")

    def tokenize(texts: Sequence[str], max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    return encoder, tokenize


def _longest_text(encoder: PreTrainedModel) -> float:
    """Tokens that an encoder has positions for; no limit where positions are relative, as in mT5."""
    positions = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    if not isinstance(positions, nn.Embedding):
        return math.inf
    # RoBERTa and its kin begin to count behind the number of the padding token.
    return positions.num_embeddings - (0 if positions.padding_idx is None else positions.padding_idx + 1)


def encoder_fingerprint(folder: str | Path, max_tokens: int) -> str:
    """Name what a text's features depend on: every file of the encoder's folder, and the cut."""
    digest = hashlib.sha256(f"mean of tokens, {max_tokens}".encode())
    for path in sorted(path for path in Path(folder).iterdir() if path.is_file()):
        digest.update(path.name.encode())
        digest.update(bytes.fromhex(sha256(path)))
    return digest.hexdigest()[:32]


class LearnableMaskEmbedding(nn.Module):
    """What stands for the text of a frame that has none."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.mask_embedding = nn.Parameter(torch.empty(1, d_model).normal_(std=0.01))

    def forward(self) -> torch.Tensor:
        """(1, D)."""
        return self.mask_embedding


class Fusion(NamedTuple):
    """Features after fusion, (B, T, D), and the gate that was used, (B, T, 1)."""

    fused: torch.Tensor
    gate: torch.Tensor


class GatingFusion(nn.Module):
    """`fused = pose + gate * text`, where a small network reads both and whether the text is the frame's own.

    Args:
        d_model: D.
        hidden: widths of the network.
        scale: "own" leaves text features as they are. "pose" gives each the root mean square of its frame's pose
            feature, and starts with the gate open. An encoder's features are faint beside a pose (0.2 against 1 to 2
            for mT5 with random weights), and a gate that starts half open closes before a decoder that begins to
            learn can read them.
    """

    def __init__(self, d_model: int, hidden: tuple[int, int] = (512, 256), scale: str = "own") -> None:
        super().__init__()
        self.scale = scale
        layers = [nn.Linear(2 * d_model + 1, hidden[0]), nn.Linear(*hidden), nn.Linear(hidden[1], 1)]
        if scale == "pose":
            nn.init.constant_(layers[-1].bias, OPEN)
        self.gate = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.Sigmoid())

    def forward(self, pose: torch.Tensor, text: torch.Tensor, has_description: torch.Tensor) -> Fusion:
        """Fuse.

        Args:
            pose: (B, T, D).
            text: (B, T, D).
            has_description: (B, T), 1 where the text is the frame's own.
        """
        if self.scale == "pose":
            # The pose is only measured: that its text grows with it should not be a reason for it to grow.
            text = text * (root_mean_square(pose.detach()) / root_mean_square(text).clamp_min(1e-6)).to(text.dtype)
        gate = self.gate(torch.cat([pose, text, has_description.unsqueeze(-1).to(pose.dtype)], dim=-1))
        return Fusion(pose + gate * text, gate)


def root_mean_square(x: torch.Tensor) -> torch.Tensor:
    """(..., D) -> (..., 1) in fp32."""
    return x.float().square().mean(-1, keepdim=True).sqrt()


class DescriptionMapper(nn.Module):
    """Predicts the text feature of a frame from its pose feature."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d_model, d_model), nn.GELU(), nn.Linear(d_model, d_model))

    def forward(self, pose: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.layers(pose)


def alignment_loss(
    predicted: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, own: torch.Tensor, temperature: float = 0.1
) -> torch.Tensor:
    """How far predictions are from the text features of the frames that have a description of their own.

    The sum of the squared error, as a share of the features' mean square, and of a cross-entropy: which of the batch's
    distinct texts is the frame's, by cosine? The features are a fixed aim: no gradient reaches the text encoder.

    Args:
        predicted: (B, T, D).
        table: (1 + n, D), features of the n texts below the mask embedding.
        rows: (B, T), each frame's row of the table. On the CPU, like `own`, nobody has to wait for a GPU.
        own: (B, T), 1 where the text is the frame's own.
        temperature: that the cosines are divided by.

    Returns:
        A scalar, in fp32; 0, with a gradient of 0, if no frame is described.

    Source: the aim of MMSLT's mapper, and its two terms; contrasting distinct texts rather than frames is our own, for
    neighbouring frames often have the same one.
    """
    described = ((rows != NO_TEXT) & (own > 0)).flatten().nonzero().squeeze(1)  # (n described,)
    labels = rows.flatten()[described] - 1
    described, labels = (index.to(predicted.device, non_blocking=True) for index in (described, labels))
    predicted = predicted.flatten(0, 1)[described].float()  # (n described, D)
    if not len(labels):
        return predicted.sum()
    texts = table[1:].detach().float()  # (n, D)
    aims = texts[labels]
    error = (predicted - aims).square().mean() / aims.square().mean()
    cosines = F.normalize(predicted, dim=-1) @ F.normalize(texts, dim=-1).T  # (n described, n)
    return error + F.cross_entropy(cosines / temperature, labels)


def distinct_texts(descriptions: Sequence[Sequence[str | None]]) -> tuple[list[str], torch.Tensor]:
    """Number the texts of a batch so that each is encoded once.

    Returns:
        The n distinct texts in order of first use, and rows (B, T) int64: 1 + a text's number, or `NO_TEXT`.

    >>> texts, rows = distinct_texts([["up", None], ["down", "up"]])
    >>> texts, rows.tolist()
    (['up', 'down'], [[1, 0], [2, 1]])
    """
    numbers: dict[str | None, int] = {None: NO_TEXT}
    rows = [[numbers.setdefault(text, len(numbers)) for text in clip] for clip in descriptions]
    return [text for text in numbers if text is not None], torch.tensor(rows)


def drop_texts(
    rows: torch.Tensor, has_description: torch.Tensor, probability: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the text from a random share of the frames that have one.

    A filled frame can lose its text too: otherwise the text would still stand beside every frame that lost it.

    Args:
        rows: (B, T) as of `distinct_texts`.
        has_description: (B, T).
        probability: of each frame to lose its text.

    Returns:
        rows and has_description, with `NO_TEXT` and 0 where the text was taken.
    """
    dropped = (torch.rand(rows.shape, device=rows.device) < probability) & (rows != NO_TEXT)
    return rows.masked_fill(dropped, NO_TEXT), has_description.masked_fill(dropped, 0)
