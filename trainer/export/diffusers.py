"""`pytorch_lora_weights.safetensors`, as diffusers' load_lora_weights reads it. LoRA, LoCon and DoRA only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from trainer.errors import UserError
from trainer.export.description import describe
from trainer.export.keys import diffusers_key
from trainer.export.layers import layers_of
from trainer.export.names import classic, flat
from trainer.export.tell import alpha_of, described_parts
from trainer.export.tensor_file import write
from trainer.lora import Adapter

NAME = "pytorch_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"


def to_diffusers(component: str, adapter: Adapter) -> dict[str, Tensor]:
    """`<component>.<module>.lora_A.weight` (r, in[, kh, kw]), `.lora_B.weight` (out, r[, 1, 1]) and with DoRA
    `.lora_magnitude_vector`, (out,) or (1, out, 1, 1) as peft has it. Raises UserError for other kinds."""
    tensors: dict[str, Tensor] = {}
    for module, layer in adapter.layers.items():
        if layer.kind != "lora":
            raise UserError(
                f"diffusers' load_lora_weights cannot read {layer.kind}.",
                "Use the kohya file, or the peft folder (PeftModel.from_pretrained(pipe.unet, folder)).",
            )
        name = f"{component}.{classic(component, module)}"
        tensors[f"{name}.lora_A.weight"] = layer.tensors["down"]
        tensors[f"{name}.lora_B.weight"] = layer.tensors["up"]
        if "magnitude" in layer.tensors:
            magnitude = layer.tensors["magnitude"]
            shape = (1, -1, 1, 1) if layer.tensors["down"].dim() == 4 else (-1,)
            # Without `.weight` transformers 5 leaves a text encoder's magnitudes at their start; older
            # versions and the UNet's loader read either name.
            end = "lora_magnitude_vector" if component == "unet" else "lora_magnitude_vector.weight"
            tensors[f"{name}.{end}"] = magnitude.reshape(shape)
    return tensors


def save(folder: Path, adapters: Mapping[str, Adapter], extra: Mapping[str, str] | None = None) -> Path:
    """Write the file for {component: adapter} to `folder`."""
    return save_file(folder / NAME, adapters, extra)


def save_file(path: Path, adapters: Mapping[str, Adapter], extra: Mapping[str, str] | None = None) -> Path:
    """Write the file for {component: adapter}. Without `lora_adapter_metadata` diffusers would take
    alpha = rank, whatever was trained. `extra` is further metadata, which diffusers ignores."""
    tensors: dict[str, Tensor] = {}
    described: dict[str, object] = {}
    for component, adapter in adapters.items():
        tensors.update(to_diffusers(component, adapter))
        layers = {flat(component, module): layer for module, layer in adapter.layers.items()}
        for key, value in describe(layers, adapter.rslora).items():
            described[f"{component}.{key}"] = value
    text = json.dumps(described, indent=2, sort_keys=True)
    write(path, tensors, {**(extra or {}), "format": "pt", METADATA_KEY: text})
    return path


def from_diffusers(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Adapter]:
    """{component: adapter}, from the names of every diffusers version. Without `lora_adapter_metadata`
    alpha is the rank, as diffusers applies it. Raises UserError that lists unknown keys."""
    described = described_parts(metadata)
    found = layers_of(
        tensors,
        diffusers_key,
        lambda component, module, rank: alpha_of(module, rank, described.get(component, {})),
    )
    adapters = {}
    for component, layers in found.items():
        rslora = bool(described.get(component, {}).get("use_rslora"))
        adapters[component] = Adapter(layers, describe(layers, rslora), rslora)
    return adapters
