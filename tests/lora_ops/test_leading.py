"""When a dead flow is started again, and when its rollout is given up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.leading import LONGEST_PAUSE_S, START_S, Care, FlowSight, care, dead, pause_s
from lora_ops.reconcile import Run
from lora_ops.state import Rollout
from tests.lora_ops.worlds import fold, platform, policy, started


def led(epoch: int = 0, abandon_after_s: float = 3600.0) -> Rollout:
    rules = policy(max_restarts=5, abandon_after_s=abandon_after_s)
    restarts = [("flow-restarted", {"rollout": "roll-1"})] * epoch
    state = fold(started(rules=rules), *restarts, state=platform())
    assert state.rollout is not None
    assert state.rollout.epoch == epoch
    return state.rollout


seconds = st.floats(0, 1e5)
sights = st.builds(
    FlowSight,
    unled_s=seconds,
    epoch_s=seconds,
    silent_s=st.none() | seconds,
    run=st.sampled_from(Run),
    run_for_s=seconds,
)


def test_pauses_double_up_to_a_minute() -> None:
    assert [pause_s(epoch) for epoch in range(8)] == [0, 5, 10, 20, 40, 60, 60, 60]
    assert pause_s(10_000) == LONGEST_PAUSE_S


@given(st.integers(0, 5), sights)
def test_it_is_given_up_after_its_time_or_its_restarts_and_else_waits_out_the_pause(
    epoch: int, sight: FlowSight
) -> None:
    what, why = care(led(epoch), sight)
    over = sight.unled_s > 3600 or (dead(sight) and epoch == 5)
    assert (what is Care.GIVE_UP) == over
    if not over:
        assert (what is Care.RESTART) == (dead(sight) and sight.epoch_s >= pause_s(epoch))
    assert bool(why) == (what is not Care.LEAVE)


@given(sights, st.integers(0, 4))
def test_a_dead_flow_is_always_started_again_or_given_up_once_time_has_gone_by(
    sight: FlowSight, epoch: int
) -> None:
    gone = replace(sight, run=Run.ENDED, epoch_s=LONGEST_PAUSE_S)
    assert care(led(epoch), gone)[0] is not Care.LEAVE


@pytest.mark.parametrize("run", [Run.UNKNOWN, Run.NONE, Run.WAITING])
def test_what_waits_or_cannot_be_seen_is_not_dead_but_given_up_in_the_end(run: Run) -> None:
    sight = FlowSight(unled_s=60.0, epoch_s=60.0, run=run, run_for_s=1e6)
    assert care(led(abandon_after_s=60.0), sight) == (Care.LEAVE, "")
    assert care(led(abandon_after_s=59.0), sight) == (Care.GIVE_UP, "nobody led it for 60 s")


@pytest.mark.parametrize(
    ("run", "run_for_s", "silent_s", "wanted"),
    [
        (Run.PENDING, START_S, None, False),
        (Run.PENDING, START_S + 1, None, True),
        (Run.RUNNING, 30.0, None, False),
        (Run.RUNNING, 31.0, None, True),
        (Run.RUNNING, 1e6, 30.0, False),
        (Run.RUNNING, 1e6, 31.0, True),
        (Run.RUNNING, 29.0, 1e6, False),
        (Run.ENDED, 0.0, 0.0, True),
        (Run.CANCELLED, 0.0, 0.0, True),
    ],
)
def test_a_run_is_dead_by_what_it_does_in_its_present_state(
    run: Run, run_for_s: float, silent_s: float | None, wanted: bool
) -> None:
    sight = FlowSight(unled_s=0.0, epoch_s=1e6, silent_s=silent_s, run=run, run_for_s=run_for_s)
    assert dead(sight) is wanted
