"""Frozen convolutions with large weights and small pictures, on the CPU, as one matrix product.

oneDNN brings the weights of a convolution into its own layout in every call. With 1280 x 1280 x 3 x 3 of them
and 8 x 8 pixels that takes as long as the convolution itself (measured on torch 2.13: 90 ms against 49 ms,
forward and backward); a matrix product reads them as they are, and needs no second copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGE = 12_000_000
"""Weights of a convolution that outgrow the caches."""

FEW = 100
"""Positions of a batch up to which the product is the faster one."""


def as_products(model: nn.Module) -> None:
    """Let the large frozen convolutions of `model` work as a matrix product wherever they see few positions.
    The same numbers up to rounding; on an accelerator nothing changes."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d and _suits(layer):
            layer.forward = _forward(layer)  # type: ignore[method-assign, assignment]


def _suits(layer: nn.Conv2d) -> bool:
    weight = layer.weight
    return (
        not weight.requires_grad
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= LARGE
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _forward(layer: Any) -> Callable[[Tensor], Tensor]:
    usual = layer.forward

    def forward(x: Tensor) -> Tensor:
        height, width = (
            (
                x.shape[2 + axis]
                + 2 * layer.padding[axis]
                - layer.dilation[axis] * (layer.kernel_size[axis] - 1)
                - 1
            )
            // layer.stride[axis]
            + 1
            for axis in (0, 1)
        )
        if x.dtype != torch.float32 or len(x) * height * width > FEW:
            found: Tensor = usual(x)
            return found
        columns = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        product = layer.weight.flatten(1) @ columns
        if layer.bias is not None:
            product = product + layer.bias[:, None]
        result: Tensor = product.view(len(x), -1, height, width)
        return result

    return forward
