"""mT5's output layer and loss over its large vocabulary (250,112 tokens).

Shapes: n target tokens in a batch, V tokens of the vocabulary, D mT5's d_model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 1 << 26  # maximum logits in memory at a time: 268 target tokens with mT5's vocabulary, 256 MiB in fp32


class OutputLayer(nn.Linear):
    """mT5's `lm_head`, (V, D), shared, not copied; it can also compute the loss of targets without storing all logits.

    Called without targets, it is the nn.Linear that transformers expects.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight

    def forward(self, states: torch.Tensor, targets: torch.Tensor | None = None, smoothing: float = 0.0) -> Any:
        """Compute the logits of states, (..., D) -> (..., V); given targets, (n,), of states, (n, D), their loss.

        It is the mean with label smoothing, and that without (not differentiable).
        """
        if targets is None:
            return F.linear(states, self.weight)
        return _ChunkedLoss.apply(states, self.weight, targets, smoothing, torch.is_grad_enabled())


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropy of a linear layer, computed in chunks of tokens.

    Gradients are computed in the forward pass, while a chunk's logits exist; the backward pass follows at once, since
    this loss is the end of the forward pass. They are stored for the sum over tokens, since the gradients of the mean
    would be too small for fp16.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, smoothing: float, training: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        exact = torch.promote_types(dtype, torch.float32)  # dtype of sums
        of_states, of_weight = (needed and training for needed in ctx.needs_input_grad[:2])
        grad_states = torch.empty_like(states, dtype=exact) if of_states else None
        grad_weight = torch.zeros_like(weight) if of_weight else None
        sums = torch.zeros(2, dtype=exact, device=states.device)
        size = max(1, CHUNK // len(weight))
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            for chunk in (slice(start, start + size) for start in range(0, len(targets), size)):
                own, ids = states[chunk].to(dtype), targets[chunk, None]
                log_probs = (own @ matrix.T).to(exact).log_softmax(-1)  # (chunk, V)
                sums -= torch.stack([log_probs.gather(1, ids).sum(), log_probs.mean(-1).sum()])
                if not (of_states or of_weight):
                    continue
                slope = log_probs.exp_().sub_(smoothing / len(weight))
                slope = slope.scatter_add_(1, ids, slope.new_full(ids.shape, smoothing - 1)).to(dtype)
                if grad_states is not None:
                    grad_states[chunk] = slope @ matrix
                if grad_weight is not None and dtype == weight.dtype:
                    grad_weight.addmm_(slope.T, own)
                elif grad_weight is not None:  # the product in lower precision, the sum of all chunks not
                    grad_weight += slope.T @ own
        ctx.gradients = grad_states, grad_weight
        ctx.n, ctx.dtype = len(targets), states.dtype
        nll, uniform = sums / len(targets)
        ctx.mark_non_differentiable(nll)
        return nll.lerp(uniform, smoothing), nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        assert ctx.gradients is not None, "the gradients of this loss are made once and used up by a backward pass"
        (grad_states, grad_weight), ctx.gradients = ctx.gradients, None
        grad = grad / ctx.n
        if grad_states is not None:
            grad_states = (grad_states * grad).to(ctx.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad)  # in place: it is as large as the weight
        return grad_states, grad_weight, None, None, None
