"""Requests for the tests of the reconciler's decision, and what it journals."""

from __future__ import annotations

from typing import Any

from lora_ops.reconcile import Abandon, Action, EndAttempt, Finish, Limits, StartAttempt
from lora_ops.request import RequestState, apply_request
from lora_ops.state import Track

LIMITS = Limits()
Event = tuple[str, dict[str, Any]]


def step(state: RequestState, kind: str, /, **data: Any) -> RequestState:
    return apply_request(state, kind, data, state.seq + 1)


def submitted(**order: Any) -> RequestState:
    return step(RequestState(id="req-1"), "submitted", order=order)


def begun(state: RequestState, track: Track = Track.STABLE, cloud: str = "a") -> RequestState:
    return step(state, "attempt-started", cloud=cloud, track=track.value, digest="sha256:x")


def failed(state: RequestState, cause: str, kind: str = "failed", message: str = "it broke") -> RequestState:
    return step(state, f"attempt-{kind}", n=len(state.attempts), cause=cause, message=message)


def tried(*causes: str, track: Track = Track.STABLE, **order: Any) -> RequestState:
    state = submitted(**order)
    for cause in causes:
        state = failed(begun(state, track), cause)
    return state


def act(state: RequestState, action: Action) -> RequestState:
    """What the reconciler journals; an action that the journal refuses fails the test."""
    match action:
        case StartAttempt(avoid=avoid):
            cloud = next(name for name in "abc" if name not in avoid or avoid == set("abc"))
            track = Track.CANARY if state.canary_ok else Track.STABLE
            return begun(state, track, cloud)
        case EndAttempt():
            return failed(state, action.cause, action.state.value, action.message)
        case Finish():
            last = state.attempts[-1].n if state.attempts else None
            words = {"cause": action.cause, "message": action.message}
            return step(state, "result", state=action.state.value, attempt=last, **words)
        case Abandon():
            return step(state, "abandoned")
        case _:
            return state
