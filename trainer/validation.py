"""The validation loss: held-out samples on noise and timesteps that are the same every time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence

import torch

from trainer.distributed import Processes
from trainer.errors import is_out_of_memory
from trainer.memory import free, smaller
from trainer.models.base import Family

DRAWS = 4
"""Draws of noise and timestep for each picture: the loss of one timestep says little."""


class Validation:
    """Samples `first`, `first + 1`, ... of `family`, whose buckets are `buckets`."""

    def __init__(
        self, family: Family, first: int, buckets: Sequence[Hashable], seed: int, processes: Processes
    ) -> None:
        self._family, self._seed, self._processes = family, seed, processes
        members: dict[Hashable, list[int]] = {}
        for number, bucket in enumerate(buckets):
            members.setdefault(bucket, []).append(first + number)
        self._members = list(members.values())
        self._draws = 1 if family.unit == "tokens" else DRAWS
        self._first = first

    def loss(self, size: int, given_up: Callable[[], bool] = lambda: False) -> float | None:
        """The mean over all units of all draws, in batches of at most `size` samples; None when it is
        `given_up` on the way."""
        total = torch.zeros((), dtype=torch.float64)
        units, number = 0.0, 0
        for draw in range(self._draws):
            for samples in self._members:
                for place in range(0, len(samples), size):
                    if given_up():
                        return None
                    batch = samples[place : place + size]
                    units += self._family.units(batch)
                    if number % self._processes.world == self._processes.rank:
                        total += self._sum(batch, draw)
                    number += 1
        shared = total.float().to(self._processes.device) if self._processes.world > 1 else total
        return float(self._processes.sum(shared)) / units

    def _sum(self, batch: Sequence[int], draw: int) -> float:
        """The summed loss of `batch`; in halves where it does not fit."""
        rngs = [self._generator(index, draw) for index in batch]
        try:
            torch.manual_seed(draw)
            with torch.no_grad():
                return float(self._family.loss(batch, rngs, training=False))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        free(self._processes.device)
        half = smaller(len(batch), reason, "validation")
        return self._sum(batch[:half], draw) + self._sum(batch[half:], draw)

    def _generator(self, index: int, draw: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed}/validation/{index - self._first}/{draw}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
