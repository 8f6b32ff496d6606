"""Straightforward reference implementation of every stage, for `benchmark.py` only.

It does the same work as research code commonly does: keypoints are normalised frame by frame and part by part; graph
convolutions run over padded (B, C, T, V) tensors, one part at a time; the output layer includes padded targets and the
loss is computed twice; attention is eager; evaluation encodes a clip twice; the text encoder is called separately for
each frame. Weights are shared with the model under test.

Shapes: B clips, T frames (padded), V joints, C channels, K partitions, D mT5's d_model, L target tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import MT5ForConditionalGeneration

from batch import SrcInput, TgtInput
from models import IGNORE, Uni_Sign
from pose import MIN_BODY_POINTS, PART_ANCHOR, PART_JOINTS, PART_ORIGIN, SCORE_THRESHOLD, Part
from stgcn import TEMPORAL_KERNEL, GraphUnit, STGCNBlock, STGCNChain
from text_fusion_modules import GatingFusion, TextEncoder

FRAME_TOKENS = 256  # padded length of a call for a single frame


def normalize_keypoints(keypoints: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Do the same as `pose.normalize_keypoints`, frame by frame and part by part.

    Args:
        keypoints: (T, 133, 2).
        scores: (T, 133).

    Returns:
        part -> (T, V, 3).
    """
    frames: dict[str, list[np.ndarray]] = {part: [] for part in PART_JOINTS}
    seen = []
    for points, sure in zip(keypoints, scores, strict=True):
        for part, joints in PART_JOINTS.items():
            x = np.concatenate([points[joints], sure[joints, None]], axis=-1).astype(np.float64)  # (V, 3)
            if part == "body":
                seen.append(x[x[:, 2] > SCORE_THRESHOLD, :2])
            else:
                x[:, :2] = x[:, :2] - x[PART_ORIGIN[part], :2]
            frames[part].append(x)
    good = np.concatenate(seen)
    low, high = (good.min(0), good.max(0)) if len(good) >= MIN_BODY_POINTS else (np.zeros(2), np.zeros(2))
    scale = (high - low).max()
    parts: dict[str, np.ndarray] = {}
    for part in PART_JOINTS:
        clip = np.stack(frames[part])  # (T, V, 3)
        if scale == 0:
            parts[part] = np.zeros_like(clip)
            continue
        missing = clip[..., 2] <= SCORE_THRESHOLD
        if part == "body":
            clip[..., :2] = (clip[..., :2] - (low + high - scale) / 2) / scale * 2 - 1
        else:
            clip[..., :2] = clip[..., :2] / scale
        clip = np.clip(clip, -1, 1)
        clip[missing] = 0
        parts[part] = clip
    return parts


