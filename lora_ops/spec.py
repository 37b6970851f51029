"""`lora-ops.yaml`: the platform's spec. Unknown keys are refused with the nearest valid name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lora_ops import yaml_lines
from lora_ops.cloud_spec import CloudSpec, ImageSpec, Registry
from lora_ops.errors import UsageError, nearest
from lora_ops.gates.counts import Metric
from lora_ops.gates.promql import placeholders
from lora_ops.gates.verdict import STORE, GateSpec
from lora_ops.provider_spec import PROMETHEUS, ProviderSpec, resolve
from lora_ops.reconcile import Limits
from lora_ops.spec_types import Confidence, Float, Int, Name, Seconds, Section, Share
from lora_ops.state import Plan, Policy, Probes, check_plan
from lora_ops.storage_spec import BackupSpec, StoreUrl, check_apart
from lora_ops.units import fraction, seconds

#: Metrics whose limit is a share or a duration; the others compare canary with stable.
SHARES = ("error_rate", "promql")
DURATIONS = ("step_latency", "start_latency")


class PrefectSpec(Section):
    """Where Prefect's API is; `up` starts one there when it is on this machine. `bind`: the address that it
    listens on then, for workers of other machines; any but loopback needs PREFECT_SERVER_API_AUTH_STRING."""

    api_url: str = "http://127.0.0.1:4200/api"
    bind: str | None = None


class ServeSpec(Section):
    """Where `lora-ops serve` listens. Any host but loopback needs LORA_OPS_TOKEN."""

    host: str = "127.0.0.1"
    port: Annotated[Int, Field(ge=1, le=65535)] = 8700


class GateEntry(Section):
    """`metric` and `limit` in the metric's own unit: 5%, 2s, or a ratio such as 1.2. `provider`: `store`, or
    a name of the spec's `providers` (`prometheus`: the only one there is). `clouds`: by default all."""

    metric: Literal[
        "error_rate",
        "step_latency",
        "start_latency",
        "step_time_ratio",
        "loss_ratio",
        "memory_ratio",
        "promql",
    ]
    name: Name | None = None
    provider: str = STORE
    query_bad: str = ""
    query_total: str = ""
    query_finished: str = ""
    limit: Float
    harmful: Share | None = None
    clouds: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @field_validator("limit", mode="before")
    @classmethod
    def _units(cls, value: Any, info: ValidationInfo) -> Any:
        metric = info.data.get("metric")
        if metric in SHARES:
            return fraction(value)
        return seconds(value) if metric in DURATIONS else value

    @field_validator("limit", "harmful")
    @classmethod
    def _sense(cls, value: float | None, info: ValidationInfo) -> float | None:
        """What the gate's own model says, told at the key that it is about."""
        harmful = value if info.field_name == "harmful" else None
        limit = value if info.field_name == "limit" else info.data.get("limit")
        if "metric" in info.data and limit is not None:
            try:
                metric = Metric(info.data["metric"])
                own: dict[str, Any] = {}
                if metric is Metric.PROMQL:  # its queries are looked at when all keys are there
                    own = {"provider": PROMETHEUS, "query_bad": "1", "query_total": "1"}
                GateSpec(metric=metric, limit=limit, harmful=harmful, **own)
            except ValidationError as error:
                raise ValueError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
        return value

    @model_validator(mode="after")
    def _whole(self) -> GateEntry:
        """What only all keys together tell: the provider and the queries."""
        try:
            gate = self.spec()
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
        if gate.metric is Metric.PROMQL and self.name is None:
            raise ValueError("a promql gate needs a `name`")
        for key, query in gate.queries.items():
            if not placeholders(query) & {"release", "track"}:
                raise yaml_lines.Wrong("it names no {{release}}, so it would judge stable, too", key)
        return self

    def spec(self, provider: str | None = None) -> GateSpec:
        """The gate; `provider` as the spec resolves its name."""
        return GateSpec(
            metric=Metric(self.metric),
            limit=self.limit,
            harmful=self.harmful,
            provider=provider or self.provider,
            name=self.name or "",
            query_bad=self.query_bad,
            query_total=self.query_total,
            query_finished=self.query_finished,
            clouds=self.clouds or (),
        )


class ProbeSpec(Section):
    """A small training config that the rollout submits by itself."""

    config: str
    parallel: Annotated[Int, Field(ge=1, le=100)] = 1
    max_per_cloud: Annotated[Int, Field(ge=1, le=10_000)] = 200


