"""Aspect-ratio buckets: the sizes that pictures are scaled and cut to. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.config import TrainConfig

Size = tuple[int, int]
"""(width, height) in pixels."""


def fitting_step(side: int, step: int, multiple: int = 8) -> int:
    """The step that buckets about `side` are made with: `step`, or a divisor of `side` where `step` does not
    divide it or is more than half of it (then no more than a quarter, so that there are buckets at all).
    Always a multiple of `multiple`, which is what the model wants of a side and divides it."""
    wanted = -(-step // multiple) * multiple
    if side % wanted == 0 and 2 * wanted <= side:
        return wanted
    below = range(multiple, min(wanted, side // 4) + 1, multiple)
    return max((each for each in below if side % each == 0), default=multiple)


def bucket_sizes(side: int, step: int, max_ratio: float, multiple: int = 8) -> tuple[Size, ...]:
    """All sizes whose sides are multiples of `fitting_step(side, step, multiple)`, whose longer side is at
    most `max_ratio` times the shorter, and whose area is as near to side² as it comes without exceeding it:
    no bucket takes more memory than the square. The square is always there; sorted by width."""
    unit = fitting_step(side, step, multiple)
    found = {(side, side)}
    for long in range(unit, int(side * math.sqrt(max_ratio)) + unit, unit):
        short = side * side // long // unit * unit
        if short and long >= short and long <= max_ratio * short:
            found |= {(long, short), (short, long)}
    return tuple(sorted(found))


def bucket_for(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """The size whose shape is nearest to width:height (on a logarithmic scale); the larger one of two."""
    shape = math.log(width / height)
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - shape), -size[0] * size[1], size))


def sizes_of(config: TrainConfig, side: int, multiple: int = 8) -> tuple[Size, ...]:
    """The buckets of a config for a model whose sides are multiples of `multiple`: with `aspect_buckets`
    false the square alone."""
    if not config.aspect_buckets:
        return ((side, side),)
    return bucket_sizes(side, config.bucket_step, config.bucket_max_ratio, multiple)
