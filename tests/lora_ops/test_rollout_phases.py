"""What each phase of a rollout allows, and the words of a refusal."""

from __future__ import annotations

from typing import Any

import pytest

from lora_ops.errors import Refused
from lora_ops.state import CloudState, Phase
from tests.lora_ops import worlds
from tests.lora_ops.worlds import (
    NEW,
    OLD,
    at,
    drive,
    fold,
    on,
    platform,
    policy,
    refused,
    started,
    step,
)

# --- its phases -------------------------------------------------------------------------------------

LIVE = [phase for phase in Phase if not phase.final]
PHASES_OF: dict[str, list[Phase]] = {
    "validated": [Phase.VALIDATING],
    "built": [Phase.BUILDING],
    "self-checked": [Phase.BUILDING],
    "distributed": [Phase.BUILDING],
    "step-started": [Phase.BUILDING, Phase.CANARYING, Phase.PROMOTING],
    "approval-requested": [Phase.CANARYING],
    "approved": [Phase.AWAITING_APPROVAL],
    "promote-forced": [Phase.CANARYING, Phase.AWAITING_APPROVAL],
    "wave-promoted": [Phase.CANARYING, Phase.AWAITING_APPROVAL],
    "holding": [Phase.PROMOTING],
    "promoted": [Phase.HOLDING],
    "failed": [Phase.VALIDATING, Phase.BUILDING],
    **dict.fromkeys(["paused", "resumed", "flow-restarted", "rolled-back", "aborted"], LIVE),
}


def test_the_table_of_phases_names_every_event_of_a_rollout() -> None:
    assert set(PHASES_OF) == {*worlds.FLOW_KINDS, *worlds.OTHER_KINDS}


@pytest.mark.parametrize("phase", LIVE)
def test_each_event_fits_its_phases_only(phase: Phase) -> None:
    state = at(phase)
    for kind, phases in PHASES_OF.items():
        event = on(state, kind, wave=0, step=0, release=NEW, clouds={})
        if phase in phases:
            try:
                step(state, event)
            except Refused as refusal:
                words = refusal.message
            else:
                words = ""
            assert "this is for" not in words
        else:
            allowed = ", ".join(each.value for each in phases)
            refused(state, event, f"roll-1 is {phase.value}; this is for: {allowed}")


def test_nothing_reaches_a_canary_before_self_check_and_every_cloud() -> None:
    state = at(Phase.BUILDING)
    first = on(state, "step-started", wave=0, step=0)
    refused(state, on(state, "self-checked"), "nothing is built")
    refused(state, first, "not passed its self-check")
    everywhere = on(state, "distributed", clouds=dict.fromkeys("abc", NEW))
    refused(state, everywhere, "nothing is built")
    state = step(state, on(state, "built", release=NEW))
    refused(step(state, everywhere), first, "not passed its self-check")
    state = step(state, on(state, "self-checked"))
    refused(state, on(state, "distributed", clouds={"a": NEW, "b": NEW}), "cloud c holds None")
    refused(state, on(state, "distributed", clouds={"a": NEW, "b": NEW, "c": OLD}), f"cloud c holds {OLD}")
    refused(state, first, "not on every cloud")
    state = fold(everywhere, first, state=state)
    assert state.rollout is not None
    assert {name: part.weight for name, part in state.rollout.clouds.items()} == {"a": 10, "b": 0, "c": 0}


def test_another_release_cannot_hide_behind_a_self_check() -> None:
    state = at(Phase.BUILDING)
    state = fold(on(state, "built", release=NEW), on(state, "self-checked"), state=state)
    refused(state, on(state, "built", release="sha256:unchecked"), "is built already")
    again = step(state, on(state, "built", release=NEW, revision="abc"))
    assert again.rollout is not None
    assert again.rollout.self_checked
    refused(at(Phase.BUILDING), on(state, "built", release=""), "names no release")


