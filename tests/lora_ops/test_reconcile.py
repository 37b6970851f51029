"""The reconciler's decision: whatever is seen, one attempt at a time, and in the end one result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.gates.samples import COUNTED, Cause
from lora_ops.reconcile import (
    MOST_ATTEMPTS,
    MOST_SPILLS,
    Abandon,
    Action,
    Close,
    CreateRun,
    EndAttempt,
    Finish,
    Limits,
    Nothing,
    Run,
    Sight,
    StartAttempt,
    Worker,
    decide,
)
from lora_ops.request import AttemptState, RequestState, ResultState, apply_request
from lora_ops.state import Track

LIMITS = Limits()
Event = tuple[str, dict[str, Any]]


def step(state: RequestState, kind: str, /, **data: Any) -> RequestState:
    return apply_request(state, kind, data, state.seq + 1)


def submitted(**order: Any) -> RequestState:
    return step(RequestState(id="req-1"), "submitted", order=order)


def begun(state: RequestState, track: Track = Track.STABLE, cloud: str = "a") -> RequestState:
    return step(state, "attempt-started", cloud=cloud, track=track.value, digest="sha256:x")


def failed(state: RequestState, cause: str, kind: str = "failed", message: str = "it broke") -> RequestState:
    return step(state, f"attempt-{kind}", n=len(state.attempts), cause=cause, message=message)


def tried(*causes: str, track: Track = Track.STABLE, **order: Any) -> RequestState:
    state = submitted(**order)
    for cause in causes:
        state = failed(begun(state, track), cause)
    return state


# --- any state, any sight -----------------------------------------------------------------------------

causes = st.sampled_from([each.value for each in Cause])
durations = st.sampled_from([0.0, 4.0, 6.0, 31.0, 121.0, 301.0, 421.0, 1e6])
sights = st.builds(
    Sight,
    marker_age_s=durations,
    run=st.sampled_from(Run),
    run_for_s=durations,
    run_detail=st.sampled_from(["", "Crashed: out of memory"]),
    said=st.sampled_from([None, None, "store_away"]),
    started=st.booleans(),
    heartbeat_age_s=st.none() | durations,
    worker=st.sampled_from(Worker),
    canary_open=st.booleans(),
    withdrawn=st.booleans(),
    other_cloud_open=st.booleans(),
)


@st.composite
def requests(draw: st.DrawFn) -> RequestState:
    if draw(st.integers(0, 9)) == 0:
        return RequestState(id="req-1")
    state = submitted(
        max_attempts=draw(st.integers(1, 5)), probe=draw(st.sampled_from([None, None, "r/a-0"]))
    )
    for _ in range(draw(st.integers(0, 6))):
        state = begun(state, draw(st.sampled_from(Track)), draw(st.sampled_from("abc")))
        kind = draw(st.sampled_from(["failed", "lost", "superseded", "open", "succeeded"]))
        if kind == "succeeded":
            return step(state, "result", state="succeeded", attempt=len(state.attempts))
        if kind == "open":
            break
        state = failed(state, draw(causes), kind)
    if draw(st.integers(0, 4)) == 0:
        state = step(state, "cancel-requested")
    return state


def act(state: RequestState, action: Action) -> RequestState:
    """What the reconciler journals; an action that the journal refuses fails the test."""
    match action:
        case StartAttempt(avoid=avoid):
            cloud = next(name for name in "abc" if name not in avoid or avoid == set("abc"))
            track = Track.CANARY if state.canary_ok else Track.STABLE
            return begun(state, track, cloud)
        case EndAttempt():
            return failed(state, action.cause, action.state.value, action.message)
        case Finish():
            last = state.attempts[-1].n if state.attempts else None
            words = {"cause": action.cause, "message": action.message}
            return step(state, "result", state=action.state.value, attempt=last, **words)
        case Abandon():
            return step(state, "abandoned")
        case _:
            return state


@given(requests(), sights)
@settings(max_examples=500, deadline=None)
def test_every_decision_is_one_that_the_journal_takes(state: RequestState, sight: Sight) -> None:
    action = decide(state, sight, LIMITS)
    act(state, action)
    assert isinstance(action, Close) == (state.result is not None)
    if state.current is not None:
        assert isinstance(action, Nothing | CreateRun | EndAttempt)
    if isinstance(action, StartAttempt | Finish):
        assert state.current is None
        assert state.result is None
    if isinstance(action, Abandon):
        assert state.order is None


@given(requests(), sights)
@settings(max_examples=500, deadline=None)
def test_a_cause_counts_against_the_release_only_with_a_live_worker(
    state: RequestState, sight: Sight
) -> None:
    action = decide(state, sight, LIMITS)
    if isinstance(action, EndAttempt) and Cause(action.cause).counted:
        assert sight.worker is Worker.ALIVE
        assert action.state is AttemptState.LOST


@given(requests(), sights)
@settings(max_examples=300, deadline=None)
def test_what_prefect_does_not_tell_ends_nothing(state: RequestState, sight: Sight) -> None:
    if state.current is not None and not state.cancel and not sight.withdrawn:
        calm = replace(sight, run=Run.UNKNOWN, canary_open=True)
        assert decide(state, calm, LIMITS) == Nothing()


# --- against an adversary -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fate:
    """What happens to one attempt, `kind`, once it has waited `queue_s` for a slot."""

    kind: str
    queue_s: float = 0.0
    worker: Worker = Worker.ALIVE
    cause: str = "trainer_error"


#: What the reconciler must see by itself; an attempt that fails or moves says so.
SEEN = ("pending", "mute", "silent", "speechless", "dies", "cancelled", "withdrawn", "closed")

fates = st.builds(
    Fate,
    kind=st.sampled_from((*SEEN, "fails", "moves")),
    queue_s=st.sampled_from([0.0, 60.0, 200.0, 5000.0]),
    worker=st.sampled_from(Worker),
    cause=causes,
)

TICK_S = 10.0


def sight_of(fate: Fate, age_s: float, full_elsewhere: bool) -> Sight:
    """What the reconciler sees of an attempt `age_s` after its record."""
    running_s = age_s - fate.queue_s
    canary_open = fate.kind != "closed" or age_s < 30
    if running_s < 0:
        waiting = Sight(run=Run.WAITING, run_for_s=age_s, canary_open=canary_open)
        return replace(waiting, other_cloud_open=not full_elsewhere)
    seen = Sight(run_for_s=running_s, worker=fate.worker, canary_open=canary_open)
    match fate.kind:
        case "pending":
            return replace(seen, run=Run.PENDING)
        case "mute" | "closed":
            return replace(seen, run=Run.RUNNING)
        case "silent":
            return replace(seen, run=Run.RUNNING, started=True, heartbeat_age_s=running_s)
        case "speechless":
            return replace(seen, run=Run.RUNNING, started=True)
        case "dies":
            return replace(seen, run=Run.ENDED, started=fate.queue_s > 0)
        case "cancelled":
            return replace(seen, run=Run.CANCELLED)
        case "withdrawn":
            return replace(seen, run=Run.RUNNING, started=True, heartbeat_age_s=0.0, withdrawn=running_s > 60)
        case _:
            return replace(seen, run=Run.RUNNING, started=True, heartbeat_age_s=0.0)


def simulate(state: RequestState, script: list[Fate], full_elsewhere: bool = False) -> RequestState:
    """Tick until the request has its result. Each attempt has its fate, those after the script the last."""
    for attempt_no in range(MOST_ATTEMPTS + 1):
        action = decide(state, Sight(), LIMITS)
        if not isinstance(action, StartAttempt):
            state = act(state, action)
            break
        state = act(state, action)
        fate = script[min(attempt_no, len(script) - 1)]
        age = 0.0
        while state.current is not None:
            age += TICK_S + age // 10  # coarser later: nothing is decided by the second
            assert age < 20_000, f"{fate} is never ended"
            if fate.kind in ("fails", "moves") and age > fate.queue_s + 20:
                kind = "failed" if fate.kind == "fails" else "superseded"  # the attempt's own word
                state = failed(state, fate.cause, kind)
            else:
                state = act(state, decide(state, sight_of(fate, age, full_elsewhere), LIMITS))
    assert state.result is not None, "the request was never ended"
    assert decide(state, Sight(), LIMITS) == Close()
    return state


@given(st.lists(fates, min_size=1, max_size=8), st.integers(1, 6), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_request_ends_after_a_bounded_number_of_attempts(
    script: list[Fate], max_attempts: int, full_elsewhere: bool
) -> None:
    state = simulate(submitted(max_attempts=max_attempts), script, full_elsewhere)
    assert len(state.attempts) <= MOST_ATTEMPTS
    spent = [
        each
        for each in state.attempts
        if each.state is AttemptState.FAILED or (each.state is AttemptState.LOST and each.cause in COUNTED)
    ]
    assert sum(each.track is Track.STABLE for each in spent) <= max_attempts
    assert sum(each.track is Track.CANARY for each in state.attempts) <= 1
    assert sum(each.message.startswith("No free slot") for each in state.attempts) <= MOST_SPILLS


@given(st.lists(fates, min_size=1, max_size=3), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_probe_has_one_attempt(script: list[Fate], full_elsewhere: bool) -> None:
    state = simulate(submitted(probe="r/a-0", max_attempts=1), script, full_elsewhere)
    assert len(state.attempts) == 1
    assert state.result is not None
    moved = state.attempts[0].state is AttemptState.SUPERSEDED
    assert state.result.state is (ResultState.CANCELLED if moved else ResultState.FAILED)


@given(st.lists(fates, max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_cancelled_request_ends_at_once(script: list[Fate]) -> None:
    state = submitted()
    for fate in script:
        state = failed(begun(state), fate.cause, "superseded")
    for running in (False, True):
        cancelled = step(begun(state) if running else state, "cancel-requested")
        ended = decide(cancelled, Sight(run=Run.RUNNING, started=True), LIMITS)
        if running:
            assert ended == EndAttempt(AttemptState.SUPERSEDED, "cancelled", "Cancelled on request.")
            ended = decide(act(cancelled, ended), Sight(), LIMITS)
        assert ended == Finish(ResultState.CANCELLED, "cancelled", "Cancelled on request.")


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
