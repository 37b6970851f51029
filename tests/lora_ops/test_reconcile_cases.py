"""Whose fault it is, who pays for it, and each deadline of an attempt under way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_ops.reconcile import (
    MOST_ATTEMPTS,
    MOST_SPILLS,
    Abandon,
    Action,
    CreateRun,
    EndAttempt,
    Finish,
    Nothing,
    Run,
    Sight,
    StartAttempt,
    Worker,
    decide,
)
from lora_ops.request import AttemptState, RequestState, ResultState
from lora_ops.state import Track
from tests.lora_ops.request_moves import LIMITS, act, begun, failed, step, submitted, tried

# --- whose fault, and who pays ------------------------------------------------------------------------


def test_the_users_fault_is_final_at_once_with_its_message() -> None:
    state = failed(begun(submitted()), "user_error", message="row 3 has no text")
    assert decide(state, Sight(), LIMITS) == Finish(ResultState.FAILED, "user_error", "row 3 has no text")


def test_a_canary_that_blames_its_user_is_not_believed_alone() -> None:
    blamed = tried("user_error", track=Track.CANARY, max_attempts=1)
    assert decide(blamed, Sight(), LIMITS) == StartAttempt()
    assert not blamed.canary_ok
    confirmed = failed(begun(blamed), "user_error", message="row 3 has no text")
    assert decide(confirmed, Sight(), LIMITS) == Finish(ResultState.FAILED, "user_error", "row 3 has no text")


@pytest.mark.parametrize("kind", ["failed", "lost"])
def test_a_canary_attempt_uses_up_none_of_its_users_attempts(kind: str) -> None:
    state = failed(begun(submitted(max_attempts=1), Track.CANARY), "trainer_error", kind)
    assert isinstance(decide(state, Sight(), LIMITS), StartAttempt)
    state = failed(begun(state), "trainer_error")
    assert isinstance(decide(state, Sight(), LIMITS), Finish)


def test_a_release_in_its_hold_is_on_trial_too() -> None:
    """It is stable then, but still judged; the request goes to what was stable before."""
    for cause in ("user_error", "trainer_error"):
        held = step(
            submitted(max_attempts=1),
            "attempt-started",
            cloud="a",
            track="stable",
            digest="sha256:new",
            trial=True,
        )
        assert decide(failed(held, cause), Sight(), LIMITS) == StartAttempt()
        assert isinstance(decide(failed(begun(failed(held, cause)), cause), Sight(), LIMITS), Finish)


def test_a_request_that_only_ever_fails_on_trial_ends_too() -> None:
    state = submitted(max_attempts=1)
    for _ in range(MOST_ATTEMPTS):
        assert decide(state, Sight(), LIMITS) == StartAttempt()
        state = step(state, "attempt-started", cloud="a", track="stable", digest="sha256:new", trial=True)
        state = failed(state, "trainer_error")
    assert isinstance(decide(state, Sight(), LIMITS), Finish)


def test_attempts_are_bounded_and_the_last_failure_is_told() -> None:
    assert isinstance(decide(tried(*["trainer_error"] * 3), Sight(), LIMITS), StartAttempt)
    action = decide(tried(*["trainer_error"] * 4), Sight(), LIMITS)
    assert action == Finish(ResultState.FAILED, "trainer_error", "4 attempts failed; the last: it broke")


def test_a_lost_attempt_is_tried_elsewhere() -> None:
    state = failed(begun(submitted(), cloud="b"), "lost_worker", "lost")
    assert decide(state, Sight(), LIMITS) == StartAttempt(avoid=frozenset({"b"}))
    assert decide(failed(begun(submitted(), cloud="b"), "trainer_error"), Sight(), LIMITS) == StartAttempt()


def test_a_long_queue_everywhere_never_fails_a_request() -> None:
    """It moves a few times, and then it waits its turn."""
    state = submitted()
    waiting = Sight(run=Run.WAITING, run_for_s=LIMITS.spill_after_s + 1, other_cloud_open=True)
    for _ in range(MOST_SPILLS):
        state = begun(state)
        action = decide(state, waiting, LIMITS)
        assert isinstance(action, EndAttempt)
        assert (action.state, action.cause) == (AttemptState.SUPERSEDED, "no_capacity")
        state = act(state, action)
        assert decide(state, Sight(), LIMITS) == StartAttempt(avoid=frozenset({"a"}))
    assert decide(begun(state), waiting, LIMITS) == Nothing()
    for calm in (replace(waiting, other_cloud_open=False), replace(waiting, run_for_s=LIMITS.spill_after_s)):
        assert decide(begun(submitted()), calm, LIMITS) == Nothing()


# --- one attempt under way ----------------------------------------------------------------------------

RUNNING = Sight(run=Run.RUNNING, worker=Worker.ALIVE)
STARTED = replace(RUNNING, started=True, heartbeat_age_s=0.0)
ENDED = Sight(run=Run.ENDED, run_for_s=31.0, worker=Worker.ALIVE, started=True)


@pytest.mark.parametrize(
    ("sight", "cause"),
    [
        (Sight(run=Run.PENDING, run_for_s=300.0), None),
        (Sight(run=Run.PENDING, run_for_s=300.1), "lost_worker"),
        (replace(RUNNING, run_for_s=300.0), None),
        (replace(RUNNING, run_for_s=300.1), "exit_before_contact"),
        (replace(RUNNING, run_for_s=300.1, worker=Worker.GONE), "lost_worker"),
        (replace(STARTED, run_for_s=1e6, heartbeat_age_s=120.0), None),
        (replace(STARTED, heartbeat_age_s=120.1), "no_heartbeat"),
        (replace(STARTED, heartbeat_age_s=120.1, worker=Worker.UNKNOWN), "lost_worker"),
        (replace(STARTED, heartbeat_age_s=None, run_for_s=420.0), None),
        (replace(STARTED, heartbeat_age_s=None, run_for_s=420.1), "no_heartbeat"),
        (replace(ENDED, run_for_s=4.9), None),
        (replace(ENDED, run_for_s=5.0), "no_heartbeat"),
        (ENDED, "no_heartbeat"),
        (replace(ENDED, started=False), "exit_before_contact"),
        (replace(ENDED, worker=Worker.GONE), "lost_worker"),
        (replace(ENDED, worker=Worker.UNKNOWN, run_for_s=29.9), None),
        (replace(ENDED, worker=Worker.UNKNOWN, run_for_s=30.0), "lost_worker"),
        (replace(ENDED, said="store_away"), "store_away"),
    ],
)
def test_deadlines_and_silent_deaths(sight: Sight, cause: str | None) -> None:
    action = decide(begun(submitted()), sight, LIMITS)
    if cause is None:
        assert action == Nothing()
    else:
        assert isinstance(action, EndAttempt)
        assert (action.state, action.cause) == (AttemptState.LOST, cause)


def test_a_run_that_is_not_there_is_created() -> None:
    assert decide(begun(submitted()), Sight(run=Run.NONE), LIMITS) == CreateRun()


def test_a_closed_canary_takes_back_what_has_not_started_only() -> None:
    canary = begun(submitted(), Track.CANARY)
    closed = Sight(run=Run.WAITING, canary_open=False)
    action = decide(canary, closed, LIMITS)
    assert isinstance(action, EndAttempt)
    assert (action.state, action.cause) == (AttemptState.SUPERSEDED, "superseded")
    assert decide(canary, replace(STARTED, canary_open=False), LIMITS) == Nothing()
    assert decide(begun(submitted()), closed, LIMITS) == Nothing()


@pytest.mark.parametrize("track", Track)
def test_a_withdrawn_release_stops_even_what_runs(track: Track) -> None:
    action = decide(begun(submitted(), track), replace(STARTED, withdrawn=True), LIMITS)
    assert isinstance(action, EndAttempt)
    assert action.state is AttemptState.SUPERSEDED


@pytest.mark.parametrize(("age_s", "action"), [(60.0, Nothing()), (60.1, Abandon())])
def test_a_marker_without_a_request_is_abandoned_after_a_minute(age_s: float, action: Action) -> None:
    assert decide(RequestState(id="req-1"), Sight(marker_age_s=age_s), LIMITS) == action
