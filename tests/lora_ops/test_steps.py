"""The deploy flow's next step, for any rollout and anything that it may see."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.state import AppState, Phase, Rollout
from lora_ops.steps import Do, Next, Sight, next_step, passed
from tests.lora_ops.worlds import (
    CLOUDS,
    all_is_well,
    drive,
    event_of,
    fold,
    live_platforms,
    own,
    platform,
    policies,
    policy,
    sights,
    started,
    step,
)

#: What brings the release to more requests, or ends the rollout well.
ADVANCES = {Do.START_STEP, Do.REQUEST_APPROVAL, Do.PROMOTE_WAVE, Do.HOLD, Do.FINISH}


def rollout_of(state: AppState) -> Rollout:
    assert state.rollout is not None
    return state.rollout


def at(steps: int, **rules: object) -> Rollout:
    """After so many steps of the happy path; five bring it to the first canary."""
    return rollout_of(drive(step(platform(), started(rules=policy(**rules))), steps))  # type: ignore[arg-type]


@st.composite
def canaries(draw: st.DrawFn) -> Rollout:
    """A rollout at some step of the plan of its first wave, neither paused nor forced."""
    state = drive(step(platform(), started(rules=draw(policies()))), 5)
    rollout = rollout_of(state)
    return rollout_of(drive(state, draw(st.integers(0, rollout.last_step))))


rollouts = live_platforms().map(rollout_of)
cases = settings(max_examples=150, deadline=None)


@given(rollouts, sights)
@cases
def test_a_failed_gate_always_rolls_back_what_is_exposed(rollout: Rollout, sight: Sight) -> None:
    failed = next_step(rollout, dataclasses.replace(sight, verdict="fail", summary="a: 3 of 5 bad"))
    if rollout.phase.exposes:
        assert failed == Next(Do.ROLL_BACK, "a: 3 of 5 bad")
    else:
        assert failed.do is not Do.ROLL_BACK


@given(rollouts, sights)
@cases
def test_a_paused_rollout_never_advances(rollout: Rollout, sight: Sight) -> None:
    paused = rollout.model_copy(update={"paused": True})
    assert next_step(paused, sight).do not in ADVANCES


@given(canaries(), sights, st.sampled_from([None, "inconclusive"]))
@cases
def test_without_a_verdict_a_canary_never_advances(
    rollout: Rollout, sight: Sight, verdict: str | None
) -> None:
    upcoming = next_step(rollout, dataclasses.replace(sight, verdict=verdict))
    assert upcoming.do in (Do.LOOK, Do.PAUSE, Do.ROLL_BACK)


@given(rollouts, sights)
@cases
def test_what_the_flow_would_do_the_journal_accepts(rollout: Rollout, sight: Sight) -> None:
    """Otherwise a flow would decide the same refused thing for ever."""
    state = platform().model_copy(update={"rollout": rollout})
    event = event_of(next_step(rollout, sight), rollout)
    if event is not None:
        after = step(state, event)
        assert after.rollout is None or after.rollout != rollout


@given(canaries(), sights)
@cases
def test_the_deadline_ends_what_is_undecided(rollout: Rollout, sight: Sight) -> None:
    late = dataclasses.replace(sight, verdict="inconclusive", in_step_s=rollout.policy.deadline_s + 1)
    wanted = Do.PAUSE if rollout.policy.undecided == "pause" else Do.ROLL_BACK
    upcoming = next_step(rollout, late)
    assert upcoming.do is wanted
    assert upcoming.reason == "undecided after 3600 s: " + (sight.summary or "no data")


@given(canaries() | rollouts, sights)
@cases
def test_a_promotion_has_passed_was_approved_or_forced(rollout: Rollout, sight: Sight) -> None:
    sight = dataclasses.replace(sight, verdict="pass")
    if next_step(rollout, sight).do is Do.PROMOTE_WAVE and not rollout.forced:
        assert rollout.step == rollout.last_step
        assert rollout.approved if rollout.policy.approval else passed(rollout, sight)


def test_the_happy_path_takes_every_step_once_in_order() -> None:
    state = step(platform(), started(rules=policy([("a",), ("b", "c")], plan=(10, 100), approval=True)))
    done = []
    while state.rollout is not None:
        upcoming = next_step(state.rollout, all_is_well(state.rollout))
        done.append(upcoming.do)
        state = drive(state, 1)
    wave = [Do.START_STEP, Do.START_STEP, Do.REQUEST_APPROVAL, Do.LOOK, Do.PROMOTE_WAVE]
    first = [Do.VALIDATE, Do.BUILD, Do.SELF_CHECK, Do.DISTRIBUTE]
    assert done == [*first, *wave, *wave, Do.HOLD, Do.FINISH]


@pytest.mark.parametrize(
    ("changes", "do"),
    [
        ({}, Do.START_STEP),
        ({"verdict": "inconclusive"}, Do.LOOK),
        ({"verdict": None}, Do.LOOK),
        ({"in_step_s": 4.9}, Do.LOOK),
        ({"fresh": {"a": 3, "b": 3, "c": 2}}, Do.LOOK),
        ({"fresh": {"a": 3, "b": 3}}, Do.LOOK),
    ],
)
def test_a_later_step_wants_a_verdict_time_and_fresh_samples_of_every_cloud(
    changes: dict[str, object], do: Do
) -> None:
    rollout = at(6, min_time_s=5.0)
    assert rollout.step == 1
    sight = Sight(verdict="pass", fresh=dict.fromkeys(CLOUDS, 3), in_step_s=5.0)
    assert next_step(rollout, dataclasses.replace(sight, **changes)).do is do  # type: ignore[arg-type]


def test_the_first_step_needs_no_fresh_samples_since_all_are() -> None:
    assert next_step(at(5), Sight(verdict="pass")).do is Do.START_STEP


@pytest.mark.parametrize(
    ("verified", "in_phase_s", "do"),
    [
        ({}, 299.0, Do.LOOK),
        ({"a": "verified"}, 0.0, Do.START_STEP),
        ({"a": "unverified"}, 0.0, Do.START_STEP),
        ({}, 300.0, Do.START_STEP),
    ],
)
def test_the_next_wave_waits_for_the_verification_of_this_one_but_not_for_ever(
    verified: dict[str, str], in_phase_s: float, do: Do
) -> None:
    rollout = at(8, waves=[("a",), ("b", "c")]).model_copy(update={"verified": verified})
    assert rollout.phase is Phase.PROMOTING
    assert next_step(rollout, Sight(verdict="pass", in_phase_s=in_phase_s)).do is do


@pytest.mark.parametrize(("in_phase_s", "do"), [(599.9, Do.LOOK), (600.0, Do.FINISH)])
def test_the_hold_lasts_its_time(in_phase_s: float, do: Do) -> None:
    rollout = at(9)
    assert rollout.phase is Phase.HOLDING
    assert next_step(rollout, Sight(in_phase_s=in_phase_s)).do is do


def test_an_approval_or_a_promotion_by_hand_ends_the_wait() -> None:
    waiting = step(platform(), started(rules=policy(approval=True)))
    waiting = drive(waiting, 8)
    rollout = rollout_of(waiting)
    assert rollout.phase is Phase.AWAITING_APPROVAL
    assert next_step(rollout, all_is_well(rollout)).do is Do.LOOK
    for kind in ("approved", "promote-forced"):
        after = rollout_of(fold(own(rollout, kind), state=waiting))
        assert next_step(after, Sight()).do is Do.PROMOTE_WAVE


def test_a_rollout_that_is_over_has_no_next_step() -> None:
    with pytest.raises(ValueError, match="nothing is left to do"):
        next_step(at(5).model_copy(update={"phase": Phase.PROMOTED}), Sight())
