"""A later wave fails: what the earlier ones promoted goes back with it, or stays, by the spec."""

from __future__ import annotations

from typing import Any

import pytest

from lora_ops.state import AppState, Phase
from lora_ops.steps import kept
from tests.lora_ops.worlds import NEW, OLD, drive, on, platform, policy, refused, started, step

WAVES = [("a", "b"), ("c",)]


def second_wave(**rules: Any) -> AppState:
    """The first wave is promoted, the second under way."""
    state = step(platform(), started(rules=policy(WAVES, **rules)))
    for _ in range(40):
        rollout = state.rollout
        assert rollout is not None
        if rollout.wave == 1 and rollout.phase is Phase.CANARYING:
            return state
        state = drive(state, 1)
    raise AssertionError("the second wave never came")


def stable(state: AppState) -> dict[str, str]:
    return {name: cloud.stable for name, cloud in state.clouds.items()}


def test_by_default_everything_goes_back() -> None:
    state = second_wave()
    assert state.rollout is not None
    assert kept(state.rollout, {"c"}) == []
    back = step(state, on(state, "rolled-back", reason="c failed"))
    assert stable(back) == dict.fromkeys("abc", OLD)
    refused(state, on(state, "rolled-back", reason="c failed", keep=["a"]), "cannot stay")


def test_what_was_promoted_stays_where_no_gate_fails() -> None:
    state = second_wave(failed_wave="keep")
    assert state.rollout is not None
    assert kept(state.rollout, {"c"}) == ["a", "b"]
    keep = kept(state.rollout, {"b", "c"})
    back = step(state, on(state, "rolled-back", reason="b and c failed", keep=keep))
    assert stable(back) == {"a": NEW, "b": OLD, "c": OLD}
    assert back.rollout is None


@pytest.mark.parametrize("cloud", ["c", "d"])
def test_a_cloud_of_the_failed_wave_cannot_stay(cloud: str) -> None:
    state = second_wave(failed_wave="keep")
    refused(state, on(state, "rolled-back", reason="c failed", keep=[cloud]), "cannot stay")


def test_an_abort_by_hand_takes_everything_back() -> None:
    state = second_wave(failed_wave="keep")
    assert stable(step(state, on(state, "aborted", reason="no"))) == dict.fromkeys("abc", OLD)
