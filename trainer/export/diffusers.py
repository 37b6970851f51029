"""`pytorch_lora_weights.safetensors`, as diffusers' load_lora_weights reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from trainer.export.names import classic
from trainer.export.tensor_file import write
from trainer.lora import Adapter

NAME = "pytorch_lora_weights.safetensors"


def to_diffusers(component: str, adapter: Adapter) -> dict[str, Tensor]:
    """`<component>.<module>.lora_A.weight` (r, in) and `.lora_B.weight` (out, r)."""
    tensors: dict[str, Tensor] = {}
    for module, layer in adapter.layers.items():
        name = f"{component}.{classic(component, module)}"
        tensors[f"{name}.lora_A.weight"] = layer.tensors["down"]
        tensors[f"{name}.lora_B.weight"] = layer.tensors["up"]
    return tensors


def save(folder: Path, adapters: Mapping[str, Adapter]) -> Path:
    """Write the file for {component: adapter}. Without `lora_adapter_metadata` diffusers would take
    alpha = rank, whatever was trained."""
    tensors: dict[str, Tensor] = {}
    described: dict[str, object] = {}
    for component, adapter in adapters.items():
        tensors.update(to_diffusers(component, adapter))
        described.update({f"{component}.{key}": value for key, value in adapter.description.items()})
    path = folder / NAME
    write(
        path,
        tensors,
        {
            "format": "pt",
            "lora_adapter_metadata": json.dumps(described, indent=2, sort_keys=True),
        },
    )
    return path
