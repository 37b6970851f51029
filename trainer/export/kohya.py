"""The flat .safetensors that A1111, ComfyUI and kohya's tools read (sd-scripts networks/lora.py)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.export.names import kohya_name
from trainer.export.tensor_file import serialize, write
from trainer.lora import Adapter


def to_kohya(component: str, adapter: Adapter) -> dict[str, Tensor]:
    """NAME.lora_down.weight, NAME.lora_up.weight and NAME.alpha of every module; the effective scale is
    alpha / rank. Shapes: down (r, in[, kh, kw]), up (out, r[, 1, 1]), alpha ()."""
    tensors: dict[str, Tensor] = {}
    for module, layer in adapter.layers.items():
        name = kohya_name(component, module)
        tensors[f"{name}.lora_down.weight"] = layer.tensors["down"]
        tensors[f"{name}.lora_up.weight"] = layer.tensors["up"]
        tensors[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
    return tensors


def metadata(
    adapter: Adapter,
    *,
    name: str,
    resolution: int,
    prediction: str,
    captions: Iterable[str],
    extra: Mapping[str, str],
) -> dict[str, str]:
    """`ss_*` and `modelspec.*` (sd-scripts train_network.py, sai_model_spec.py). No dates: the same training
    gives the same bytes."""
    tags = Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip())
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(adapter.description["r"]),
        "ss_network_alpha": str(float(adapter.description["lora_alpha"])),
        "ss_network_args": "{}",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_output_name": name,
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_tag_frequency": json.dumps({name: dict(sorted(tags.items()))}, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else "epsilon",
        **extra,
    }


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
