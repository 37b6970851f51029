"""A delivery pipeline's JSON document, translated to a rollout of this platform. Pure.

No key of it is ignored: each becomes a line of the translation, or an error that names its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_ops.conditions import Unparsable, parse_condition
from lora_ops.errors import nearest
from lora_ops.gates.counts import Metric
from lora_ops.gates.sentences import percent
from lora_ops.gates.verdict import STORE, GateSpec
from lora_ops.image_ref import full_reference
from lora_ops.json_lines import Page, Place, printable, written
from lora_ops.provider_spec import resolve
from lora_ops.spec import PlatformSpec
from lora_ops.state import Policy, check_plan

STRATEGIES = {"canary": (10, 100), "bluegreen": (0, 100)}
#: The stages in their order, and of each its keys with whether they must be there.
STAGES = {
    "deploy": {"type": True, "clusters": True},
    "monitor": {"type": True, "metricsAccount": True, "scopes": False},
    "rollback": {"type": True, "trigger": False, "conditions": True},
}
_CLUSTER = {"account": True, "container": True, "targetSize": False, "strategy": False, "steps": False}
_MAX_SIZE = 1000


@dataclass(frozen=True, slots=True)
class Translation:
    """What a document became. `container`: a full reference; a tag is not resolved yet. `plans`, `sizes`: of
    the clouds that it names. `gates`: all of the rollout's. `lines`: what each key became, for people."""

    source: str
    application: str
    container: str
    plans: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    gates: tuple[GateSpec, ...]
    lines: tuple[str, ...]

    def policy(self, spec: PlatformSpec) -> Policy:
        """The spec's policy with what the document says in its place."""
        own = spec.policy()
        changes = {"plans": {**own.plans, **self.plans}, "gates": self.gates, "sizes": dict(self.sizes)}
        return own.model_copy(update=changes)

    @property
    def reason(self) -> str:
        """Why the rollout is, for the journal."""
        return f"pipeline {self.source} of {self.application}"


def translate(text: str, spec: PlatformSpec, source: str) -> Translation:
    """The document as a rollout of this platform. `source`: its file's name.

    ConfigError with file, line and place of everything that is wrong; UsageError when the platform runs no
    images.
    """
    page = Page(text, source)
    root = page.root.keys({"application": True, "pipeline": True})
    application = root["application"].text() if "application" in root else None
    pipeline = root["pipeline"].keys({"stages": True}) if "pipeline" in root else {}
    stages = _stages(pipeline["stages"]) if "stages" in pipeline else {}
    draft = _Draft(page, spec)
    if application is not None:
        draft.application(root["application"], application)
    if "deploy" in stages:
        draft.deploy(stages["deploy"])
    if "monitor" in stages:
        draft.monitor(stages["monitor"])
    if "rollback" in stages:
        draft.rollback(stages["rollback"])
    elif "monitor" in stages and not page.complaints:
        stages["monitor"]["type"].wrong("it has no conditions to watch: a stage `rollback` has them")
    page.check()
    gates = draft.gates()
    draft.rest()
    return Translation(
        source=source,
        application=application or "",
        container=draft.container,
        plans=draft.plans,
        sizes=draft.sizes,
        gates=gates,
        lines=tuple(draft.lines),
    )


def _stages(place: Place) -> dict[str, dict[str, Place]]:
    """The places below each stage, by its type: each type once, in their order."""
    found: dict[str, dict[str, Place]] = {}
    order = list(STAGES)
    for stage in place.items("stage"):
        if not isinstance(stage.value, dict) or "type" not in stage.value:
            stage.wrong(f"a stage has a `type`: {', '.join(STAGES)}")
            continue
        at = Place(stage.page, stage.value["type"], (*stage.path, "type"))
        kind = at.one_of(STAGES)
        if kind is None:
            continue
        if kind in found:
            again = {"deploy": "; the order of clouds is `rollout.waves` of lora-ops.yaml"}.get(kind, "")
            at.wrong(f"there is a stage `{kind}` already: write one{again}")
            continue
        if late := [each for each in found if order.index(each) > order.index(kind)]:
            at.wrong(f"`{kind}` comes before `{late[0]}`: the order is {', '.join(order)}")
        found[kind] = stage.keys(STAGES[kind])
    if "deploy" not in found and not place.page.complaints:
        place.wrong("there is no stage `deploy`")
    return found


