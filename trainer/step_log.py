"""One `step` event a step, for the file, the trackers and the eyes; the guard against what is no number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from trainer.device import memory_bytes
from trainer.errors import NonFiniteError
from trainer.events import Events
from trainer.progress import Progress
from trainer.tracking import Trackers


@dataclass(frozen=True)
class Step:
    """What one step was. `number` is 1-based; `rates`: learning rates by group; `samples`, `units`, `flops`
    over all processes; `skipped`: the gradient was no number and changed nothing."""

    number: int
    loss: Tensor
    norm: Tensor
    rates: dict[str, float]
    began: float
    samples: int
    units: float
    flops: int
    skipped: bool
    sources: Callable[[], list[str]]


class StepLog:
    """On an accelerator the numbers are fetched every `every` steps only: that waits for the device.
    `peak`: FLOP/s that the device can do, None where that is not known. `unit`: see Family."""

    def __init__(
        self,
        events: Events,
        trackers: Trackers,
        progress: Progress,
        *,
        steps: int,
        every: int,
        unit: str,
        peak: float | None,
    ) -> None:
        self._events, self._trackers, self._progress = events, trackers, progress
        self._steps, self._every, self._unit, self._peak = steps, every, unit, peak
        self._waiting: list[Step] = []
        self.last_loss: float | None = None

    def add(self, step: Step) -> None:
        """Note a step. May raise what `flush` raises."""
        self._waiting.append(step)
        if len(self._waiting) >= self._every:
            self.flush()

    def flush(self) -> None:
        """Fetch and write what is waiting. Raises NonFiniteError naming the step and its files."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        values = [(float(step.loss), float(step.norm)) for step in waiting]
        step_s = (time.perf_counter() - waiting[0].began) / len(waiting)
        memory = memory_bytes()
        for step, (loss, norm) in zip(waiting, values, strict=True):
            lr = next(iter(step.rates.values()))
            numbers: dict[str, float] = {
                "loss": loss,
                "lr": lr,
                "grad_norm": norm,
                "step_s": round(step_s, 4),
                "samples_per_s": round(step.samples / step_s, 3),
                "memory_bytes": memory,
            }
            if self._unit == "tokens":
                numbers["tokens_per_s"] = round(step.units / step_s, 1)
            if self._peak:
                numbers["mfu"] = round(step.flops / step_s / self._peak, 4)
            more = {"learning_rates": step.rates} if len(step.rates) > 1 else {}
            said = {"skipped": True} if step.skipped else {}
            self._events.write("step", step=step.number, steps=self._steps, **numbers, **more, **said)
            if not step.skipped and not (math.isfinite(loss) and math.isfinite(norm)):
                raise not_a_number(step.number, loss, step.sources())
            shown = {f"lr/{name}": rate for name, rate in step.rates.items()} if more else {}
            self._trackers.log(step.number, {**numbers, **shown})
            self._progress.step(step.number, loss, lr, step_s)
            self.last_loss = loss


def not_a_number(step: int, loss: float, sources: list[str]) -> NonFiniteError:
    """The error that names `step` and its files."""
    what = "gradient" if math.isfinite(loss) else "loss"
    return NonFiniteError(
        f"The {what} is not a number at step {step}, on {', '.join(sources[:8])}.",
        "Lower learning_rate (usual: 1e-4), use mixed_precision: no, and look at these samples. "
        "The last checkpoint is from before.",
    )
