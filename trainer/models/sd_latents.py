"""Pictures to latents, through the cache: keyed by content, view, encoder and code, never by a name."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trainer.config import TrainConfig
from trainer.data import ImageItem
from trainer.data.variants import View, render, render_mask
from trainer.errors import ModelError
from trainer.fast_imports import lean_imports
from trainer.models import sd_cache
from trainer.models.sd_parts import Parts

CODE = 2
"""Raise it when this file computes something else."""

PIXELS = 4 * 1024 * 1024
"""What the VAE encodes at once on an accelerator. On the CPU it is one picture: larger batches gain nothing
there, and a latent's last bits may depend on its neighbours."""

Wanted = tuple[ImageItem, View]


@dataclass(frozen=True)
class Shown:
    """A view in the latent space. `posterior`: (2, C, h, w), mean and deviation, not scaled; `mask`: (h, w),
    the weight of each place, or None."""

    view: View
    posterior: Tensor
    mask: Tensor | None


def encode_views(parts: Parts, wanted: Sequence[Wanted], config: TrainConfig) -> list[Shown]:
    """`wanted` as latents, in this order. Raises ModelError when the VAE gives no numbers."""
    vae_id, factor = parts.identity("vae"), vae_factor(parts.config("vae"))
    keys = [
        {"image": item.sha256, "vae": vae_id, "view": view.as_dict(), "code": CODE} for item, view in wanted
    ]
    cache = parts.setup.cache
    found = [sd_cache.find(cache, "latents", key) for key in keys]
    missing = [number for number, tensors in enumerate(found) if tensors is None]
    if missing:
        with lean_imports():
            vae = parts.load_vae().to(parts.setup.device).eval().requires_grad_(False)
        batches = _progress(_batches(missing, wanted, parts.setup.device), len(missing))
        for batch, pictures in _rendered(batches, wanted, config):
            posteriors = _encode(vae, pictures, parts.setup.device)
            for number, posterior in zip(batch, posteriors, strict=True):
                if not torch.isfinite(posterior).all():
                    raise ModelError(
                        f"The VAE makes no numbers of {wanted[number][0].name}.", "Is the base model damaged?"
                    )
                found[number] = {"value": posterior}
                sd_cache.put(cache, "latents", keys[number], {"value": posterior})
    return [
        Shown(view, tensors["value"], _mask(item, view, config, factor))
        for (item, view), tensors in zip(wanted, found, strict=True)
        if tensors is not None
    ]


def vae_factor(config: dict[str, Any]) -> int:
    """How many pixels a side of a latent's element has."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def _rendered(
    batches: Iterable[list[int]], wanted: Sequence[Wanted], config: TrainConfig
) -> Iterator[tuple[list[int], list[NDArray[np.uint8]]]]:
    """Each batch with its pictures, which threads decode a little ahead of the VAE. A plugin's augmentations
    run in one thread: they may not know of others."""
    threads = 1 if config.augmentations else min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[list[int], list[Future[NDArray[np.uint8]]]]] = deque()
        for batch in batches:
            ahead.append((batch, [pool.submit(render, *wanted[number], config) for number in batch]))
            if len(ahead) > 2:
                first, pictures = ahead.popleft()
                yield first, [picture.result() for picture in pictures]
        for last, pictures in ahead:
            yield last, [picture.result() for picture in pictures]


def _encode(vae: Any, pictures: Sequence[NDArray[np.uint8]], device: torch.device) -> list[Tensor]:
    pixels = np.stack(pictures).astype(np.float32)
    images = torch.from_numpy(pixels / 127.5 - 1.0).permute(0, 3, 1, 2).to(device)
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
    pairs = torch.stack([posterior.mean, posterior.std], dim=1).float().cpu()
    return [pair.clone() for pair in pairs]


def _mask(item: ImageItem, view: View, config: TrainConfig, factor: int) -> Tensor | None:
    """The mask's mean over each latent place; what it hides still counts `unmasked_weight`."""
    if config.masked_loss == "off" or item.regularisation:
        return None
    full = torch.from_numpy(np.array(render_mask(item, view, config)))[None, None]
    small = functional.avg_pool2d(full, factor)[0, 0]
    return config.unmasked_weight + (1.0 - config.unmasked_weight) * small


def _batches(numbers: Sequence[int], wanted: Sequence[Wanted], device: torch.device) -> Iterator[list[int]]:
    """`numbers` in batches of one size of picture each."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for number in numbers:
        sizes.setdefault(wanted[number][1].size, []).append(number)
    for (width, height), members in sizes.items():
        count = 1 if device.type == "cpu" else max(1, PIXELS // (width * height))
        for place in range(0, len(members), count):
            yield members[place : place + count]


def _progress(batches: Iterator[list[int]], total: int) -> Iterator[list[int]]:
    """With a bar when it may take long and somebody watches."""
    if total < 16 or not sys.stderr.isatty():
        yield from batches
        return
    from tqdm import tqdm

    with tqdm(total=total, desc="encoding pictures", unit="view", dynamic_ncols=True) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
