"""A stand-in for Prefect's API, in memory: what the reconciler asks of it, and what workers do to it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lora_ops.errors import NotFoundError, UnreachableError
from lora_ops.reconcile import Run, Worker
from tasks.prefect_api import PrefectApi, SeenRun
from tasks.store.faulty import Fault, Killed


@dataclass(slots=True)
class StandInRun:
    id: str
    key: str
    deployment: str
    parameters: dict[str, Any]
    queue: str | None
    env: dict[str, str]
    run: Run = Run.WAITING
    name: str = "Scheduled"
    detail: str = ""
    state_time: float = 0.0


@dataclass
class StandInPrefect(PrefectApi):
    """Runs by idempotency key. `plan(method)` may name a fault for a call; `away`: its server is down."""

    plan: Callable[[str], Fault | None] = lambda method: None
    away: bool = False
    by_key: dict[str, StandInRun] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    creations: list[str] = field(default_factory=list)
    limits: dict[str, dict[str, int | None]] = field(default_factory=dict)
    live: dict[str, dict[str, float]] = field(default_factory=dict)
    _numbers: Any = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.api_url = "http://prefect.stand-in/api"

    def ok(self) -> bool:
        return not self.away

    def create_run(
        self,
        deployment: str,
        *,
        key: str,
        parameters: dict[str, Any],
        queue: str | None = None,
        env: dict[str, str] | None = None,
        tags: Iterable[str] = (),
        name: str | None = None,
    ) -> str:
        def act() -> str:
            self.creations.append(key)
            if key not in self.by_key:
                made = f"run-{next(self._numbers)}"
                self.by_key[key] = StandInRun(made, key, deployment, parameters, queue, env or {})
            return self.by_key[key].id

        return str(self._act("create_run", act))

    def limit_queues(self, pool: str, limits: dict[str, int | None]) -> None:
        self._act("limit_queues", lambda: self.limits.update({pool: limits}))

    def runs(self, run_ids: Iterable[str]) -> dict[str, SeenRun]:
        wanted = set(run_ids)

        def act() -> dict[str, SeenRun]:
            return {
                each.id: SeenRun(each.id, each.run, each.name, each.detail, each.state_time)
                for each in self.by_key.values()
                if each.id in wanted
            }

        return dict(self._act("runs", act)) if wanted else {}

    def find_run(self, key: str) -> str | None:
        found = self._act("find_run", lambda: self.by_key.get(key))
        return found.id if found is not None else None

    def cancel(self, run_id: str, *, worker_gone: bool = False) -> None:
        def act() -> None:
            for each in self.by_key.values():
                if each.id == run_id and each.run not in (Run.ENDED, Run.CANCELLED):
                    each.run, each.name = Run.CANCELLED, "Cancelled" if worker_gone else "Cancelling"

        self._act("cancel", act)

    def worker_after(self, pool: str, worker: str | None, moment: float) -> Worker:
        def act() -> Worker:
            beats = [beat for name, beat in self.live.get(pool, {}).items() if worker in (None, name)]
            return Worker.ALIVE if any(beat > moment for beat in beats) else Worker.UNKNOWN

        return Worker(self._act("worker_after", act))

    def workers(self, pool: str) -> list[tuple[str, str]]:
        return [(name, "ONLINE") for name in self._act("workers", lambda: self.live.get(pool, {}))]

    # --- what tests do to it ---

    def run_of(self, request_id: str, n: int) -> StandInRun:
        found = self.by_key.get(f"{request_id}-{n}")
        if found is None:
            raise NotFoundError(f"no run of {request_id} attempt {n} was created")
        return found

    def _act(self, method: str, act: Callable[[], Any]) -> Any:
        self.calls.append(method)
        if self.away:
            raise UnreachableError("Prefect's API does not answer.")
        fault = self.plan(method)
        if fault is Fault.KILLED_BEFORE:
            raise Killed(f"before {method}")
        if fault is Fault.NO_REQUEST:
            raise UnreachableError(f"{method}: the connection was cut on the way there.")
        answer = act()
        if fault is Fault.KILLED_AFTER:
            raise Killed(f"after {method}")
        if fault is Fault.NO_ANSWER:
            raise UnreachableError(f"{method}: the connection was cut on the way back.")
        return answer
