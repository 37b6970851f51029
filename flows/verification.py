"""Verification by effect: where the pointer of each cloud that a rollout moved really leads."""

from __future__ import annotations

import logging

from flows.probes import submit_verification
from lora_ops.errors import LoraOpsError, StoreUnavailable
from lora_ops.state import AppState, Finished, Phase
from tasks.platform import Platform

log = logging.getLogger("lora_ops.reconciler")


class Verification:
    """One-step probes through the normal router, and what they showed as events. Loud, never blocking.

    `dark`: clouds whose pointer could not be verified in time and still may be: their worker is away.
    """

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.dark: set[str] = set()
        self._hopeless: set[str] = set()

    def tick(self, state: AppState) -> None:
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
        try:
            probe = submit_verification(self.platform, rollout_id, cloud, turn)
        except StoreUnavailable:
            raise
        except LoraOpsError as error:
            self._unverified(rollout_id, turn, cloud, f"its probe cannot be submitted: {error.message}", said)
            return
        if probe is None:
            self._unverified(rollout_id, turn, cloud, "the spec has no probe config to verify with", said)
            return
        done = next((each for each in probe.attempts if each.state.value == "succeeded"), None)
        if done is not None:
            if done.cloud == cloud and done.digest == known.stable:
                self._say(rollout_id, turn, cloud, "verified", f"request {probe.id} ran {done.digest} there")
            else:
                why = f"request {probe.id} ran {done.digest} on {done.cloud}"
                self._unverified(rollout_id, turn, cloud, why, said)
        elif probe.result is not None:
            self._unverified(rollout_id, turn, cloud, probe.result.message, said)
        elif said is not None:
            self.dark.add(cloud)
        elif self.platform.clock.now().earliest - self.platform.time_of(seq) > timeout_s:
            self._say(rollout_id, turn, cloud, "unverified", f"no attempt ended within {timeout_s:.0f} s")

    def _unverified(self, rollout_id: str, turn: str, cloud: str, why: str, said: str | None) -> None:
        """It will not be verified any more; said once."""
        self._hopeless.add(f"{rollout_id}/{cloud}")
        if said is None:
            self._say(rollout_id, turn, cloud, "unverified", why)

    def _say(self, rollout_id: str, turn: str, cloud: str, verdict: str, why: str) -> None:
        try:
            self.platform.record(verdict, {"rollout": rollout_id, "cloud": cloud, "turn": turn}, reason=why)
        except LoraOpsError as error:
            log.info("%s", error.message)
            return
        level = logging.INFO if verdict == "verified" else logging.ERROR
        log.log(level, "rollout %s on %s: %s: %s", rollout_id, cloud, verdict, why)
