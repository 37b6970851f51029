"""The search for the largest micro-batch, on a device of a known size."""

from __future__ import annotations

from collections.abc import Hashable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer import auto_batch
from trainer.auto_batch import heaviest, largest_batch

GIB = 2**30


class Device:
    """Holds `total` bytes; a pass of n samples takes `base + n * each`, and `bump` more from `at` on."""

    def __init__(self, total: float, base: float, each: float, bump: float = 0, at: int = 10**9) -> None:
        self.total, self.base, self.each, self.bump, self.at = total, base, each, bump, at
        self.peak = 0.0
        self.passes: list[int] = []

    def take(self, count: int) -> None:
        self.passes.append(count)
        self.peak = self.base + count * self.each + (self.bump if count >= self.at else 0)
        if self.peak > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, answer in {
            "get_device_properties": lambda device: SimpleNamespace(total_memory=self.total),
            "mem_get_info": lambda device: (self.total, self.total),
            "memory_reserved": lambda device: 0,
            "reset_peak_memory_stats": lambda device: None,
            "max_memory_allocated": lambda device: self.peak,
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)


class Counting:
    def __init__(self, device: Device | None = None) -> None:
        self.device = device

    def units(self, batch: list[int]) -> float:
        return float(sum(batch))

    def loss(self, batch: list[int], rngs: list[Any]) -> torch.Tensor:
        if self.device is not None:
            self.device.take(len(batch))
        return torch.ones((), requires_grad=True) * len(batch)


def search(device: Device, monkeypatch: pytest.MonkeyPatch, samples: int = 1000) -> int:
    device.install(monkeypatch)
    family: Any = Counting(device)
    return largest_batch(family, ["one"] * samples, torch.device("cuda"))


@pytest.mark.parametrize("each", [0.3, 1.0, 1.7, 6.0, 30.0, 70.0])
def test_a_tenth_stays_free_and_no_more_than_that(monkeypatch: pytest.MonkeyPatch, each: float) -> None:
    device = Device(80 * GIB, 5 * GIB, each * GIB)
    size = search(device, monkeypatch)
    used = device.base + size * device.each
    assert size == 1 or used <= 0.9 * device.total
    if size < auto_batch.MOST:
        assert 0.9 * device.total - used < max(1.5, size / 16 + 1) * device.each
    assert len(device.passes) <= 11


def test_what_does_not_grow_evenly_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(80 * GIB, 5 * GIB, 2 * GIB, bump=12 * GIB, at=20)
    size = search(device, monkeypatch)
    assert device.base + size * device.each + (device.bump if size >= 20 else 0) <= 0.9 * device.total
    assert size >= 20


def test_it_is_no_more_than_a_bucket_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert search(Device(80 * GIB, GIB, 0.1 * GIB), monkeypatch, samples=7) == 7


def test_one_sample_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        search(Device(8 * GIB, 5 * GIB, 4 * GIB), monkeypatch)


def test_a_slow_device_is_not_searched_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(auto_batch, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    device = Device(80 * GIB, 5 * GIB, 0.3 * GIB)
    assert 1 < search(device, monkeypatch) <= 223
    assert len(device.passes) <= 5


def test_the_largest_bucket_is_probed_with_its_longest_sample() -> None:
    buckets: list[Hashable] = [(512, 512), (768, 512), (768, 512), (64, 64)]
    family: Any = Counting()
    assert heaviest(family, buckets) == 2
    lengths: list[Hashable] = ["text"] * 5
    assert heaviest(family, lengths) == 4
