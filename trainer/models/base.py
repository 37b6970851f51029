"""The contract of a model family: one module each, the loop knows no more than this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.cache import Cache
from trainer.config import TrainConfig
from trainer.data import DatasetReport
from trainer.data.report import Item
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


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate. Names are unique over all groups; all are float32."""

    name: str
    learning_rate: float
    parameters: dict[str, nn.Parameter]


@dataclass(frozen=True)
class RunFacts:
    """What an export may tell of the training behind it."""

    step: int = 0
    steps: int = 0
    samples: int = 0
    config_hash: str = ""
    dataset_digest: str = ""


class Family(ABC):
    """Prepare samples, build the model with its adapter, compute the loss, write the files.

    The loop calls `prepare` (once for the training samples, once more for held-out ones), `build`, then for
    every micro-batch `units` and `loss`, then `export`. A family keeps no state that a step changes but the
    parameters of its groups: that is what makes a resumed run exact. All randomness of a sample comes from
    its own generator, so that neither the cut into micro-batches nor the number of processes changes it.
    """

    unit: ClassVar[str]
    """What a loss is a mean over: `images` or `tokens`."""

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Whether this family trains the model at `path`, an existing file or folder. Asked of the families
        of plugins, before anything else looks at the path."""
        return False

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.config = setup.config

    @abstractmethod
    def prepare(
        self, items: Sequence[Item], report: DatasetReport, *, training: bool = True
    ) -> list[Hashable]:
        """Make samples of `items` ready (encode, tokenise, pack) and append them to those there are; one
        bucket for each new sample. The samples of a batch share their bucket. Held-out ones (`training`
        false) are neither repeated nor augmented. May append warnings to the report; raises DataError if no
        sample is left."""

    @abstractmethod
    def build(self) -> list[Group]:
        """Load the base model, freeze it, inject the adapter, put it on the device."""

    @abstractmethod
    def units(self, batch: Sequence[int]) -> float:
        """How many units (see `unit`) the samples `batch` hold: the loop divides by the sum over a step."""

    @abstractmethod
    def loss(self, batch: Sequence[int], rngs: Sequence[torch.Generator], *, training: bool = True) -> Tensor:
        """The loss summed over the units of `batch`, a float32 scalar with a graph. `rngs[i]` is a CPU
        generator for sample `batch[i]`. Without `training` nothing is dropped or augmented."""

    @abstractmethod
    def sources(self, batch: Sequence[int]) -> list[str]:
        """The files (or rows) behind `batch`, for messages."""

    @abstractmethod
    def export(self, folder: Path, run: RunFacts) -> list[Path]:
        """Write the adapter in its public formats below `folder`; the files written."""

    def sample(self, prompts: Sequence[str], folder: Path, seed: int) -> list[Path]:
        """Generate from `prompts` as the model is now, the same start for the same seed; the files written
        below `folder`. A family that cannot returns none."""
        return []

    def modules(self) -> list[nn.Module]:
        """The networks that a step runs, after `build`: the loop compiles them in place where `compile` is
        on. A family that gives none is not compiled."""
        return []
