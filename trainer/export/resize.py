"""A LoRA of a lower rank that comes nearest to the one there is."""

from __future__ import annotations

from dataclasses import replace

import torch

from trainer.errors import UserError
from trainer.export.effect import scale
from trainer.lora import Adapter, Layer


def resized(adapter: Adapter, rank: int) -> Adapter:
    """Every layer cut to `rank` by the singular values of up @ down (Eckart-Young: no other product of that
    rank is nearer in the Frobenius norm), alpha set so that the scale stays; layers of a lower rank stay as
    they are. Raises UserError for DoRA, LoHa and LoKr."""
    odd = {
        "DoRA" if layer.kind == "lora" else layer.kind
        for layer in adapter.layers.values()
        if layer.kind != "lora" or "magnitude" in layer.tensors
    }
    if odd:
        raise UserError(f"{', '.join(sorted(odd))} cannot be resized.", "Train it again with another rank.")
    layers = {module: _cut(layer, rank, adapter.rslora) for module, layer in adapter.layers.items()}
    ranks: dict[str, dict[str, int]] = {"rank_pattern": {}, "alpha_pattern": {}}
    return Adapter(layers, {**adapter.description, **ranks}, adapter.rslora)


def _cut(layer: Layer, rank: int, rslora: bool) -> Layer:
    if layer.rank <= rank:
        return layer
    down, up = layer.tensors["down"], layer.tensors["up"]
    left, upper = torch.linalg.qr(up.flatten(1).double())
    right, lower = torch.linalg.qr(down.flatten(1).double().T)
    u, s, v = torch.linalg.svd(upper @ lower.T)
    root = s[:rank].sqrt()
    new_up = (left @ u[:, :rank]) * root
    new_down = root[:, None] * (v[:rank] @ right.T)
    alpha = scale(layer, rslora) * (rank**0.5 if rslora else rank)
    tensors = {
        "down": new_down.float().reshape(rank, *down.shape[1:]).contiguous(),
        "up": new_up.float().reshape(up.shape[0], rank, *up.shape[2:]).contiguous(),
    }
    return replace(layer, rank=rank, alpha=alpha, tensors=tensors)
