"""Keeping the active rollout led: its flow and the queue."""

from __future__ import annotations

import json
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
from lora_ops.leading import Care, FlowSight, care
from lora_ops.reconcile import Run
from lora_ops.state import AppState, Queued, Rollout
from tasks.platform import Platform
from tasks.prefect_api import PrefectApi, SeenRun

log = logging.getLogger("lora_ops.reconciler")

DEPLOY_DEPLOYMENT = "deploy/control"


class Supervision:
    """One reconciler's care for rollouts."""

    def __init__(self, platform: Platform, prefect: PrefectApi) -> None:
        self.platform = platform
        self.prefect = prefect
        self._run: tuple[str, int, str] | None = None
        self._since: tuple[str, Run, float] | None = None

    def tick(self) -> None:
        state = self.platform.state()
        if state.rollout is not None:
            self.keep_led(state.rollout)
        elif state.queue:
            self.start_next(state)

    # --- its flow ---

    def keep_led(self, rollout: Rollout) -> None:
        """Create the epoch's flow run (idempotent), start a dead flow again, or end what nobody can lead."""
        seen: SeenRun | None = None
        away: LoraOpsError | None = None
        try:
            seen = self._seen_run(rollout)
        except (UnreachableError, NotFoundError) as error:
            away = error
        what, why = care(rollout, self._sight(rollout, seen))
        if what is not Care.LEAVE and self._still(rollout):
            if what is Care.RESTART:
                self.restart(rollout, why)
            else:
                self.give_up(rollout, why)
            if seen is not None:
                with suppress(UnreachableError):
                    self.prefect.cancel(seen.id)  # its worker may have died with it: nobody else would end it
        if away is not None:
            raise away

    def restart(self, rollout: Rollout, why: str) -> None:
        with suppress(Refused):  # another reconciler was faster, or the rollout is over
            self.platform.record(
                "flow-restarted", {"rollout": rollout.id, "epoch": rollout.epoch}, reason=why
            )
            log.warning("rollout %s: %s; its flow is started again", rollout.id, why)

    def give_up(self, rollout: Rollout, why: str) -> None:
        """Without a flow nobody looks any more: the reconciler rolls back by itself, without Prefect."""
        reason = f"abandoned: {why}"
        kind = "rolled-back" if rollout.phase.exposes else "failed"
        data = {"rollout": rollout.id, "epoch": rollout.epoch, "reason": reason}
        with suppress(Refused):
            self.platform.record(kind, data, reason=reason)
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

    def _sight(self, rollout: Rollout, seen: SeenRun | None) -> FlowSight:
        now = self.platform.clock.now().earliest
        started = self.platform.time_of(rollout.started_seq)
        began = self.platform.time_of(rollout.epoch_seq) if rollout.epoch_seq is not None else started
        beat = self._beat(rollout)
        own = beat is not None and beat[0] >= rollout.epoch
        return FlowSight(
            unled_s=now - max(started, beat[1] if beat is not None else started),
            epoch_s=now - began,
            silent_s=now - beat[1] if beat is not None and own else None,
            run=seen.run if seen is not None else Run.UNKNOWN,
            run_for_s=self._seen_for(seen) if seen is not None else 0.0,
            run_name=seen.name if seen is not None else "",
        )

    def _seen_for(self, seen: SeenRun) -> float:
        """How long this process has seen the run in its state."""
        now = time.monotonic()
        if self._since is None or self._since[:2] != (seen.id, seen.run):
            self._since = (seen.id, seen.run, now)
        return now - self._since[2]

    def _beat(self, rollout: Rollout) -> tuple[int, float] | None:
        """(epoch, time on the store's clock) of the newest beat; None when no flow ever beat."""
        try:
            found = self.platform.store.get(keys.flow(rollout.id))
        except ObjectMissing:
            return None
        try:
            return int(json.loads(found.data)["epoch"]), found.last_modified
        except (ValueError, TypeError, KeyError):
            return 0, found.last_modified
