"""Cross entropy behind the output layer, some rows at a time: never are all logits in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_FLOATS = {"cpu": 2**23, "cuda": 2**27}
"""How many logits are looked at together: 32 MiB stay near the CPU's caches, 512 MiB fill a GPU."""


def cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Sum of the cross entropy of hidden weight^T + bias with `labels`, float32; `hidden` is (K, H), `weight`
    (V, H), `bias` (V,), `labels` (K,).

    The output layer is frozen: its gradient towards `hidden` is worked out on the way (softmax less one-hot,
    times weight), so that neither logits are kept nor computed twice.
    """
    found: Tensor = _CrossEntropy.apply(hidden, weight, bias, labels, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return found


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, learning: bool
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if learning else None
        size = max(16, _FLOATS.get(hidden.device.type, 2**25) // weight.shape[0])
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], size):
                part = slice(start, start + size)
                logits = functional.linear(hidden[part].to(weight.dtype), weight, bias).float()
                wanted = labels[part, None]
                top = logits.amax(dim=1, keepdim=True)
                picked = logits.gather(1, wanted)
                scores = logits.sub_(top).exp_()
                mass = scores.sum(dim=1, keepdim=True)
                total += (mass.log() + top - picked).sum()
                if gradient is not None:
                    scores.div_(mass).scatter_add_(1, wanted, scores.new_full(wanted.shape, -1.0))
                    gradient[part] = (scores.to(weight.dtype) @ weight).to(gradient.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None, None
