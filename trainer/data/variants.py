"""How a picture is scaled, cut, mirrored and augmented: drawn beforehand, so that latents can be cached."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from trainer.config import TrainConfig
from trainer.data import images, masks
from trainer.data.buckets import Size
from trainer.data.report import ImageItem
from trainer.errors import ConfigError
from trainer.plugins import load_plugins, registered

CODE = 1
"""Raise it when the same view becomes other pixels."""


@dataclass(frozen=True)
class View:
    """One way to show a picture: scaled to `scaled`, cut to `size` at `offset`, mirrored, augmented.

    Sizes are (width, height), `offset` is (left, top) in the scaled picture, all in pixels. `seed` and
    `plugins` (a digest of their code) are set only where augmentations are applied."""

    scaled: Size
    size: Size
    offset: tuple[int, int]
    flip: bool = False
    background: str = "white"
    augmentations: tuple[str, ...] = ()
    seed: str = ""
    plugins: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For a cache key: plain JSON values, with the versions of the code that makes pixels of it."""
        return {**asdict(self), "code": CODE, "reader": images.VERSION}


def views(item: ImageItem, size: Size, config: TrainConfig, *, training: bool = True) -> list[View]:
    """The views of a checked picture for the bucket `size` (width, height), without repetition, drawn from
    the config's seed and the picture's content. One where nothing is random or `training` is false; the two
    sides where only `flip` is; else up to `cache_variants`, half of them mirrored with `flip`. Raises
    ConfigError for an unknown augmentation."""
    scaled = cover((item.width, item.height), size)
    slack = (scaled[0] - size[0], scaled[1] - size[1])
    middle = View(scaled, size, (slack[0] // 2, slack[1] // 2), background=config.background)
    if not training:
        return [middle]
    plugins = known_augmentations(config)
    cropped = config.crop == "random" and any(slack)
    if not cropped and not config.augmentations:
        return [middle, replace(middle, flip=True)] if config.flip else [middle]
    found = []
    for variant in range(config.cache_variants):
        rng = random.Random(f"view/{config.seed}/{item.sha256}/{size}/{variant}")
        offset = (rng.randint(0, slack[0]), rng.randint(0, slack[1])) if cropped else middle.offset
        flip = config.flip and (variant + _first_flip(item, config)) % 2 == 1
        seed = f"{config.seed}/{item.sha256}/{variant}" if config.augmentations else ""
        found.append(View(scaled, size, offset, flip, config.background, config.augmentations, seed, plugins))
    return list(dict.fromkeys(found))


def render(item: ImageItem, view: View, config: TrainConfig) -> NDArray[np.uint8]:
    """The pixels of `view`: (height, width, 3), RGB. Raises DataError when the file is no longer the one
    that was checked, ConfigError when an augmentation fails."""
    return render_all(item, [view], config)[0]


def render_all(item: ImageItem, chosen: Sequence[View], config: TrainConfig) -> list[NDArray[np.uint8]]:
    """`render` for several views of one picture, decoded once."""
    picture = _decoded(item, config.background)
    known_augmentations(config)
    found = []
    for view in chosen:
        shown = _placed(picture, view)
        for name in view.augmentations:
            shown = _augmented(shown, name, random.Random(f"augment/{name}/{view.seed}"))
        found.append(np.asarray(shown, dtype=np.uint8))
    return found


def render_mask(item: ImageItem, view: View, config: TrainConfig) -> NDArray[np.float32]:
    """How much each pixel of `view` counts: (height, width), 0 to 1, in the picture's geometry. All ones
    with masked_loss off. An augmentation of a plugin is taken to leave everything in its place."""
    mask = masks.open_mask(item, config)
    if mask is None:
        return np.ones(view.size[::-1], dtype=np.float32)
    return np.asarray(_placed(mask, view), dtype=np.float32) / np.float32(255.0)


def cover(picture: Size, size: Size) -> Size:
    """The smallest size in the shape of `picture` (width, height) that covers `size`."""
    scale = max(size[0] / picture[0], size[1] / picture[1])
    return max(size[0], round(picture[0] * scale)), max(size[1], round(picture[1] * scale))


def known_augmentations(config: TrainConfig) -> str:
    """Load the plugins that `augmentations` wants; the digest of their code, "" without augmentations.
    Raises ConfigError for a name that none of them registers."""
    if not config.augmentations:
        return ""
    digest = load_plugins(config.plugins)
    there = registered("augmentation")
    unknown = [name for name in config.augmentations if name not in there]
    if unknown:
        raise ConfigError(
            [f"`augmentations`: `{unknown[0]}` is registered by no file of `plugins`."],
            f"Known: {', '.join(sorted(there)) or 'none'}. Write @augmentation({unknown[0]!r}) above a "
            "function of one of those files.",
        )
    return digest


@lru_cache(maxsize=1)
def _decoded(item: ImageItem, background: str) -> Image.Image:
    """The picture that was decoded last: its views are rendered one after another."""
    return images.open_rgb(masks.checked_bytes(item), images.colour(background))


def _first_flip(item: ImageItem, config: TrainConfig) -> int:
    return random.Random(f"flip/{config.seed}/{item.sha256}").randint(0, 1)


def _placed(picture: Image.Image, view: View) -> Image.Image:
    left, top = view.offset
    scaled = picture.resize(view.scaled, Image.Resampling.LANCZOS)
    cut = scaled.crop((left, top, left + view.size[0], top + view.size[1]))
    return ImageOps.mirror(cut) if view.flip else cut


def _augmented(picture: Image.Image, name: str, rng: random.Random) -> Image.Image:
    try:
        shown = registered("augmentation")[name](picture, rng)
    except Exception as error:
        raise ConfigError(
            [f"the augmentation `{name}` failed: {type(error).__name__}: {error}"], "Mend the plugin."
        ) from error
    if not isinstance(shown, Image.Image) or shown.size != picture.size:
        what = f"an image of {shown.size}" if isinstance(shown, Image.Image) else type(shown).__name__
        raise ConfigError(
            [f"the augmentation `{name}` returned {what}; the picture given was of {picture.size}."],
            "It must return a PIL image of the same size.",
        )
    return shown.convert("RGB")
