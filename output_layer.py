"""mT5's vocabulary of 250,112 tokens: the output matrix and the loss over it.

Letters: n target tokens of a batch, V tokens of the vocabulary, D mT5's d_model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 1 << 24  # logits that exist at a time: 67 tokens of mT5's vocabulary, 64 MiB in fp32
ROWS = 1 << 15  # rows of the matrix whose gradient is added at a time where products are in bf16 or fp16


class OutputLayer(nn.Linear):
    """mT5's `lm_head`, which can also score targets without ever holding all their logits.

    Called with states alone it is the nn.Linear that transformers expects; targets are what `forward` takes beyond.

    Args:
        weight: (V, D), shared, not copied.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight

    def forward(  # type: ignore[override]
        self, states: torch.Tensor, targets: torch.Tensor | None = None, smoothing: float = 0.0
    ) -> Any:
        """Logits, or the loss of targets.

        Args:
            states: (..., D); (n, D) with targets.
            targets: (n,) token ids.
            smoothing: of the loss.

        Returns:
            Without targets the logits (..., V). With them the mean loss with smoothing, and the mean without, which
            carries no gradient.
        """
        if targets is None:
            return F.linear(states, self.weight)
        return _ChunkedLoss.apply(states, self.weight, targets, smoothing, torch.is_grad_enabled())


class _ChunkedLoss(torch.autograd.Function):
    """Cross entropy of a linear layer, a chunk of tokens after the other.

    The gradients are made in the forward pass, while a chunk's logits exist: this loss is the last thing that a forward
    pass computes and the first that its backward pass asks for. They are kept for a loss that is a sum over tokens:
    divided by n they would be too small for fp16.

    Torch declares both functions for any arguments; naming them is what the type check calls an override.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, smoothing: float, training: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        exact = torch.promote_types(dtype, torch.float32)  # of sums
        of_states, of_weight = (needed and training for needed in ctx.needs_input_grad[:2])
        grad_states = torch.empty_like(states, dtype=exact) if of_states else None
        grad_weight = torch.zeros_like(weight) if of_weight else None
        sums = torch.zeros(2, dtype=exact, device=states.device)
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            for chunk in _slices(len(targets), max(1, CHUNK // len(weight))):
                own, ids = states[chunk].to(dtype), targets[chunk, None]
                log_probs = (own @ matrix.T).to(exact).log_softmax(-1)  # (chunk, V)
                nll, uniform = -log_probs.gather(1, ids), -log_probs.mean(-1, keepdim=True)
                sums += torch.cat([(1 - smoothing) * nll + smoothing * uniform, nll], dim=1).sum(0)
                if not (of_states or of_weight):
                    continue
                slope = log_probs.exp_().sub_(smoothing / len(weight))
                slope = slope.scatter_add_(1, ids, torch.full_like(nll, smoothing - 1)).to(dtype)
                if grad_states is not None:
                    grad_states[chunk] = (slope @ matrix).to(exact)
                if grad_weight is not None:
                    _add_product(grad_weight, slope.T, own)
        ctx.gradients = grad_states, grad_weight
        ctx.n, ctx.dtype = len(targets), states.dtype
        loss, nll = sums / len(targets)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        assert ctx.gradients is not None, "the gradients of this loss are made once and used up by a backward pass"
        (grad_states, grad_weight), ctx.gradients = ctx.gradients, None
        grad = grad / ctx.n
        if grad_states is not None:
            grad_states = (grad_states * grad).to(ctx.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad)  # in place: it is as large as the matrix
        return grad_states, grad_weight, None, None, None


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """`total += a @ b`; products in lower precision are added up in that of the total."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
        return
    for rows in _slices(len(total), ROWS):
        total[rows] += a[rows] @ b


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]
