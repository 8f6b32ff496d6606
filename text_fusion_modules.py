"""The text branch: encodes frame descriptions and adds them to the pose features through a learned gate.

Shapes: B clips, T frames (padded), D mT5's d_model, W the text encoder's width, n distinct texts in a batch.
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

from network.mt5 import keep_rows, read_pretrained, run_encoder, use_fused_layers
from network.vocabulary import Tokenizer, folder_config
from system.disk import sha256
from system.distributed import send, sum_over_processes
from system.faults import in_one_line

CALL_TOKENS = 1 << 14  # maximum tokens per call of the text encoder, including padding
OPEN = 4.0  # initial last bias of the gate: sigmoid(4) = 0.98
SLOWEST = 0.01  # minimum weight of a batch in the running mean of text features
FASTEST = 0.02  # weight of a batch in the running mean of what the mapper explains
READ, WEIGHTS = (".json", ".txt", ".model"), (".safetensors", ".bin")  # of an encoder's folder; others are not read
NO_TEXT = 0  # row of the mask embedding in a table of text features


class EncodesTexts(Protocol):
    """Maps texts to features: a text encoder, or a cache of its outputs."""

    width: int

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the features, (n, W), of n texts."""


class TextEncoder(nn.Module):
    """A pretrained text encoder with mean pooling over tokens, without dropout.

    With dropout, a text that is encoded anew in every step would never look the same twice, and the rest of the model
    learns to read it late or not at all.

    Args:
        folder: an mT5 folder (only its encoder is loaded) or any Hugging Face text encoder (BERT, XLM-R, MiniLM ...).
        max_tokens: texts are truncated to this many tokens.
        with_weights: False to skip loading weights, for an encoder that gets them from a checkpoint.
        kept: (V,), ids of the tokens to keep of an mT5's vocabulary; None for all.

    Raises:
        FileNotFoundError: the folder or files in it are missing.
        ValueError: files are unreadable or lack weights, or the encoder has fewer than `max_tokens` positions.
    """

    def __init__(
        self, folder: str | Path, max_tokens: int = 128, *, with_weights: bool = True, kept: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.encoder, self._tokenize = _load_encoder(Path(folder), with_weights, kept)
        for module in self.encoder.modules():
            for name in ("p", "dropout", "attention_dropout"):  # of a dropout layer, and of attention
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        if (longest := _longest_text(self.encoder)) < max_tokens:
            raise ValueError(f"--text_max_tokens {max_tokens}: {folder} takes texts of up to {longest} tokens.")
        self.width = int(self.encoder.config.hidden_size)

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode n texts, grouped by length to reduce padding.

        Returns:
            (n, W), the mean of the encoder's last hidden states over each text's tokens.
        """
        ids, mask = self._tokenize(texts, self.max_tokens)
        lengths = mask.sum(1)
        order = lengths.argsort(stable=True)
        features = [
            self._means(ids[rows, : lengths[rows[-1]]], mask[rows, : lengths[rows[-1]]])
            for rows in order.split(calls_within(lengths[order].tolist(), CALL_TOKENS))
        ]
        return torch.cat(features)[send(order.argsort(), features[0].device)]

    def _means(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        device = next(self.encoder.parameters()).device
        ids, mask = send(ids, device), send(mask, device)
        if isinstance(self.encoder, MT5EncoderModel):
            states = run_encoder(self.encoder.encoder, self.encoder.get_input_embeddings()(ids), mask)  # (n, L, W)
        else:
            states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).float()  # (n, L, 1)
        return (states.float() * weights).sum(1) / weights.sum(1)


def calls_within(lengths: Sequence[int], budget: int) -> list[int]:
    """Return how many texts, sorted by length, go into each call of up to `budget` tokens, with padding; at least one.

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
    if folder_config(folder).get("model_type") == "mt5":
        encoder = read_pretrained(MT5EncoderModel, folder, "--text_encoder", with_weights)
        use_fused_layers(encoder)
        if kept is not None:
            keep_rows(encoder, kept)
        return encoder, Tokenizer(folder, kept).encode_batch
    encoder = read_pretrained(AutoModel, folder, "--text_encoder", with_weights)
    if encoder.config.is_encoder_decoder:
        encoder = encoder.get_encoder()
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # unused weights get no gradient, an error in data-parallel training
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            config=encoder.config,
            trust_remote_code=False,
            local_files_only=True,
            padding_side="right",  # truncated later
        )
    except Exception as error:  # damaged files may raise anything; report one line
        raise ValueError(f"text encoder: the tokenizer in {folder} cannot be read: {in_one_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers' fallback if there is no vocabulary file
        raise FileNotFoundError(f"text encoder: {folder} has no vocabulary. Put tokenizer.json or vocab.txt there.")

    def tokenize(texts: Sequence[str], max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    return encoder, tokenize


def _longest_text(encoder: PreTrainedModel) -> float:
    """Return the maximum number of tokens an encoder has positions for; infinity for relative positions, as in mT5."""
    positions = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    if not isinstance(positions, nn.Embedding):
        return math.inf
    # RoBERTa and its relatives number positions from padding_idx + 1.
    return positions.num_embeddings - (0 if positions.padding_idx is None else positions.padding_idx + 1)


def encoder_fingerprint(folder: str | Path, max_tokens: int, weights: bool = True) -> str:
    """Hash what text features depend on: the files that an encoder is read from, and `max_tokens`.

    `weights` is False for those of an encoder whose weights are elsewhere, since they were trained.
    """
    digest = hashlib.sha256(f"mean of tokens, {max_tokens}".encode())
    suffixes = READ + WEIGHTS * weights
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in suffixes and path.is_file())
    unread = ".bin" if any(path.suffix == ".safetensors" for path in files) else ""  # not where both are
    for path in (path for path in files if path.suffix != unread):
        digest.update(path.name.encode())
        digest.update(bytes.fromhex(sha256(path)))
    return digest.hexdigest()[:32]


class TextAdapter(nn.Module):
    """Turns the encoder's text features into what is added to the pose features; starts by adding nothing.

    Features of an encoder have a large mean in common and a size of their own. They are centred, brought to root mean
    square 1, and pass an MLP whose last layer starts at zero, so that training starts from exactly the pose-only model
    and the adapter learns whatever the decoder can use, even a frozen one.

    Source: the zero-initialised layer is the idea of ControlNet's zero convolutions (Zhang et al., ICCV 2023).
    """

    def __init__(self, width: int, d_model: int) -> None:
        super().__init__()
        last = nn.Linear(2 * d_model, d_model)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(width, 2 * d_model), nn.GELU(), last)
        self.mean: torch.Tensor
        self.n_batches: torch.Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("n_batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update_mean(self, features: torch.Tensor) -> None:
        """Move the running mean towards that of a batch's distinct texts, (n, W), of all processes.

        It is the plain mean of the first batches, later an exponential one, which follows an encoder that is trained.
        Every process must call this in every step, also without texts.
        """
        sums = torch.cat([features.float().sum(0), features.new_tensor([len(features)], dtype=torch.float32)])
        total, n = sum_over_processes(sums).split([len(self.mean), 1])
        self.n_batches += (n > 0).squeeze()
        rate = (1 / self.n_batches.clamp_min(1)).clamp_min(SLOWEST) * (n > 0)
        self.mean += rate * (total / n.clamp_min(1) - self.mean)

    def standardise(self, features: torch.Tensor) -> torch.Tensor:
        """Centre features and bring each to root mean square 1, (n, W) -> (n, W), in fp32."""
        centred = features.float() - self.mean
        return centred / root_mean_square(centred)

    def forward(self, standardised: torch.Tensor) -> torch.Tensor:
        """(..., W) -> (..., D)."""
        return self.layers(standardised)


class LearnableMaskEmbedding(nn.Module):
    """A learned embedding in place of the text feature of a frame without text; it starts at zero, adding nothing."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.mask_embedding = nn.Parameter(torch.zeros(1, d_model))

    def forward(self) -> torch.Tensor:
        """Return the embedding, (1, D)."""
        return self.mask_embedding


class Fusion(NamedTuple):
    """Fused features, (B, T, D), and the gate values, (B, T, 1)."""

    fused: torch.Tensor
    gate: torch.Tensor


class GatingFusion(nn.Module):
    """Computes `pose + gate * text`; the gate is an MLP of both features and of `has_description`, and starts open."""

    def __init__(self, d_model: int, hidden: tuple[int, int] = (512, 256)) -> None:
        super().__init__()
        layers = [nn.Linear(2 * d_model + 1, hidden[0]), nn.Linear(*hidden), nn.Linear(hidden[1], 1)]
        nn.init.constant_(layers[-1].bias, OPEN)
        self.gate = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.Sigmoid())

    def forward(
        self, pose: torch.Tensor, text: torch.Tensor, has_description: torch.Tensor, mask: torch.Tensor
    ) -> Fusion:
        """Fuse pose and text features.

        Args:
            pose, text: (B, T, D).
            has_description: (B, T), 1 where the text is the frame's own.
            mask: (B, T), 0 on padding, for a fusion that looks at more than one frame; this one does not.
        """
        gate = self.gate(torch.cat([pose, text, has_description.unsqueeze(-1).to(pose.dtype)], dim=-1))
        return Fusion(pose + gate * text, gate)


def text_of_frames(
    table: torch.Tensor, rows: torch.Tensor, pose: torch.Tensor, guess: torch.Tensor | None = None
) -> torch.Tensor:
    """Look up each frame's text feature, (B, T, D), and bring it to the size of the frame's pose feature.

    A frame without a text gets the mask embedding, which is not scaled, and a guess at its text, which is.

    Args:
        table: (1 + n, D), the mask embedding, then the adapted features of n texts.
        rows: (B, T), each frame's row in the table.
        pose: (B, T, D). No gradient reaches it: that texts grow with it must not be a reason for it to grow.
        guess: (B, T, D), the adapted prediction of a mapper; None without one.
    """
    missing = (rows == NO_TEXT).unsqueeze(-1)  # (B, T, 1)
    size = root_mean_square(pose.detach()).to(table.dtype)  # (B, T, 1)
    text = F.embedding(rows, table) * torch.where(missing, 1, size)
    return text if guess is None else text + missing * size * guess


def root_mean_square(x: torch.Tensor) -> torch.Tensor:
    """Return the root mean square over the last dimension, at least 1e-6, (..., D) -> (..., 1), in fp32."""
    return x.float().square().mean(-1, keepdim=True).clamp_min(1e-12).sqrt()  # the slope of a root is infinite at 0


class DescriptionMapper(nn.Module):
    """Predicts the standardised text feature of a frame from its pose feature.

    `trust` is the running mean, over clips, of the share of its text's variance that the prediction explains; a clip
    without texts counts as 0. So where few clips are described, or with texts that poses do not tell, there is nothing
    to guess from.
    """

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d_model, d_model), nn.GELU(), nn.Linear(d_model, width))
        self.trust: torch.Tensor
        self.register_buffer("trust", torch.zeros(()))

    def forward(self, pose: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, W)."""
        return self.layers(pose)

    @torch.no_grad()
    def update_trust(self, explained: torch.Tensor) -> None:
        """Move `trust` towards what a batch says, from `alignment_loss`; every process must call this in every step."""
        total, n = sum_over_processes(torch.stack([explained.float(), torch.ones_like(explained)]))
        self.trust += FASTEST * (total / n - self.trust)


def alignment_loss(
    predicted: torch.Tensor, features: torch.Tensor, rows: torch.Tensor, own: torch.Tensor, temperature: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the loss between predicted and actual text features, over frames with a description of their own.

    The sum of the mean squared error and a contrastive cross-entropy that identifies the frame's text among the batch's
    distinct texts by cosine similarity, times the share of the batch's clips that are described: one clip with texts
    among many without must not outweigh them. The targets are detached: no gradient reaches the text encoder.

    Args:
        predicted: (B, T, W).
        features: (n, W), the standardised features of the batch's distinct texts.
        rows: (B, T), 1 + the number of each frame's text, or `NO_TEXT`.
        own: (B, T), 1 where the text is the frame's own.
        temperature: divisor of the cosines.

    Returns:
        The loss, a scalar in fp32; 0, with zero gradients, if no frame is described. And the share of the texts'
        variance that is explained, times that of the clips that are described.

    Source: the objective of MMSLT's mapper, with its two terms. Contrasting distinct texts instead of frames is our
    change, since neighbouring frames often share a text.
    """
    has_text = (rows != NO_TEXT) & (own > 0)  # (B, T), on the CPU, to avoid a GPU sync
    share = float(has_text.any(1).float().mean())
    described = has_text.flatten().nonzero().squeeze(1)
    labels = rows.flatten()[described] - 1  # (n described,)
    described, labels = (send(index, predicted.device) for index in (described, labels))
    predicted = predicted.flatten(0, 1)[described].float()  # (n described, W)
    if not len(labels):
        return predicted.sum(), predicted.new_zeros(())
    features = features.detach().float()
    error = (predicted - features[labels]).square().mean()
    cosines = F.normalize(predicted, dim=-1) @ F.normalize(features, dim=-1).T  # (n described, n)
    explained = (1 - error.detach()).clamp(min=0)  # the features have variance 1
    return share * (error + F.cross_entropy(cosines / temperature, labels)), share * explained


def distinct_texts(descriptions: Sequence[Sequence[str | None]]) -> tuple[list[str], torch.Tensor]:
    """Number the distinct texts of a batch, in order of first use, so that each is encoded once.

    Rows, (B, T) int64, are 1 + a text's number, or `NO_TEXT`.

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
    """Remove all texts of random clips, and those of random frames in the other clips, each with this probability.

    Frames alone would not do: their neighbours tell the same. Clips that lose all their texts teach the model to do
    without, and so to translate clips that have none. `rows` and `has_description`, (B, T), are `NO_TEXT` and 0 there.
    """
    clips, frames = (torch.rand(shape, device=rows.device) < probability for shape in ((len(rows), 1), rows.shape))
    dropped = (clips | frames) & (rows != NO_TEXT)
    return rows.masked_fill(dropped, NO_TEXT), has_description.masked_fill(dropped, 0)
