"""The flat .safetensors that A1111, ComfyUI and kohya's tools read (sd-scripts networks/lora.py, LyCORIS)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.errors import UserError
from trainer.export.description import describe
from trainer.export.effect import full_matrices, scale
from trainer.export.keys import KOHYA, PREFIX, by_input, kohya_key
from trainer.export.layers import layers_of
from trainer.export.names import Naming, naming
from trainer.export.tensor_file import serialize, write
from trainer.lora import Adapter


def to_kohya(component: str, adapter: Adapter, names: Naming | None = None) -> dict[str, Tensor]:
    """The tensors of one part, and NAME.alpha () of every module: alpha / rank is the effective scale, rsLoRA
    or not. Shapes as in Layer; `dora_scale` is (out, 1[, 1, 1]) as LyCORIS has it. A lokr of two whole
    matrices carries its scale in the first: readers take none."""
    names = names or naming("sd1")
    tensors: dict[str, Tensor] = {}
    for module, layer in adapter.layers.items():
        name = names.kohya(component, module)
        factor = scale(layer, adapter.rslora)
        if full_matrices(layer):
            tensors[f"{name}.lokr_w1"] = layer.tensors["w1"] * factor
            tensors[f"{name}.lokr_w2"] = layer.tensors["w2"]
            tensors[f"{name}.alpha"] = torch.tensor(float(layer.rank))
            continue
        for part, tensor in layer.tensors.items():
            if part == "magnitude":
                tensor = tensor.reshape(-1, *[1] * (layer.tensors["down"].dim() - 1))
            end = KOHYA[part] if layer.kind == "lora" else PREFIX[layer.kind] + part
            tensors[f"{name}.{end}"] = tensor
        tensors[f"{name}.alpha"] = torch.tensor(factor * layer.rank, dtype=torch.float32)
    return tensors


def from_kohya(tensors: Mapping[str, Tensor], names: Naming) -> dict[str, Adapter]:
    """{component: adapter}; without an alpha the scale is 1. Raises UserError that lists unknown keys, and
    for DoRA magnitudes of each input, which only kohya's format has."""
    inputs = [k for k, t in tensors.items() if k.endswith(".dora_scale") and by_input(tuple(t.shape))]
    if inputs:
        raise UserError(
            f"{len(inputs)} DoRA magnitudes are for each input, not each output (the first: {inputs[0]}).",
            "peft and diffusers have no form for them: keep the kohya file for A1111 and ComfyUI.",
        )
    found = layers_of(tensors, lambda key: kohya_key(key, names))
    return {component: Adapter(layers, describe(layers)) for component, layers in found.items()}


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Write the file with both of its hashes (sd-scripts train_util.py, precalculate_safetensors_hashes)."""
    hashed = serialize(tensors, {key: value for key, value in meta.items() if key.startswith("ss_")})
    data = hashed[8 + int.from_bytes(hashed[:8], "little") :]
    digest = hashlib.sha256(data).hexdigest()
    legacy = hashlib.sha256(hashed[0x100000:0x110000]).hexdigest()[:8]
    write(
        path,
        tensors,
        {
            **meta,
            "sshs_model_hash": digest,
            "sshs_legacy_hash": legacy,
            "modelspec.hash_sha256": f"0x{digest}",
            "format": "pt",
        },
    )
