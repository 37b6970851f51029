"""The adapter added to its base model: a folder that any program loads without knowing of adapters."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from trainer.errors import ConfigError, ModelError, TrainerError
from trainer.fast_imports import lean_imports
from trainer.files import json_object, whole_folder
from trainer.models.llm_load import load_model


def check(base: Path) -> None:
    """Raises ConfigError if the weights of the model folder `base` are quantised: an adapter that is rounded
    to 4 bits with them is no longer what was trained (peft#2321)."""
    if quantization := _config(base).get("quantization_config"):
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise ConfigError(
            [f"`merge`: {base} is quantised ({method}); merging into it would ruin the result."],
            "Use the adapter as it is, or name the unquantised (bf16) base model.",
        )


def merged(base: Path, adapter: Path) -> Any:
    """The model of the folder `base` with the peft adapter in the folder `adapter` added, in float32, on the
    CPU. Raises ModelError, TrainerError."""
    with lean_imports():
        from peft import PeftModel
    model = load_model(base, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        whole = PeftModel.from_pretrained(model, str(adapter))
    try:
        return whole.merge_and_unload(safe_merge=True).eval()
    except ValueError as error:
        raise TrainerError(
            f"The adapter cannot be merged: {error}", "The adapter's own files are written."
        ) from error


def save(model: Any, base: Path, tokenizer: Any, folder: Path) -> list[Path]:
    """Write `model` and `tokenizer` as `folder`, whole or not at all, in the number format of the folder
    `base`, bf16 or float32, which `model` has afterwards. The files, the weights' first."""
    named = str(_config(base).get("dtype") or _config(base).get("torch_dtype") or "float32")
    dtype = torch.bfloat16 if named == "bfloat16" else torch.float32
    with whole_folder(folder) as made:
        model.to(dtype).save_pretrained(made)
        tokenizer.save_pretrained(made)
    return sorted(folder.iterdir(), key=lambda path: (path.suffix != ".safetensors", path.name))


def _config(base: Path) -> dict[str, Any]:
    return json_object(base / "config.json", ModelError, "Copy the whole model folder again.")
