"""The platform's journal as the console shows it, read once and then only forward."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from lora_ops.state import AppState, CloudState, Phase, Rollout
from tasks.journal import Entry
from tasks.platform import Platform

_FINAL = {phase.value: phase for phase in Phase if phase.final}


@dataclass(frozen=True, slots=True)
class Event:
    """A journalled decision. `time`: the store's clock, seconds since the epoch."""

    seq: int
    time: float
    kind: str
    actor: str
    reason: str
    data: dict[str, Any]
    evidence: dict[str, Any]

    @property
    def rollout(self) -> str | None:
        """The rollout that it is about."""
        about = self.data.get("rollout") or (
            self.data.get("id") if self.kind.startswith("rollout-") else None
        )
        return str(about) if about else None


@dataclass(frozen=True, slots=True)
class Ended:
    """A rollout as it was just before its end, and the clouds just after it."""

    rollout: Rollout
    phase: Phase
    event: Event
    clouds: dict[str, CloudState]


class Events:
    """All events, by rollout. Thread-safe; `refresh` reads what is new."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._lock = threading.Lock()
        self._state = AppState(app=platform.app)
        self._rollouts: dict[str, list[Event]] = {}
        self._ended: dict[str, Ended] = {}

    def refresh(self) -> AppState:
        """The newest state; afterwards the other methods know everything up to it."""
        with self._lock:
            for entry in self._platform.history(self._state.seq):
                self._take(entry)
            return self._state

    def of(self, rollout_id: str) -> list[Event]:
        """The events of a rollout, oldest first; none when it is unknown."""
        return list(self._rollouts.get(rollout_id, ()))

    def ended(self, rollout_id: str) -> Ended | None:
        return self._ended.get(rollout_id)

    def rollouts(self) -> list[str]:
        """The ids of all rollouts that started, newest first."""
        started = [
            (events[0].seq if events[0].kind != "rollout-queued" else _started_seq(events), name)
            for name, events in list(self._rollouts.items())
            if any(event.kind == "rollout-started" for event in events)
        ]
        return [name for _, name in sorted(started, reverse=True)]

    def known(self) -> list[str]:
        return list(self._rollouts)

    def _take(self, entry: Entry) -> None:
        body = entry.document
        event = Event(
            seq=entry.seq,
            time=entry.last_modified,
            kind=str(body.get("kind")),
            actor=str(body.get("actor", "")),
            reason=str(body.get("reason") or (body.get("data") or {}).get("reason") or ""),
            data=body.get("data") or {},
            evidence=body.get("evidence") or {},
        )
        before, self._state = self._state, AppState.model_validate(body["state"])
        if event.rollout is None:
            return
        self._rollouts.setdefault(event.rollout, []).append(event)
        if event.kind in _FINAL and before.rollout is not None and before.rollout.id == event.rollout:
            clouds = self._state.clouds
            self._ended[event.rollout] = Ended(before.rollout, _FINAL[event.kind], event, clouds)


def _started_seq(events: list[Event]) -> int:
    return next(event.seq for event in events if event.kind == "rollout-started")
