"""What an adapter adds to the weights of its modules, from its tensors alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.lora import Adapter, Layer


def scale(layer: Layer, rslora: bool = False) -> float:
    """What the product of the tensors is multiplied with: alpha / rank; with rsLoRA alpha / sqrt(rank)."""
    return layer.alpha / (math.sqrt(layer.rank) if rslora else layer.rank)


def deltas(adapter: Adapter) -> dict[str, Tensor]:
    """{module: what is added to its weight}, before DoRA sets the magnitude."""
    return {module: delta(layer, adapter.rslora) for module, layer in adapter.layers.items()}


def delta(layer: Layer, rslora: bool = False) -> Tensor:
    """(out, in) or (out, in, kh, kw) as the tensors have it; a convolution's loha and lokr may come as
    (out, in * kh * kw)."""
    t = layer.tensors
    factor = scale(layer, rslora)
    if layer.kind == "lora":
        down, up = t["down"], t["up"]
        product = up.flatten(1) @ down.flatten(1)
        return factor * product.reshape(up.shape[0], *down.shape[1:])
    if layer.kind == "loha":
        if "t1" in t:
            return factor * _tucker(t["t1"], t["w1_a"], t["w1_b"]) * _tucker(t["t2"], t["w2_a"], t["w2_b"])
        return factor * (t["w1_a"] @ t["w1_b"]) * (t["w2_a"] @ t["w2_b"])
    left = t["w1"] if "w1" in t else t["w1_a"] @ t["w1_b"]
    right = t.get("w2")
    if right is None:
        right = _tucker(t["t2"], t["w2_a"], t["w2_b"]) if "t2" in t else t["w2_a"] @ t["w2_b"]
    if right.dim() == 4:
        left = left[:, :, None, None]
    return factor * torch.kron(left, right.contiguous())


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """core (r, r, kh, kw), a (r, out), b (r, in) -> (out, in, kh, kw)."""
    return torch.einsum("ijkl,ip,jq->pqkl", core, a, b)


def full_matrices(layer: Layer) -> bool:
    """Whether this is a lokr of two whole matrices: kohya's readers take no alpha for it (scale 1)."""
    return layer.kind == "lokr" and "w1" in layer.tensors and "w2" in layer.tensors