def test_steps_and_waves_go_up_one_by_one() -> None:
    state = at(Phase.CANARYING)
    for wave, number in ((0, 0), (0, 2), (1, 0), (0, -1)):
        refused(state, on(state, "step-started", wave=wave, step=number), "one by one")
    refused(state, on(state, "wave-promoted", wave=0), "not finished its plan")
    refused(state, on(state, "approval-requested"), "not finished its plan")
    state = fold(*[on(state, "step-started", wave=0, step=n) for n in (1, 2)], state=state)
    refused(state, on(state, "step-started", wave=0, step=3), "no such step")
    refused(state, on(state, "wave-promoted", wave=1), "another wave")
    refused(state, on(state, "wave-promoted", wave=0), "nobody has approved")
    state = at(Phase.PROMOTING)
    refused(state, on(state, "step-started", wave=1, step=1), "one by one")
    refused(state, on(state, "holding"), "not promoted yet")


def test_the_last_wave_is_the_last() -> None:
    state = fold(("promote-forced", {"rollout": "roll-1"}), state=drive(at(Phase.PROMOTING), 1))
    state = drive(state, 1)
    assert state.rollout is not None
    assert (state.rollout.wave, state.rollout.phase) == (1, Phase.PROMOTING)
    refused(state, on(state, "step-started", wave=2, step=0), "no such wave")
    refused(fold(("paused", {"rollout": "roll-1"}), state=state), on(state, "holding"), "paused")
    step(state, on(state, "holding"))


def test_no_approval_is_asked_for_while_paused() -> None:
    state = at(Phase.CANARYING)
    state = fold(*[on(state, "step-started", wave=0, step=n) for n in (1, 2)], state=state)
    asked = on(state, "approval-requested")
    refused(fold(("paused", {"rollout": "roll-1"}), state=state), asked, "paused")
    step(state, asked)


def test_a_rollback_leaves_clouds_alone_that_the_rollout_had_not_reached() -> None:
    state = drive(step(platform(), started()), 20)
    newer = started("roll-2", policy([("a",), ("b", "c")], plan=(100,)))
    state = drive(step(state, newer), 6)
    assert state.clouds["a"].previous == NEW
    state = step(state, ("rolled-back", {"rollout": "roll-2"}))
    assert state.clouds["a"] == CloudState(name="a", stable=NEW)
    assert state.clouds["b"] == CloudState(name="b", stable=NEW, previous=OLD)


def test_a_cloud_with_a_shorter_plan_stays_at_its_last_weight() -> None:
    rules = policy([("a", "b")], plans={"a": (5, 20, 60), "b": (50,)})
    state = drive(step(platform(), started(rules=rules)), 5)
    weights = []
    for _ in range(3):
        assert state.rollout is not None
        weights.append((state.rollout.clouds["a"].weight, state.rollout.clouds["b"].weight))
        state = drive(state, 1)
    assert weights == [(5, 50), (20, 50), (60, 50)]
    assert state.rollout is not None
    assert state.rollout.phase is Phase.PROMOTING


def test_promotion_moves_the_pointer_of_its_wave_only_and_names_what_was_there() -> None:
    state = at(Phase.PROMOTING)
    assert state.clouds["a"] == CloudState(name="a", stable=NEW, previous=OLD)
    assert {state.clouds[name].stable for name in "bc"} == {OLD}
    assert state.rollout is not None
    assert {part.weight for part in state.rollout.clouds.values()} == {0}


def test_an_approval_counts_for_one_wave_and_its_source_must_be_allowed() -> None:
    state = at(Phase.AWAITING_APPROVAL)
    form = on(state, "approved", via="prefect-ui")
    refused(state, form, "names nobody that we can verify")
    lenient = at(Phase.AWAITING_APPROVAL, accept_unverified_approval=True)
    assert step(lenient, form).rollout.approved  # type: ignore[union-attr]
    state = step(state, on(state, "approved", by="ann"))
    state = drive(state, 2)
    assert state.rollout is not None
    assert (state.rollout.wave, state.rollout.phase, state.rollout.approved) == (1, Phase.CANARYING, False)
    refused(at(Phase.CANARYING), on(state, "approved"), "awaiting-approval")


