"""What an attempt has seen of its trainer: the raw facts of heartbeats and samples."""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from lora_ops.errors import StoreError, StoreFull

EXIT_USER = 3
EXIT_KILLED = -9
CAUSES = {
    "user": "user_error",
    "oom": "out_of_memory",
    "trainer": "trainer_error",
    "resumable": "evicted",
    "stuck": "no_heartbeat",
}
_DISK_FULL = "No space left on device"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class Facts:
    """Filled from the trainer's events. Losses and step times are those of the first `horizon` steps;
    `recent` are those of the newest."""

    step: int = 0
    steps: int = 0
    loss: float | None = None
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=10))
    samples_per_s: float | None = None
    memory_bytes: int | None = None
    start_latency_s: float | None = None
    phase: str = "starting"
    result: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None

    def take_step(self, event: dict[str, Any], horizon: int, since_start_s: float) -> None:
        """A `step` event. `since_start_s`: seconds since the attempt began."""
        if self.start_latency_s is None:
            self.start_latency_s = since_start_s
        self.phase = "train"
        self.step, self.steps = int(event["step"]), int(event["steps"])
        self.loss, self.memory_bytes = event.get("loss"), event.get("memory_bytes")
        self.samples_per_s = event.get("samples_per_s")
        self.recent.append(float(event.get("step_s", 0.0)))
        if len(self.step_seconds) < max(1, horizon):
            self.step_seconds.append(float(event.get("step_s", 0.0)))
            if self.loss is not None:
                self.losses.append(float(self.loss))

    def for_sample(self) -> dict[str, Any]:
        """A sample's facts; `loss` is the mean over the last quarter of the steps up to the horizon."""
        quarter = self.losses[-max(1, len(self.losses) // 4) :]
        return {
            "step": self.step,
            "steps": self.steps,
            "start_latency_s": self.start_latency_s,
            "step_seconds": self.step_seconds,
            "loss": sum(quarter) / len(quarter) if quarter else None,
            "memory_bytes": self.memory_bytes,
        }

    def for_heartbeat(self) -> dict[str, Any]:
        """Where it stands, for people."""
        return {
            "phase": self.phase,
            "step": self.step,
            "steps": self.steps,
            "loss": self.loss,
            "step_s": sum(self.recent) / len(self.recent) if self.recent else None,
            "samples_per_s": self.samples_per_s,
            "memory_bytes": self.memory_bytes,
        }

    def why_failed(self, code: int, last_line: str) -> tuple[str, str, str]:
        """(cause, message, hint) from the failure event, or from the exit code and the last line printed."""
        failure = self.failure or {}
        cause = CAUSES.get(str(failure.get("cause")), "user_error" if code == EXIT_USER else "trainer_error")
        if not failure and code == EXIT_KILLED:
            cause = "out_of_memory"  # nobody else sends SIGKILL to a training that is still wanted
        told = str(failure.get("message") or last_line or "it printed nothing")
        kind = failure.get("type")
        if kind == "DiskFullError" or _DISK_FULL in told:
            cause = "no_capacity"
        return (
            cause,
            f"{kind}: {told}" if kind else f"exit code {code}: {told}",
            str(failure.get("hint") or ""),
        )


def cause_of(error: Exception) -> str:
    """Whose fault it is when an attempt itself breaks: the machine's, the store's, or the release's."""
    if isinstance(error, StoreFull) or (isinstance(error, OSError) and error.errno in _FULL):
        return "no_capacity"
    return "store_away" if isinstance(error, StoreError) else "trainer_error"
