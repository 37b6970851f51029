"""The open requests: for each, look, decide (lora_ops.reconcile), act. Idempotent, and safe beside others."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.context import flow_env
from lora_ops import keys, reconcile
from lora_ops.errors import (
    ConflictError,
    LoraOpsError,
    ObjectExists,
    ObjectMissing,
    Refused,
    UnreachableError,
)
from lora_ops.gates.samples import Sample
from lora_ops.lease import canary_open, may_start, needs_lease
from lora_ops.reconcile import (
    Abandon,
    Close,
    CreateRun,
    EndAttempt,
    Finish,
    Nothing,
    Run,
    Sight,
    StartAttempt,
)
from lora_ops.request import Attempt, AttemptState, Order, RequestState, ResultState
from lora_ops.routing import Fleet, Route, pinned, route
from lora_ops.spec import PlatformSpec
from lora_ops.state import AppState, Phase, Track
from tasks import home
from tasks.bundle import ensure_unpacked
from tasks.engine import PREFECT_AWAY
from tasks.platform import Platform
from tasks.prefect_api import PrefectApi, SeenRun, run_key

log = logging.getLogger("lora_ops.reconciler")

AttemptKey = tuple[str, int]
#: Final states that the train flow names when it could not speak to the store.
SAID = {"StoreAway": "store_away", "LostWorker": "lost_worker", "WrongCode": "wrong_code"}
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
    dark: frozenset[str]


class OpenRequests:
    """One reconciler's care for requests."""

    def __init__(self, platform: Platform, prefect: PrefectApi, spec: PlatformSpec, base: Path) -> None:
        self.platform = platform
        self.store = platform.store
        self.prefect = prefect
        self.spec = spec
        self.home = base
        self.limits = spec.requests.limits()
        self._runs: dict[AttemptKey, str] = {}
        self._urls: dict[AttemptKey, str] = {}
        self._since: dict[AttemptKey, tuple[Run, float]] = {}
        self._workers: dict[AttemptKey, str | None] = {}

    def run_id(self, request_id: str, n: int) -> str | None:
        return self._runs.get((request_id, n)) or self._urls.get((request_id, n))

    def tick(self, workers: Mapping[str, frozenset[str]], dark: frozenset[str] = frozenset()) -> None:
        """Take every open request as far as it goes now.

        `workers`: the live ones of each cloud, as far as Prefect could be asked. `dark`: clouds that users'
        requests avoid, since their pointer is still to be verified.
        """
        markers = self.store.list("open")
        if not markers:
            return
        turn = self._turn(workers, dark)
        for meta in markers:
            request_id = meta.key.rpartition("/")[2]
            try:
                self.one(request_id, turn, turn.now - meta.last_modified)
            except ConflictError as error:
                log.info("%s: %s", request_id, error.message)  # somebody else decided, or no cloud is open
            except UnreachableError as error:
                log.warning("%s: %s", request_id, error.message)
                if not self.prefect.ok():
                    return  # each further call would wait for it in vain
            except LoraOpsError as error:
                log.warning("%s: %s %s", request_id, error.message, error.hint)

    def one(self, request_id: str, turn: Turn, marker_age_s: float) -> None:
        """Decide and act until nothing more can be done now for this request."""
        for _ in range(4):
            request = self.platform.request(request_id)
            sight = self._sight(request, turn, marker_age_s)
            action = reconcile.decide(request, sight, self.limits)
            if not self._act(request, action, turn):
                return

    # --- seeing ---

    def _turn(self, workers: Mapping[str, frozenset[str]], dark: frozenset[str]) -> Turn:
        state = self.platform.state()
        until = self.platform.lease_until(state.rollout) if state.rollout is not None else None
        asked = list(self._runs.values())
        runs: dict[str, SeenRun] = {}
        missing: frozenset[str] = frozenset()
        try:
            runs = self.prefect.runs(asked)
            missing = frozenset(asked) - runs.keys()
        except LoraOpsError as error:
            log.warning("%s", error.message)
        return Turn(
            state=state,
            fleet=self.platform.fleet(state, {cloud: bool(alive) for cloud, alive in workers.items()}),
            workers=workers,
            dark=dark,
            now=self.platform.clock.now().latest,
            lease_until=until,
            runs=runs,
            missing=missing,
        )

    def _sight(self, request: RequestState, turn: Turn, marker_age_s: float) -> Sight:
        attempt = request.current
        if attempt is None:
            return Sight(marker_age_s=marker_age_s)
        key = (request.id, attempt.n)
        seen = turn.runs.get(self._runs.get(key, ""))
        run = seen.run if seen is not None else self._unseen(key, turn)
        run_for_s = self._for(key, run)
        started = self._started(request.id, attempt)
        worker = reconcile.Worker.UNKNOWN
        beat_age = None
        if started:
            beat_age = self._beat_age(request.id, attempt, turn)
        if seen is not None and run in (Run.ENDED, Run.CANCELLED):
            worker = self.prefect.worker_after(attempt.cloud, self._workers.get(key), seen.state_time)
        elif run is Run.RUNNING:
            alive, mine = turn.workers.get(attempt.cloud, frozenset()), self._workers.get(key)
            there = mine in alive if mine is not None else bool(alive)
            worker = reconcile.Worker.ALIVE if there else reconcile.Worker.GONE
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
            other_cloud_open=any(lane.open and lane.cloud != attempt.cloud for lane in turn.fleet.lanes),
        )

    def _unseen(self, key: AttemptKey, turn: Turn) -> Run:
        """No run yet, or one that Prefect has forgotten: both are created; or Prefect is away."""
        run_id = self._runs.get(key)
        return Run.NONE if run_id is None or run_id in turn.missing else Run.UNKNOWN

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

    def _beat_age(self, request_id: str, attempt: Attempt, turn: Turn) -> float:
        try:
            beat = self.store.head(keys.heartbeat(request_id, attempt.n)).last_modified
        except ObjectMissing:
            where = keys.start(attempt.rollout, attempt.cloud, attempt.track.value, request_id, attempt.n)
            beat = self.store.head(where).last_modified
        return max(0.0, self.platform.clock.now().earliest - beat)

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

    # --- acting ---

    def _act(self, request: RequestState, action: reconcile.Action, turn: Turn) -> bool:
        """Do it; True when the request should be looked at again at once."""
        match action:
            case Nothing():
                return False
            case Abandon():
                self.platform.record_request(
                    request.id, "abandoned", {"message": "Its submitter died before it was written."}
                )
                return True
            case Close():
                self._close(request)
                return False
            case StartAttempt(avoid=avoid):
                return self._start_attempt(request, turn, avoid)
            case CreateRun():
                self._create_run(request)
                return False
            case EndAttempt():
                self._end_attempt(request, action)
                return True
            case Finish():
                self._finish(request, action)
                return True

    def _start_attempt(self, request: RequestState, turn: Turn, avoid: frozenset[str]) -> bool:
        order = request.order
        assert order is not None
        self._end_run(request)
        found = self._route(request, order, turn, avoid)
        if found is None:
            return False
        rollout = turn.state.rollout
        exposed = rollout is not None and rollout.phase.exposes and found.cloud in rollout.clouds
        # A verification has no user whom a failure must not cost: its attempts are bounded as any.
        judged = rollout is not None and exposed and order.verifies is None
        data = {
            "cloud": found.cloud,
            "track": found.track.value,
            "digest": found.digest,
            "rollout": rollout.id if rollout is not None and exposed else None,
            "trial": rollout is not None and judged and found.digest == rollout.release,
        }
        self.platform.record_request(request.id, "attempt-started", data)
        return True

    def _route(self, request: RequestState, order: Order, turn: Turn, avoid: frozenset[str]) -> Route | None:
        """The normal router; a probe's pin; and away from a new release that failed this request."""
        pin = order.pin
        if pin is not None and pin.track is not None:
            found = pinned(turn.fleet, pin.cloud, pin.track, turn.now)
            if found is None:
                self._finish(
                    request, Finish(ResultState.CANCELLED, "superseded", "The canary may not run any more.")
                )
            return found
        if pin is not None:
            lane = next((lane for lane in turn.fleet.lanes if lane.cloud == pin.cloud), None)
            return Route(lane.cloud, Track.STABLE, lane.stable) if lane is not None and lane.open else None
        found = route(
            request.id,
            turn.fleet,
            turn.now,
            canary=request.canary_ok,
            cloud=order.cloud,
            avoid=avoid | turn.dark,
        )
        rollout = turn.state.rollout
        failed_here = any(attempt.digest == found.digest for attempt in request.attempts)
        if rollout is not None and rollout.release == found.digest and failed_here:
            before = rollout.clouds[found.cloud].before
            return Route(found.cloud, Track.STABLE, before)
        return found

    def _create_run(self, request: RequestState) -> None:
        attempt = request.current
        assert attempt is not None
        cloud = self.spec.clouds.get(attempt.cloud)
        if cloud is None:
            gone = f"Cloud {attempt.cloud} is not in lora-ops.yaml any more."
            self._end_attempt(request, EndAttempt(AttemptState.SUPERSEDED, "no_capacity", gone))
            return
        root = ensure_unpacked(self.store, attempt.digest, home.bundles(self.home))
        own = {"OMP_NUM_THREADS": self._threads(), **cloud.env, "PYTHONPATH": str(root)}
        env = flow_env(self.store.url, self.platform.app, self.home, own)
        order = request.order
        kind = "probe" if order is not None and not order.users_own else "request"
        tags = [f"{kind}:{request.id}", f"track:{attempt.track.value}", f"release:{attempt.digest[7:19]}"]
        if attempt.rollout:
            tags.append(f"rollout:{attempt.rollout}")
        self._runs[request.id, attempt.n] = self.prefect.create_run(
            f"train/{attempt.cloud}",
            key=run_key(request.id, attempt.n),
            parameters={"request": request.id, "attempt": attempt.n},
            queue=_queue(order, attempt).value,
            env=env,
            tags=tags,
        )

    def _threads(self) -> str:
        """Cores for each slot of this machine: trainings that fight over cores are many times slower."""
        slots = sum(cloud.size for cloud in self.spec.clouds.values() if cloud.kind == "local")
        return str(max(1, (os.cpu_count() or 1) // slots))

    def _end_attempt(self, request: RequestState, action: EndAttempt) -> None:
        """Its sample, the journal, its flow run, in this order: a crash between is repaired by doing both."""
        attempt = request.current
        assert attempt is not None
        self._sample(request, attempt, action)
        kind = f"attempt-{action.state.value}"
        data = {"n": attempt.n, "cause": action.cause, "message": action.message}
        self.platform.record_request(request.id, kind, data)
        log.info(
            "%s attempt %d on %s: %s: %s", request.id, attempt.n, attempt.cloud, action.cause, action.message
        )

    def _end_run(self, request: RequestState) -> None:
        """End the flow run of an attempt that was given up before anything follows it: it holds a slot."""
        last = request.attempts[-1] if request.attempts else None
        if last is None or last.state not in (AttemptState.LOST, AttemptState.SUPERSEDED):
            return
        run_id = self._runs.get((request.id, last.n)) or self.prefect.find_run(run_key(request.id, last.n))
        if run_id is not None:
            self.prefect.cancel(run_id, worker_gone=last.cause == "lost_worker")

    def _sample(self, request: RequestState, attempt: Attempt, action: EndAttempt) -> None:
        if attempt.rollout is None:
            return
        order = request.order
        for late in (False, True):
            sample = Sample(
                request=request.id,
                attempt=attempt.n,
                cloud=attempt.cloud,
                track=attempt.track.value,
                digest=attempt.digest,
                probe=order.probe if order is not None else None,
                cause=action.cause,
                message=action.message,
                at_horizon=late,
                late=late,
            )
            key = keys.sample(
                attempt.rollout, attempt.cloud, attempt.track.value, request.id, attempt.n, late
            )
            try:
                self.store.create(key, sample.model_dump_json().encode())
                return
            except ObjectExists:
                found = Sample.model_validate_json(self.store.get(key).data)
                if found.cause is not None:
                    return  # its failure is told already

    def _finish(self, request: RequestState, action: Finish) -> None:
        self._end_run(request)
        last = request.attempts[-1].n if request.attempts else None
        data = {
            "state": action.state.value,
            "attempt": last,
            "cause": action.cause,
            "message": action.message,
        }
        try:
            self.platform.record_request(request.id, "result", data)
        except Refused as refusal:
            log.info("%s: %s", request.id, refusal.message)

    def _close(self, request: RequestState) -> None:
        self.store.delete(keys.open_marker(request.id))
        self.platform.forget_request(request.id)
        for attempt in request.attempts:
            left = home.scratch(self.home) / run_key(request.id, attempt.n)
            shutil.rmtree(left, ignore_errors=True)  # of an attempt that was killed here
            key = (request.id, attempt.n)
            self._since.pop(key, None)
            self._workers.pop(key, None)
            run_id = self._runs.pop(key, None)
            if run_id is not None:
                self._urls[key] = run_id


def _said(seen: SeenRun) -> str | None:
    """The cause that the attempt, or what started it, gave through Prefect."""
    return "prefect_away" if AWAY in seen.detail else SAID.get(seen.name)


def _queue(order: Order | None, attempt: Attempt) -> Track:
    """Its track's slots; a verification takes a canary's, so that no backlog on stable delays the proof."""
    return Track.CANARY if order is not None and order.verifies else attempt.track
