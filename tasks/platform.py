"""The platform's state as the flows, the reconciler and the console read and change it.

One object a process. Reading costs one or two gets, since journals are append-only: what was read once
never changes. Deciding is: read, apply the rule, create the next entry; who loses the race reads again and
decides again, and a rule that no longer holds raises Refused.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_ops import SCHEMA_VERSION, keys
from lora_ops.errors import JournalError, ObjectMissing
from lora_ops.gates.samples import Sample, Start, read_sample, read_start
from lora_ops.gates.verdict import Look
from lora_ops.lease import lease_until, renews_from
from lora_ops.request import RequestState, apply_request
from lora_ops.rollout import apply
from lora_ops.routing import Fleet
from lora_ops.state import AppState, Rollout
from tasks.clock import StoreClock
from tasks.journal import Document, Entry, Journal
from tasks.store.base import Store


@dataclass(frozen=True, slots=True)
class SeenLook:
    """A look as the store holds it. `time`: when it was written, `gathered`: when its evidence was read
    (None in looks of old), on the store's clock. `epoch`: of the flow that wrote it."""

    n: int
    time: float
    look: Look
    epoch: int = 0
    gathered: float | None = None


@dataclass(slots=True)
class _Evidence:
    """What one process has read of a rollout; all of it is immutable in the store."""

    looks: dict[str, SeenLook] = field(default_factory=dict)
    starts: dict[str, Start] = field(default_factory=dict)
    samples: dict[str, Sample] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)


