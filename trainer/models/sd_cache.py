"""Tensors through the cache, one small .safetensors an entry."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from trainer.cache import Cache, Key
from trainer.export.tensor_file import serialize

Tensors = dict[str, Tensor]


def find(cache: Cache, section: str, key: Key) -> Tensors | None:
    """The tensors of `key`; None if they are not there, or damaged."""
    known = cache.find(section, key, ".safetensors")
    return None if known is None else _read(known)


def put(cache: Cache, section: str, key: Key, value: Tensors) -> None:
    """Keep `value`: whole or not at all, also beside another writer."""
    cache.put_bytes(section, key, ".safetensors", serialize(value))


def _read(path: Path) -> Tensors | None:
    try:
        return load(path.read_bytes())
    except (OSError, ValueError, SafetensorError):
        return None
