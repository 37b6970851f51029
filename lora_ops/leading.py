"""Whether the active rollout is led: when its flow is dead, started again, or given up. Pure.

A flow leads under an epoch, and tells that it lives by its beats. One that dies at once is not started again
at once: an epoch lasts at least `pause_s` from its second on, counted by the journal, so that every
reconciler waits alike and one that was killed meanwhile does not begin anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lora_ops.reconcile import Run
from lora_ops.state import Rollout

SILENT_S = 30.0  # a flow beats every 5 s
START_S = 120.0
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0


class Care(StrEnum):
    LEAVE = "leave"
    RESTART = "restart"
    GIVE_UP = "give-up"


@dataclass(frozen=True, slots=True)
class FlowSight:
    """What is seen of the flow of the present epoch.

    `unled_s`: since the newest beat of any epoch, or since the rollout started when there was none.
    `epoch_s`: since the epoch began. `silent_s`: since the newest beat of this epoch, None without one.
    `run`: UNKNOWN while Prefect is away. `run_for_s`: how long its run has been seen in that state.
    """

    unled_s: float
    epoch_s: float
    silent_s: float | None = None
    run: Run = Run.UNKNOWN
    run_for_s: float = 0.0
    run_name: str = ""


def pause_s(epoch: int) -> float:
    """The least seconds that an epoch lasts before the next: 0, 5, 10, 20, 40, 60, 60, ..."""
    if epoch == 0:
        return 0.0
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(epoch - 1, 16))


def care(rollout: Rollout, sight: FlowSight) -> tuple[Care, str]:
    """What the reconciler does about the rollout's flow, and why. Nothing needs Prefect to give up."""
    policy = rollout.policy
    if sight.unled_s > policy.abandon_after_s:
        return Care.GIVE_UP, f"nobody led it for {sight.unled_s:.0f} s"
    if not dead(sight):
        return Care.LEAVE, ""
    why = f"its flow run is {sight.run_name or sight.run.value}"
    if rollout.epoch >= policy.max_restarts:
        return Care.GIVE_UP, f"{why}, and it was restarted {rollout.epoch} times"
    if sight.epoch_s < pause_s(rollout.epoch):
        return Care.LEAVE, ""
    return Care.RESTART, why


def dead(sight: FlowSight) -> bool:
    """Whether the flow of this epoch will not come any more. One that waits for a slot is not dead."""
    match sight.run:
        case Run.ENDED | Run.CANCELLED:
            return True
        case Run.PENDING:
            return sight.run_for_s > START_S
        case Run.RUNNING:
            return sight.run_for_s > SILENT_S and (sight.silent_s is None or sight.silent_s > SILENT_S)
        case _:
            return False
