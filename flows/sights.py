"""What the reconciler sees of the open requests' attempts: in the store, in Prefect, of their workers."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from flows.clusters import AttemptKey, Clusters
from lora_ops import keys, reconcile
from lora_ops.errors import LoraOpsError, ObjectMissing
from lora_ops.lease import canary_open, may_start, needs_lease
from lora_ops.pods import PodSight
from lora_ops.reconcile import PREFECT_AWAY, Run, Sight
from lora_ops.request import Attempt, RequestState
from lora_ops.routing import Fleet
from lora_ops.state import AppState, Phase
from tasks.platform import Platform
from tasks.prefect_api import PrefectApi, SeenRun

log = logging.getLogger("lora_ops.reconciler")

#: Final states that the train flow names when it could not speak to the store.
SAID = {
    "StoreAway": "store_away",
    "NoSpace": "no_capacity",
    "LostWorker": "lost_worker",
    "WrongCode": "wrong_code",
}
#: The final state of a second run of an attempt, whose first run Prefect has lost and which goes on.
DUPLICATE = "Duplicate"
#: As Prefect's workers tell the exit code of a run that could not reach Prefect.
AWAY = f"status code {PREFECT_AWAY}."


@dataclass(frozen=True, slots=True)
class Turn:
    """What one tick knows for all requests."""

    state: AppState
    fleet: Fleet
    workers: Mapping[str, frozenset[str]]
    now: float
    lease_until: float | None
    runs: dict[str, SeenRun]
    missing: frozenset[str]
    prefect_away: bool
    dark: frozenset[str]


class Sights:
    """One reconciler's eyes. What they remember only saves work."""

    def __init__(self, platform: Platform, prefect: PrefectApi, clusters: Clusters) -> None:
        self.platform = platform
        self.store = platform.store
        self.prefect = prefect
        self.clusters = clusters
        self.runs: dict[AttemptKey, str] = {}
        self._since: dict[AttemptKey, tuple[Run, float]] = {}
        self._pods: dict[AttemptKey, tuple[PodSight | None, float]] = {}
        self._workers: dict[AttemptKey, str | None] = {}
        self._store_since: float | None = -math.inf  # since when the store answers

    def store_away(self) -> None:
        """The store did not answer: nobody could beat meanwhile, so the silence counts from its return."""
        self._store_since = None

    def turn(self, workers: Mapping[str, frozenset[str]], dark: frozenset[str]) -> Turn:
        """Raises StoreUnavailable; Prefect may be away."""
        state = self.platform.state()
        if self._store_since is None:
            self._store_since = time.monotonic()
        until = self.platform.lease_until(state.rollout) if state.rollout is not None else None
        asked = list(self.runs.values())
        runs: dict[str, SeenRun] = {}
        missing: frozenset[str] = frozenset()
        away = False
        try:
            runs = self.prefect.runs(asked)
            missing = frozenset(asked) - runs.keys()
        except LoraOpsError as error:
            away = True
            log.warning("%s", error.message)
        return Turn(
            state=state,
            fleet=self.platform.fleet(state, self.health(workers)),
            workers=workers,
            dark=dark,
            now=self.platform.clock.now().latest,
            lease_until=until,
            runs=runs,
            missing=missing,
            prefect_away=away,
        )

    def health(self, workers: Mapping[str, frozenset[str]]) -> dict[str, bool]:
        """Whether each cloud can take an attempt: a worker is alive, and a cluster's API answers."""
        return {
            cloud: bool(alive) and (cloud not in self.clusters or self.clusters.fresh(cloud))
            for cloud, alive in workers.items()
        }

    def sight(self, request: RequestState, turn: Turn, marker_age_s: float) -> Sight:
        attempt = request.current
        if attempt is None:
            return Sight(marker_age_s=marker_age_s)
        key = (request.id, attempt.n)
        seen = turn.runs.get(self.runs.get(key, ""))
        run = seen.run if seen is not None else self._unseen(key, turn)
        if seen is not None and seen.name == DUPLICATE:
            run = Run.RUNNING
        run_for_s = self._for(key, run)
        started = self._started(request.id, attempt)
        worker = reconcile.Worker.UNKNOWN
        beat_age = None
        if started:
            beat_age = self._beat_age(request.id, attempt)
        if seen is not None and run in (Run.ENDED, Run.CANCELLED):
            worker = self.prefect.worker_after(attempt.cloud, self._workers.get(key), seen.state_time)
        elif run is Run.RUNNING:
            alive, mine = turn.workers.get(attempt.cloud, frozenset()), self._workers.get(key)
            there = mine in alive if mine is not None else bool(alive)
            worker = reconcile.Worker.ALIVE if there else reconcile.Worker.GONE
        cloud = turn.state.clouds.get(attempt.cloud)
        pod, pod_for_s = self._pod(key, attempt.cloud)
        if pod is not None and pod.phase == "running" and pod.trouble is None:
            fresh = self.clusters.fresh(attempt.cloud)
            worker = reconcile.Worker.ALIVE if fresh else worker  # its node is: the attempt is silent
        return Sight(
            marker_age_s=marker_age_s,
            run=run,
            run_for_s=run_for_s,
            run_detail=f"{seen.name}: {seen.detail}" if seen is not None else "",
            said=_said(seen) if seen is not None else None,
            started=started,
            heartbeat_age_s=beat_age,
            worker=worker,
            canary_open=self._canary_open(attempt, turn),
            withdrawn=self._withdrawn(attempt, turn.state),
            other_cloud_open=not (request.order is not None and request.order.cloud_only)
            and any(lane.open and lane.cloud != attempt.cloud for lane in turn.fleet.lanes),
            moving=cloud is not None and cloud.drained and cloud.moving,
            cluster=attempt.cloud in self.clusters,
            polled=bool(turn.workers.get(attempt.cloud)) and not turn.prefect_away,
            dark_for_s=self.clusters.silent_s(attempt.cloud),
            pod=pod,
            pod_for_s=pod_for_s,
        )

    def _unseen(self, key: AttemptKey, turn: Turn) -> Run:
        """No run yet, or one that Prefect has forgotten: both are created; or Prefect is away."""
        run_id = self.runs.get(key)
        return Run.NONE if run_id is None or run_id in turn.missing else Run.UNKNOWN

    def _pod(self, key: AttemptKey, cloud: str) -> tuple[PodSight | None, float]:
        """What is seen of its pod, and since when that is so."""
        now, pod = time.monotonic(), self.clusters.pod(cloud, key)
        known = self._pods.get(key)
        same = known is not None and (known[0] and known[0].trouble) == (pod and pod.trouble)
        if known is None or not same or (known[0] and known[0].over) != (pod and pod.over):
            self._pods[key] = (pod, now)
            return pod, 0.0
        return pod, now - known[1]

    def _for(self, key: AttemptKey, run: Run) -> float:
        now = time.monotonic()
        known = self._since.get(key)
        if known is None or known[0] is not run:
            self._since[key] = (run, now)
            return 0.0
        return now - known[1]

    def _started(self, request_id: str, attempt: Attempt) -> bool:
        key = (request_id, attempt.n)
        if key in self._workers:
            return True
        where = keys.start(attempt.rollout, attempt.cloud, attempt.track.value, request_id, attempt.n)
        try:
            document = json.loads(self.store.get(where).data)
        except ObjectMissing:
            return False
        self._workers[key] = document.get("worker")
        return True

    def _beat_age(self, request_id: str, attempt: Attempt) -> float:
        try:
            beat = self.store.head(keys.heartbeat(request_id, attempt.n)).last_modified
        except ObjectMissing:
            where = keys.start(attempt.rollout, attempt.cloud, attempt.track.value, request_id, attempt.n)
            beat = self.store.head(where).last_modified
        since = math.inf if self._store_since is None else time.monotonic() - self._store_since
        return min(since, max(0.0, self.platform.clock.now().earliest - beat))

    def _canary_open(self, attempt: Attempt, turn: Turn) -> bool:
        rollout = turn.state.rollout
        if attempt.rollout is None or rollout is None:
            return False
        if not canary_open(rollout, attempt.rollout, attempt.cloud, attempt.digest):
            return False
        return not needs_lease(rollout.phase) or may_start(turn.now, turn.lease_until)

    def _withdrawn(self, attempt: Attempt, state: AppState) -> bool:
        """Its rollout ended badly, so its release must not run any more."""
        if attempt.rollout is None:
            return False
        ended = next((each for each in state.finished if each.id == attempt.rollout), None)
        return (
            ended is not None
            and ended.phase in (Phase.ROLLED_BACK, Phase.ABORTED)
            and ended.release == attempt.digest
            and state.clouds[attempt.cloud].stable != attempt.digest
        )

    def known(self) -> set[AttemptKey]:
        """The attempts that anything is remembered of."""
        return self.runs.keys() | self._since.keys() | self._pods.keys() | self._workers.keys()

    def forget(self, key: AttemptKey) -> str | None:
        """An attempt of a request that is over; the id of its run if one was seen."""
        self._since.pop(key, None)
        self._pods.pop(key, None)
        self._workers.pop(key, None)
        return self.runs.pop(key, None)


def _said(seen: SeenRun) -> str | None:
    """The cause that the attempt, or what started it, gave through Prefect."""
    return "prefect_away" if AWAY in seen.detail else SAID.get(seen.name)