class RolloutSpec(Section):
    steps: Plan = (10, 25, 50, 100)
    waves: tuple[tuple[str, ...], ...] | None = None
    gates: tuple[GateEntry, ...] = (GateEntry(metric="error_rate", limit=0.05),)
    confidence: Confidence = 0.99
    pass_confidence: Confidence = 0.95
    harmful: Share = 0.30
    horizon: Annotated[Int, Field(ge=1, le=100_000)] = 20
    fresh_samples: Annotated[Int, Field(ge=0)] = 3
    min_time: Seconds = 0.0
    deadline: Seconds = 3600.0
    undecided: Literal["rollback", "pause"] = "rollback"
    look_every: Annotated[Seconds, Field(ge=0.1)] = 2.0
    lease: Seconds = 60.0
    hold: Seconds = 600.0
    approval: bool = False
    accept_unverified_approval: bool = False
    failed_wave: Literal["rollback", "keep"] = "rollback"
    verify_timeout: Seconds = 300.0
    abandon_after: Seconds = 3600.0
    max_restarts: Annotated[Int, Field(ge=0, le=100)] = 5
    probes: ProbeSpec | None = None

    @field_validator("waves")
    @classmethod
    def _each_once(cls, waves: tuple[tuple[str, ...], ...] | None) -> tuple[tuple[str, ...], ...] | None:
        named = [name for wave in waves or () for name in wave]
        if waves is not None and not (waves and all(waves)):
            raise ValueError("a wave names at least one cloud; leave `waves` out for one wave of all clouds")
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"cloud `{', '.join(twice)}` is named twice; each belongs to one wave")
        return waves

    @field_validator("gates")
    @classmethod
    def _one_a_metric(cls, gates: tuple[GateEntry, ...]) -> tuple[GateEntry, ...]:
        if not gates:
            raise ValueError("at least one gate is needed, or nothing could ever pass")
        seen: set[str] = set()
        for number, gate in enumerate(gates):
            title = gate.name or gate.metric
            if title in seen:
                told = (
                    f"there are two gates of {title}" if gate.name is None else f"two gates are named {title}"
                )
                raise yaml_lines.Wrong(told, number)
            seen.add(title)
        return gates

    @field_validator("lease")
    @classmethod
    def _lease_outlives_looks(cls, lease: float, info: ValidationInfo) -> float:
        if lease < 5 or lease < 2 * info.data.get("look_every", 0.0):
            raise ValueError("the lease is at least 5s and twice `look_every`, or it ends between two looks")
        return lease

    @field_validator("deadline")
    @classmethod
    def _deadline_after_min_time(cls, deadline: float, info: ValidationInfo) -> float:
        if deadline <= info.data.get("min_time", 0.0):
            raise ValueError("the deadline lies after `min_time`, or no step could ever pass")
        return deadline


class RequestSpec(Section):
    max_attempts: Annotated[Int, Field(ge=1, le=20)] = 4
    start_deadline: Seconds = 300.0
    heartbeat_deadline: Seconds = 120.0
    stall_deadline: Seconds = 1800.0
    spill_after: Seconds = 120.0
    pull_deadline: Seconds = 60.0
    dark_after: Seconds = 20.0

    def limits(self) -> Limits:
        return Limits(
            start_deadline_s=self.start_deadline,
            heartbeat_deadline_s=self.heartbeat_deadline,
            spill_after_s=self.spill_after,
            pull_deadline_s=self.pull_deadline,
            dark_after_s=self.dark_after,
        )


