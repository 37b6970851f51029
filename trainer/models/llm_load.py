"""Load a causal language model and its tokenizer from a folder or a GGUF file, offline."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch

from trainer.cache import Cache
from trainer.errors import ModelError
from trainer.fast_imports import lean_imports
from trainer.models.sniff import BaseModel
from trainer.progress import Progress
from trainer.quiet import quiet

GGUF_CODE = 1
"""Raise it when the conversion below writes something else."""


def model_folder(base: BaseModel, digest: str, cache: Cache) -> Path:
    """The folder to load from: the base model's own, or a GGUF's conversion, made once (about 15 to 40 s for
    135 M parameters; loading it afterwards takes 0.2 s)."""
    if base.format == "folder":
        return base.path
    from importlib.metadata import version

    key = {"gguf": digest, "code": GGUF_CODE, "transformers": version("transformers")}
    return cache.folder("gguf", key, lambda made: _convert(base.path, made))


def _convert(gguf: Path, folder: Path) -> None:
    try:
        import gguf as _  # noqa: F401
    except ImportError:
        raise ModelError(
            f"{gguf} is a GGUF file, and the package gguf is not installed.", "pip install gguf"
        ) from None
    with lean_imports():
        from transformers import AutoModelForCausalLM, AutoTokenizer
    quiet()
    Progress.say(
        f"reading {gguf.name} for the first time takes up to a minute; the result is kept in the cache."
    )
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "local_files_only": True,
    }
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            tokenizer: Any = AutoTokenizer.from_pretrained(**where)
            model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"{gguf} cannot be read by transformers: {_first_line(error)}",
            "Use the model's safetensors folder.",
        ) from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def context_of(folder: Path) -> int:
    """How many tokens the model takes at once, by its config.json, times the factor that its rotary positions
    are stretched by; without a word there, as many as one likes."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = [
            int(part[key] * max(1.0, float(_rope(part).get("factor") or 1.0)))
            for part in (config, config.get("text_config") or {})
            for key in ("max_position_embeddings", "n_positions")
            if isinstance(part.get(key), int) and part[key] > 1
        ]
    except (OSError, ValueError, TypeError, AttributeError):
        found = []
    return min(found, default=sys.maxsize)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("rope_scaling") or config.get("rope_parameters") or {}


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises ModelError."""
    with lean_imports():
        from transformers import AutoTokenizer
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"The tokenizer of {folder} cannot be loaded: {_first_line(error)}",
            "Copy the whole model folder again.",
        ) from error


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """The causal LM of a model folder, in `dtype`, on the CPU. Raises ModelError."""
    with lean_imports():
        from transformers import AutoModelForCausalLM
    quiet()
    try:
        return AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype=dtype)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{folder} cannot be loaded: {_first_line(error)}", "Copy the whole model folder again."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
