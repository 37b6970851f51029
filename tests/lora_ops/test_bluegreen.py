"""Blue/green is the plan [0, 100], nothing else: probes alone, one flip, and the way back while it holds."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.routing import Fleet, Route, pinned, route
from lora_ops.state import AppState, Phase, Rollout, Track
from lora_ops.steps import Do, Next, Sight, next_step
from tests.lora_ops.worlds import (
    CLOUDS,
    NEW,
    OLD,
    all_is_well,
    drive,
    on,
    own,
    platform,
    policy,
    started,
    step,
)

NOW, LATER = 1_700_000_000.0, 1_700_000_060.0
request_ids = st.text(max_size=20)


@cache
def state_at(phase: Phase, weight: int = 0) -> AppState:
    state = step(platform(), started(rules=policy(plan=(0, 100))))
    for _ in range(20):
        rollout = of(state)
        if rollout.phase is phase and all(each.weight == weight for each in rollout.clouds.values()):
            return state
        state = drive(state, 1)
    raise AssertionError(f"{phase} with {weight} % was never reached")


def of(state: AppState) -> Rollout:
    assert state.rollout is not None
    return state.rollout


def routed(state: AppState, request: str) -> Route:
    return route(request, Fleet.of(state, lease_until=LATER), NOW)


@given(request_ids)
@settings(max_examples=200, deadline=None)
def test_at_0_percent_no_request_of_a_user_reaches_it_but_probes_do(request: str) -> None:
    state = state_at(Phase.CANARYING, 0)
    found = routed(state, request)
    assert (found.track, found.digest) == (Track.STABLE, OLD)
    fleet = Fleet.of(state, lease_until=LATER)
    for cloud in CLOUDS:
        assert pinned(fleet, cloud, Track.CANARY, NOW) == Route(cloud, Track.CANARY, NEW)
        assert pinned(fleet, cloud, Track.STABLE, NOW) == Route(cloud, Track.STABLE, OLD)


@given(request_ids)
@settings(max_examples=200, deadline=None)
def test_the_flip_takes_every_request_at_once(request: str) -> None:
    before, after = state_at(Phase.CANARYING, 0), state_at(Phase.CANARYING, 100)
    assert after.seq == before.seq + 1, "one event"
    assert routed(before, request).cloud == routed(after, request).cloud, "it moves nobody to another cloud"
    assert (routed(after, request).track, routed(after, request).digest) == (Track.CANARY, NEW)


def test_one_flip_then_the_pointer() -> None:
    state, done = state_at(Phase.CANARYING, 0), []
    while of(state).phase is not Phase.HOLDING:
        done.append(next_step(of(state), all_is_well(of(state))).do)
        state = drive(state, 1)
    assert done == [Do.START_STEP, Do.PROMOTE_WAVE, Do.HOLD]


@pytest.mark.parametrize("verdict", [None, "inconclusive"])
def test_nothing_flips_without_probes_that_pass(verdict: str | None) -> None:
    rollout = of(state_at(Phase.CANARYING, 0))
    waiting = dataclasses.replace(all_is_well(rollout), verdict=verdict)
    assert next_step(rollout, waiting) == Next(Do.LOOK)
    late = dataclasses.replace(waiting, in_step_s=rollout.policy.deadline_s + 1)
    assert next_step(rollout, late).do is Do.ROLL_BACK


def test_the_flip_itself_wants_fresh_samples_before_it_is_promoted() -> None:
    rollout = of(state_at(Phase.CANARYING, 100))
    stale = dataclasses.replace(all_is_well(rollout), fresh={})
    assert next_step(rollout, stale).do is Do.LOOK


@given(request_ids)
@settings(max_examples=50, deadline=None)
def test_the_old_digest_is_kept_for_the_hold_and_after_it(request: str) -> None:
    holding = state_at(Phase.HOLDING)
    assert routed(holding, request).digest == NEW
    promoted = drive(holding, 1)
    assert promoted.finished[-1].phase is Phase.PROMOTED
    for state in (holding, promoted):
        assert {(each.stable, each.previous) for each in state.clouds.values()} == {(NEW, OLD)}
    assert {each.before for each in of(holding).clouds.values()} == {OLD}
    early = dataclasses.replace(all_is_well(of(holding)), in_phase_s=of(holding).policy.hold_s - 0.1)
    assert next_step(of(holding), early) == Next(Do.LOOK)


@given(request_ids)
@settings(max_examples=50, deadline=None)
def test_a_gate_that_fails_in_the_hold_flips_back_at_once(request: str) -> None:
    holding = state_at(Phase.HOLDING)
    failed = Sight(verdict="fail", summary="a: 3 of 5 bad")  # no time of the hold has gone by
    assert next_step(of(holding), failed) == Next(Do.ROLL_BACK, "a: 3 of 5 bad")
    back = step(holding, own(of(holding), "rolled-back", reason="a: 3 of 5 bad"))
    assert back.seq == holding.seq + 1, "one event"
    assert (routed(back, request).track, routed(back, request).digest) == (Track.STABLE, OLD)
    assert {(each.stable, each.previous) for each in back.clouds.values()} == {(OLD, None)}


@pytest.mark.parametrize("weight", [0, 100])
def test_before_the_pointer_moves_a_rollback_leaves_it_where_it_is(weight: int) -> None:
    state = state_at(Phase.CANARYING, weight)
    back = step(state, on(state, "rolled-back"))
    assert {each.stable for each in back.clouds.values()} == {OLD}
    assert back.rollout is None
