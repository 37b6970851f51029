"""Which samples a step trains on: a pure function of seed and step, so resuming needs no iterator state."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from functools import lru_cache


@lru_cache(maxsize=256)
def permutation(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The order of `count` samples in `epoch`."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)


class Order:
    """Micro-batches of at most `size` samples that share a bucket (`buckets[i]` is sample i's).

    Within a bucket the epochs' orders follow one another without a gap: every batch is full (or has the
    whole bucket), and every sample comes once an epoch. The buckets' batches are shuffled within an epoch.
    """

    def __init__(self, seed: int, buckets: Sequence[Hashable], size: int) -> None:
        self.seed = seed
        members: dict[Hashable, list[int]] = {}
        for index, bucket in enumerate(buckets):
            members.setdefault(bucket, []).append(index)
        self._members = list(members.values())
        self._sizes = [min(size, len(samples)) for samples in self._members]
        self._epoch = lru_cache(maxsize=4)(self._batches_of)

    def batches(self, epochs: int) -> int:
        """How many micro-batches the first `epochs` epochs have."""
        return sum(self._until(bucket, epochs) for bucket in range(len(self._members)))

    def steps(self, accumulation: int, epochs: int, max_steps: int | None) -> int:
        """Number of optimizer steps: `max_steps`, or enough to see every sample `epochs` times."""
        return max_steps if max_steps is not None else -(-self.batches(epochs) // accumulation)

    def batch(self, number: int) -> list[int]:
        """Indices of micro-batch `number` (0-based)."""
        low, high = 0, number + 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.batches(middle) <= number else (low, middle - 1)
        bucket, place = self._epoch(low)[number - self.batches(low)]
        members, size = self._members[bucket], self._sizes[bucket]
        return [
            members[permutation(self.seed, at // len(members), len(members))[at % len(members)]]
            for at in range(place * size, place * size + size)
        ]

    def _until(self, bucket: int, epochs: int) -> int:
        return -(-epochs * len(self._members[bucket]) // self._sizes[bucket])

    def _batches_of(self, epoch: int) -> list[tuple[int, int]]:
        found = [
            (bucket, place)
            for bucket in range(len(self._members))
            for place in range(self._until(bucket, epoch), self._until(bucket, epoch + 1))
        ]
        if len(self._members) > 1:
            random.Random(f"{self.seed}/batches/{epoch}").shuffle(found)
        return found
