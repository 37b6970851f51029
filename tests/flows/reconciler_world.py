"""Reconcilers over a store and a Prefect that break on purpose, and workers that do what a script says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import open_requests, sights
from flows.open_requests import OpenRequests
from lora_ops import ids, keys
from lora_ops.errors import LoraOpsError
from lora_ops.gates.samples import Sample
from lora_ops.reconcile import Run
from lora_ops.request import Attempt, AttemptState, Order, RequestState
from lora_ops.spec import parse_spec
from lora_ops.state import Policy, Rollout
from tasks.platform import Platform
from tasks.store import Store, open_store
from tasks.store.faulty import Fault, FaultyStore, Killed
from tests.flows.prefect_stand_in import StandInPrefect, StandInRun

OLD = f"sha256:{'a' * 64}"
NEW = f"sha256:{'b' * 64}"
SPEC = parse_spec("app: loras\nclouds: {east: {size: 1}, west: {size: 1}}\n", "lora-ops.yaml")
WRITES = frozenset({"create", "put", "put_file", "delete", "create_run", "cancel"})
ALIVE = {"east": frozenset({"east-1"}), "west": frozenset({"west-1"})}

Plan = Callable[[str, str], Fault | None]


def no_fault(method: str, key: str) -> Fault | None:
    return None


@dataclass
class World:
    """One store, one Prefect, any number of reconcilers. `now`: their monotonic clock, in seconds."""

    home: Path
    store: Store = field(default_factory=lambda: open_store("memory://"))
    prefect: StandInPrefect = field(default_factory=StandInPrefect)
    now: float = 1000.0
    made: int = 0

    def __post_init__(self) -> None:
        self.platform = Platform(self.store, "loras", "worker")
        for name in SPEC.clouds:
            self.platform.record("cloud-set", {"name": name, "stable": OLD})
        self.prefect.live = {name: {f"{name}-1": float("inf")} for name in SPEC.clouds}

    def reconciler(self, plan: Plan = no_fault) -> OpenRequests:
        """A fresh process; `plan` names a fault for a call to the store or (with key "") to Prefect."""
        self.prefect.plan = lambda method: plan(method, "")
        platform = Platform(FaultyStore(self.store, plan), "loras", "serve")
        return OpenRequests(platform, self.prefect, SPEC, self.home)

    # --- what people and the deploy flow do ---

    def request(self, **order: Any) -> str:
        self.made += 1
        name = ids.new_id(ids.REQUEST, 1_700_000_000 + self.made, self.made)
        self.store.put(keys.open_marker(name), b"{}")
        data = {"order": Order(name="run", max_attempts=2, **order).model_dump(mode="json")}
        self.platform.record_request(name, "submitted", data)
        return name

    def rollout(self, weight: int = 100, lease_s: float = 3600.0, **policy: Any) -> Rollout:
        """A rollout of NEW that gives its canary `weight` percent."""
        self.made += 1
        name = ids.new_id(ids.ROLLOUT, 1_700_000_000 + self.made, self.made)
        made = SPEC.policy().model_dump(mode="json") | {
            "lease_s": lease_s,
            "plans": {cloud: [weight] for cloud in SPEC.clouds},
            **policy,
        }
        frozen = Policy.model_validate(made).model_dump(mode="json")
        self.platform.record("rollout-started", {"id": name, "source": {"path": "/src"}, "policy": frozen})
        self.record("validated")
        self.record("built", release=NEW, revision="abc")
        self.record("self-checked")
        self.record("distributed", clouds=dict.fromkeys(SPEC.clouds, NEW))
        self.record("step-started", wave=0, step=0)
        return self.active

    @property
    def active(self) -> Rollout:
        rollout = self.platform.state().rollout
        assert rollout is not None
        return rollout

    def record(self, kind: str, **data: Any) -> None:
        self.platform.record(kind, {"rollout": self.active.id, **data})

    # --- what workers do ---

    def work(self, script: Sequence[str]) -> None:
        """Every waiting run acts as `script` says for its attempt's number (the last word for all later)."""
        for run in list(self.prefect.by_key.values()):
            n = int(run.parameters["attempt"])
            if run.run is Run.WAITING:
                self._act(run, script[min(n, len(script)) - 1])

    def _act(self, run: StandInRun, what: str) -> None:
        request, n = str(run.parameters["request"]), int(run.parameters["attempt"])
        if what == "wait":
            return
        attempt = self.platform.request(request).current
        if attempt is None or attempt.n != n:
            run.run, run.name = Run.CANCELLED, "Superseded"
            return
        if what == "vanish":
            run.run, run.name = Run.ENDED, "Crashed"
            return
        self.start(request, attempt)
        if what == "hang":
            run.run, run.name = Run.RUNNING, "Running"
            return
        run.run, run.name = Run.ENDED, "Crashed" if what == "die" else "Completed"
        if what == "succeed":
            self._sample(request, attempt, None)
            self.platform.record_request(request, "result", {"state": "succeeded", "attempt": n})
        elif what != "die":
            self._sample(request, attempt, what)
            self.platform.record_request(request, "attempt-failed", {"n": n, "cause": what, "message": what})

    def start(self, request: str, attempt: Attempt) -> None:
        key = keys.start(attempt.rollout, attempt.cloud, attempt.track.value, request, attempt.n)
        start = f'{{"request": "{request}", "attempt": {attempt.n}, "cloud": "{attempt.cloud}", "track": '
        start += f'"{attempt.track.value}", "digest": "{attempt.digest}", "worker": "{attempt.cloud}-1"}}'
        self.store.create(key, start.encode())

    def _sample(self, request: str, attempt: Attempt, cause: str | None) -> None:
        if attempt.rollout is None:
            return
        facts: Mapping[str, Any] = {
            "request": request,
            "attempt": attempt.n,
            "cloud": attempt.cloud,
            "track": attempt.track.value,
            "digest": attempt.digest,
            "cause": cause,
            "at_horizon": cause is None,
        }
        self.store.create(self.sample_key(request, attempt), Sample(**facts).model_dump_json().encode())

    # --- what must hold ---

    def sample_key(self, request: str, attempt: Attempt) -> str:
        rollout = attempt.rollout or ""
        return keys.sample(rollout, attempt.cloud, attempt.track.value, request, attempt.n)

    def check(self, request: str) -> RequestState:
        """What holds at every moment, whoever was killed: a given-up attempt's sample is there first."""
        state = self.platform.request(request)
        given_up = (AttemptState.LOST, AttemptState.SUPERSEDED)
        for attempt in state.attempts:
            if attempt.rollout is not None and attempt.state in given_up:
                assert self.store.head(self.sample_key(request, attempt))
        assert sum(attempt.state is AttemptState.OPEN for attempt in state.attempts) <= 1
        return state

    def check_over(self, request: str) -> RequestState:
        """What holds in the end: one result, no marker, one run an attempt, and none that still runs."""
        state = self.check(request)
        history = self.platform.request_history(request)
        assert [entry.document["kind"] for entry in history].count("result") == 1
        assert not self.store.list("open")
        assert set(self.prefect.by_key) <= {f"{request}-{attempt.n}" for attempt in state.attempts}
        assert all(run.run in (Run.ENDED, Run.CANCELLED) for run in self.prefect.by_key.values())
        return state


