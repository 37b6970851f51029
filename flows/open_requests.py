"""The open requests: for each, look, decide (lora_ops.reconcile), act. Idempotent, and safe beside others."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.clusters import AttemptKey, Clusters
from flows.context import HEARTBEAT_ENV, IMAGE_ENV, STALL_ENV, flow_env
from flows.sights import Sights, Turn
from lora_ops import keys, reconcile
from lora_ops.cloud_spec import CloudSpec
from lora_ops.errors import (
    ConflictError,
    LoraOpsError,
    ObjectExists,
    Refused,
    StoreUnavailable,
    UnreachableError,
)
from lora_ops.gates.samples import Sample
from lora_ops.reconcile import (
    Abandon,
    Close,
    CreateRun,
    EndAttempt,
    Evict,
    Finish,
    Nothing,
    StartAttempt,
)
from lora_ops.request import Attempt, AttemptState, Order, RequestState, ResultState
from lora_ops.routing import Route, pinned, route
from lora_ops.spec import PlatformSpec
from lora_ops.state import Track
from tasks import home
from tasks.bundle import ensure_unpacked
from tasks.platform import Platform
from tasks.prefect_api import PrefectApi, run_key

log = logging.getLogger("lora_ops.reconciler")

#: The home folder of attempts in pods: a scratch volume, the only place that they can write to.
POD_HOME = Path("/scratch")
WITHOUT_A_WORD = frozenset({"exit_before_contact", "prefect_away"})


class OpenRequests:
    """One reconciler's care for requests."""

    def __init__(
        self,
        platform: Platform,
        prefect: PrefectApi,
        spec: PlatformSpec,
        base: Path,
        clusters: Clusters | None = None,
    ) -> None:
        self.platform = platform
        self.store = platform.store
        self.prefect = prefect
        self.spec = spec
        self.home = base
        self.limits = spec.requests.limits()
        self.clusters = clusters or Clusters()
        self.sights = Sights(platform, prefect, self.clusters)
        self._evicted: set[AttemptKey] = set()
        self._open: dict[str, int] = {}
        self._load: Counter[str] = Counter()
        self._full: frozenset[str] = frozenset()
        self._urls: dict[AttemptKey, str] = {}

    def run_id(self, request_id: str, n: int) -> str | None:
        return self.sights.runs.get((request_id, n)) or self._urls.get((request_id, n))

    def tick(self, workers: Mapping[str, frozenset[str]], dark: frozenset[str] = frozenset()) -> None:
        """Take every open request as far as it goes now.

        `workers`: the live ones of each cloud, as far as Prefect could be asked. `dark`: clouds that get
        nothing of users while another is open, since their pointer is still to be verified.
        """
        try:
            markers = self.store.list("open")
            self._forget_all_but({meta.key.rpartition("/")[2] for meta in markers})
            if not markers:
                return
            turn = self.sights.turn(workers, dark)
            clouds = turn.state.clouds
            self._full = frozenset(name for name in clouds if self._load[name] >= clouds[name].size)
            self._load = Counter()
        except StoreUnavailable:
            self.sights.store_away()
            raise
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

    def _forget_all_but(self, there: set[str]) -> None:
        """Another replica may have closed a request: what this one remembers of it is of no use any more."""
        for key in {key for key in self.sights.known() if key[0] not in there}:
            run_id = self.sights.forget(key)
            if run_id is not None:
                self._urls[key] = run_id
            self._evicted.discard(key)
            self.platform.forget_request(key[0])
        self._open = {name: n for name, n in self._open.items() if name in there}

    def one(self, request_id: str, turn: Turn, marker_age_s: float) -> None:
        """Decide and act until nothing more can be done now for this request."""
        for _ in range(4):
            request = self.platform.request(request_id)
            sight = self.sights.sight(request, turn, marker_age_s)
            action = reconcile.decide(request, sight, self.limits)
            self._open[request_id] = request.current.n if request.current is not None else 0
            if isinstance(action, Nothing) and request.current is not None:
                self._load[request.current.cloud] += 1
            if not self._act(request, action, turn):
                return

    def sweep(self) -> None:
        """Delete the Jobs in clusters that nobody waits for."""
        if self.clusters.watches:
            self.clusters.sweep(self.platform, self.platform.state(), set(self._open.items()))

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
            case Evict():
                self._evict(request)
                return False
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
        if pin is not None:
            found = pinned(turn.fleet, pin.cloud, pin.track or Track.STABLE, turn.now)
            is_open = any(lane.cloud == pin.cloud and lane.open for lane in turn.fleet.lanes)
            if pin.track is not None and (found is None or (not is_open and _rollout_over(order, turn))):
                why = "The canary may not run any more." if found is None else "Its rollout is over."
                self._finish(request, Finish(ResultState.CANCELLED, "superseded", why))
            return found if is_open else None
        found = route(
            request.id,
            turn.fleet,
            turn.now,
            canary=request.canary_ok,
            cloud=order.cloud,
            only=order.cloud_only,
            avoid=avoid | self._full if avoid else avoid,
            dark=turn.dark,
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
        order = request.order
        kind = "probe" if order is not None and not order.users_own else "request"
        tags = [f"{kind}:{request.id}", f"track:{attempt.track.value}", f"release:{attempt.digest[7:19]}"]
        if attempt.rollout:
            tags.append(f"rollout:{attempt.rollout}")
        self.sights.runs[request.id, attempt.n] = self.prefect.create_run(
            f"train/{attempt.cloud}",
            key=run_key(request.id, attempt.n),
            parameters={"request": request.id, "attempt": attempt.n},
            queue=_queue(order, attempt).value,
            tags=tags,
            **self._where(request.id, attempt, cloud),
        )

    def _where(self, request_id: str, attempt: Attempt, cloud: CloudSpec) -> dict[str, Any]:
        """What of a run its kind of cloud decides: the environment, and in a cluster the image and labels."""
        own = {
            **cloud.env,
            STALL_ENV: str(self.spec.requests.stall_deadline),
            HEARTBEAT_ENV: str(self.spec.requests.heartbeat_deadline),
        }
        if not cloud.on_kubernetes:
            root = ensure_unpacked(self.store, attempt.digest, home.bundles(self.home))
            own = {"OMP_NUM_THREADS": self._threads(), **own, "PYTHONPATH": str(root)}
            return {"env": flow_env(self.store.url, self.platform.app, self.home, own)}
        assert self.spec.image is not None  # the spec is refused without
        image = cloud.image(self.spec.image.repository, attempt.digest)
        labels = {
            "lora-ops/app": self.platform.app,
            "lora-ops/cloud": attempt.cloud,
            "lora-ops/request": request_id,
            "lora-ops/attempt": str(attempt.n),
            "lora-ops/track": attempt.track.value,
            "lora-ops/release": attempt.digest[7:19],
        }
        if attempt.rollout is not None:
            labels["lora-ops/rollout"] = attempt.rollout
        env = flow_env(self.store.url, self.platform.app, POD_HOME, {**own, IMAGE_ENV: image})
        name = run_key(request_id, attempt.n).lower()
        return {"env": env, "variables": {"image": image, "labels": labels, "name": name}}

    def _threads(self) -> str:
        """Cores for each slot of this machine: trainings that fight over cores are many times slower."""
        slots = sum(cloud.size for cloud in self.spec.clouds.values() if cloud.kind == "local")
        return str(max(1, (os.cpu_count() or 1) // slots))

    def _end_attempt(self, request: RequestState, action: EndAttempt) -> None:
        """Its sample, the journal, its flow run, in this order: a crash between is repaired by doing both."""
        attempt = request.current
        assert attempt is not None
        if action.cause in WITHOUT_A_WORD:
            words = self.clusters.last_words(attempt.cloud, (request.id, attempt.n))
            if words:
                action = replace(action, message=f"{action.message} It printed: {words[-1000:]}")
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
        seen = self.sights.runs.get((request.id, last.n))
        run_id = seen or self.prefect.find_run(run_key(request.id, last.n))
        in_cluster = last.cloud in self.clusters
        if in_cluster:  # Prefect's worker does not delete it
            self.clusters.discard(last.cloud, (request.id, last.n))
        if run_id is not None:
            self.prefect.cancel(run_id, worker_gone=in_cluster or last.cause == "lost_worker")

    def _evict(self, request: RequestState) -> None:
        """SIGTERM, by whoever runs it, once: the attempt saves a checkpoint and tells that it was evicted."""
        attempt = request.current
        key = (request.id, attempt.n if attempt is not None else 0)
        if attempt is None or key in self._evicted:
            return
        if attempt.cloud in self.clusters:
            if not self.clusters.discard(attempt.cloud, key):
                return  # not seen yet: at the next turn
        else:
            run_id = self.sights.runs.get(key) or self.prefect.find_run(run_key(*key))
            if run_id is None:
                return
            self.prefect.cancel(run_id)
        self._evicted.add(key)
        log.info("%s attempt %d leaves %s", request.id, attempt.n, attempt.cloud)

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
            self._evicted.discard(key)
            run_id = self.sights.forget(key)
            if run_id is not None:
                self._urls[key] = run_id


def _queue(order: Order | None, attempt: Attempt) -> Track:
    """Its track's slots; a verification takes a canary's, so that no backlog on stable delays the proof."""
    return Track.CANARY if order is not None and order.verifies else attempt.track


def _rollout_over(order: Order, turn: Turn) -> bool:
    """A probe whose rollout has ended: nobody waits for it any more."""
    rollout = turn.state.rollout
    return order.probe is not None and (rollout is None or rollout.id != order.probe.partition("/")[0])
