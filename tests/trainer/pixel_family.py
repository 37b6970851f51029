"""A third family, as a plugin: a network that predicts the noise of 8 x 8 pictures, without any text."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.data import DatasetReport, ImageItem
from trainer.data.buckets import Size
from trainer.data.report import Item
from trainer.data.variants import render, views
from trainer.export import peft
from trainer.lora import extract, inject, plan_of
from trainer.models.base import Family, Group, RunFacts, Setup
from trainer.plugins import family

SIZE: Size = (8, 8)


@family("pixels")
class Pixels(Family):
    """A folder with a `pixels.json`: {"seed": ..., "width": ...}."""

    unit = "images"

    @classmethod
    def claims(cls, path: Path) -> bool:
        return (path / "pixels.json").is_file()

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.items: list[ImageItem] = []
        self.pictures: list[Tensor] = []
        self.model: Any = None

    def prepare(
        self, items: Sequence[Item], report: DatasetReport, *, training: bool = True
    ) -> list[Hashable]:
        count = len(self.items)
        for item in items:
            assert isinstance(item, ImageItem)
            view = views(item, SIZE, self.config, training=False)[0]
            pixels = torch.from_numpy(render(item, view, self.config).copy()).permute(2, 0, 1) / 127.5 - 1
            repeats = item.repeats if training else 1
            self.items += [item] * repeats
            self.pictures += [pixels] * repeats
        return [SIZE] * (len(self.items) - count)

    def build(self) -> list[Group]:
        values = json.loads((self.setup.base.path / "pixels.json").read_text())
        width = int(values["width"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(values["seed"])
            self.model = nn.Sequential(
                nn.Conv2d(3, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)
            )
        parameters = inject(self.model, plan_of(self.config), ["0", "2"], self.config.seed)
        self.model.to(self.setup.device)
        return [Group("model", self.config.learning_rate, parameters)]

    def modules(self) -> list[nn.Module]:
        return [self.model]

    def units(self, batch: Sequence[int]) -> float:
        return len(batch)

    def loss(self, batch: Sequence[int], rngs: Sequence[torch.Generator], *, training: bool = True) -> Tensor:
        clean = torch.stack([self.pictures[index] for index in batch])
        noise = torch.stack([torch.randn(clean.shape[1:], generator=rng) for rng in rngs])
        share = torch.stack([torch.rand((1, 1, 1), generator=rng) for rng in rngs])
        predicted = self.model(share.sqrt() * clean + (1 - share).sqrt() * noise)
        each: Tensor = ((predicted - noise) ** 2).mean(dim=(1, 2, 3))
        return each.sum()

    def sources(self, batch: Sequence[int]) -> list[str]:
        return [self.items[index].name for index in batch]

    def export(self, folder: Path, run: RunFacts) -> list[Path]:
        return peft.save(folder, extract(self.model), str(self.setup.base.path))
