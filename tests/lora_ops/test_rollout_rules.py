"""The rules of single events: what each phase allows, and the words of a refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.errors import NotFoundError, Refused
from lora_ops.rollout import apply
from lora_ops.rollout_events import KEEP_FINISHED
from lora_ops.state import AppState, CloudState, Phase
from tests.lora_ops import worlds
from tests.lora_ops.worlds import (
    NEW,
    OLD,
    Event,
    cloud_set,
    drive,
    fold,
    own,
    platform,
    policy,
    started,
    step,
)

WELL_FORMED: dict[str, dict[str, Any]] = {
    "cloud-set": {"name": "a", "stable": OLD, "size": 1},
    "cloud-drained": {"cloud": "a"},
    "rollout-queued": started("roll-2")[1],
    "rollout-overtaken": {"id": "roll-2"},
    "built": {"rollout": "roll-1", "release": NEW},
    "distributed": {"rollout": "roll-1", "clouds": {}},
    "step-started": {"rollout": "roll-1", "wave": 0, "step": 0},
    "wave-promoted": {"rollout": "roll-1", "wave": 0},
    "verified": {"rollout": "roll-1", "cloud": "a"},
}


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


# --- rollouts ---------------------------------------------------------------------------------------


def test_a_second_rollout_is_refused_with_the_first_ones_name() -> None:
    state = at(Phase.CANARYING)
    with pytest.raises(Refused, match="rollout roll-1 is canarying") as caught:
        step(state, started("roll-2"))
    assert "lora-ops rollout watch roll-1" in caught.value.hint
    assert "--queue" in caught.value.hint
    assert caught.value.exit_code == 6


def test_the_queue_keeps_order_until_started_or_overtaken() -> None:
    state = at(Phase.BUILDING)
    for name in ("roll-2", "roll-3", "roll-4"):
        state = step(state, ("rollout-queued", started(name)[1]))
    refused(state, ("rollout-queued", started("roll-3")[1]), "queued already")
    state = step(state, ("rollout-overtaken", {"id": "roll-3", "by": "roll-4"}))
    refused(state, ("rollout-overtaken", {"id": "roll-3"}), "not in the queue")
    assert [entry.id for entry in state.queue] == ["roll-2", "roll-4"]
    state = fold(("aborted", {"rollout": "roll-1"}), started("roll-2"), state=state)
    assert [entry.id for entry in state.queue] == ["roll-4"]
    assert state.rollout is not None
    assert state.rollout.id == "roll-2"


@pytest.mark.parametrize("queued", [False, True])
def test_a_rollout_that_is_over_never_starts_again(queued: bool) -> None:
    state = fold(("aborted", {"rollout": "roll-1"}), state=at(Phase.VALIDATING))
    kind = "rollout-queued" if queued else "rollout-started"
    refused(state, (kind, started("roll-1")[1]), "roll-1 is aborted already")


def test_an_unknown_rollout_is_not_found_with_the_nearest_name() -> None:
    with pytest.raises(NotFoundError, match="no rollout `roll-2`") as caught:
        step(at(Phase.HOLDING), ("aborted", {"rollout": "roll-2"}))
    assert "roll-1" in caught.value.hint


@pytest.mark.parametrize(
    ("waves", "plans", "words"),
    [
        ([], {}, "every cloud once"),
        ([["a"], []], {"a": [100]}, "every cloud once"),
        ([["a"], ["a"]], {"a": [100]}, "every cloud once"),
        ([["a", "b"]], {"a": [100]}, "cloud b has no plan"),
        ([["a"]], {"a": []}, "never go down"),
        ([["a"]], {"a": [50, 10]}, "never go down"),
        ([["a"]], {"a": [101]}, "never go down"),
        ([["a"]], {"a": [-1, 10]}, "never go down"),
    ],
)
def test_a_rollout_needs_waves_and_plans_that_hold(waves: Any, plans: Any, words: str) -> None:
    rules = {**policy().model_dump(mode="json"), "waves": waves, "plans": plans}
    refused(platform(), ("rollout-started", {"id": "r", "source": {}, "policy": rules}), words)


def test_a_rollout_names_known_clouds() -> None:
    with pytest.raises(NotFoundError, match="cloud `c` is unknown"):
        fold(started(), state=platform(("a", "b")))


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
    refused(state, first, "not on every cloud")
    state = step(state, on(state, "built", release=NEW))
    everywhere = on(state, "distributed", clouds=dict.fromkeys("abc", NEW))
    refused(state, everywhere, "not passed its self-check")
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
    refused(state, restart, "led by flow 1, not 0")  # a second reconciler that saw the same death
    refused(state, ("step-started", {"rollout": "roll-1", "epoch": 0, "wave": 0, "step": 1}), "led by flow 1")
    state = step(state, on(state, "flow-restarted"))
    refused(state, on(state, "flow-restarted"), "often enough")


# --- verification and what is kept --------------------------------------------------------------------


def test_verification_is_of_clouds_that_were_moved_and_never_blocks() -> None:
    state = at(Phase.PROMOTING)
    refused(state, ("verified", {"rollout": "roll-1", "cloud": "b"}), "does not run the release")
    refused(state, ("verified", {"rollout": "roll-1", "cloud": "x"}), "does not run the release")
    state = step(state, ("unverified", {"rollout": "roll-1", "cloud": "a"}))
    state = step(state, ("rolled-back", {"rollout": "roll-1"}))
    assert state.finished[-1].verified == {}  # what is verified now is the way back
    state = fold(started("roll-2"), ("verified", {"rollout": "roll-1", "cloud": "a"}), state=state)
    assert state.finished[-1].verified == {"a": "verified"}
    refused(state, ("verified", {"rollout": "roll-1", "cloud": "x"}), "was not part")
    with pytest.raises(NotFoundError, match="no rollout `roll-9`"):
        step(state, ("verified", {"rollout": "roll-9", "cloud": "a"}))


def test_a_promoted_rollout_keeps_what_was_verified() -> None:
    state = step(at(Phase.HOLDING), ("verified", {"rollout": "roll-1", "cloud": "a"}))
    state = drive(state, 1)
    assert (state.finished[-1].phase, state.finished[-1].verified) == (Phase.PROMOTED, {"a": "verified"})


def test_only_the_newest_rollouts_are_kept() -> None:
    state = platform()
    for number in range(KEEP_FINISHED + 5):
        state = fold(started(f"r{number}"), ("aborted", {"rollout": f"r{number}"}), state=state)
    assert [each.id for each in state.finished] == [f"r{n}" for n in range(5, KEEP_FINISHED + 5)]


# --- clouds, and data that are no data ----------------------------------------------------------------


def test_a_cloud_changes_its_size_but_not_its_pointer() -> None:
    state = fold(
        cloud_set("a"), ("cloud-drained", {"cloud": "a"}), cloud_set("a", stable=NEW, size=4, share=2)
    )
    assert state.clouds["a"] == CloudState(name="a", stable=OLD, size=4, share=2.0, drained=True)
    refused(state, ("cloud-set", {"name": "b"}), "names no stable release")
    with pytest.raises(NotFoundError, match="cloud `d`"):
        step(state, ("cloud-drained", {"cloud": "d"}))


@pytest.mark.parametrize("changes", [{"size": 0}, {"size": "many"}, {"share": -1}, {"share": float("inf")}])
def test_a_cloud_that_could_not_be_read_again_is_refused(changes: dict[str, Any]) -> None:
    for state in (AppState(app="app"), platform()):
        refused(state, cloud_set("a", **changes), "clouds.a|size|share")


@pytest.mark.parametrize("kind", WELL_FORMED)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_misshapen_data_are_refused_in_one_line(kind: str, data: st.DataObject) -> None:
    state = at(Phase.BUILDING)
    event = dict(WELL_FORMED[kind])
    key = data.draw(st.sampled_from(sorted(event)))
    if data.draw(st.booleans()):
        del event[key]
    else:
        event[key] = data.draw(st.sampled_from([None, [], {}, "", -1, [[]]]))
    try:
        after = apply(state, kind, event, state.seq + 1)
    except (Refused, NotFoundError) as error:
        message = error.message
    else:
        message = ""
        assert worlds.readable_again(after) == after
    assert "\n" not in message


def test_an_event_of_another_version_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(Refused, match="`rolled-bakc`") as caught:
        step(platform(), ("rolled-bakc", {}))
    assert "rolled-back" in caught.value.hint
