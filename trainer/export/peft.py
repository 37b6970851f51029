"""A peft adapter folder: adapter_model.safetensors and adapter_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.errors import UserError
from trainer.export.description import PEFT_TYPES, describe
from trainer.export.keys import PEFT, PEFT_ROOT, PREFIX, peft_key
from trainer.export.layers import layers_of
from trainer.export.tell import CONFIG, WEIGHTS, adapter_json, alpha_of
from trainer.export.tensor_file import write
from trainer.export.verify import check
from trainer.files import write_atomic
from trainer.lora import Adapter

_OWN = ("base_model_name_or_path", "inference_mode")


def save(folder: Path, adapter: Adapter, base_model: str) -> list[Path]:
    """Write both files, the weights first, read them back and compare (TrainerError). The JSON's
    target_modules are sorted: the same training gives the same bytes (peft keeps a set)."""
    tensors = to_peft(adapter)
    kind = next(iter(adapter.layers.values())).kind
    config = {
        "peft_type": PEFT_TYPES[kind],
        "task_type": None,
        **adapter.description,
        **describe(adapter.layers, adapter.rslora),
        "base_model_name_or_path": base_model,
        "inference_mode": True,
    }
    write(folder / WEIGHTS, tensors, {"format": "pt"})
    write_atomic(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    check(folder / WEIGHTS, {"": adapter}, {"": load(folder)})
    return [folder / WEIGHTS, folder / CONFIG]


def load(folder: Path) -> Adapter:
    """The adapter of a peft folder. Raises UserError."""
    from safetensors.torch import load_file

    return from_peft(load_file(str(folder / WEIGHTS)), adapter_json(folder / CONFIG))


def to_peft(adapter: Adapter) -> dict[str, Tensor]:
    """`base_model.model.<module>.lora_A.weight` and so on; shapes as peft has them."""
    tensors: dict[str, Tensor] = {}
    for module, layer in adapter.layers.items():
        for part, tensor in layer.tensors.items():
            if part == "magnitude" and layer.tensors["down"].dim() == 4:
                tensor = tensor.reshape(1, -1, 1, 1)
            end = PEFT[part] if layer.kind == "lora" else PREFIX[layer.kind] + part
            tensors[f"{PEFT_ROOT}{module}.{end}"] = tensor
    return tensors


def from_peft(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Adapter:
    """Raises UserError that lists keys of other kinds (whole modules saved along, say)."""
    ranks: Mapping[str, Any] = config.get("rank_pattern") or {}
    found = layers_of(
        tensors,
        peft_key,
        lambda component, module, rank: alpha_of(module, rank, config),
        lambda module: int(ranks.get(module, config.get("r", 1))),
    )
    if not found:
        raise UserError("The adapter holds no tensor.", "Export it again.")
    rslora = bool(config.get("use_rslora"))
    described = {key: value for key, value in config.items() if key not in _OWN}
    return Adapter(found[""], {**described, **describe(found[""], rslora)}, rslora)
