"""The rules of single events outside of the phases: starting and queueing, verification, clouds, bad data."""

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
    at,
    cloud_set,
    drive,
    fold,
    platform,
    policy,
    refused,
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
