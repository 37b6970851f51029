"""Decode pictures before step 0, several at a time; what was decoded once is remembered by its content."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from PIL import Image

from trainer.cache import Cache
from trainer.config import TrainConfig
from trainer.data import images
from trainer.data.report import ImageItem, Problem
from trainer.files import sha256_bytes

Say = Callable[[str], None]
_TOLD_FROM = 200


def decode_all(
    items: Sequence[ImageItem], config: TrainConfig, cache: Cache, say: Say | None = None
) -> list[ImageItem | Problem]:
    """Each item with the sha256 and size of its picture, or what is wrong with it, in their order. `say`
    gets a line for every tenth of more than 200 pictures."""
    found: list[ImageItem | Problem] = []
    told = max(1, len(items) // 10) if say is not None and len(items) > _TOLD_FROM else 0
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode")
    try:
        for checked in pool.map(partial(_decode, config=config, cache=cache), items):
            found.append(checked)
            if say is not None and told and len(found) % told == 0:
                say(f"checked {len(found):,} of {len(items):,} pictures")
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _decode(item: ImageItem, config: TrainConfig, cache: Cache) -> ImageItem | Problem:
    try:
        data = item.path.read_bytes()
    except OSError as error:
        return Problem(item.name, None, f"cannot be read: {error.strerror}")
    if not data:
        return Problem(item.name, None, "is empty", "copy the picture again")
    sha = sha256_bytes(data)
    try:
        width, height = _remembered(cache, "sizes", sha, lambda: images.open_rgb(data).size)
    except images.ImageError as error:
        return Problem(item.name, None, str(error), "replace or remove it")
    checked = replace(item, sha256=sha, width=width, height=height)
    if config.masked_loss == "alpha" and not item.regularisation:
        darkest, brightest = _remembered(cache, "opacity", sha, lambda: _extremes(images.open_alpha(data)))
        if brightest == 0 and config.unmasked_weight == 0:
            return _hidden(item)
        return replace(checked, opaque=darkest == 255)
    wrong = _mask_problem(checked, data, config, cache)
    return wrong or checked


def _mask_problem(item: ImageItem, data: bytes, config: TrainConfig, cache: Cache) -> Problem | None:
    """What is wrong with the mask of a picture that was decoded, if it has one."""
    if config.masked_loss == "folder" and item.mask is not None:
        try:
            mask = item.mask.read_bytes()
            grey = partial(_grey_facts, mask)
            width, height, brightest = _remembered(cache, "masks", sha256_bytes(mask), grey)
        except (OSError, images.ImageError) as error:
            return Problem(item.name, None, f"its mask {item.mask.name}: {error}", "replace the mask")
        if not _same_shape((width, height), (item.width, item.height)):
            what = f"its mask is {width}x{height}, the picture {item.width}x{item.height}: not one shape"
            return Problem(item.name, None, what, "save the mask in the picture's size")
        if brightest == 0 and config.unmasked_weight == 0:
            return _hidden(item)
    return None


def _hidden(item: ImageItem) -> Problem:
    hint = "white is what is learnt; or set unmasked_weight above 0"
    return Problem(item.name, None, "its mask hides all of it: nothing to learn", hint)


def _grey_facts(data: bytes) -> tuple[int, ...]:
    grey = images.open_rgb(data, (0, 0, 0)).convert("L")
    return grey.width, grey.height, _extremes(grey)[1]


def _extremes(grey: Image.Image) -> tuple[int, ...]:
    low, high = grey.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    return int(low), int(high)


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two (width, height) have one shape, but for a pixel of rounding in the smaller one."""
    small, large = sorted((one, other))
    return (
        abs(large[1] * small[0] / large[0] - small[1]) <= 1
        or abs(large[0] * small[1] / large[1] - small[0]) <= 1
    )


def _remembered(
    cache: Cache, section: str, sha: str, compute: Callable[[], tuple[int, ...]]
) -> tuple[int, ...]:
    """What `compute` says of the picture with this content; kept in the cache, unless it raises."""
    key = {"sha256": sha, "code": images.VERSION}
    known = cache.find(section, key, ".json")
    if known is not None:
        try:
            return tuple(int(number) for number in json.loads(known.read_text()))
        except (ValueError, TypeError, OSError):
            pass
    facts = compute()
    cache.put_bytes(section, key, ".json", json.dumps(facts).encode(), sync=False)
    return facts