class Platform:
    """State, journals and evidence of one app in one store. `actor` signs what this process writes."""

    def __init__(self, store: Store, app: str, actor: str) -> None:
        self.store = store
        self.app = app
        self.actor = actor
        self.clock = StoreClock(store, f"{actor.split(' ')[0]}-{secrets.token_hex(4)}")
        self._journal = Journal(store, keys.journal(app))
        self._times: dict[int, float] = {}  # entries never change
        self._requests: dict[str, Journal] = {}
        self._evidence: dict[str, _Evidence] = {}
        self._lock = threading.RLock()

    def close(self) -> None:
        """Remove this process's clock from the store."""
        self.clock.close()

    # --- the app's journal ---

    def state(self) -> AppState:
        """The newest state; an app that was never initialised has no clouds."""
        return self.state_entry()[0]

    def state_entry(self) -> tuple[AppState, Entry | None]:
        with self._lock:
            entry = self._journal.read_last()
        return _app_state(self.app, entry), entry

    def record(
        self,
        kind: str,
        data: Mapping[str, Any],
        *,
        reason: str = "",
        evidence: Mapping[str, Any] | None = None,
        actor: str | None = None,
    ) -> AppState:
        """Journal one decision. Raises Refused when it does not hold any more."""

        def event(_: Document | None, entry: Entry | None) -> Document:
            state = _app_state(self.app, entry)
            after = apply(state, kind, data, state.seq + 1)
            return _document(kind, data, actor or self.actor, reason, evidence, after.seq, after.dump())

        entry = self._append(self._journal, event)
        return _app_state(self.app, entry)

    def history(self, after: int = -1) -> list[Entry]:
        return self._journal.read_all(after)

    def time_of(self, seq: int) -> float:
        """When the event was journalled, on the store's clock (seconds since the epoch)."""
        if seq not in self._times:
            self._times[seq] = self._journal.read(seq).last_modified
        return self._times[seq]

    # --- requests ---

    def request(self, request_id: str) -> RequestState:
        return _request_state(request_id, self._request_journal(request_id).read_last())

    def record_request(
        self,
        request_id: str,
        kind: str,
        data: Mapping[str, Any],
        *,
        reason: str = "",
        actor: str | None = None,
    ) -> RequestState:
        """Journal one event of a request. Raises Refused when it does not fit any more."""

        def event(_: Document | None, entry: Entry | None) -> Document:
            state = _request_state(request_id, entry)
            after = apply_request(state, kind, data, state.seq + 1)
            return _document(kind, data, actor or self.actor, reason, None, after.seq, after.dump())

        entry = self._append(self._request_journal(request_id), event)
        return _request_state(request_id, entry)

    def request_history(self, request_id: str) -> list[Entry]:
        return self._request_journal(request_id).read_all()

    def forget_request(self, request_id: str) -> None:
        """Drop what this process remembers of a request that is over."""
        with self._lock:
            self._requests.pop(request_id, None)

    # --- evidence of a rollout ---

    def looks(self, rollout_id: str) -> list[SeenLook]:
        """Every look of the rollout, oldest first."""
        found = [self._look(rollout_id, meta.key) for meta in self.store.list(keys.looks(rollout_id))]
        return sorted(found, key=lambda seen: seen.n)

    def _look(self, rollout_id: str, key: str) -> SeenLook:
        known = self._of(rollout_id).looks
        if key not in known:
            found = self.store.get(key)
            number = int(key.rpartition("/")[2].removesuffix(".json"))
            document = _json(key, found.data)
            look = Look.model_validate(document["look"])
            epoch, gathered = document.get("epoch", 0), document.get("gathered_at")
            known[key] = SeenLook(number, found.last_modified, look, epoch, gathered)
        return known[key]

    def attempts(self, rollout_id: str) -> tuple[list[Start], list[Sample]]:
        """Every start and sample of the rollout that the store holds now."""
        evidence = self._of(rollout_id)
        for key, data, time in self._unread(keys.starts(rollout_id), evidence.starts):
            evidence.times[key] = time  # before the fact: whoever sees the fact needs its time
            evidence.starts[key] = read_start(data, key)
        for key, data, time in self._unread(keys.samples(rollout_id), evidence.samples):
            evidence.times[key] = time
            evidence.samples[key] = read_sample(data, key)
        return list(evidence.starts.values()), list(evidence.samples.values())

    def sample_times(self, rollout_id: str) -> list[tuple[float, Sample]]:
        """Samples with the time of their object, oldest first (after `attempts`)."""
        evidence = self._of(rollout_id)
        timed = [(evidence.times[key], sample) for key, sample in list(evidence.samples.items())]
        return sorted(timed, key=lambda pair: pair[0])

    def started_before(self, rollout_id: str, moment: float) -> set[tuple[str, int]]:
        """(request, attempt) of the starts and samples older than `moment` (after `attempts`)."""
        evidence = self._of(rollout_id)
        facts = dict(evidence.starts) | dict(evidence.samples)
        return {fact.key for key, fact in facts.items() if evidence.times[key] < moment}

    def lease_until(self, rollout: Rollout) -> float | None:
        """When the active step's lease ends (seconds since the epoch); None when there is none."""
        if rollout.step_seq is None or not rollout.phase.exposes:
            return None
        renewed = self._renewed_from(rollout)
        good = [renewed] if renewed is not None else []
        return lease_until(self.time_of(rollout.step_seq), good, rollout.policy.lease_s)

    def renews_from(self, rollout: Rollout, seen: SeenLook) -> float | None:
        """From when a look renews the lease if it is good for it; None when a newer epoch fences it."""
        began = self.time_of(rollout.epoch_seq) if rollout.epoch_seq is not None else None
        return renews_from(seen.epoch, seen.time, seen.gathered, rollout.epoch, began)

    def _renewed_from(self, rollout: Rollout) -> float | None:
        """When the newest evidence was gathered that renews the lease.

        Newest look first: a rollout that waits for days has thousands of them, and the first few decide.
        """
        newest: float | None = None
        for meta in reversed(self.store.list(keys.looks(rollout.id))):
            if newest is not None and meta.last_modified <= newest:
                break  # nothing written before can have been gathered after
            seen = self._look(rollout.id, meta.key)
            since = self.renews_from(rollout, seen) if seen.look.good_for_lease else None
            if since is not None:
                newest = max(since, newest if newest is not None else since)
        return newest

    def fleet(self, state: AppState, healthy: Mapping[str, bool] | None = None) -> Fleet:
        """The fleet for routing. A process whose clock cannot be measured sees no lease: stable only."""
        until = self.lease_until(state.rollout) if state.rollout is not None and self.clock.ok else None
        return Fleet.of(state, healthy, until)

    # --- helpers ---

    def _append(self, journal: Journal, event: Callable[[Document | None, Entry | None], Document]) -> Entry:
        with self._lock:
            entry = journal.decide(event)
            assert entry is not None  # an event is always made, or Refused is raised
            return entry

    def _request_journal(self, request_id: str) -> Journal:
        with self._lock:
            if request_id not in self._requests:
                self._requests[request_id] = Journal(self.store, keys.request(request_id))
            return self._requests[request_id]

    def _of(self, rollout_id: str) -> _Evidence:
        with self._lock:
            return self._evidence.setdefault(rollout_id, _Evidence())

    def _unread(self, prefix: str, known: Mapping[str, Any]) -> Iterable[tuple[str, bytes, float]]:
        for meta in self.store.list(prefix):
            if meta.key not in known:
                try:
                    found = self.store.get(meta.key)
                except ObjectMissing:
                    continue
                yield meta.key, found.data, found.last_modified


def _document(
    kind: str,
    data: Mapping[str, Any],
    actor: str,
    reason: str,
    evidence: Mapping[str, Any] | None,
    seq: int,
    state: Mapping[str, Any],
) -> Document:
    return {
        "schema_version": SCHEMA_VERSION,
        "id": secrets.token_hex(12),
        "seq": seq,
        "kind": kind,
        "actor": actor,
        "reason": reason,
        "evidence": dict(evidence or {}),
        "data": dict(data),
        "state": dict(state),
    }


def _app_state(app: str, entry: Entry | None) -> AppState:
    return AppState(app=app) if entry is None else AppState.model_validate(entry.document["state"])


def _request_state(request_id: str, entry: Entry | None) -> RequestState:
    if entry is None:
        return RequestState(id=request_id)
    return RequestState.model_validate(entry.document["state"])


def _json(key: str, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
        if isinstance(document, dict):
            return document
    except ValueError:
        pass
    raise JournalError(f"{key} is not a JSON object.", "It was not written by lora-ops: move it away.")
