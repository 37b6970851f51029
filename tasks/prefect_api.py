"""Prefect's API as lora-ops uses it: pools, queues, runs. Synchronous, idempotent, thread-safe by locking.

Prefect is orchestration and history, never the truth; every answer here may be late or lost.
"""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterIdempotencyKey
from prefect.context import SettingsContext, get_settings_context
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_CLIENT_MAX_RETRIES,
    Settings,
)
from prefect.states import Cancelled, Cancelling

from lora_ops.errors import NotFoundError, UnreachableError
from lora_ops.reconcile import Run, Worker
from lora_ops.state import Track

CONTROL_POOL = "control"
#: A server that has not answered for so long (seconds) is away: the reconciler has deadlines to keep.
ANSWER_S = 10.0
#: Without a command of its own Prefect's process worker starts a supervising interpreter before the
#: engine's: two imports of prefect a run. `-P` keeps the folders of the worker and of the file off the path.
ENGINE_COMMAND = shlex.join([sys.executable, "-P", str(Path(__file__).with_name("engine.py"))])

T = TypeVar("T")

_RUN_STATES = {
    "SCHEDULED": Run.WAITING,
    "PENDING": Run.PENDING,
    "RUNNING": Run.RUNNING,
    "PAUSED": Run.RUNNING,
    "CANCELLING": Run.RUNNING,
    "COMPLETED": Run.ENDED,
    "FAILED": Run.ENDED,
    "CRASHED": Run.ENDED,
    "CANCELLED": Run.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class SeenRun:
    """A flow run as Prefect shows it. `state_time`: Prefect's clock, seconds since the epoch."""

    id: str
    run: Run
    name: str
    detail: str
    state_time: float


class PrefectApi:
    """One Prefect server. Methods raise UnreachableError when it does not answer, and all but `ensure_pool`
    at once: whoever calls them has other work, and comes again."""

    def __init__(self, api_url: str) -> None:
        self.api_url = api_url
        self._client: SyncPrefectClient | None = None
        self._lock = threading.RLock()
        self._deployments: dict[str, UUID] = {}
        context = get_settings_context()
        self._profile = context.profile
        self._auth = PREFECT_API_AUTH_STRING.value_from(context.settings)
        self._patient = context.settings
        self._hasty = context.settings.copy_with_update(
            updates={PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: ANSWER_S}
        )

    def ok(self) -> bool:
        try:
            return httpx.get(f"{self.api_url}/health", timeout=3).status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            client, self._client = self._client, None
            if client is not None:
                client.__exit__(None, None, None)

    def ensure_pool(
        self,
        name: str,
        queues: dict[str, int | None],
        *,
        kind: str = "process",
        template: dict[str, Any] | None = None,
    ) -> None:
        """A work pool of a kind and its queues with their limits; changes what differs.

        `template`: the base job template; by default that of process pools, with our command.
        """

        def act(client: SyncPrefectClient) -> None:
            made = WorkPoolCreate(name=name, type=kind, base_job_template=template or _process_template())
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(made, overwrite=True)
            for priority, (queue, limit) in enumerate(queues.items(), start=1):
                try:
                    client.create_work_queue(
                        queue, concurrency_limit=limit, priority=priority, work_pool_name=name
                    )
                except ObjectAlreadyExists:
                    found = client.read_work_queue_by_name(queue, work_pool_name=name)
                    client.update_work_queue(found.id, concurrency_limit=limit)

        self._call(act, self._patient)

    def limit_queues(self, pool: str, limits: dict[str, int | None]) -> None:
        """How many runs of each queue may run at once. NotFoundError when there is no such queue."""

        def act(client: SyncPrefectClient) -> None:
            for queue, limit in limits.items():
                found = client.read_work_queue_by_name(queue, work_pool_name=pool)
                if found.concurrency_limit != limit:
                    client.update_work_queue(found.id, concurrency_limit=limit)

        self._call(act)

    def has_pool(self, name: str) -> bool:
        """Whether there is such a work pool."""
        try:
            self._call(lambda client: client.read_work_pool(name), self._patient)
        except NotFoundError:
            return False
        return True

    def create_run(
        self,
        deployment: str,
        *,
        key: str,
        parameters: dict[str, Any],
        queue: str | None = None,
        env: dict[str, str] | None = None,
        variables: dict[str, Any] | None = None,
        tags: Iterable[str] = (),
        name: str | None = None,
    ) -> str:
        """The id of the run with this idempotency key, created if there is none. Atomic on the server.

        `variables`: job variables of the pool's template beside `env`.
        """

        def act(client: SyncPrefectClient) -> str:
            run = client.create_flow_run_from_deployment(
                self._deployment(client, deployment),
                parameters=parameters,
                name=name,
                tags=sorted(tags),
                idempotency_key=key,
                work_queue_name=queue,
                job_variables={**({"env": env} if env else {}), **(variables or {})} or None,
            )
            return str(run.id)

        try:
            return self._call(act)
        except (NotFoundError, ObjectNotFound):
            self._deployments.pop(deployment, None)
            raise

    def runs(self, run_ids: Iterable[str]) -> dict[str, SeenRun]:
        """The runs that exist, by id."""
        wanted = [UUID(each) for each in run_ids]

        def act(client: SyncPrefectClient) -> dict[str, SeenRun]:
            found: dict[str, SeenRun] = {}
            for at in range(0, len(wanted), 200):
                some = FlowRunFilter(id=FlowRunFilterId(any_=wanted[at : at + 200]))
                for run in client.read_flow_runs(flow_run_filter=some):
                    state = run.state
                    if state is not None:
                        found[str(run.id)] = SeenRun(
                            id=str(run.id),
                            run=_RUN_STATES.get(state.type.value, Run.UNKNOWN),
                            name=state.name or state.type.value,
                            detail=(state.message or "")[:500],
                            state_time=state.timestamp.timestamp(),
                        )
            return found

        return self._call(act) if wanted else {}

    def find_run(self, key: str) -> str | None:
        """The id of the run with this idempotency key, if there is one."""

        def act(client: SyncPrefectClient) -> str | None:
            wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
            return next((str(run.id) for run in client.read_flow_runs(flow_run_filter=wanted)), None)

        return self._call(act)

    def cancel(self, run_id: str, *, worker_gone: bool = False) -> None:
        """End a run: at once without a process, else through its worker. Silent when the run is gone.

        `worker_gone`: nobody is left to end its process; it would keep its slot until Prefect's time-out.
        """

        def act(client: SyncPrefectClient) -> None:
            with suppress(ObjectNotFound):
                state = client.read_flow_run(UUID(run_id)).state
                if state is None or state.is_final():
                    return
                started = state.is_running() or state.is_cancelling() or state.is_paused()
                end = Cancelling if started and not worker_gone else Cancelled
                client.set_flow_run_state(UUID(run_id), end(), force=True)

        self._call(act)

    def worker_after(self, pool: str, worker: str | None, moment: float) -> Worker:
        """Whether the worker (any of the pool when None) beat after `moment`, on Prefect's own clock."""

        def act(client: SyncPrefectClient) -> Worker:
            beats = [
                each.last_heartbeat_time.timestamp()
                for each in client.read_workers_for_work_pool(pool)
                if each.last_heartbeat_time is not None and worker in (None, each.name)
            ]
            if any(beat > moment for beat in beats):
                return Worker.ALIVE
            return Worker.UNKNOWN

        return self._call(act)

    def workers(self, pool: str) -> list[tuple[str, str]]:
        """(name, status) of the pool's workers."""

        def act(client: SyncPrefectClient) -> list[tuple[str, str]]:
            return [(each.name, each.status.value) for each in client.read_workers_for_work_pool(pool)]

        try:
            return self._call(act)
        except NotFoundError:
            return []

    def ui_url(self, run_id: str) -> str:
        return f"{self.api_url.removesuffix('/api')}/runs/flow-run/{run_id}"

    def _deployment(self, client: SyncPrefectClient, name: str) -> UUID:
        if name not in self._deployments:
            self._deployments[name] = client.read_deployment_by_name(name).id
        return self._deployments[name]

    def _call(self, act: Callable[[SyncPrefectClient], T], settings: Settings | None = None) -> T:
        """With other settings than the hasty ones by a client of its own: a client keeps its time-out."""
        with self._lock, SettingsContext(profile=self._profile, settings=settings or self._hasty):
            known = self._client
            try:
                if settings is not None:
                    with SyncPrefectClient(self.api_url, auth_string=self._auth) as patient:
                        return _twice(act, patient)
                if known is not None:  # perhaps a connection that an earlier server left
                    with suppress(httpx.NetworkError, httpx.RemoteProtocolError):
                        return _twice(act, known)
                self.close()
                self._client = SyncPrefectClient(self.api_url, auth_string=self._auth).__enter__()
                return _twice(act, self._client)
            except ObjectNotFound as error:
                raise NotFoundError(f"Prefect knows no such thing: {error}.", "Run `lora-ops up`.") from error
            except (httpx.HTTPError, OSError, RuntimeError) as error:
                self.close()
                if _status(error) == httpx.codes.UNAUTHORIZED:
                    raise UnreachableError(
                        f"Prefect's API at {self.api_url} refuses the password, or wants one.",
                        "Set PREFECT_API_AUTH_STRING to the server's PREFECT_SERVER_API_AUTH_STRING.",
                    ) from error
                raise UnreachableError(
                    f"Prefect's API at {self.api_url} does not answer: {error or type(error).__name__}.",
                    "Start it with `lora-ops up`, or set `prefect.api_url` in lora-ops.yaml.",
                ) from error


def _twice(act: Callable[[SyncPrefectClient], T], client: SyncPrefectClient) -> T:
    """Once more after a 503: what Prefect answers while its SQLite is locked. Every act is idempotent."""
    try:
        return act(client)
    except httpx.HTTPStatusError as error:
        if _status(error) != httpx.codes.SERVICE_UNAVAILABLE:
            raise
        return act(client)


def _status(error: Exception) -> int | None:
    """The HTTP status that an error tells, if any."""
    return error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None


def run_key(request_id: str, attempt: int) -> str:
    """The idempotency key of an attempt's flow run."""
    return f"{request_id}-{attempt}"


def track_queues(size: int) -> dict[str, int | None]:
    """A queue a track with `size` slots; the canary's is served first, since a verdict waits for it."""
    return {Track.CANARY.value: size, Track.STABLE.value: size}


def _process_template() -> dict[str, Any]:
    """Prefect's template for process pools, with our command as its default."""
    return {
        "job_configuration": {
            "command": "{{ command }}",
            "env": "{{ env }}",
            "labels": "{{ labels }}",
            "name": "{{ name }}",
            "stream_output": "{{ stream_output }}",
            "working_dir": "{{ working_dir }}",
        },
        "variables": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "env": {"type": "object", "additionalProperties": {"type": "string"}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "command": {"type": "string", "default": ENGINE_COMMAND},
                "stream_output": {"type": "boolean", "default": True},
                "working_dir": {"type": "string"},
            },
        },
    }