class PlatformSpec(Section):
    app: Name = "lora-training"
    store: StoreUrl = "file://.lora-ops/store"
    backup: BackupSpec | None = None
    prefect: PrefectSpec = PrefectSpec()
    serve: ServeSpec = ServeSpec()
    image: ImageSpec | None = None
    insecure_registries: tuple[Registry, ...] = ()
    clouds: dict[Name, CloudSpec]
    providers: dict[Name, ProviderSpec] = Field(default_factory=dict)
    rollout: RolloutSpec = RolloutSpec()
    requests: RequestSpec = RequestSpec()

    @field_validator("backup")
    @classmethod
    def _elsewhere(cls, backup: BackupSpec | None, info: ValidationInfo) -> BackupSpec | None:
        if backup is not None and "store" in info.data:
            try:
                check_apart(info.data["store"], backup.url)
            except ValueError as error:
                raise yaml_lines.Wrong(str(error), "url") from None
        return backup

    @field_validator("clouds")
    @classmethod
    def _not_control(cls, clouds: dict[str, CloudSpec]) -> dict[str, CloudSpec]:
        if not clouds:
            raise ValueError("at least one cloud is needed")
        if "control" in clouds:
            raise yaml_lines.Wrong("that is the pool of the deploy flow; name the cloud otherwise", "control")
        if all(cloud.share == 0 for cloud in clouds.values()):
            raise ValueError("every cloud has `share: 0`, so none gets requests")
        local = [name for name, cloud in clouds.items() if not cloud.on_kubernetes]
        if local and len(local) < len(clouds):
            message = "kubernetes runs images, this machine bundles: a platform has clouds of one kind"
            raise yaml_lines.Wrong(message, local[0], "kind")
        return clouds

    @model_validator(mode="after")
    def _images(self) -> PlatformSpec:
        if self.on_kubernetes and self.image is None:
            message = "kubernetes clouds need `image: {repository: …}`: where trainer images are pushed"
            raise yaml_lines.Wrong(message, "clouds")
        return self

    @property
    def on_kubernetes(self) -> bool:
        """Whether releases are images; otherwise they are source bundles."""
        return any(cloud.on_kubernetes for cloud in self.clouds.values())

    @field_validator("rollout")
    @classmethod
    def _clouds_known(cls, rollout: RolloutSpec, info: ValidationInfo) -> RolloutSpec:
        clouds = info.data.get("clouds")
        if clouds is None or rollout.waves is None:
            return rollout
        for number, wave in enumerate(rollout.waves):
            for place, name in enumerate(wave):
                if name not in clouds:
                    message = f"cloud `{name}` is unknown. {nearest(name, clouds)}"
                    raise yaml_lines.Wrong(message, "waves", number, place)
        if missing := sorted(set(clouds) - {name for wave in rollout.waves for name in wave}):
            message = f"cloud `{', '.join(missing)}` is in no wave, so no release would ever reach it"
            raise yaml_lines.Wrong(message, "waves")
        return rollout

    @field_validator("rollout")
    @classmethod
    def _gates_cover(cls, rollout: RolloutSpec, info: ValidationInfo) -> RolloutSpec:
        clouds = info.data.get("clouds")
        if clouds is None:
            return rollout
        for number, gate in enumerate(rollout.gates):
            for place, name in enumerate(gate.clouds or ()):
                if name not in clouds:
                    message = f"cloud `{name}` is unknown. {nearest(name, clouds)}"
                    raise yaml_lines.Wrong(message, "gates", number, "clouds", place)
        if bare := [name for name in clouds if all(name not in (g.clouds or clouds) for g in rollout.gates)]:
            message = f"no gate judges cloud `{', '.join(bare)}`, so nothing could ever pass there"
            raise yaml_lines.Wrong(message, "gates")
        return rollout

    @field_validator("providers")
    @classmethod
    def _not_store(cls, providers: dict[str, ProviderSpec]) -> dict[str, ProviderSpec]:
        if STORE in providers:
            raise yaml_lines.Wrong("that provider is built in; give it another name", STORE)
        return providers

    @field_validator("rollout")
    @classmethod
    def _providers_known(cls, rollout: RolloutSpec, info: ValidationInfo) -> RolloutSpec:
        providers = info.data.get("providers")
        for number, gate in enumerate(rollout.gates):
            if providers is not None:
                try:
                    resolve(gate.provider, providers)
                except ValueError as error:
                    raise yaml_lines.Wrong(str(error), "gates", number, "provider") from None
        return rollout

    def policy(self, steps: tuple[int, ...] | None = None) -> Policy:
        """The rollout section as numbers, frozen into a rollout when it starts.

        `steps` overrides the plan; UsageError when they could not be one.
        """
        try:
            steps = check_plan(steps) if steps is not None else None
        except ValueError as error:
            raise UsageError(f"{error}.", "Give `--plan` weights such as 10,50,100.") from None
        r = self.rollout
        waves = r.waves or (tuple(self.clouds),)
        plans = {name: steps or self.clouds[name].steps or r.steps for wave in waves for name in wave}
        return Policy(
            waves=waves,
            plans=plans,
            gates=tuple(entry.spec(resolve(entry.provider, self.providers)) for entry in r.gates),
            alpha=round(1 - r.confidence, 12),
            beta=round(1 - r.pass_confidence, 12),
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
            failed_wave=r.failed_wave,
            verify_timeout_s=r.verify_timeout,
            abandon_after_s=r.abandon_after,
            max_restarts=r.max_restarts,
            probes=Probes(**r.probes.model_dump()) if r.probes else None,
            providers={name: provider.record() for name, provider in self.providers.items()},
        )


def parse_spec(text: str, source: str) -> PlatformSpec:
    """The spec, or a ConfigError that names file, line, key and nearest valid key."""
    document, lines = yaml_lines.load(text, source)
    return yaml_lines.validate(PlatformSpec, document, lines, source)
