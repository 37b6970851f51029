"""peft's config of an adapter: made from its layers, and read back for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mode
from typing import Any

from trainer.lora import Kind, Layer

PEFT_TYPES: dict[Kind, str] = {"lora": "LORA", "loha": "LOHA", "lokr": "LOKR"}


def describe(layers: Mapping[str, Layer], rslora: bool = False) -> dict[str, Any]:
    """The keys of peft's LoraConfig, LoHaConfig or LoKrConfig that matter to these layers and no others: a
    version of peft that lacks a newer key refuses the whole config. The adapter never starts from the base's
    weights again, however it began."""
    kind = next(iter(layers.values())).kind
    rank = mode([layer.rank for layer in layers.values()])
    alpha = mode([layer.alpha for layer in layers.values()])
    described: dict[str, Any] = {
        "r": rank,
        "lora_alpha" if kind == "lora" else "alpha": whole(alpha),
        "target_modules": sorted(layers),
        "rank_pattern": {name: layer.rank for name, layer in sorted(layers.items()) if layer.rank != rank},
        "alpha_pattern": {
            name: whole(layer.alpha) for name, layer in sorted(layers.items()) if layer.alpha != alpha
        },
    }
    if kind == "lora":
        described["use_dora"] = any("magnitude" in layer.tensors for layer in layers.values())
        described["use_rslora"] = rslora
    return described


def whole(alpha: float) -> float | int:
    """peft documents alpha as an integer; keep 8.0 as 8 for readers that insist."""
    return int(alpha) if float(alpha).is_integer() else alpha