class ReferenceModel(nn.Module):
    """A straightforward `Uni_Sign`, with the same weights and batch statistics.

    Args:
        model: the model whose weights are shared (not copied).
    """

    def __init__(self, model: Uni_Sign) -> None:
        super().__init__()
        self.ours = model
        mt5 = model.mt5_model
        with torch.device("meta"):
            self.mt5 = MT5ForConditionalGeneration._from_config(copy.deepcopy(mt5.config), attn_implementation="eager")
        self.mt5.lm_head.weight = mt5.lm_head.weight  # untie it before loading, or the two matrices become one
        self.mt5.load_state_dict(mt5.state_dict(keep_vars=True), assign=True)
        self.mt5.generation_config = mt5.generation_config

    def forward(self, src_input: SrcInput, tgt_input: TgtInput) -> torch.Tensor:
        """Return the loss of a batch."""
        embeds, mask = self.inputs(src_input)
        return self.loss(self.encode(embeds, mask), mask, self.ours.labels(tgt_input["gt_sentence"]))

    def inputs(self, src_input: SrcInput) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mT5's input, (B, P + T, D), and its mask."""
        pose = self.encode_pose(src_input)
        if self.ours.config.use_descriptions:
            pose = self.fuse_text(pose, src_input)
        return self.ours.prepend_prompt(pose, src_input["attention_mask"])

    def encode_pose(self, src_input: SrcInput) -> torch.Tensor:
        """Encode keypoints to one embedding per frame, (B, T, D), including padded frames."""
        pooled = []
        body = None
        for part in PART_JOINTS:
            x = self.ours.proj_linear[part](src_input[part])  # (B, T, V, C)
            x = self.chain(self.ours.gcn_modules[part], x.permute(0, 3, 1, 2).contiguous())  # (B, C, T, V)
            if part == "body":
                body = x
            else:
                assert body is not None
                x = x + body[..., PART_ANCHOR[part], None].detach()
            x = self.chain(self.ours.fusion_gcn_modules[part], x)
            pooled.append(x.mean(-1).transpose(1, 2))  # (B, T, C)
        return self.ours.pose_proj(torch.cat(pooled, dim=-1) + self.ours.part_para)

    def chain(self, chain: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Apply a chain, (B, C, T, V) -> (B, C', T, V)."""
        assert isinstance(chain, STGCNChain)
        for block in chain.values():
            assert isinstance(block, STGCNBlock)
            x = self.block(block, x)
        return x

    def block(self, block: STGCNBlock, x: torch.Tensor) -> torch.Tensor:
        """Apply a block, (B, C, T, V) -> (B, C', T, V)."""
        shortcut = x
        if block.residual:
            project, norm = block.residual
            assert isinstance(project, nn.Conv2d)
            shortcut = self.norm(norm, F.conv2d(x, project.weight, project.bias))
        x = F.relu(self.norm(block.gcn.bn, self.graph_convolution(block.gcn, x)))
        if block.tcn:
            conv, norm = block.tcn
            assert isinstance(conv, nn.Conv2d)
            x = self.norm(norm, F.conv2d(x, conv.weight, conv.bias, padding=(TEMPORAL_KERNEL // 2, 0)))
        return F.relu(x + shortcut)

    def graph_convolution(self, unit: GraphUnit, x: torch.Tensor) -> torch.Tensor:
        """Apply a 1 x 1 convolution to K groups, then mix each group's joints, (B, C, T, V) -> (B, C', T, V)."""
        x = F.conv2d(x, unit.conv.weight, unit.conv.bias)
        x = x.unflatten(1, (len(unit.A), -1))  # (B, K, C', T, V)
        return torch.einsum("nkctv,kvw->nctw", x, unit.A).contiguous()

    def norm(self, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Batch-normalise (B, C, T, V) over all dimensions except C."""
        assert isinstance(norm, nn.BatchNorm1d)
        if norm.training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        return F.batch_norm(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            norm.training,
            norm.momentum or 0.0,
            norm.eps,
        )

    def fuse_text(self, pose: torch.Tensor, src_input: SrcInput) -> torch.Tensor:
        """Fuse texts with one text encoder call per frame, padded to `FRAME_TOKENS`; no text dropout."""
        encode, nothing, fuse = self.ours.text_encoder, self.ours.mask_embedding, self.ours.gating_fusion
        assert isinstance(encode, TextEncoder)
        assert isinstance(fuse, GatingFusion)
        text = torch.stack(
            [
                torch.cat([nothing() if frame is None else self.encode_text(encode, frame) for frame in clip])  # (T, D)
                for clip in src_input["descriptions"]
            ]
        )
        return fuse(pose, text, torch.tensor(src_input["has_description"], device=pose.device)).fused

    def encode_text(self, encoder: TextEncoder, text: str) -> torch.Tensor:
        """Encode one text, (1, W)."""
        padded = [F.pad(x, (0, FRAME_TOKENS - x.shape[1])) for x in encoder._tokenize([text], encoder.max_tokens)]
        return encoder._means(*padded)

    def encode(self, embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run mT5's encoder with eager attention, (B, P + T, D)."""
        return self.mt5.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state

    def loss(self, states: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss of all positions, including padding: once inside the model, once with label smoothing."""
        labels = labels.to(states.device)
        out = self.mt5(encoder_outputs=(states,), attention_mask=mask, labels=labels)  # computes its own loss, too
        return F.cross_entropy(
            out.logits.flatten(0, 1).float(),
            labels.flatten(),
            label_smoothing=self.ours.config.label_smoothing,
            ignore_index=IGNORE,
        )

    @torch.no_grad()
    def evaluate(
        self, batches: Iterable[tuple[SrcInput, TgtInput]], num_beams: int, max_new_tokens: int
    ) -> tuple[list[str], list[float]]:
        """Return every clip's sentence and every batch's loss, encoding once for the loss and again for the search."""
        sentences, losses = [], []
        for src_input, tgt_input in batches:
            losses.append(float(self(src_input, tgt_input)))
            embeds, mask = self.inputs(src_input)
            ids = self.mt5.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                num_beams=num_beams,
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
            sentences += self.ours.sentences(ids)
        return sentences, losses


def collate(samples: Sequence[Mapping[Part, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Pad clips frame by frame to the longest one, repeating the last frame.

    Args:
        samples: part -> (T, V, 3) of each clip.
    """
    longest = max(len(sample["body"]) for sample in samples)
    return {
        part: torch.stack(
            [
                torch.stack([torch.from_numpy(sample[part][min(t, len(sample[part]) - 1)]) for t in range(longest)])
                for sample in samples
            ]
        ).float()
        for part in PART_JOINTS
    }
