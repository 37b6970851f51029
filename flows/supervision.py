"""Keeping the active rollout led: its flow and the queue."""

from __future__ import annotations

import logging
import time
from contextlib import suppress

from lora_ops import keys
from lora_ops.errors import (
    ConflictError,
    LoraOpsError,
    NotFoundError,
    ObjectMissing,
    Refused,
    UnreachableError,
)
from lora_ops.reconcile import Run
from lora_ops.state import AppState, Queued, Rollout
from tasks.platform import Platform
from tasks.prefect_api import PrefectApi, SeenRun

log = logging.getLogger("lora_ops.reconciler")

DEPLOY_DEPLOYMENT = "deploy/control"
SILENT_S = 30.0  # a flow beats every 5 s
START_S = 120.0


class Supervision:
    """One reconciler's care for rollouts."""

    def __init__(self, platform: Platform, prefect: PrefectApi) -> None:
        self.platform = platform
        self.prefect = prefect
        self._run: tuple[str, int, str] | None = None
        self._since: tuple[str, int, float] | None = None

    def tick(self) -> None:
        state = self.platform.state()
        if state.rollout is not None:
            self.keep_led(state.rollout)
        elif state.queue:
            self.start_next(state)

    # --- its flow ---

    def keep_led(self, rollout: Rollout) -> None:
        """Create the epoch's flow run (idempotent), or end the epoch when its flow is dead."""
        led_for = self._led_for(rollout)
        silent = self._silence(rollout)
        if silent is not None and silent > rollout.policy.abandon_after_s:
            self.give_up(rollout, f"its flow was silent for {silent:.0f} s")
            return
        try:
            seen = self._seen_run(rollout)
        except UnreachableError:
            if silent is None and led_for > rollout.policy.abandon_after_s:
                self.give_up(rollout, "Prefect was away, so no flow could lead it")
            raise
        dead = seen is not None and seen.run in (Run.ENDED, Run.CANCELLED)
        if seen is not None and seen.run is Run.RUNNING:
            dead = led_for > SILENT_S and (silent is None or silent > SILENT_S)
        if seen is not None and seen.run is Run.PENDING:
            dead = led_for > START_S
        if dead and seen is not None and self._still(rollout):
            self.restart(rollout, f"its flow run is {seen.name}")
            with suppress(UnreachableError):
                self.prefect.cancel(seen.id)  # its worker may have died with it: nobody else would end it

    def restart(self, rollout: Rollout, why: str) -> None:
        data = {"rollout": rollout.id, "epoch": rollout.epoch}
        try:
            self.platform.record("flow-restarted", data, reason=why)
            log.warning("rollout %s: %s; its flow is started again", rollout.id, why)
        except Refused:
            if rollout.epoch >= rollout.policy.max_restarts:
                self.give_up(rollout, f"{why}, and it was restarted {rollout.epoch} times")

    def give_up(self, rollout: Rollout, why: str) -> None:
        """Without a flow nobody looks any more: the reconciler rolls back by itself, without Prefect."""
        reason = f"abandoned: {why}"
        kind = "rolled-back" if rollout.phase.exposes else "failed"
        self.platform.record(
            kind, {"rollout": rollout.id, "epoch": rollout.epoch, "reason": reason}, reason=reason
        )
        log.error("rollout %s: %s: %s", rollout.id, kind, reason)

    def start_next(self, state: AppState) -> None:
        entry = state.queue[0]
        data = {
            "id": entry.id,
            "source": entry.source.model_dump(),
            "policy": entry.policy.model_dump(mode="json"),
        }
        try:
            self.platform.record("rollout-started", data, reason="its turn in the queue")
        except ConflictError as error:
            if self.platform.state().rollout is None:  # nobody was faster: it can never start
                self._drop(entry, error)
        except NotFoundError as error:
            self._drop(entry, error)

    def _drop(self, entry: Queued, error: LoraOpsError) -> None:
        """What cannot start any more must not block those behind it."""
        self.platform.record(
            "rollout-overtaken", {"id": entry.id}, reason=f"it cannot start: {error.message}"
        )

    def _still(self, rollout: Rollout) -> bool:
        """The flow may have ended its rollout in the moment between."""
        now = self.platform.state().rollout
        return now is not None and (now.id, now.epoch) == (rollout.id, rollout.epoch)

    def _seen_run(self, rollout: Rollout) -> SeenRun | None:
        if self._run is None or self._run[:2] != (rollout.id, rollout.epoch):
            run_id = self.prefect.create_run(
                DEPLOY_DEPLOYMENT,
                key=f"{rollout.id}-{rollout.epoch}",
                parameters={"rollout": rollout.id, "epoch": rollout.epoch},
                queue="default",
                tags=[f"rollout:{rollout.id}"],
            )
            self._run = (rollout.id, rollout.epoch, run_id)
        found = self.prefect.runs([self._run[2]]).get(self._run[2])
        if found is None:
            self._run = None  # a Prefect that lost its database: the next turn creates it anew
        return found

    def _led_for(self, rollout: Rollout) -> float:
        """How long this process has seen this epoch."""
        now = time.monotonic()
        if self._since is None or self._since[:2] != (rollout.id, rollout.epoch):
            self._since = (rollout.id, rollout.epoch, now)
        return now - self._since[2]

    def _silence(self, rollout: Rollout) -> float | None:
        """Seconds since the flow's last beat, on the store's clock; None when it never beat."""
        try:
            beat = self.platform.store.head(keys.flow(rollout.id)).last_modified
        except ObjectMissing:
            return None
        return max(0.0, self.platform.clock.now().earliest - beat)
