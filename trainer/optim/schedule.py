"""The learning rate as a pure function of the step: nothing to save, nothing to resume wrongly."""

from __future__ import annotations

import math


def lr_at(step: int, steps: int, base: float, schedule: str = "constant", warmup: int = 0) -> float:
    """The learning rate of step `step` (0-based) of `steps`.

    Linear warm-up reaches `base` at step `warmup`; then `constant`, or `linear` or `cosine` to 0 at `steps`.
    """
    if step < warmup:
        return base * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return base
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    if schedule == "linear":
        return base * (1.0 - share)
    if schedule == "cosine":
        return base * 0.5 * (1.0 + math.cos(math.pi * share))
    raise ValueError(f"no schedule {schedule!r}")
