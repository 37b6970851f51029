"""A peft adapter folder for language models: adapter_model.safetensors and adapter_config.json."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.cache import write_atomic
from trainer.export.tensor_file import write
from trainer.lora import Adapter

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save(folder: Path, adapter: Adapter, base_model: str) -> list[Path]:
    """Write both files, the weights first. The JSON's target_modules are sorted: the same training gives
    the same bytes (peft keeps a set)."""
    tensors = {}
    for module, layer in adapter.layers.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = layer.tensors["down"]
        tensors[f"base_model.model.{module}.lora_B.weight"] = layer.tensors["up"]
    write(folder / WEIGHTS, tensors, {"format": "pt"})
    config = {**adapter.description, "base_model_name_or_path": base_model, "inference_mode": True}
    write_atomic(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    return [folder / WEIGHTS, folder / CONFIG]
