"""Keeping the active rollout led: its flow, the queue, and verification by effect."""

from __future__ import annotations

import logging
import time
from contextlib import suppress

from flows.probes import submit_verification
from lora_ops import keys
from lora_ops.errors import LoraOpsError, ObjectMissing, Refused, UnreachableError
from lora_ops.reconcile import Run
from lora_ops.state import AppState, Finished, Phase, Rollout
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
        self._hopeless: set[str] = set()
        #: Clouds whose pointer could not be verified in time and still may be: their worker is away.
        self.dark: set[str] = set()

    def tick(self) -> None:
        state = self.platform.state()
        if state.rollout is not None:
            self.keep_led(state.rollout)
        elif state.queue:
            self.start_next(state)
        self.verify(self.platform.state())

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
        self.platform.record("rollout-started", data, reason="its turn in the queue")

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

    # --- verification by effect ---

    def verify(self, state: AppState) -> None:
        """Every pointer that a rollout moved, shown by a probe of its own through the normal router."""
        rollout = state.rollout
        if rollout is not None and rollout.phase in (Phase.PROMOTING, Phase.HOLDING) and rollout.release:
            for name, cloud in rollout.clouds.items():
                if cloud.promoted and name not in rollout.verified:
                    self._verify_cloud(
                        state,
                        rollout.id,
                        name,
                        "promoted",
                        rollout.phase_seq,
                        rollout.policy.verify_timeout_s,
                    )
        self.dark.clear()
        for entry in state.finished:
            if entry.release and entry.phase is not Phase.FAILED:
                for name in entry.clouds:
                    self._verify_finished(state, entry, name)

    def _verify_finished(self, state: AppState, entry: Finished, cloud: str) -> None:
        """A cloud that was dark is verified when it returns."""
        verdict = entry.verified.get(cloud)
        turn = "promoted" if entry.phase is Phase.PROMOTED else "restored"
        if verdict == "verified" or (turn == "promoted" and verdict is None):
            return
        newest = [each for each in state.finished if cloud in each.clouds][-1]
        if verdict is not None and entry is not newest:
            return  # a later rollout has moved that pointer
        self._verify_cloud(state, entry.id, cloud, turn, entry.ended_seq, entry.verify_timeout_s, verdict)

    def _verify_cloud(
        self,
        state: AppState,
        rollout_id: str,
        cloud: str,
        turn: str,
        seq: int,
        timeout_s: float,
        said: str | None = None,
    ) -> None:
        """One look at the cloud's verification probe. `said`: the verdict so far."""
        known = state.clouds.get(cloud)
        if known is None or (said is not None and f"{rollout_id}/{cloud}" in self._hopeless):
            return
        probe = submit_verification(self.platform, rollout_id, cloud, turn)
        if probe is None:
            self._unverified(rollout_id, cloud, "the spec has no probe config to verify with", said)
            return
        done = next((each for each in probe.attempts if each.state.value == "succeeded"), None)
        if done is not None:
            if done.cloud == cloud and done.digest == known.stable:
                self._say(rollout_id, cloud, "verified", f"request {probe.id} ran {done.digest} there")
            else:
                why = f"request {probe.id} ran {done.digest} on {done.cloud}"
                self._unverified(rollout_id, cloud, why, said)
        elif probe.result is not None:
            self._unverified(rollout_id, cloud, probe.result.message, said)
        elif said is not None:
            self.dark.add(cloud)
        elif self.platform.clock.now().earliest - self.platform.time_of(seq) > timeout_s:
            self._say(rollout_id, cloud, "unverified", f"no attempt ended within {timeout_s:.0f} s")

    def _unverified(self, rollout_id: str, cloud: str, why: str, said: str | None) -> None:
        """It will not be verified any more; said once."""
        self._hopeless.add(f"{rollout_id}/{cloud}")
        if said is None:
            self._say(rollout_id, cloud, "unverified", why)

    def _say(self, rollout_id: str, cloud: str, verdict: str, why: str) -> None:
        try:
            self.platform.record(verdict, {"rollout": rollout_id, "cloud": cloud}, reason=why)
        except LoraOpsError as error:
            log.info("%s", error.message)
            return
        level = logging.INFO if verdict == "verified" else logging.ERROR
        log.log(level, "rollout %s on %s: %s: %s", rollout_id, cloud, verdict, why)
