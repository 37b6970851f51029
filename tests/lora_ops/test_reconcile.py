"""The reconciler's decision: whatever is seen, one attempt at a time, and in the end one result."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.gates.samples import COUNTED, Cause
from lora_ops.reconcile import (
    MOST_ATTEMPTS,
    MOST_SPILLS,
    Abandon,
    Close,
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
from tests.lora_ops.request_moves import LIMITS, act, begun, failed, step, submitted

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
