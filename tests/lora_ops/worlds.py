"""Small platforms for the tests of the rules: policies, events, and walks through a rollout's phases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import strategies as st

from lora_ops.errors import NotFoundError, Refused
from lora_ops.gates.counts import Metric
from lora_ops.gates.verdict import GateSpec
from lora_ops.rollout import apply
from lora_ops.state import AppState, Phase, Policy, Rollout
from lora_ops.steps import Do, Next, Sight, next_step

OLD, NEW = "sha256:old", "sha256:new"
CLOUDS = ("a", "b", "c")
GATE = GateSpec(metric=Metric.ERROR_RATE, limit=0.05)

Event = tuple[str, dict[str, Any]]

#: What only the rollout's deploy flow writes, and so always with its epoch.
FLOW_KINDS = (
    "validated",
    "built",
    "self-checked",
    "distributed",
    "step-started",
    "approval-requested",
    "wave-promoted",
    "holding",
    "promoted",
    "failed",
)
#: What people and the reconciler write about a rollout.
OTHER_KINDS = ("approved", "promote-forced", "paused", "resumed", "flow-restarted", "rolled-back", "aborted")
VERIFY_KINDS = ("verified", "unverified")


def policy(
    waves: Sequence[Sequence[str]] = (CLOUDS,), plan: Sequence[int] = (10, 50, 100), **changes: Any
) -> Policy:
    plans = changes.pop("plans", {name: tuple(plan) for wave in waves for name in wave})
    return Policy.model_validate({"waves": waves, "plans": plans, "gates": (GATE,), **changes})


def cloud_set(name: str, stable: str = OLD, **changes: Any) -> Event:
    return "cloud-set", {"name": name, "stable": stable, **changes}


def started(rollout_id: str = "roll-1", rules: Policy | None = None) -> Event:
    dumped = (rules or policy()).model_dump(mode="json")
    return "rollout-started", {"id": rollout_id, "source": {"path": "."}, "policy": dumped}


def step(state: AppState, event: Event) -> AppState:
    return apply(state, event[0], event[1], state.seq + 1)


def fold(*events: Event, state: AppState | None = None) -> AppState:
    state = state or AppState(app="app")
    for event in events:
        state = step(state, event)
    return state


def platform(clouds: Sequence[str] = CLOUDS) -> AppState:
    return fold(*[cloud_set(name) for name in clouds])


def own(rollout: Rollout, kind: str, **data: Any) -> Event:
    """An event that the rollout's present flow writes."""
    return kind, {"rollout": rollout.id, "epoch": rollout.epoch, **data}


def event_of(upcoming: Next, rollout: Rollout) -> Event | None:
    """What the deploy flow journals when it has done this step; None for a look."""
    match upcoming.do:
        case Do.LOOK:
            return None
        case Do.VALIDATE:
            return own(rollout, "validated")
        case Do.BUILD:
            return own(rollout, "built", release=NEW, revision="abc")
        case Do.SELF_CHECK:
            return own(rollout, "self-checked")
        case Do.DISTRIBUTE:
            return own(rollout, "distributed", clouds=dict.fromkeys(rollout.clouds, rollout.release))
        case Do.START_STEP:
            return own(rollout, "step-started", wave=upcoming.wave, step=upcoming.step)
        case Do.REQUEST_APPROVAL:
            return own(rollout, "approval-requested", wave=upcoming.wave)
        case Do.PROMOTE_WAVE:
            return own(rollout, "wave-promoted", wave=upcoming.wave)
        case Do.HOLD:
            return own(rollout, "holding")
        case Do.FINISH:
            return own(rollout, "promoted", reason=upcoming.reason)
        case Do.PAUSE:
            return own(rollout, "paused", reason=upcoming.reason)
        case Do.ROLL_BACK:
            return own(rollout, "rolled-back", reason=upcoming.reason)


def all_is_well(rollout: Rollout) -> Sight:
    """A sight in which the flow goes on in every phase."""
    policy = rollout.policy
    return Sight(
        verdict="pass",
        summary="all is well",
        fresh=dict.fromkeys(rollout.clouds, policy.fresh_samples),
        in_step_s=policy.min_time_s,
        in_phase_s=max(policy.hold_s, policy.verify_timeout_s),
    )


def next_event(rollout: Rollout, sight: Sight | None = None) -> Event | None:
    return event_of(next_step(rollout, sight or all_is_well(rollout)), rollout)


def drive(state: AppState, steps: int) -> AppState:
    """Take up to `steps` steps of the happy path; a person approves what waits for it."""
    for _ in range(steps):
        rollout = state.rollout
        if rollout is None:
            return state
        event = next_event(rollout) or own(rollout, "approved", by="ann")
        state = step(state, event)
    return state


def readable_again(state: AppState) -> AppState:
    """The state as a reader of the journal gets it."""
    return AppState.model_validate(json.loads(json.dumps(state.dump(), allow_nan=False)))


def at(phase: Phase, **rules: Any) -> AppState:
    """A rollout of two waves that has just come to the phase."""
    state = step(platform(), started(rules=policy([("a",), ("b", "c")], **{"approval": True, **rules})))
    for _ in range(40):
        if state.rollout is not None and state.rollout.phase is phase:
            return state
        state = drive(state, 1)
    raise AssertionError(f"{phase} was never reached")


def refused(state: AppState, event: Event, words: str = "") -> None:
    with pytest.raises(Refused, match=words):
        step(state, event)


def on(state: AppState, kind: str, **data: Any) -> Event:
    assert state.rollout is not None
    return own(state.rollout, kind, **data)


# --- strategies -----------------------------------------------------------------------------------

plans = st.lists(st.integers(0, 100), min_size=1, max_size=4).map(lambda plan: tuple(sorted(plan)))

sights = st.builds(
    Sight,
    verdict=st.sampled_from([None, "pass", "fail", "inconclusive"]),
    summary=st.sampled_from(["", "a: 3 of 5 bad"]),
    fresh=st.dictionaries(st.sampled_from(CLOUDS), st.integers(0, 6)),
    in_step_s=st.sampled_from([-1.0, 0.0, 5.0, 30.0, 3600.0, 1e6]),
    in_phase_s=st.sampled_from([-1.0, 0.0, 5.0, 300.0, 1e6]),
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    names = draw(st.permutations(CLOUDS))[: draw(st.integers(1, 3))]
    cut = draw(st.integers(1, len(names)))
    waves = [wave for wave in (names[:cut], names[cut:]) if wave]
    return policy(
        waves=waves,
        plans={name: draw(plans) for name in names},
        approval=draw(st.booleans()),
        accept_unverified_approval=draw(st.booleans()),
        undecided=draw(st.sampled_from(["rollback", "pause"])),
        max_restarts=draw(st.integers(0, 2)),
        min_time_s=draw(st.sampled_from([0.0, 5.0])),
    )


@st.composite
def live_platforms(draw: st.DrawFn) -> AppState:
    """A platform with an active rollout in any phase that it can reach."""
    state = step(platform(), started(rules=draw(policies())))
    for _ in range(draw(st.integers(0, 16))):
        assert state.rollout is not None
        rollout = state.rollout
        event = next_event(rollout)
        if draw(st.integers(0, 3)) == 0 or event is None:
            kind = draw(st.sampled_from(OTHER_KINDS[:5]))
            event = kind, {"rollout": rollout.id}
        try:
            after = step(state, event)
        except (Refused, NotFoundError):
            continue
        if after.rollout is None:
            break
        state = after
    return state
