"""Which samples a step trains on: a pure function of seed and step, so resuming needs no iterator state."""

from __future__ import annotations

import random
from functools import lru_cache


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The order of `count` samples in `epoch`."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)


def batch_at(seed: int, count: int, size: int, number: int) -> list[int]:
    """Indices of micro-batch `number` (0-based). The epochs' orders follow one another without a gap, so
    that every batch is full and every sample comes once an epoch."""
    start = number * size
    return [permutation(seed, place // count, count)[place % count] for place in range(start, start + size)]


def steps_of(count: int, size: int, accumulation: int, epochs: int, max_steps: int | None) -> int:
    """Number of optimizer steps: `max_steps`, or enough to see every sample `epochs` times."""
    return max_steps if max_steps is not None else -(-epochs * count // (size * accumulation))
