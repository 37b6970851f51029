"""What a run remembers beside its weights: it goes into every checkpoint, so that a resumed run is exact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class Journal:
    """`batch_size`: samples of a micro-batch as the order of the data has it. `cut`: at most so many of them
    at once since memory ran out (0: all). `nonfinite`: steps in a row without a usable gradient. `best_*` and
    `waited` (validations since the best): of the validation loss."""

    batch_size: int = 1
    cut: int = 0
    nonfinite: int = 0
    validated: int = 0
    best_step: int = 0
    best_loss: float | None = None
    waited: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take over what a checkpoint holds; keys of another release are left alone."""
        for entry in fields(self):
            if entry.name in values:
                setattr(self, entry.name, values[entry.name])

    def judge(self, step: int, loss: float) -> bool:
        """Note the validation loss of `step`; whether it is the best so far."""
        self.validated = step
        if not math.isfinite(loss):
            self.waited += 1
            return False
        if self.best_loss is None or loss < self.best_loss:
            self.best_step, self.best_loss, self.waited = step, loss, 0
            return True
        self.waited += 1
        return False
