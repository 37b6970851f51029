"""The contract of a model family: one module each, the loop knows no more than this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.cache import Cache
from trainer.config import TrainConfig
from trainer.data import DatasetReport
from trainer.models.sniff import BaseModel


@dataclass
class Setup:
    """What a family works with. `dtype` is the number format of the frozen base."""

    config: TrainConfig
    base: BaseModel
    base_digest: str
    cache: Cache
    device: torch.device
    dtype: torch.dtype


class Family(ABC):
    """Prepare samples, build the model with its adapter, compute the loss, write the files."""

    unit: ClassVar[str]
    """What a loss is a mean over: `images` or `tokens`."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.config = setup.config

    @abstractmethod
    def prepare(self, report: DatasetReport) -> int:
        """Make the samples of `report` ready (encode, tokenise) and return how many there are. May append
        warnings to the report; raises DataError if no sample is left."""

    @abstractmethod
    def build(self) -> tuple[nn.Module, dict[str, nn.Parameter]]:
        """Load the base model, freeze it, inject the adapter; the model on its device, and the adapter's
        float32 parameters by name."""

    @abstractmethod
    def units(self, batch: Sequence[int]) -> int:
        """How many units (see `unit`) the samples `batch` hold: the loop divides by the sum over a step."""

    @abstractmethod
    def loss(self, batch: Sequence[int], rng: torch.Generator) -> Tensor:
        """The loss summed over the units of `batch`, a float32 scalar with a graph. All randomness comes from
        `rng`, a CPU generator seeded for this micro-batch."""

    @abstractmethod
    def sources(self, batch: Sequence[int]) -> list[str]:
        """The files (or rows) behind `batch`, for messages."""

    @abstractmethod
    def export(self, folder: Path) -> list[Path]:
        """Write the adapter in its public formats below `folder`; the files written."""
