"""A LoRA on a plain linear layer in one function: no scaled copy of the update, no float32 copy of the input.

The same numbers as peft's layer within rounding; whatever is not plain (DoRA, dropout, quantised or other
layers) keeps peft's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainer.lora import ADAPTER


def fuse(model: nn.Module) -> tuple[int, int]:
    """Give the plain layers of a model with an adapter the faster forward; (how many, how many adapted)."""
    from peft.tuners.lora.layer import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    plain = [layer for layer in layers if type(layer) is Linear and _is_plain(layer)]
    for layer in plain:
        layer.forward = _forward(layer)  # type: ignore[method-assign]
    return len(plain), len(layers)


def _is_plain(layer: Any) -> bool:
    base = layer.get_base_layer()
    return (
        type(base) is nn.Linear
        and ADAPTER in layer.lora_A
        and ADAPTER not in layer.lora_variant
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and layer.lora_B[ADAPTER].bias is None
    )


def _forward(layer: Any) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = layer.get_base_layer()
        if layer.disable_adapters or layer.merged or args or kwargs:
            found: Tensor = type(layer).forward(layer, x, *args, **kwargs)
            return found
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        scale = layer.scaling[ADAPTER]
        found = _LoraLinear.apply(x.to(base.weight.dtype), base.weight, base.bias, down, up, scale)  # type: ignore[no-untyped-call]
        return found

    return forward


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T, for x (..., in), W (out, in), A (r, in), B (out, r)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1])
            inner = flat @ down.to(x.dtype).T
            y = functional.linear(flat, weight, bias).addmm_(inner, up.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(flat, inner, weight, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        flat, inner, weight, down, up = ctx.saved_tensors
        with torch.autocast(flat.device.type, enabled=False):
            dy = grads[0].reshape(-1, grads[0].shape[-1])
            back = (dy @ up.to(dy.dtype)) * ctx.scale
            d_down = (back.T @ flat).to(down.dtype)
            d_up = (dy.T @ (inner * ctx.scale)).to(up.dtype)
            dx = None
            if ctx.needs_input_grad[0]:
                dx = (dy @ weight).addmm_(back, down.to(dy.dtype)).view(ctx.shape)
        return dx, None, None, d_down, d_up, None
