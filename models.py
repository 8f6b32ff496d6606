"""`Uni_Sign`: encodes keypoints with graph convolutions, fuses descriptions, and generates text with mT5.

Shapes: B clips, T frames (padded), N frames of all clips, V joints, D mT5's d_model, P prompt tokens, L target tokens.
Module names match the released weights.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import MT5ForConditionalGeneration, PreTrainedModel

from clips.batch import SrcInput, TgtInput
from config import ModelConfig
from network.mt5 import run_decoder, run_encoder, use_fused_layers
from network.output_layer import OutputLayer
from network.rgb_branch import fuse_hand, hand_fusion_modules
from network.search import search
from network.stgcn import PART_GRAPH, ClipLayout, STGCNChain
from network.vocabulary import EOS, KEPT_TOKENS, PAD, Tokenizer
from pose.hand_crops import HANDS
from pose.keypoints import PART_ANCHOR, PART_JOINTS, Part
from system.distributed import send
from text_fusion_modules import (
    DescriptionMapper,
    EncodesTexts,
    Fusion,
    GatingFusion,
    LearnableMaskEmbedding,
    TextAdapter,
    alignment_loss,
    distinct_texts,
    drop_texts,
    text_of_frames,
)

logger = logging.getLogger(__name__)

IGNORE = -100  # label of padding tokens, ignored by the loss
# The parts encoded in each pass, in the order of `PART_JOINTS`: hands share their weights.
PASSES: tuple[tuple[Part, ...], ...] = (("body",), ("left", "right"), ("face_all",))


@dataclass
class Encoded:
    """An encoded batch of clips."""

    inputs_embeds: torch.Tensor  # (B, P + T, D), the prompt and the fused frames: mT5's input
    attention_mask: torch.Tensor  # (B, P + T), 0 on padding
    encoder_states: torch.Tensor  # (B, P + T, D), output of mT5's encoder, the decoder's input
    gate: torch.Tensor | None  # (B, T, 1), the weight of each frame's text feature; None without descriptions
    alignment: torch.Tensor | None  # the mapper's alignment loss; None outside training or where its weight is 0


@dataclass
class ModelOutput(Encoded):
    """The output of a forward pass."""

    loss: torch.Tensor  # label-smoothed mean over the target tokens, plus the weighted alignment loss if there is one
    nll: torch.Tensor  # mean negative log-likelihood of the target tokens (no smoothing, no gradient)
    n_tokens: int  # target tokens in the batch


class Uni_Sign(nn.Module):
    """Sign language translation from keypoints, with or without crops of the hands and descriptions.

    Args:
        config: the model's sizes and switches.
        mt5: the language model; its d_model is the width of everything after the pose encoder.
        tokenizer: the tokenizer of that mT5, with the same vocabulary.
        text_encoder: needed with descriptions: a `TextEncoder`, or a cache of its features.

    Source: Uni-Sign (Li et al., ICLR 2025), `models.py`.
    """

    def __init__(
        self,
        config: ModelConfig,
        mt5: MT5ForConditionalGeneration,
        tokenizer: Tokenizer,
        text_encoder: EncodesTexts | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        d_model = mt5.config.d_model
        hidden = config.hidden_dim

        self.part_para = nn.Parameter(torch.zeros(len(PART_JOINTS) * hidden))
        self.proj_linear = nn.ModuleDict()
        self.gcn_modules = nn.ModuleDict()
        self.fusion_gcn_modules = nn.ModuleDict()
        for part, graph in PART_GRAPH.items():
            if part == "right":  # hands mirror each other, so they share all weights
                for modules in (self.proj_linear, self.gcn_modules, self.fusion_gcn_modules):
                    modules["right"] = modules["left"]
                continue
            self.proj_linear[part] = nn.Linear(3, hidden // 4)
            self.gcn_modules[part] = STGCNChain.spatial(graph, hidden)
            self.fusion_gcn_modules[part] = STGCNChain.temporal(graph, hidden)
        self.pose_proj = nn.Linear(len(PART_JOINTS) * hidden, d_model)
        for linear in (*self.proj_linear.values(), self.pose_proj):
            assert isinstance(linear, nn.Linear)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        # A std of 0.02 suits the 1024 inputs of the released size; a narrower model's outputs should be as large.
        nn.init.trunc_normal_(self.pose_proj.weight, std=0.02 * (1024 / self.pose_proj.in_features) ** 0.5)

        if config.rgb_support:
            for name, module in hand_fusion_modules(hidden).items():
                self.add_module(name, module)

        use_fused_layers(mt5)
        mt5.lm_head = OutputLayer(mt5.lm_head.weight)
        self.mt5_model = mt5
        if tokenizer.kept is not None:
            self.register_buffer(KEPT_TOKENS, tokenizer.kept.clone())
        self.bucket = 1  # see `ClipLayout`
        self._frozen: list[nn.Module] = []
        if config.use_descriptions:
            assert text_encoder is not None, "a model with descriptions needs something that encodes them"
            self.text_encoder = text_encoder  # a module, or a cache of its features
            self.text_adapter = TextAdapter(text_encoder.width, d_model)
            self.mask_embedding = LearnableMaskEmbedding(d_model)
            self.gating_fusion = GatingFusion(d_model)
            if config.uses_mapper:
                self.description_mapper = DescriptionMapper(d_model, text_encoder.width)

    # -- the three stages ------------------------------------------------------------------------------------------

    def forward(self, src_input: SrcInput, tgt_input: TgtInput) -> ModelOutput:
        """Encode a batch and compute the loss of its target sentences; raises as `encode`."""
        labels = self.labels(tgt_input["gt_sentence"])  # (B, L)
        prompt, previous = self.embed(self.prompt(), tokens_before(labels))  # (P, D), (B, L, D)
        encoded = self.encode(src_input, prompt)
        loss, nll, n_tokens = self.target_loss(encoded.encoder_states, encoded.attention_mask, labels, previous)
        if encoded.alignment is not None:
            loss = loss + self.config.description_alignment * encoded.alignment
        return ModelOutput(**vars(encoded), loss=loss, nll=nll, n_tokens=n_tokens)

    def encode(self, src_input: SrcInput, prompt: torch.Tensor | None = None) -> Encoded:
        """Encode a batch: the first part of `forward`, and all that `generate` needs.

        `prompt` is (P, D), if it is embedded already. ValueError if a model with descriptions gets a batch without.
        """
        pose = self.encode_pose(src_input)  # (B, T, D)
        fused, gate, alignment = self.fuse_text(pose, src_input)  # (B, T, D), (B, T, 1), scalar
        (prompt,) = self.embed(self.prompt()) if prompt is None else (prompt,)  # (P, D)
        inputs_embeds = torch.cat([prompt.expand(len(fused), -1, -1), fused.to(prompt.dtype)], dim=1)  # (B, P + T, D)
        attention_mask = send(F.pad(src_input["attention_mask"], (len(prompt), 0), value=1), fused.device)  # (B, P + T)
        states = run_encoder(self.mt5_model.encoder, inputs_embeds, attention_mask)  # (B, P + T, D)
        return Encoded(inputs_embeds, attention_mask, states, gate, alignment)

    def encode_pose(self, src_input: SrcInput) -> torch.Tensor:
        """Encode keypoints (and hand crops, with `rgb_support`) into one embedding per frame, (B, T, D)."""
        mask = src_input["attention_mask"]
        # With `uni_sign_padding`, padded frames go through the convolutions too; mT5 masks them in either case.
        mask = torch.ones_like(mask) if self.config.uni_sign_padding else mask
        device = src_input["body"].device
        layout = ClipLayout(mask, device, self.bucket)
        pooled: list[torch.Tensor] = []
        body = None
        for parts in [(part,) for part in PART_JOINTS] if self.config.uni_sign_batch_norm else PASSES:
            # Parts encoded in one pass share weights; they are concatenated as if they were additional clips.
            n_parts, (first, *_) = len(parts), parts
            passed = layout if n_parts == 1 else ClipLayout(mask.repeat(n_parts, 1), device, self.bucket)
            x = torch.cat([layout.pack(src_input[part]).transpose(0, 1) for part in parts], dim=1)  # (V, N, 3)
            x = self.proj_linear[first](x)  # (V, N, hidden / 4)
            x = self.gcn_modules[first](x, passed)  # (V, N, hidden)
            if body is None:
                body = x
            else:
                if self.config.rgb_support and first in HANDS:
                    x = self._with_crops(parts, x, src_input, layout)
                x = x + torch.cat([body.detach()[PART_ANCHOR[part]] for part in parts])
            x = self.fusion_gcn_modules[first](x, passed)  # (V, N, hidden)
            pooled.extend(x.mean(0).chunk(n_parts))  # (N, hidden) each
        x = torch.cat(pooled, dim=-1) + self.part_para  # (N, 4 hidden)
        return layout.unpack(self.pose_proj(x))  # (B, T, D)

    def _with_crops(
        self, sides: Sequence[Part], x: torch.Tensor, src_input: SrcInput, layout: ClipLayout
    ) -> torch.Tensor:
        """Fuse the features of one hand or both, (V, N, hidden), with their crops."""
        hands = zip(sides, x.transpose(0, 1).chunk(len(sides)), strict=True)  # (N, V, hidden) each
        fused = [fuse_hand(self, hand, side, src_input, layout, self.config.uni_sign_padding) for side, hand in hands]
        return torch.cat(fused).transpose(0, 1)

    def fuse_text(
        self, pose: torch.Tensor, src_input: SrcInput
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Add each frame's text feature through the gate; return also the gate, and the mapper's loss or None."""
        if not self.config.use_descriptions:
            return pose, None, None
        if "descriptions" not in src_input:
            raise ValueError(
                "descriptions not found in src_input: this model fuses descriptions. Make the data set with "
                "use_descriptions=True (flag --use_descriptions), or use a model without them."
            )
        texts, rows = distinct_texts(src_input["descriptions"])  # n, (B, T)
        has_description = torch.tensor(src_input["has_description"])  # (B, T)
        features = send(self.encode_texts(texts), pose.device)  # (n, W); without any text perhaps one row
        if self.training:
            self.text_adapter.update_mean(features[: len(texts)])
        features = self.text_adapter.standardise(features)
        predicted = self.description_mapper(pose) if self.config.uses_mapper else None  # (B, T, W)
        alignment = None
        if self.training and predicted is not None:
            alignment, explained = alignment_loss(predicted, features, rows, has_description)
            self.description_mapper.update_trust(explained)
        rows, has_description = (send(x, pose.device) for x in (rows, has_description))
        if self.training:
            rows, has_description = drop_texts(rows, has_description, self.config.text_dropout_p)
        table = torch.cat([self.mask_embedding(), self.text_adapter(features)])  # (1 + max(n, 1), D)
        guess = None if predicted is None else self.description_mapper.trust * self.text_adapter(predicted)  # (B, T, D)
        text = text_of_frames(table, rows, pose, guess)  # (B, T, D)
        text = text * (self.text_adapter.n_batches > 0)  # nothing before the first text of all
        mask = send(src_input["attention_mask"], pose.device)  # (B, T)
        fused: Fusion = self.gating_fusion(pose, text, has_description, mask)
        return fused.fused, fused.gate, alignment

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the text encoder's features of n distinct texts, (n, W); of an empty one if there are none.

        Gradients are reduced across processes, so every process must use every weight in every step. A batch without
        any text therefore encodes an empty one, which no frame refers to; stored features have no weights.
        """
        return self.text_encoder(texts or [""] if isinstance(self.text_encoder, nn.Module) else texts)

    def prompt(self) -> torch.Tensor:
        """Return the token ids of "Translate sign language video to {language}: ", (P,)."""
        return torch.tensor(self.tokenizer.encode(self.config.prompt, max_tokens=512))

    def embed(self, *ids: torch.Tensor) -> list[torch.Tensor]:
        """Embed tensors of token ids, each (...) -> (..., D).

        In one look-up, because the gradient of each is as large as the whole matrix: 768 MB.
        """
        flat = self.mt5_model.shared(send(torch.cat([x.flatten() for x in ids]), self.mt5_model.device))
        parts = flat.split([x.numel() for x in ids])
        return [part.view(*x.shape, -1) for part, x in zip(parts, ids, strict=True)]

    def target_loss(
        self, encoder_states: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, previous: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return the loss with and without label smoothing, and the number of target tokens.

        `labels`, (B, L), are on the CPU, to avoid a GPU synchronisation; `previous`, (B, L, D), the tokens before them.
        """
        real = (labels != IGNORE).flatten().nonzero().squeeze(1)  # (n,)
        targets = labels.flatten()[real]
        real, targets = send(real, encoder_states.device), send(targets, encoder_states.device)
        states = run_decoder(self.mt5_model.decoder, previous, encoder_states, attention_mask)  # (B, L, D)
        # Skip padding before the output layer, which is expensive: its matrix has 250,112 rows.
        states = states.flatten(0, 1).index_select(0, real)  # (n, D)
        loss, nll = self.mt5_model.lm_head(states, targets, self.config.label_smoothing)
        return loss, nll, len(real)

    def labels(self, sentences: Sequence[str]) -> torch.Tensor:
        """Return token ids of target sentences, (B, L) int64, with `IGNORE` on padding."""
        ids, mask = self.tokenizer.encode_batch(sentences, self.config.max_target_tokens)
        return ids.masked_fill(mask == 0, IGNORE)

    def decode(self, encoder_states: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the decoder's last hidden states from which each label is predicted, (B, L, D)."""
        (previous,) = self.embed(tokens_before(labels))
        return run_decoder(self.mt5_model.decoder, previous, encoder_states, attention_mask)

    def generate(
        self,
        output: Encoded,
        num_beams: int = 4,
        max_new_tokens: int = 100,
        n_best: int = 1,
    ) -> torch.Tensor:
        """Generate `n_best` sentences per clip by beam search; arguments as for `network.search.search`.

        Returns:
            (B n_best, <= 1 + max_new_tokens) token ids; ignore whatever follows the first </s>.
        """
        states, mask = output.encoder_states, output.attention_mask
        return search(self.mt5_model, states, mask, num_beams, max_new_tokens, n_best)

    @torch.no_grad()
    def log_probs(self, output: Encoded, ids: torch.Tensor) -> torch.Tensor:
        """Return the mean log-probability of a generated sentence's tokens, (B n_best,) fp32, which ranks beams.

        The search itself could return it only by keeping the logits of all steps: 100 MB per clip and beam. `output` is
        the result of `encode` for B clips, `ids`, (B n_best, L), that of `generate`.
        """
        labels = ids[:, 1:]
        ended = (labels == EOS).cumsum(1) - (labels == EOS).long()  # (B n_best, L - 1), > 0 after the first </s>
        labels = labels.masked_fill(ended > 0, IGNORE)
        n_best = len(ids) // len(output.encoder_states)
        states = output.encoder_states.repeat_interleave(n_best, 0)
        mask = output.attention_mask.repeat_interleave(n_best, 0)
        found = torch.zeros(labels.shape, device=labels.device)
        for row, (own, decoded) in enumerate(zip(labels, self.decode(states, mask, labels), strict=True)):
            real = own != IGNORE
            log_probs = F.log_softmax(self.mt5_model.lm_head(decoded[real]).float(), dim=-1)
            found[row, real] = log_probs.gather(1, own[real, None]).squeeze(1)
        return found.sum(1) / (labels != IGNORE).sum(1)

    def sentences(self, ids: torch.Tensor) -> list[str]:
        """Decode generated ids to text; the first id, the decoder's start token, is skipped."""
        return [self.tokenizer.decode(row) for row in ids[:, 1:].tolist()]

    # -- training mode -------------------------------------------------------------------------------------------

    def freeze(self, modules: Sequence[nn.Module]) -> None:
        """Freeze modules: no gradients, no dropout, fixed batch-norm statistics."""
        self._frozen = list(modules)
        for module in self._frozen:
            module.requires_grad_(False)

    def recompute_activations(self) -> None:
        """Turn on gradient checkpointing in mT5 and the text encoder: less memory, one more forward pass."""
        for module in self.modules():
            if isinstance(module, PreTrainedModel) and module.supports_gradient_checkpointing:
                module.gradient_checkpointing_enable({"use_reentrant": False})

    def train(self, mode: bool = True) -> Uni_Sign:
        """Switch between training and evaluation mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def tokens_before(labels: torch.Tensor) -> torch.Tensor:
    """Return the decoder's input, (B, L): the token before each label, first the start token, which is the padding."""
    before = F.pad(labels[:, :-1], (1, 0), value=PAD)
    return before.masked_fill(before == IGNORE, PAD)
