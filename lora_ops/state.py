"""The platform's state: what the newest event of `journal/<app>/` carries, and what routing reads."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from lora_ops import SCHEMA_VERSION
from lora_ops.gates.verdict import GateSpec


class Model(BaseModel):
    """Frozen; ignores unknown keys, since an old release reads what a new platform wrote."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Track(StrEnum):
    STABLE = "stable"
    CANARY = "canary"


class Phase(StrEnum):
    """Where a rollout stands. The last four are final."""

    VALIDATING = "validating"
    BUILDING = "building"
    CANARYING = "canarying"
    AWAITING_APPROVAL = "awaiting-approval"
    PROMOTING = "promoting"
    HOLDING = "holding"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled-back"
    ABORTED = "aborted"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        return self in (Phase.PROMOTED, Phase.ROLLED_BACK, Phase.ABORTED, Phase.FAILED)

    @property
    def exposes(self) -> bool:
        """Whether users' requests may reach the new release."""
        return self in (Phase.CANARYING, Phase.AWAITING_APPROVAL, Phase.PROMOTING, Phase.HOLDING)


def check_plan(plan: tuple[int, ...]) -> tuple[int, ...]:
    """The canary weights of a cloud in percent, at least one, never going down. ValueError otherwise."""
    if not plan or [0, *plan, 100] != sorted([0, *plan, 100]):
        raise ValueError("steps are weights from 0 to 100 that never go down, such as [10, 25, 50, 100]")
    return plan


def misfit(error: Exception) -> str:
    """Why an event's data do not have its shape, in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return f"no `{error.args[0]}`" if isinstance(error, KeyError) else str(error)


Plan = Annotated[tuple[int, ...], AfterValidator(check_plan)]


class CloudState(Model):
    """`drained`: it gets no new attempts; `moving`: those that run there go elsewhere."""

    name: Annotated[str, Field(min_length=1)]
    kind: str = "local"
    size: Annotated[int, Field(ge=1)] = 1
    share: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    stable: Annotated[str, Field(min_length=1)]
    previous: str | None = None
    drained: bool = False
    moving: bool = False


BUNDLE, IMAGE = "bundle", "image"
"""The kinds of releases."""


class Source(Model):
    """Where a release comes from: a git checkout's revision, an image that others built
    (`repository@digest`), or a release that is already published. `kind`: what it becomes, a `bundle` or an
    `image`."""

    kind: str = BUNDLE
    path: str | None = None
    revision: str | None = None
    dirty: bool = False
    image: str | None = None
    release: str | None = None

    @property
    def line(self) -> str:
        """What makes two queued rollouts the same source: the newest of a line wins."""
        return self.path or (self.image or "").partition("@")[0] or self.release or ""


class Probes(Model):
    """How a rollout submits its own small trainings."""

    config: str
    parallel: int = 1
    max_per_cloud: int = 200


class Provider(Model):
    """A Prometheus that gates ask. The environment of serve and of the control worker holds the secrets:
    `bearer_token_env` and the values of `headers_env` name its variables. `labels` narrow what the ready-made
    queries match."""

    kind: str = "prometheus"
    url: str
    timeout_s: float = 5.0
    bearer_token_env: str | None = None
    headers_env: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)


class Policy(Model):
    """The rollout section of lora-ops.yaml as numbers, frozen into the rollout when it starts.

    `sizes`: what clouds get as their size when it starts, where a pipeline document says so."""

    waves: tuple[tuple[str, ...], ...]
    plans: dict[str, Plan]
    gates: tuple[GateSpec, ...]
    alpha: float = 0.01
    beta: float = 0.05
    harmful: float = 0.30
    horizon: int = 20
    fresh_samples: int = 3
    min_time_s: float = 0.0
    deadline_s: float = 3600.0
    undecided: str = "rollback"
    lease_s: float = 60.0
    hold_s: float = 600.0
    look_every_s: float = 2.0
    approval: bool = False
    accept_unverified_approval: bool = False
    failed_wave: str = "rollback"
    verify_timeout_s: float = 300.0
    abandon_after_s: float = 3600.0
    max_restarts: int = 5
    probes: Probes | None = None
    providers: dict[str, Provider] = Field(default_factory=dict)
    sizes: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sense(self) -> Self:
        named = [name for wave in self.waves for name in wave]
        if not named or not all(self.waves) or len(set(named)) != len(named):
            raise ValueError("a rollout needs every cloud once in its waves")
        if missing := sorted(set(named) - set(self.plans)):
            raise ValueError(f"cloud {', '.join(missing)} has no plan")
        return self


class CloudRollout(Model):
    wave: int
    plan: Plan
    before: str
    weight: int = 0
    promoted: bool = False


class Rollout(Model):
    """The active rollout. `*_seq` name the journal entry whose time is the time of that event; those of
    an epoch (from its second on), a step and a resumption are None before there was one."""

    id: str
    source: Source
    policy: Policy
    phase: Phase = Phase.VALIDATING
    release: str | None = None
    revision: str | None = None
    self_checked: bool = False
    distributed: bool = False
    wave: int = 0
    step: int = 0
    clouds: dict[str, CloudRollout]
    epoch: int = 0
    epoch_seq: int | None = None
    paused: bool = False
    approved: bool = False
    forced: bool = False
    verified: dict[str, str] = Field(default_factory=dict)
    started_seq: int
    step_seq: int | None = None
    phase_seq: int
    resumed_seq: int | None = None

    @property
    def wave_clouds(self) -> tuple[str, ...]:
        return self.policy.waves[self.wave]

    @property
    def last_step(self) -> int:
        """Index of the wave's last step: clouds with shorter plans stay at their last weight."""
        return max(len(self.clouds[name].plan) for name in self.wave_clouds) - 1

    def weight_at(self, cloud: str, step: int) -> int:
        plan = self.clouds[cloud].plan
        return plan[min(step, len(plan) - 1)]


class Queued(Model):
    id: str
    source: Source
    policy: Policy
    seq: int


class Finished(Model):
    id: str
    release: str | None
    phase: Phase
    reason: str
    started_seq: int
    ended_seq: int
    clouds: tuple[str, ...] = ()
    verified: dict[str, str] = Field(default_factory=dict)
    verify_timeout_s: float = 300.0


class AppState(Model):
    """All that routing and the flows need to know; small, so that each event carries it whole."""

    schema_version: int = SCHEMA_VERSION
    app: str
    seq: int = -1
    clouds: dict[str, CloudState] = Field(default_factory=dict)
    rollout: Rollout | None = None
    queue: tuple[Queued, ...] = ()
    finished: tuple[Finished, ...] = ()

    def dump(self) -> dict[str, Any]:
        return self.model_dump(mode="json")
