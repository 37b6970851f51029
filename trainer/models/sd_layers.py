"""Plain LoRA layers without peft's casts: the adapter works in the format of its input, its weights stay
float32 and get float32 gradients; the sum is one fused product for linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.lora import ADAPTER


def quicken(model: nn.Module) -> bool:
    """Give the plain LoRA layers of `model` (linear and convolution, with or without dropout) a faster
    forward. Whether these are all: then the model needs no autocast."""
    from peft.tuners.lora.layer import Conv2d, Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    kinds: dict[Any, Callable[[Any], Callable[..., Tensor]]] = {Linear: _linear, Conv2d: _convolution}
    whole = True
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        make = None if ADAPTER in getattr(layer, "lora_variant", {}) else kinds.get(type(layer))
        if make is not None and type(layer.get_base_layer()) in (nn.Linear, nn.Conv2d):
            layer.forward = make(layer)
        else:
            whole = False
    return whole


def _linear(layer: Any) -> Callable[..., Tensor]:
    base, dropout, scale = layer.get_base_layer(), layer.lora_dropout[ADAPTER], layer.scaling[ADAPTER]
    down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        inner = dropout(flat) @ down.weight.to(x.dtype).T
        y = functional.linear(flat, base.weight, base.bias)
        return y.addmm_(inner, up.weight.to(x.dtype).T, alpha=scale).view(*x.shape[:-1], -1)

    return forward


def _convolution(layer: Any) -> Callable[..., Tensor]:
    base, dropout, scale = layer.get_base_layer(), layer.lora_dropout[ADAPTER], layer.scaling[ADAPTER]
    down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight = down.weight.to(x.dtype)
        inner = functional.conv2d(dropout(x), weight, None, down.stride, down.padding, down.dilation)
        found: Tensor = base(x) + functional.conv2d(inner, (up.weight * scale).to(x.dtype))
        return found

    return forward


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` of the CPU on the device, without waiting for what the device still does."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def resting(modules: Iterable[nn.Module]) -> Iterator[None]:
    """No dropout, no checkpointing inside; outside as they were, whatever happens."""
    before = [(module, module.training) for module in modules]
    try:
        for module, _ in before:
            module.eval()
        yield
    finally:
        for module, training in before:
            module.train(training)


@contextmanager
def drawn_from(rng: torch.Generator, device: torch.device) -> Iterator[None]:
    """What draws from torch's global generators inside (dropout) draws from a seed out of `rng`; outside they
    are what they were."""
    seed = int(torch.randint(2**62, (), generator=rng))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
