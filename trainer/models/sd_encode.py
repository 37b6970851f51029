"""Images to latents and captions to embeddings, through the cache: keyed by content, encoder and code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from trainer.cache import Key
from trainer.data import ImageItem
from trainer.data import images as image_code
from trainer.export.tensor_file import serialize
from trainer.fast_imports import lean_imports
from trainer.models.sd_parts import Parts

Tensors = dict[str, Tensor]

CODE = 1
"""Raise it when this file computes something else."""


def encode_images(parts: Parts, items: Sequence[ImageItem], flips: Sequence[bool]) -> list[list[Tensor]]:
    """For each item and each of `flips` a float32 tensor (2, C, h, w): the posterior's mean and deviation."""
    side = parts.side
    vae_id = parts.identity("vae")
    loaded: list[Any] = []

    def encode(item: ImageItem, flip: bool) -> Tensors:
        import numpy as np

        if not loaded:
            with lean_imports():
                loaded.append(parts.load_vae().to(parts.setup.device).eval().requires_grad_(False))
        picture = np.asarray(image_code.square(image_code.open_rgb(item.path), side), dtype=np.float32)
        pixels = torch.from_numpy(picture / 127.5 - 1.0).permute(2, 0, 1)[None]
        if flip:
            pixels = pixels.flip(-1)
        with torch.no_grad():
            posterior = loaded[0].encode(pixels.to(parts.setup.device)).latent_dist
        return {"value": torch.cat([posterior.mean, posterior.std]).float().cpu()}

    def key(item: ImageItem, flip: bool) -> Key:
        return {
            "image": item.sha256,
            "vae": vae_id,
            "side": side,
            "flip": flip,
            "code": CODE,
            "reader": image_code.VERSION,
        }

    return [
        [_through(parts, "latents", key(item, flip), partial(encode, item, flip))["value"] for flip in flips]
        for item in items
    ]


def encode_captions(parts: Parts, captions: Iterable[str]) -> tuple[dict[str, Tensor], list[str]]:
    """({caption: float32 (77, width)}, the captions that were cut at 77 tokens)."""
    text_id = parts.identity("tokenizer", "text_encoder")
    loaded: list[Any] = []
    truncated: list[str] = []

    def encode(caption: str) -> Tensors:
        if not loaded:
            with lean_imports():
                tokenizer, model = parts.load_text()
            loaded.extend([tokenizer, model.to(parts.setup.device).eval().requires_grad_(False)])
        tokenizer, model = loaded
        length = int(model.config.max_position_embeddings)
        ids = tokenizer(
            caption, truncation=True, max_length=length, padding="max_length", return_tensors="pt"
        ).input_ids
        cut = len(tokenizer(caption).input_ids) > length
        with torch.no_grad():
            states: Tensor = model(ids.to(parts.setup.device)).last_hidden_state[0].float().cpu()
        return {"states": states, "cut": torch.tensor(cut)}

    embeddings: dict[str, Tensor] = {}
    for caption in dict.fromkeys(captions):
        key = {"caption": caption, "encoder": text_id, "code": CODE}
        found = _through(parts, "texts", key, partial(encode, caption))
        if found["cut"]:
            truncated.append(caption)
        embeddings[caption] = found["states"]
    return embeddings, truncated


def _through(parts: Parts, section: str, key: Key, compute: Callable[[], Tensors]) -> Tensors:
    """The tensors of `key` from the cache; a missing or damaged entry is computed and written."""
    cache = parts.setup.cache
    known = cache.find(section, key, ".safetensors")
    if known is not None and (value := _read(known)) is not None:
        return value
    value = compute()
    cache.put_bytes(section, key, ".safetensors", serialize(value))
    return value


def _read(path: Path) -> Tensors | None:
    try:
        return load(path.read_bytes())
    except (OSError, ValueError, SafetensorError):
        return None
