"""A request as the API shows it: its journal, its newest heartbeat, and the log of an attempt."""

from __future__ import annotations

import codecs
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from console.request_index import shown_state, start_time
from console.views import Json, iso
from lora_ops import keys
from lora_ops.errors import NotFoundError, ObjectMissing, nearest
from lora_ops.request import Attempt, AttemptState, RequestState, ResultState
from tasks import log_window
from tasks.journal import Entry
from tasks.platform import Platform

RunUrl = Callable[[str, int], str | None]
Trouble = Callable[[str, str, int], str]

_KEPT = 1000  # documents of requests that are over


class RequestViews:
    """Documents of requests; those of final ones are remembered. Thread-safe."""

    def __init__(self, platform: Platform, run_url: RunUrl, trouble: Trouble) -> None:
        self._platform = platform
        self._run_url = run_url
        self._trouble = trouble
        self._final: OrderedDict[str, Json] = OrderedDict()
        self._lock = threading.Lock()

    def full(self, request_id: str) -> Json:
        """NotFoundError names the nearest id."""
        with self._lock:
            document = self._final.get(request_id)
        if document is None:
            document = self._build(request_id)
            if document["state"] in (each.value for each in ResultState):
                self._remember(request_id, document)
        return {**document, "attempts": [self._live(request_id, each) for each in document["attempts"]]}

    def _live(self, request_id: str, attempt: Json) -> Json:
        """With what only the reconciler of this process sees."""
        trouble = ""
        if attempt["ended"] is None:
            trouble = self._trouble(attempt["cloud"], request_id, attempt["n"])
        run = self._run_url(request_id, attempt["n"])
        return {**attempt, "message": attempt["message"] or trouble, "flow_run_url": run}

    def _remember(self, request_id: str, document: Json) -> None:
        with self._lock:
            self._final[request_id] = document
            while len(self._final) > _KEPT:
                self._final.popitem(last=False)
        self._platform.forget_request(request_id)

    def _build(self, request_id: str) -> Json:
        state, entries = found(self._platform, request_id)
        times = {entry.seq: entry.last_modified for entry in entries}
        started = {each.n: start_time(self._platform, request_id, each) for each in state.attempts}
        current = state.current
        running = current is not None and started[current.n] is not None
        order, result = state.order, state.result
        return {
            "id": request_id,
            "name": order.name if order else "",
            "state": shown_state(state, running) or ResultState.FAILED.value,
            "submitted": iso(times.get(0)),
            "attempts": [
                {
                    "n": each.n,
                    "cloud": each.cloud,
                    "track": each.track.value,
                    "digest": each.digest,
                    "rollout": each.rollout,
                    "state": _attempt_state(each, started[each.n]),
                    "cause": each.cause,
                    "message": each.message,
                    "started": iso(started[each.n]),
                    "ended": iso(times.get(each.ended_seq)) if each.ended_seq is not None else None,
                }
                for each in state.attempts
            ],
            "progress": _progress(self._platform, request_id, current.n) if current and running else None,
            "cancel_requested": state.cancel,
            "result": self._result(state),
            "error": _error(state),
            "ended": iso(times.get(result.seq)) if result else None,
            "dataset": order.dataset if order else None,
            "dataset_digest": order.dataset_digest if order else None,
            "config_digest": order.config_digest if order else None,
            "canary": order.canary if order else None,
            "cloud": order.cloud if order else None,
            "retry_of": order.retry_of if order else None,
            "probe": order.probe if order else None,
            "verifies": order.verifies if order else None,
        }

    def _result(self, state: RequestState) -> Json | None:
        result = state.result
        if result is None or result.state is not ResultState.SUCCEEDED or result.attempt is None:
            return None
        where = keys.artifacts(state.id, result.attempt)
        return {
            "attempt": result.attempt,
            "files": result.files,
            "artifact_url": f"{self._platform.store.url.rstrip('/')}/{where}",
        }


def found(platform: Platform, request_id: str) -> tuple[RequestState, list[Entry]]:
    """The request and its journal. NotFoundError names the nearest id."""
    entries = platform.request_history(request_id) if _could_be(request_id) else []
    if not entries:
        platform.forget_request(request_id)
        known = platform.store.list_folders("requests")
        raise NotFoundError(f"There is no request `{request_id}`.", nearest(request_id, known))
    return RequestState.model_validate(entries[-1].document["state"]), entries


def history(entries: list[Entry]) -> list[Json]:
    fields = ("kind", "actor", "reason", "data", "evidence")
    return [
        {
            "seq": entry.seq,
            "time": iso(entry.last_modified),
            **{key: entry.document.get(key) for key in fields},
        }
        for entry in entries
    ]


def log_part(platform: Platform, state: RequestState, after: int, attempt: int | None) -> Json:
    """The attempt's output from byte `after` on, in whole characters; `next` is where to go on.

    Positions count from the log's first byte. The store keeps only the newest part: `dropped` says how many
    bytes after `after` are gone. An `after` beyond the end begins again at the front.
    """
    n = attempt if attempt is not None else len(state.attempts) or None
    if n is None:
        return {"text": "", "next": 0, "attempt": None, "dropped": 0}
    if not 1 <= n <= len(state.attempts):
        raise NotFoundError(
            f"Request {state.id} has no attempt {n}.", f"It has {len(state.attempts)}, numbered from 1."
        )
    try:
        data = platform.store.get(keys.log(state.id, n)).data
    except ObjectMissing:
        data = b""
    first, kept = log_window.unpack(data)
    wanted = after if 0 <= after <= first + len(kept) else 0
    begin = max(wanted, first)
    over = state.attempts[n - 1].state is not AttemptState.OPEN
    text, used = codecs.utf_8_decode(kept[begin - first :], "replace", over)
    return {"text": text, "next": begin + used, "attempt": n, "dropped": begin - wanted}


def _could_be(request_id: str) -> bool:
    return bool(request_id) and request_id.replace("-", "").isalnum() and request_id.isascii()


def _attempt_state(attempt: Attempt, started: float | None) -> str:
    if attempt.state is not AttemptState.OPEN:
        return attempt.state.value
    return "running" if started is not None else "waiting"


def _error(state: RequestState) -> Json | None:
    result = state.result
    if result is None or result.state not in (ResultState.FAILED, ResultState.ABANDONED):
        return None
    hint = (
        result.hint
        or f"See `lora-ops runs logs {state.id}`; try it again with `lora-ops runs retry {state.id}`."
    )
    return {"cause": result.cause, "message": result.message, "hint": hint}


def _progress(platform: Platform, request_id: str, n: int) -> Json | None:
    """The newest heartbeat. `eta_s`: what is left at the present pace; None before the first step."""
    try:
        beat: Any = json.loads(platform.store.get(keys.heartbeat(request_id, n)).data)
    except (ObjectMissing, ValueError):
        return None
    if not isinstance(beat, dict):
        return None
    step, steps, pace = (_number(beat.get(key)) for key in ("step", "steps", "step_s"))
    eta = (steps - step) * pace if pace and steps and step is not None else None
    return {
        "step": beat.get("step"),
        "steps": beat.get("steps"),
        "loss": beat.get("loss"),
        "step_s": beat.get("step_s"),
        "eta_s": eta,
        "phase": beat.get("phase"),
        "memory_bytes": beat.get("memory_bytes"),
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