def test_an_approval_that_comes_late_does_not_approve_the_next_wave() -> None:
    first = at(Phase.AWAITING_APPROVAL)
    said = ("approved", {"rollout": "roll-1", "by": "ann", "wave": 0})
    assert step(first, said).rollout.approved  # type: ignore[union-attr]
    second = drive(step(first, said), 6)
    assert second.rollout is not None
    assert (second.rollout.wave, second.rollout.phase) == (1, Phase.AWAITING_APPROVAL)
    refused(second, said, "this approves wave 1, but wave 2 of roll-1 awaits approval")
    refused(second, on(second, "approved", wave="one"), "do not fit")
    restarted = fold(("flow-restarted", {"rollout": "roll-1"}), state=first)
    assert step(restarted, said).rollout.approved  # type: ignore[union-attr]
    plain = step(second, ("approved", {"rollout": "roll-1"}))  # as older versions journalled it
    assert plain.rollout is not None
    assert plain.rollout.approved
    asked = drive(at(Phase.CANARYING), 2)
    refused(asked, on(asked, "approval-requested", wave=1), "another wave is active")


def test_a_promotion_by_hand_skips_the_plan_of_its_wave_only() -> None:
    state = step(at(Phase.CANARYING), ("promote-forced", {"rollout": "roll-1"}))
    refused(state, on(state, "step-started", wave=0, step=1), "by hand")
    state = drive(state, 2)
    assert state.rollout is not None
    assert (state.rollout.wave, state.rollout.step, state.rollout.phase) == (1, 0, Phase.CANARYING)
    assert not state.rollout.forced
    refused(state, on(state, "wave-promoted", wave=1), "not finished its plan")


@pytest.mark.parametrize(
    ("phase", "kind", "data"),
    [
        (Phase.CANARYING, "step-started", {"wave": 0, "step": 1}),
        (Phase.AWAITING_APPROVAL, "wave-promoted", {"wave": 0}),
        (Phase.PROMOTING, "step-started", {"wave": 1, "step": 0}),
        (Phase.HOLDING, "promoted", {}),
    ],
)
def test_a_paused_rollout_exposes_nothing_more_until_it_is_resumed(
    phase: Phase, kind: str, data: dict[str, Any]
) -> None:
    state = at(phase)
    if phase is Phase.AWAITING_APPROVAL:
        state = step(state, on(state, "approved"))
    paused = step(state, ("paused", {"rollout": "roll-1"}))
    refused(paused, on(paused, kind, **data), "paused")
    refused(paused, ("paused", {"rollout": "roll-1"}), "paused already")
    resumed = step(paused, ("resumed", {"rollout": "roll-1"}))
    refused(resumed, ("resumed", {"rollout": "roll-1"}), "not paused")
    assert resumed.rollout is not None
    assert resumed.rollout.resumed_seq == resumed.seq
    step(resumed, on(resumed, kind, **data))


@pytest.mark.parametrize("phase", [Phase.CANARYING, Phase.HOLDING])
def test_only_what_reached_nobody_can_fail(phase: Phase) -> None:
    refused(at(phase), ("failed", {"rollout": "roll-1"}), phase.value)
    state = fold(("failed", {"rollout": "roll-1", "reason": "no space"}), state=at(Phase.BUILDING))
    assert (state.finished[-1].phase, state.finished[-1].reason) == (Phase.FAILED, "no space")


# --- the flow's epoch ---------------------------------------------------------------------------------


def test_a_restarted_flow_fences_its_predecessor_a_bounded_number_of_times() -> None:
    state = at(Phase.CANARYING, max_restarts=2)
    restart = on(state, "flow-restarted")
    state = step(state, restart)
    assert state.rollout is not None
    assert state.rollout.epoch_seq == state.seq
    refused(state, restart, "led by flow 1, not 0")  # a second reconciler that saw the same death
    refused(state, ("step-started", {"rollout": "roll-1", "epoch": 0, "wave": 0, "step": 1}), "led by flow 1")
    state = step(state, on(state, "flow-restarted"))
    refused(state, on(state, "flow-restarted"), "often enough")
