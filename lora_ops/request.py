"""A request and its attempts: a pure fold of `requests/<id>/`.

Exactly one `result` ends it. An attempt that was given up cannot publish: the attempt and the one who
gives it up compete for the same position of this journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field, ValidationError

from lora_ops import SCHEMA_VERSION
from lora_ops.errors import Refused
from lora_ops.state import Model, Track, misfit


class AttemptState(StrEnum):
    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    SUPERSEDED = "superseded"

    @property
    def spoke(self) -> bool:
        """Whether the attempt itself told its end; the others were given up."""
        return self in (AttemptState.SUCCEEDED, AttemptState.FAILED)


class ResultState(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"


class Pin(Model):
    """Where a probe must run. Without a track the normal router chooses it on that cloud."""

    cloud: str
    track: Track | None = None


class Order(Model):
    """What was submitted; the config itself lies beside the journal (`config.yaml`). `cloud`: where it is
    preferred, or with `cloud_only` (its data are there, say) the only one that may run it."""

    name: str = ""
    dataset: str | None = None
    dataset_digest: str | None = None
    config_digest: str = ""
    canary: bool = True
    cloud: str | None = None
    cloud_only: bool = False
    pin: Pin | None = None
    probe: str | None = None
    verifies: str | None = None
    retry_of: str | None = None
    max_attempts: int = 4

    @property
    def users_own(self) -> bool:
        """Whether a person asked for it (probes and verifications are a rollout's)."""
        return self.probe is None and self.verifies is None


class Attempt(Model):
    """One try. `trial`: its digest is the active rollout's, also on the stable track after the promotion."""

    n: int
    cloud: str
    track: Track
    digest: str
    rollout: str | None = None
    trial: bool = False
    state: AttemptState = AttemptState.OPEN
    cause: str | None = None
    message: str = ""
    seq: int
    ended_seq: int | None = None

    @property
    def on_trial(self) -> bool:
        """Whether the release was still being judged: its failure costs its user nothing."""
        return self.trial or self.track is Track.CANARY


class Result(Model):
    state: ResultState
    attempt: int | None = None
    cause: str | None = None
    message: str = ""
    hint: str = ""
    files: list[dict[str, Any]] = Field(default_factory=list)
    seq: int


class RequestState(Model):
    schema_version: int = SCHEMA_VERSION
    id: str
    seq: int = -1
    order: Order | None = None
    attempts: tuple[Attempt, ...] = ()
    cancel: bool = False
    result: Result | None = None

    @property
    def current(self) -> Attempt | None:
        """The attempt that is under way."""
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last.state is AttemptState.OPEN else None

    @property
    def canary_ok(self) -> bool:
        """A request that a canary failed, or that was taken from one, stays on stable."""
        asked = self.order is None or self.order.canary
        return asked and all(attempt.track is Track.STABLE for attempt in self.attempts)

    def dump(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def apply_request(state: RequestState, kind: str, data: Mapping[str, Any], seq: int) -> RequestState:
    """The request's state after an event, or Refused (also for data that are not of its shape)."""
    if seq != state.seq + 1:
        raise Refused(f"event {seq} cannot follow event {state.seq} of request {state.id}.")
    if state.result is not None:
        raise Refused(f"request {state.id} has its result: {state.result.state.value}.")
    if (state.order is None) != (kind in ("submitted", "abandoned")):
        raise Refused(f"`{kind}` does not fit request {state.id} at this point.")
    try:
        changed = _apply(state, kind, data, seq)
        return RequestState.model_validate({**changed.model_dump(warnings=False), "seq": seq})
    except (KeyError, TypeError, ValidationError) as error:
        raise Refused(
            f"the data of this `{kind}` of request {state.id} do not fit it: {misfit(error)}."
        ) from error


def _apply(state: RequestState, kind: str, data: Mapping[str, Any], seq: int) -> RequestState:
    match kind:
        case "submitted":
            return state.model_copy(update={"order": Order.model_validate(data["order"])})
        case "abandoned":
            result = Result(state=ResultState.ABANDONED, message=data.get("message", ""), seq=seq)
            return state.model_copy(update={"result": result})
        case "cancel-requested":
            return state.model_copy(update={"cancel": True})
        case "attempt-started":
            if state.current is not None:
                raise Refused(f"attempt {state.current.n} of {state.id} is under way.")
            if state.cancel:
                raise Refused(f"request {state.id} is to be cancelled.")
            fresh = {"n": len(state.attempts) + 1, "seq": seq, "state": AttemptState.OPEN, "ended_seq": None}
            attempt = Attempt.model_validate({**data, **fresh})
            return state.model_copy(update={"attempts": (*state.attempts, attempt)})
        case "attempt-failed" | "attempt-lost" | "attempt-superseded":
            ended = AttemptState(kind.removeprefix("attempt-"))
            return _end_attempt(state, data, ended, seq)
        case "result":
            result = Result.model_validate({**data, "seq": seq})
            if result.state is ResultState.SUCCEEDED:
                state = _end_attempt(state, {"n": result.attempt}, AttemptState.SUCCEEDED, seq)
            elif state.current is not None:
                raise Refused(f"attempt {state.current.n} of {state.id} is under way.")
            elif result.state is ResultState.ABANDONED:
                raise Refused(f"request {state.id} was submitted: it cannot be abandoned.")
            return state.model_copy(update={"result": result})
        case _:
            raise Refused(f"`{kind}` is not an event of a request.")


def _end_attempt(state: RequestState, data: Mapping[str, Any], ended: AttemptState, seq: int) -> RequestState:
    current = state.current
    if current is None or current.n != data["n"]:
        raise Refused(f"attempt {data['n']} of {state.id} is not under way: it was given up.")
    attempt = current.model_copy(
        update={
            "state": ended,
            "cause": data.get("cause"),
            "message": data.get("message", ""),
            "ended_seq": seq,
        }
    )
    return state.model_copy(update={"attempts": (*state.attempts[:-1], attempt)})
