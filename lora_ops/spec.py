"""`lora-ops.yaml`: the platform's spec. Unknown keys are refused with the nearest valid name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lora_ops import yaml_lines
from lora_ops.errors import nearest
from lora_ops.gates.counts import Metric
from lora_ops.gates.verdict import GateSpec
from lora_ops.reconcile import Limits
from lora_ops.state import Policy, Probes
from lora_ops.units import fraction, seconds

Seconds = Annotated[float, BeforeValidator(seconds)]
Fraction = Annotated[float, BeforeValidator(fraction)]
Weight = Annotated[int, Field(ge=0, le=100)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]

#: Metrics whose limit is a share or a duration; the others compare canary with stable.
SHARES = ("error_rate",)
DURATIONS = ("step_latency", "start_latency")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrefectSpec(Section):
    """Where Prefect's API is; `up` starts one there when it is on this machine."""

    api_url: str = "http://127.0.0.1:4200/api"


class ServeSpec(Section):
    """Where `lora-ops serve` listens. Any host but loopback needs LORA_OPS_TOKEN."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8700


class CloudSpec(Section):
    kind: Literal["local"] = "local"
    size: Annotated[int, Field(ge=1, le=1000)] = 1
    share: Annotated[float, Field(ge=0)] = 1.0
    steps: tuple[Weight, ...] | None = None
    env: dict[str, str] = Field(default_factory=dict)


class GateEntry(Section):
    """`metric` and `limit` in the metric's own unit: 5%, 2s, or a ratio such as 1.2."""

    metric: Literal[
        "error_rate", "step_latency", "start_latency", "step_time_ratio", "loss_ratio", "memory_ratio"
    ]
    limit: float
    harmful: Fraction | None = None

    @model_validator(mode="before")
    @classmethod
    def _units(cls, data: Any) -> Any:
        if isinstance(data, dict) and "limit" in data:
            metric, limit = data.get("metric"), data["limit"]
            if metric in SHARES:
                return {**data, "limit": fraction(limit)}
            if metric in DURATIONS:
                return {**data, "limit": seconds(limit)}
        return data

    @model_validator(mode="after")
    def _sense(self) -> Self:
        self.spec()
        return self

    def spec(self) -> GateSpec:
        return GateSpec(metric=Metric(self.metric), limit=self.limit, harmful=self.harmful)


class ProbeSpec(Section):
    """A small training config that the rollout submits by itself."""

    config: str
    parallel: Annotated[int, Field(ge=1, le=100)] = 1
    max_per_cloud: Annotated[int, Field(ge=1, le=10_000)] = 200


class RolloutSpec(Section):
    steps: tuple[Weight, ...] = (10, 25, 50, 100)
    waves: tuple[tuple[str, ...], ...] | None = None
    gates: tuple[GateEntry, ...] = Field(default=(GateEntry(metric="error_rate", limit=0.05),), min_length=1)
    confidence: Fraction = 0.99
    pass_confidence: Fraction = 0.95
    harmful: Fraction = 0.30
    horizon: Annotated[int, Field(ge=1, le=100_000)] = 20
    fresh_samples: Annotated[int, Field(ge=0)] = 3
    min_time: Seconds = 0.0
    deadline: Seconds = 3600.0
    undecided: Literal["rollback", "pause"] = "rollback"
    lease: Seconds = 60.0
    hold: Seconds = 600.0
    look_every: Seconds = 2.0
    approval: bool = False
    accept_unverified_approval: bool = False
    verify_timeout: Seconds = 300.0
    abandon_after: Seconds = 3600.0
    max_restarts: Annotated[int, Field(ge=0, le=100)] = 5
    probes: ProbeSpec | None = None

    @model_validator(mode="after")
    def _sense(self) -> Self:
        if not self.steps or list(self.steps) != sorted(self.steps):
            raise ValueError("steps are weights that never go down, such as [10, 25, 50, 100]")
        if not 0.5 <= self.confidence < 1 or not 0.5 <= self.pass_confidence < 1:
            raise ValueError("a confidence lies between 50% and 100%, usually 99%")
        if self.lease < 2 * self.look_every or self.lease < 5:
            raise ValueError("the lease is at least 5s and twice look_every")
        if self.harmful <= 0 or self.harmful >= 1:
            raise ValueError("harmful lies between 0% and 100%, usually 30%")
        return self


class RequestSpec(Section):
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 4
    start_deadline: Seconds = 300.0
    heartbeat_deadline: Seconds = 120.0
    spill_after: Seconds = 120.0

    def limits(self) -> Limits:
        return Limits(
            start_deadline_s=self.start_deadline,
            heartbeat_deadline_s=self.heartbeat_deadline,
            spill_after_s=self.spill_after,
        )


class PlatformSpec(Section):
    app: Name = "lora-training"
    store: str = "file://.lora-ops/store"
    prefect: PrefectSpec = PrefectSpec()
    serve: ServeSpec = ServeSpec()
    clouds: dict[Name, CloudSpec] = Field(min_length=1)
    rollout: RolloutSpec = RolloutSpec()
    requests: RequestSpec = RequestSpec()

    @model_validator(mode="after")
    def _clouds_known(self) -> Self:
        for name in self.clouds:
            if name == "control":
                raise ValueError("`control` is the pool of the deploy flow; name the cloud otherwise")
        for wave in self.rollout.waves or ():
            for name in wave:
                if name not in self.clouds:
                    raise ValueError(f"rollout.waves names cloud `{name}`. {nearest(name, self.clouds)}")
        return self

    def policy(self, steps: tuple[int, ...] | None = None) -> Policy:
        """The rollout section as numbers, frozen into a rollout when it starts. `steps` overrides the plan."""
        r = self.rollout
        waves = r.waves or (tuple(self.clouds),)
        plans = {name: steps or self.clouds[name].steps or r.steps for wave in waves for name in wave}
        return Policy(
            waves=waves,
            plans=plans,
            gates=tuple(entry.spec() for entry in r.gates),
            alpha=1 - r.confidence,
            beta=1 - r.pass_confidence,
            harmful=r.harmful,
            horizon=r.horizon,
            fresh_samples=r.fresh_samples,
            min_time_s=r.min_time,
            deadline_s=r.deadline,
            undecided=r.undecided,
            lease_s=r.lease,
            hold_s=r.hold,
            look_every_s=r.look_every,
            approval=r.approval,
            accept_unverified_approval=r.accept_unverified_approval,
            verify_timeout_s=r.verify_timeout,
            abandon_after_s=r.abandon_after,
            max_restarts=r.max_restarts,
            probes=Probes(**r.probes.model_dump()) if r.probes else None,
        )


def parse_spec(text: str, source: str) -> PlatformSpec:
    """The spec, or a ConfigError that names file, line, key and nearest valid key."""
    document, lines = yaml_lines.load(text, source)
    return yaml_lines.validate(PlatformSpec, document, lines, source)
