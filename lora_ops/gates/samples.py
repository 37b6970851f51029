"""The attempt contract's facts: what an attempt writes when it starts, fails or reaches its horizon.

Old and new releases write these documents side by side, so the readers are tolerant: unknown keys are
ignored, an unknown cause counts against the release.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lora_ops.errors import JournalError

SCHEMA_VERSION = 1
DEFAULT_HORIZON = 20


class Cause(StrEnum):
    """Why an attempt ended without a result."""

    TRAINER_ERROR = "trainer_error"
    OUT_OF_MEMORY = "out_of_memory"
    EXIT_BEFORE_CONTACT = "exit_before_contact"
    IMAGE_PULL = "image_pull"
    NO_HEARTBEAT = "no_heartbeat"
    UNKNOWN = "unknown"

    LOST_WORKER = "lost_worker"
    EVICTED = "evicted"
    DEAD_REGION = "dead_region"
    STORE_AWAY = "store_away"
    PREFECT_AWAY = "prefect_away"
    NO_CAPACITY = "no_capacity"
    UNSCHEDULABLE = "unschedulable"
    MISCONFIGURED = "misconfigured"
    DEADLINE = "deadline"
    USER_ERROR = "user_error"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    WRONG_CODE = "wrong_code"

    @property
    def counted(self) -> bool:
        """Whether it counts against the release: its own fault, not the platform's nor the user's."""
        return self in COUNTED


COUNTED = frozenset(
    {
        Cause.TRAINER_ERROR,
        Cause.OUT_OF_MEMORY,
        Cause.EXIT_BEFORE_CONTACT,
        Cause.IMAGE_PULL,
        Cause.NO_HEARTBEAT,
        Cause.UNKNOWN,
    }
)
NEVER_COUNTED = frozenset(Cause) - COUNTED


class Outcome(StrEnum):
    """What an attempt is to the gates."""

    RUNNING = "running"
    GOOD = "good"
    BAD = "bad"
    UNCOUNTED = "uncounted"


def _known_cause(value: object) -> object:
    """A cause that only a newer release knows must not let its failures vanish from the counts."""
    if value is None or isinstance(value, Cause):
        return value
    return value if value in set(Cause) else Cause.UNKNOWN


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1)
    request: str = Field(min_length=1)
    attempt: int = Field(ge=0)
    cloud: str = Field(min_length=1)
    track: str
    digest: str
    probe: str | None = None
    """`<rollout>/<n>`, the same for both halves of a pair."""

    @property
    def key(self) -> tuple[str, int]:
        """(request, attempt): names the attempt."""
        return self.request, self.attempt


class Start(_Fact):
    """An attempt's first write, create-only; `executor` is the random id of the process that may go on."""

    executor: str = ""


class Sample(_Fact):
    """The facts of one attempt, never a verdict.

    Good: no cause, and `at_horizon` (reached step `horizon`) or `ended` (reached its own end before that).
    `step_seconds` are those of the first `horizon` steps, `loss` the mean over the last quarter of the steps
    up to the horizon (NaN when it diverged), `memory_bytes` the peak. `late`: it failed after its horizon; it
    takes the place of the attempt's good sample.
    """

    cause: Annotated[Cause | None, BeforeValidator(_known_cause)] = None
    message: str = ""
    step: int = Field(default=0, ge=0)
    steps: int = Field(default=0, ge=0)
    horizon: int = Field(default=DEFAULT_HORIZON, ge=1)
    at_horizon: bool = False
    ended: bool = False
    start_latency_s: float | None = None
    step_seconds: list[float] = Field(default_factory=list)
    loss: float | None = None
    memory_bytes: int | None = None
    late: bool = False

    @property
    def outcome(self) -> Outcome:
        """Bad: failed by the release's own fault. Good: reached its horizon or end. Running: neither yet."""
        if self.cause is not None:
            return Outcome.BAD if self.cause.counted else Outcome.UNCOUNTED
        return Outcome.GOOD if self.at_horizon or self.ended else Outcome.RUNNING

    @property
    def reached(self) -> bool:
        """It has run far enough for its latencies, loss and memory to be compared."""
        return self.at_horizon or self.outcome is Outcome.GOOD


_FactT = TypeVar("_FactT", bound=_Fact)


def read_start(raw: bytes | str | Mapping[str, Any], where: str = "start") -> Start:
    """Start from its JSON document. Raises JournalError, which names `where`, when it is torn or foreign."""
    return _read(Start, raw, where)


def read_sample(raw: bytes | str | Mapping[str, Any], where: str = "sample") -> Sample:
    """Sample from its JSON document. Raises JournalError, which names `where`, when it is torn or foreign."""
    return _read(Sample, raw, where)


def _read(model: type[_FactT], raw: bytes | str | Mapping[str, Any], where: str) -> _FactT:
    try:
        return model.model_validate(json.loads(raw) if isinstance(raw, (bytes, str)) else raw)
    except ValidationError as error:
        details = [f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors()]
    except ValueError as error:
        details = [f"not JSON: {error}"]
    raise JournalError(
        f"{where} is not a {model.__name__.lower()} that this version can read",
        "see what wrote it; the attempt counts as running until its sample can be read",
        details,
    )