def drive(
    world: World,
    request: str,
    script: Sequence[str],
    plan: Plan = no_fault,
    between: Callable[[int], None] = lambda turn: None,
    turns: int = 40,
) -> RequestState:
    """Tick, work, let time pass, until the request is over; a fresh reconciler follows one that is killed."""
    reconciler = world.reconciler(plan)
    for turn in range(turns):
        between(turn)
        try:
            reconciler.tick(ALIVE)
        except Killed:
            world.check(request)
            reconciler = world.reconciler(plan)
        except LoraOpsError:
            world.check(request)  # as Reconciler.tick: the next turn tries again
        world.work(script)
        world.now += 10.0
        over = world.platform.request(request).result is not None
        if over and not world.store.list("open"):
            world.prefect.plan = lambda method: None
            return world.check_over(request)
    raise AssertionError(f"not over after {turns} turns: {world.platform.request(request)}")


def nth(n: int, fault: Fault, of: frozenset[str] | None = None) -> Plan:
    """The n-th call (of these methods) suffers `fault`; the clock's own measurements are left alone."""
    seen = iter(range(10**9))

    def plan(method: str, key: str) -> Fault | None:
        if key.startswith("clock/") or (of is not None and method not in of):
            return None
        return fault if next(seen) == n else None

    return plan


def counting() -> tuple[list[tuple[str, str]], Plan]:
    """A plan without faults that records the calls."""
    calls: list[tuple[str, str]] = []

    def plan(method: str, key: str) -> Fault | None:
        if not key.startswith("clock/"):
            calls.append((method, key))
        return None

    return calls, plan


def later(platform: Platform, seconds: float) -> None:
    """Let this process's clock stand `seconds` later than the store's objects."""
    clock = platform.clock
    clock.now()
    offset = clock._offset
    assert offset is not None
    clock._offset = offset._replace(low=offset.low + seconds, high=offset.high + seconds)


def patch(world: World, monkeypatch: Any) -> None:
    """The world's monotonic clock for reconcilers, and bundles that need no unpacking."""

    class _Time:
        @staticmethod
        def monotonic() -> float:
            return world.now

    monkeypatch.setattr(sights, "time", _Time)
    monkeypatch.setattr(open_requests, "ensure_unpacked", lambda store, digest, cache: cache / digest[7:])