class _Draft:
    """The translation in the making."""

    def __init__(self, page: Page, spec: PlatformSpec) -> None:
        self.page = page
        self.spec = spec
        self.lines: list[str] = []
        self.container = ""
        self.plans: dict[str, tuple[int, ...]] = {}
        self.sizes: dict[str, int] = {}
        self.provider = STORE
        self.scope: list[str] | None = None
        self.conditions: dict[Metric, tuple[float, Place]] = {}
        self._clouds: dict[str, int] = {}
        self._unknown = False
        self._containers: dict[str, int] = {}

    def say(self, place: Place, what: str) -> None:
        self.lines.append(printable(f"{written(place.path)}: {what}"))

    def application(self, place: Place, name: str) -> None:
        app = self.spec.app
        self.say(
            place,
            f"{name} is this platform's app"
            if name == app
            else f"the journal names {name} as what this is for; this platform's app is {app}",
        )

    # --- deploy ---

    def deploy(self, stage: Mapping[str, Place]) -> None:
        for place in stage["clusters"].items("cluster") if "clusters" in stage else ():
            self._cluster(place.keys(_CLUSTER))

    def _cluster(self, keys: Mapping[str, Place]) -> None:
        name = keys["account"].text() if "account" in keys else None
        if name is not None and self._known(keys["account"], name):
            self.say(keys["account"], f"cloud {name}")
        else:
            name, self._unknown = None, True
        if "container" in keys:
            self._container(keys["container"])
        size = keys["targetSize"].whole(1, _MAX_SIZE) if "targetSize" in keys else None
        plan = self._plan(keys)
        if name is None:
            return
        if size is not None:
            self.sizes[name] = size
            self.say(keys["targetSize"], self._size(name, size))
        if plan is not None:
            self.plans[name] = plan
            for key in sorted(keys.keys() & {"strategy", "steps"}):
                self.say(keys[key], f"plan {_listed(plan)}")

    def _known(self, place: Place, name: str) -> bool:
        if name not in self.spec.clouds:
            place.wrong(f"cloud `{name}` is unknown. {nearest(name, self.spec.clouds)}")
            return False
        if name in self._clouds:
            place.wrong(f"`{name}` stands on line {self._clouds[name]} already")
            return False
        self._clouds[name] = place.line
        return True

    def _container(self, place: Place) -> None:
        named = place.text()
        if named is None:
            return
        try:
            full = full_reference(named, self.spec)
        except ValueError as error:
            place.wrong(str(error))
            return
        for other, line in self._containers.items():
            if other != full:
                place.wrong(f"a rollout has one image, and line {line} names {other}")
                return
        self._containers[full] = place.line
        self.container = full
        self.say(place, full if "@" in full else f"{full}, resolved to a digest once, at the start")

    def _plan(self, keys: Mapping[str, Place]) -> tuple[int, ...] | None:
        strategy = keys["strategy"].one_of(STRATEGIES) if "strategy" in keys else None
        if "steps" not in keys:
            return STRATEGIES.get(strategy or "")
        place = keys["steps"]
        if strategy == "bluegreen":
            place.wrong("bluegreen is the plan 0, 100; steps are those of a canary")
            return None
        steps = [step.whole(0, 100) for step in place.items("weight")]
        if None in steps or not steps:
            return None
        try:
            return check_plan(tuple(step for step in steps if step is not None))
        except ValueError as error:
            place.wrong(str(error))
            return None

    def _size(self, name: str, size: int) -> str:
        declared = self.spec.clouds[name].size
        if size == declared:
            return f"size {size}, as in lora-ops.yaml"
        return (
            f"size {size} from the rollout's start; lora-ops.yaml says {declared}, and `lora-ops up` puts "
            "that back unless it is changed there"
        )

    # --- monitor and rollback ---

    def monitor(self, stage: Mapping[str, Place]) -> None:
        if "metricsAccount" in stage and (named := stage["metricsAccount"].text()) is not None:
            try:
                self.provider = resolve(named, self.spec.providers)
                self.say(stage["metricsAccount"], f"the conditions are asked of {self.provider}")
            except ValueError as error:
                stage["metricsAccount"].wrong(str(error))
        if "scopes" not in stage:
            return
        self.scope = []
        for place in stage["scopes"].items("prefix of a cloud's name"):
            prefix = place.text()
            if prefix is None:
                continue
            met = [name for name in self._clouds if name.startswith(prefix)]
            if met:
                self.scope += [name for name in met if name not in self.scope]
                self.say(place, f"the conditions hold on {', '.join(met)}")
            elif self._clouds and not self._unknown:
                other = [name for name in self.spec.clouds if name.startswith(prefix)]
                heads = {name.partition("-")[0] for name in self._clouds}
                place.wrong(
                    f"`{prefix}` begins the name of {', '.join(other)}, which no cluster here names"
                    if other
                    else f"no cloud's name begins with `{prefix}`. {nearest(prefix, heads)}"
                )

    def rollback(self, stage: Mapping[str, Place]) -> None:
        if "trigger" in stage:
            trigger = stage["trigger"].one_of(("automatic", "manual"))
            if trigger == "manual":
                stage["trigger"].wrong(
                    "a gate that fails always rolls back at once; `undecided: pause` and `approval: true` of "
                    "lora-ops.yaml leave the rest to people. Write `automatic`"
                )
            elif trigger is not None:
                self.say(
                    stage["trigger"],
                    "a gate that fails rolls back at once; undecided at the deadline: "
                    f"{self.spec.rollout.undecided}, as in lora-ops.yaml",
                )
        for place in stage["conditions"].items("condition") if "conditions" in stage else ():
            text = place.text()
            if text is None:
                continue
            try:
                metric, limit = parse_condition(text)
            except Unparsable as error:
                place.pointed(str(error), error.at)
                continue
            if metric in self.conditions:
                line = self.conditions[metric][1].line
                place.wrong(f"line {line} has a condition on {metric} already: keep the stricter one")
            else:
                self.conditions[metric] = limit, place

    def _held(self) -> list[str]:
        """The clouds that the conditions hold on."""
        return list(self._clouds) if self.scope is None else self.scope

    # --- all together ---

    def gates(self) -> tuple[GateSpec, ...]:
        """The spec's gates, where no condition takes their place, and the conditions."""
        held = self._held()
        kept: list[GateSpec] = []
        told: list[str] = []
        for gate in self.spec.policy().gates:
            mine = [name for name in self.spec.clouds if gate.covers(name)]
            left = [name for name in mine if name not in held] if gate.metric in self.conditions else mine
            if left == mine:
                kept.append(gate)
                told.append(f"gate {gate.title} holds on {', '.join(mine)}")
            elif left:
                kept.append(gate.model_copy(update={"clouds": tuple(left)}))
                told.append(f"gate {gate.title} holds on {', '.join(left)}; elsewhere its condition does")
            else:
                told.append(f"gate {gate.title} holds nowhere: its condition takes its place")
        for metric, (limit, place) in self.conditions.items():
            gate = self._condition(metric, limit, {gate.title for gate in kept})
            kept.append(gate)
            shown = percent(limit) if metric is Metric.ERROR_RATE else f"{limit:g} s"
            self.say(place, f"gate {gate.title} with limit {shown} on {', '.join(held)}")
        self.lines += [f"lora-ops.yaml: {each}" for each in told]
        return tuple(kept)

    def _condition(self, metric: Metric, limit: float, taken: set[str]) -> GateSpec:
        """The gate of a condition, with a name of its own where the metric's is taken."""
        held = self._held()
        name = f"pipeline-{metric.value.replace('_', '-')}" if metric.value in taken else ""
        return GateSpec(
            metric=metric,
            limit=limit,
            provider=self.provider,
            name=_free(name, taken),
            clouds=() if len(held) == len(self.spec.clouds) else tuple(held),
        )

    def rest(self) -> None:
        """Lines for what the document does not say."""
        policy = self.spec.policy()
        for name in self.spec.clouds:
            plan = _listed(policy.plans[name])
            if name not in self._clouds:
                self.lines.append(
                    f"lora-ops.yaml: {name}, which the document does not name, takes part with its own plan "
                    f"{plan} and gates"
                )
            elif name not in self.plans:
                self.lines.append(f"lora-ops.yaml: {name} has no strategy in the document: plan {plan}")
            if self.conditions and name in self._clouds and name not in self._held():
                self.lines.append(f"lora-ops.yaml: {name} is in no scope: it is judged by its own gates")
        if len(policy.waves) > 1:
            waves = ", then ".join(" and ".join(wave) for wave in policy.waves)
            self.lines.append(f"lora-ops.yaml: waves: {waves}")


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken."""
    return next(each for each in (name, *(f"{name}-{n}" for n in range(2, 1000))) if each not in taken)


def _listed(plan: tuple[int, ...]) -> str:
    return ", ".join(map(str, plan))
