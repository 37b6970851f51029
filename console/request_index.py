"""Every request in a few facts, read once it is final: for counts, lists and counters.

Costs a listing of `requests/` a refresh, and a few reads for each request that is open or new.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lora_ops import keys
from lora_ops.errors import ObjectMissing
from lora_ops.request import Attempt, RequestState, ResultState
from lora_ops.state import Track
from tasks.platform import Platform

SUBMITTED, WAITING, RUNNING = "submitted", "waiting", "running"
OPEN_STATES = (SUBMITTED, WAITING, RUNNING)
FINAL_STATES = ("succeeded", "failed", "cancelled")
STATES = (*OPEN_STATES, *FINAL_STATES)

_READ_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """`started`: it made contact with the store. `open`: it is under way."""

    cloud: str
    track: Track
    digest: str
    rollout: str | None
    started: bool
    open: bool


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """`own`: a person asked for it. A request that was abandoned half-written has no `state`."""

    id: str
    state: str | None
    own: bool
    attempts: tuple[AttemptFacts, ...]

    @property
    def final(self) -> bool:
        return self.state not in OPEN_STATES


class RequestIndex:
    """Thread-safe."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._final: dict[str, RequestFacts] = {}
        self._lock = threading.Lock()

    def ids(self) -> list[str]:
        """All request ids of the store, newest first."""
        return sorted(self._platform.store.list_folders("requests"), reverse=True)

    def refresh(self) -> list[RequestFacts]:
        """The facts of every request that was submitted, newest first."""
        with self._lock:
            names = self.ids()
            unread = [name for name in names if name not in self._final]
            with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
                read = {facts.id: facts for facts in pool.map(self._read, unread) if facts is not None}
            for facts in read.values():
                if facts.final:
                    self._final[facts.id] = facts
                    self._platform.forget_request(facts.id)
            found = [read.get(name) or self._final.get(name) for name in names]
        return [facts for facts in found if facts is not None and facts.state is not None]

    def _read(self, request_id: str) -> RequestFacts | None:
        state = self._platform.request(request_id)
        if state.order is None and state.result is None:
            return None
        attempts = tuple(
            AttemptFacts(
                cloud=attempt.cloud,
                track=attempt.track,
                digest=attempt.digest,
                rollout=attempt.rollout,
                started=start_time(self._platform, request_id, attempt) is not None,
                open=state.current is attempt,
            )
            for attempt in state.attempts
        )
        started = bool(attempts) and attempts[-1].open and attempts[-1].started
        own = state.order is not None and state.order.users_own
        return RequestFacts(request_id, shown_state(state, started), own, attempts)


def shown_state(state: RequestState, started: bool) -> str | None:
    """`submitted`, `waiting`, `running` (`started`: the attempt under way made contact), or how it ended."""
    if state.result is not None:
        return None if state.result.state is ResultState.ABANDONED else state.result.state.value
    if not state.attempts:
        return SUBMITTED
    return RUNNING if state.current is not None and started else WAITING


def start_time(platform: Platform, request_id: str, attempt: Attempt) -> float | None:
    """When the attempt made contact, on the store's clock."""
    key = keys.start(attempt.rollout, attempt.cloud, attempt.track.value, request_id, attempt.n)
    try:
        return platform.store.head(key).last_modified
    except ObjectMissing:
        return None
