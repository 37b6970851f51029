"""The learning rate as a pure function of the step: nothing to save, nothing to resume wrongly."""

from __future__ import annotations

import math

BY_LENGTH = {"linear", "cosine", "cosine_restarts", "polynomial"}
"""Schedules that depend on how long the run is."""


def lr_factor(
    step: int, steps: int, schedule: str = "constant", warmup: int = 0, cycles: int = 1, end: float = 0.0
) -> float:
    """The share of the learning rate at step `step` (0-based) of `steps`, between 0 and 1.

    Linear warm-up reaches 1 at step `warmup`. Then `constant`; or `linear`, `cosine`, `polynomial` (squared)
    to `end` at `steps`; `cosine_restarts`: `cycles` such cosines; `inverse_sqrt`: 1/sqrt of the steps since
    the warm-up in units of it (Vaswani et al. 2017, 5.3), never below `end`.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "inverse_sqrt":
        unit = max(1, warmup)
        return max(end, math.sqrt(unit / (unit + step - warmup)))
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    if schedule == "linear":
        left = 1.0 - share
    elif schedule == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * share))
    elif schedule == "cosine_restarts":
        within = share * cycles % 1.0 if share < 1.0 else 1.0
        left = 0.5 * (1.0 + math.cos(math.pi * within))
    elif schedule == "polynomial":
        left = (1.0 - share) ** 2
    else:
        raise ValueError(f"no schedule {schedule!r}")
    return end + (1.0 - end) * left


def lr_at(
    step: int,
    steps: int,
    base: float,
    schedule: str = "constant",
    warmup: int = 0,
    cycles: int = 1,
    end: float = 0.0,
) -> float:
    """`base` times `lr_factor`."""
    return base * lr_factor(step, steps, schedule, warmup, cycles, end)
