"""Greedy and beam search with the same hypotheses as transformers' `generate`, at lower cost.

A clip leaves the batch when its search is finished. Cross-attention keys and values are computed once per clip and
shared by its beams. Reordering beams does not move the key-value cache: a step's entries of all beams of a clip are
stored side by side, and a mask selects each beam's own past.

Shapes: B clips still searched, K beams, L encoder states, S steps so far, H attention heads, V tokens, D d_model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from network.vocabulary import EOS, PAD

ROOM = 32  # steps by which the cache grows
NEVER = -1.0e9  # score of candidates that must not be chosen


@torch.no_grad()
def search(
    mt5: Any,
    states: torch.Tensor,
    mask: torch.Tensor,
    num_beams: int,
    max_new_tokens: int,
    n_best: int = 1,
) -> torch.Tensor:
    """Generate sentences for encoded clips.

    Hypotheses are ranked by mean token log-probability, including </s>. A clip is finished when it has `num_beams`
    hypotheses and the score of its best running beam, divided by its current length, is no better than the worst.

    Args:
        mt5: the language model.
        states: (B, L, D), output of its encoder.
        mask: (B, L), 0 on padding.
        num_beams: K; 1 for greedy search.
        max_new_tokens: maximum length of a generated sentence, in tokens.
        n_best: N, sentences per clip, best first; at most K.

    Returns:
        (B N, <= 1 + max_new_tokens) token ids, beginning with the decoder's start token, padded with </s>.

    Raises:
        ValueError: `num_beams` exceeds half of the vocabulary.

    Source: `GenerationMixin._beam_search` of transformers 5, without length penalty and early stopping.
    """
    if 2 * num_beams > (n_tokens := mt5.config.vocab_size):
        raise ValueError(f"--num_beams {num_beams}: must be at most half of the model's {n_tokens} tokens.")
    n_clips, device = len(states), states.device
    decoder = _Decoder(mt5, states, mask, num_beams)
    clips = torch.arange(n_clips, device=device)  # (B,), indices of clips still searched
    tokens = torch.full((n_clips, num_beams), PAD, device=device)
    first_alone = [0.0] + [NEVER] * (num_beams - 1)  # all beams are identical at first: only one counts
    running = torch.tensor(first_alone, device=device).expand(n_clips, -1)
    paths = torch.full((n_clips, num_beams, max_new_tokens), EOS, device=device)
    scores = torch.full((n_clips, num_beams), NEVER, device=device)  # hypotheses of all clips
    hypotheses = paths.clone()  # (all clips, K, max_new_tokens)

    for step in range(max_new_tokens):
        if not len(clips):
            break
        logits = decoder.step(tokens)  # (B, K, V)
        log_probs = logits.float().log_softmax(-1)
        best, words = log_probs.topk(2 * num_beams, dim=-1)  # (B, K, 2 K): enough even if K of them end
        best, places = (best + running[..., None]).flatten(1).topk(2 * num_beams)  # (B, 2 K) of K 2 K
        parents, words = places // (2 * num_beams), words.flatten(1).gather(1, places)
        grown = paths.gather(1, parents[..., None].expand(-1, -1, max_new_tokens))  # (B, 2 K, max_new_tokens)
        grown[..., step] = words
        ends = (words == EOS) | (step + 1 == max_new_tokens)

        # Finished hypotheses: merge those of the best K candidates that end here with the known ones.
        ended = torch.where(ends, best / (step + 1), NEVER)[:, :num_beams]
        merged, kept = torch.cat([scores[clips], ended], dim=1).topk(num_beams)
        found = torch.cat([hypotheses[clips], grown[:, :num_beams]], dim=1)
        scores.index_copy_(0, clips, merged)
        hypotheses.index_copy_(0, clips, found.gather(1, kept[..., None].expand(-1, -1, max_new_tokens)))

        # Running beams: the best K that do not end.
        running, kept = torch.where(ends, NEVER, best).topk(num_beams)
        paths = grown.gather(1, kept[..., None].expand(-1, -1, max_new_tokens))
        tokens = words.gather(1, kept)
        decoder.reorder(parents.gather(1, kept))
        greedy = num_beams == 1  # greedy search ends at the first </s>
        open_ones = ~ends[:, 0] if greedy else (running[:, :1] / (step + 1) > merged).any(1)
        if not open_ones.all():  # GPU synchronisation, once per step
            live = open_ones.nonzero().squeeze(1)
            clips, running, paths = clips[live], running[live], paths[live]
            tokens = tokens[live]
            decoder.keep(live)

    ids = hypotheses[:, :n_best].flatten(0, 1)  # (B N, max_new_tokens)
    length = int(((ids != EOS).sum(1) + 1).clamp(max=max_new_tokens).max())
    return F.pad(ids[:, :length], (1, 0), value=PAD)


class _Decoder:
    """mT5's decoder, one token at a time for all beams of all clips, with its key-value cache."""

    def __init__(self, mt5: Any, states: torch.Tensor, mask: torch.Tensor, num_beams: int) -> None:
        self.stack, self.head, self.n_beams, self.n_steps = mt5.decoder, mt5.lm_head, num_beams, 0
        self.seen = mask[:, None, None] != 0  # (B, 1, 1, L)
        cross = [block.layer[1].EncDecAttention for block in self.stack.block]
        self.cross = [[_heads(layer, project(states)) for project in (layer.k, layer.v)] for layer in cross]
        self.past: list[list[torch.Tensor]] = [[] for _ in cross]  # keys and values, (B, H, room, K, d_kv)
        self.own = mask.new_zeros(len(mask), num_beams, 0, num_beams, dtype=torch.bool)  # (B, K, S, K): own past

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the next token's logits, (B, K, V), given the latest token ids, (B, K)."""
        bias = self._bias()  # (B, H, K, S K)
        x = self.stack.embed_tokens(tokens)  # (B, K, D)
        for number, (block, cross) in enumerate(zip(self.stack.block, self.cross, strict=True)):
            layer, attention = block.layer[0], block.layer[0].SelfAttention
            y = layer.layer_norm(x)
            keys, values = self._remember(number, *(_heads(attention, p(y)) for p in (attention.k, attention.v)))
            x = x + _attend(attention, y, keys, values, bias)
            layer, attention = block.layer[1], block.layer[1].EncDecAttention
            keys, values = cross
            x = x + _attend(attention, layer.layer_norm(x), keys, values, self.seen)
            x = block.layer[2](x)
        self.n_steps += 1
        return self.head(self.stack.final_layer_norm(x))

    def _bias(self) -> torch.Tensor:
        """Return the relative position bias, with -inf on the past of other beams."""
        itself = torch.eye(self.n_beams, dtype=torch.bool, device=self.own.device)
        self.own = torch.cat([self.own, itself[:, None].expand(len(self.own), -1, 1, -1)], dim=2)
        n_steps, attention = self.n_steps, self.stack.block[0].layer[0].SelfAttention
        distance = attention.compute_bias(1, n_steps + 1, device=self.own.device, past_seen_tokens=n_steps)
        distance = distance[..., None].masked_fill(~self.own[:, None], -torch.inf)  # (B, H, K, S, K)
        return distance.flatten(3)

    def _remember(self, number: int, *new: torch.Tensor) -> list[torch.Tensor]:
        """Cache this step's keys and values, (B, H, K, d_kv); return those of all steps, (B, H, S K, d_kv)."""
        if self.n_steps % ROOM == 0:
            empty = [x.new_empty(*x.shape[:2], ROOM, *x.shape[2:]) for x in new]
            old = self.past[number]
            self.past[number] = [torch.cat(pair, dim=2) for pair in zip(old, empty, strict=True)] if old else empty
        for past, now in zip(self.past[number], new, strict=True):
            past.select(2, self.n_steps).copy_(now)
        return [past[:, :, : self.n_steps + 1].flatten(2, 3) for past in self.past[number]]

    def reorder(self, parents: torch.Tensor) -> None:
        """Let beam k continue from the past of beam `parents[k]`, (B, K)."""
        self.own = self.own.gather(1, parents[..., None, None].expand_as(self.own))

    def keep(self, live: torch.Tensor) -> None:
        """Drop all clips except these."""
        self.seen, self.own = self.seen[live], self.own[live]
        self.cross = [[x[live] for x in pair] for pair in self.cross]
        self.past = [[x[live] for x in pair] for pair in self.past]


def _heads(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """Split heads, (B, n, H d_kv) -> (B, H, n, d_kv)."""
    return x.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)


def _attend(attention: Any, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> Any:
    """Attend from (B, K, D) to the keys; return (B, K, D)."""
    queries = _heads(attention, attention.q(x))
    mask = mask if mask.dtype == torch.bool else mask.to(queries.dtype)
    found = F.scaled_dot_product_attention(queries, keys, values, mask, scale=attention.scaling)
    return attention.o(found.transpose(1, 2).flatten(2))
