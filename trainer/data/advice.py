"""What a user should know about pictures that can be trained on: warnings with their remedy, and facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from trainer.config import TrainConfig
from trainer.data.buckets import Size, bucket_for
from trainer.data.folders import CONCEPT
from trainer.data.listing import counted
from trainer.data.report import ImageItem
from trainer.data.variants import cover

SHARP = 512
"""The shorter side in pixels below which pictures make results blurred."""
FEW = 50
"""Fewer pictures than this are easily overfitted by a high rank."""
_LOST = 0.25


def buckets_of(pictures: Sequence[ImageItem], sizes: Sequence[Size]) -> dict[str, int]:
    """How many pictures each bucket gets, as {"768x512": 3}, by size."""
    count = Counter(bucket_for(item.width, item.height, sizes) for item in pictures)
    return {f"{width}x{height}": count[width, height] for width, height in sorted(count)}


def advise(pictures: Sequence[ImageItem], config: TrainConfig, side: int, sizes: Sequence[Size]) -> list[str]:
    """Warnings about checked pictures, for a model trained at `side` pixels in buckets of `sizes`."""
    found = _small(pictures, side, sizes)
    if config.aspect_buckets:
        found += _cut(pictures, sizes)
    own = [item for item in pictures if not item.regularisation]
    if config.lora_rank >= 32 and 0 < len(own) < FEW:
        found.append(
            f"lora_rank {config.lora_rank} on {counted(len(own), 'image')} tends to overfit; "
            "start with 4 to 8."
        )
    if config.reg_data_dir is not None and len(own) == len(pictures):
        found.append("reg_data_dir adds no picture; put some into it, or leave the key out.")
    found += _balance(pictures)
    if opaque := [item for item in own if item.opaque]:
        found.append(
            f"masked_loss: alpha hides nothing of {len(opaque)} of {counted(len(own), 'picture')} "
            f"(the first: {opaque[0].name} has no transparent part); save what is cut out as PNG with "
            "transparency, or paint masks for masked_loss: folder."
        )
    return [*found, *_captions(own, config)]


def _balance(pictures: Sequence[ImageItem]) -> list[str]:
    """With far more regularisation than subject most steps learn what the model knows already."""
    often = Counter[bool]()
    for item in pictures:
        often[item.regularisation] += item.repeats
    if not often[False] or often[True] <= 2 * often[False]:
        return []
    text = (
        f"an epoch has {often[True]:,} regularisation samples and only {often[False]:,} of your own: most "
        "steps learn the class. As many of each is usual: put more repeats into your folder's name "
        f"({-(-often[True] // often[False])} times as many), or fewer pictures into reg_data_dir."
    )
    return [text]


def duplicates(pictures: Sequence[ImageItem], held: Sequence[ImageItem]) -> list[str]:
    """Warnings about pictures with one content: with several captions, or trained on and held out."""
    found: list[str] = []
    first: dict[str, ImageItem] = {}
    unlike: list[tuple[ImageItem, ImageItem]] = []
    again: list[tuple[ImageItem, ImageItem]] = []
    for item in pictures:
        other = first.setdefault(item.sha256, item)
        if other is not item:
            (again if other.caption == item.caption else unlike).append((other, item))
    if unlike:
        one, two = unlike[0]
        found.append(
            f"different captions for the same picture, {len(unlike)} times (the first: {one.name} and "
            f"{two.name}); keep the caption that is right."
        )
    if again:
        one, two = again[0]
        found.append(
            f"the same picture more than once, {len(again)} times (the first: {one.name} and {two.name}); "
            "delete one of each, or use repeats to weigh pictures."
        )
    leaked = [(first[item.sha256], item) for item in held if item.sha256 in first]
    if leaked:
        one, two = leaked[0]
        found.append(
            f"{counted(len(leaked), 'held-out picture')} are trained on as well (the first: {two.name} is "
            f"{one.name}); take them out of one, or the validation loss says too little."
        )
    return found


def _small(pictures: Sequence[ImageItem], side: int, sizes: Sequence[Size]) -> list[str]:
    small = [
        item
        for item in pictures
        if min(item.width, item.height) < min(SHARP, side) or _scale(item, sizes) > 1.0
    ]
    if not small:
        return []
    first = small[0]
    text = (
        f"{len(small)} of {len(pictures)} images are smaller than {side} pixels and will be blurred by "
        f"enlarging (the first: {first.name}, {first.width}x{first.height}); use larger ones or lower "
        "resolution."
    )
    return [text]


def _scale(item: ImageItem, sizes: Sequence[Size]) -> float:
    width, height = bucket_for(item.width, item.height, sizes)
    return max(width / item.width, height / item.height)


def _cut(pictures: Sequence[ImageItem], sizes: Sequence[Size]) -> list[str]:
    cut = []
    for item in pictures:
        width, height = bucket_for(item.width, item.height, sizes)
        scaled = cover((item.width, item.height), (width, height))
        if 1 - width * height / (scaled[0] * scaled[1]) > _LOST:
            cut.append(item)
    if not cut:
        return []
    first = cut[0]
    verb = "loses" if len(cut) == 1 else "lose"
    text = (
        f"{counted(len(cut), 'picture')} {verb} more than a quarter to the cut (the first: {first.name}, "
        f"{first.width}x{first.height}); cut them yourself, or raise bucket_max_ratio."
    )
    return [text]


def _captions(pictures: Sequence[ImageItem], config: TrainConfig) -> list[str]:
    if len(pictures) < 2:
        return []
    text = ""
    fallback = config.caption_fallback
    if all(item.source == "" for item in pictures) and fallback is not None and CONCEPT not in fallback:
        text = (
            f"no picture has a caption of its own: all are `{fallback}` (caption_fallback). "
            "Captions are read from .txt and .caption files beside the pictures, of the same name."
        )
    elif len({item.caption for item in pictures}) == 1:
        text = (
            f"all captions are the same ({pictures[0].caption[:60]!r}): whatever the pictures share is "
            "learnt as that. For a style, or several subjects, say what each picture shows."
        )
    return [text] if text else []
