"""A family small enough to follow by hand: one vector of weights drawn towards each sample's own point."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.data import DatasetReport
from trainer.data.report import Item
from trainer.export import tensor_file
from trainer.models.base import Family, Group, RunFacts, Setup


class Toy(Family):
    """`fits`: more samples at once run out of memory. `poison`: the numbers of the losses that are none.
    `rises`: by so much a held-out sample's loss rises with every micro-batch trained."""

    unit = "images"
    fits: ClassVar[int] = 10**6
    poison: ClassVar[set[int]] = set()
    sampling: ClassVar[Exception | None] = None
    rises: ClassVar[float] = 0.0

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.points: list[float] = []
        self.held_out: set[int] = set()
        self.sizes: list[int] = []
        self.calls = 0
        self.net = nn.Linear(4, 1, bias=False)
        self.side = nn.Linear(2, 1, bias=False)

    def prepare(
        self, items: Sequence[Item], report: DatasetReport, *, training: bool = True
    ) -> list[Hashable]:
        first = len(self.points)
        self.points += [0.1 * (first + number) for number in range(len(items))]
        if not training:
            self.held_out.update(range(first, len(self.points)))
        return ["one"] * len(items)

    def build(self) -> list[Group]:
        with torch.no_grad():
            self.net.weight.fill_(1.0)
            self.side.weight.fill_(1.0)
        rate = self.config.learning_rate
        return [
            Group("net", rate, {"net.weight": self.net.weight}),
            Group("side", rate / 2, {"side.weight": self.side.weight}),
        ]

    def units(self, batch: Sequence[int]) -> float:
        return float(len(batch))

    def loss(self, batch: Sequence[int], rngs: Sequence[torch.Generator], *, training: bool = True) -> Tensor:
        if len(batch) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if training:
            self.calls += 1
            self.sizes.append(len(batch))
        noise = torch.stack([torch.randn(4, generator=rng) for rng in rngs])
        points = torch.tensor([self.points[index] for index in batch])[:, None]
        error = (self.net(noise + 1.0) - points) ** 2 + (self.side(noise[:, :2]) - points) ** 2
        if not training:
            return error.sum() + self.rises * self.calls * len(batch)
        return error.sum() * (float("nan") if self.calls in self.poison else 1.0)

    def sources(self, batch: Sequence[int]) -> list[str]:
        return [f"sample-{index}" for index in batch]

    def modules(self) -> list[nn.Module]:
        return [self.net, self.side]

    def export(self, folder: Path, run: RunFacts) -> list[Path]:
        path = folder / "toy.safetensors"
        weights = {"net": self.net.weight, "side": self.side.weight}
        tensor_file.write(path, weights, {"step": str(run.step)})
        return [path]

    def sample(self, prompts: Sequence[str], folder: Path, seed: int) -> list[Path]:
        if self.sampling is not None:
            raise self.sampling
        torch.rand(7)
        written = []
        for number, prompt in enumerate(prompts):
            (folder / f"{number}.txt").write_text(f"{prompt}: {seed}")
            written.append(folder / f"{number}.txt")
        return written
