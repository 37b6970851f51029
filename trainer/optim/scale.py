"""The loss scale of fp16: gradients too small for the format are made larger, until they overflow."""

from __future__ import annotations

from dataclasses import dataclass

START, GROWTH_STEPS, LARGEST = 2.0**16, 2000, 2.0**24


@dataclass
class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, 3.2). `value` is a power of two; 1 where it is off."""

    on: bool = False
    value: float = 1.0
    good_steps: int = 0

    def start(self) -> None:
        """Begin with the largest scale that is usual."""
        self.on, self.value, self.good_steps = True, START, 0

    def update(self, finite: bool) -> bool:
        """After a step. Whether an overflow was answered: false where there is nothing left to halve."""
        if not self.on:
            return False
        if finite:
            self.good_steps += 1
            if self.good_steps >= GROWTH_STEPS and self.value < LARGEST:
                self.value, self.good_steps = self.value * 2, 0
            return True
        if self.value <= 1.0:
            return False
        self.value, self.good_steps = self.value / 2, 0
        return True

    def as_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"value": self.value, "good_steps": self.good_steps} if self.on else {}

    def restore(self, state: dict[str, float]) -> None:
        """What `as_dict` gave."""
        if self.on and state:
            self.value, self.good_steps = float(state["value"]), int(state["good_steps"])
