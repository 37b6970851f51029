"""Attempts in clusters: what their pods show, a region that goes dark, and a cloud that is emptied."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.gates.samples import Cause
from lora_ops.pods import PodSight, Trouble
from lora_ops.reconcile import (
    MOST_SPILLS,
    PREFECT_AWAY,
    EndAttempt,
    Evict,
    Nothing,
    Run,
    Sight,
    StartAttempt,
    Worker,
    decide,
)
from lora_ops.request import AttemptState
from lora_ops.state import Track
from tests.lora_ops.request_moves import LIMITS, act, begun, failed, submitted

IN_CLUSTER = Sight(cluster=True, run=Run.PENDING, worker=Worker.ALIVE)
AT_WORK = replace(
    IN_CLUSTER, run=Run.RUNNING, started=True, heartbeat_age_s=1.0, pod=PodSight("running"), pod_for_s=1e6
)


def pod(phase: str, trouble: Trouble | None, code: int | None = None) -> PodSight:
    return PodSight(phase, trouble, f"told: {trouble}.", code)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "for_s", "cause"),
    [
        (pod("pending", Trouble.IMAGE_PULL), 60.0, None),
        (pod("pending", Trouble.IMAGE_PULL), 60.1, "image_pull"),
        (pod("pending", Trouble.CONFIG), 60.1, "misconfigured"),
        (pod("pending", Trouble.UNSCHEDULABLE), 300.0, None),
        (pod("pending", Trouble.UNSCHEDULABLE), 300.1, "unschedulable"),
        (pod("failed", Trouble.EXITED, 3), 4.9, None),
        (pod("failed", Trouble.EXITED, 3), 14.9, None),
        (pod("failed", Trouble.EXITED, 3), 15.0, "exit_before_contact"),
        (pod("failed", Trouble.EXITED, PREFECT_AWAY), 15.0, "prefect_away"),
        (pod("failed", Trouble.OUT_OF_MEMORY, 137), 15.0, "out_of_memory"),
        (pod("failed", Trouble.EVICTED), 15.0, "evicted"),
        (pod("failed", Trouble.DELETED), 15.0, "evicted"),
        (pod("failed", Trouble.NODE_LOST), 15.0, "lost_worker"),
        (pod("failed", Trouble.DEADLINE), 15.0, "deadline"),
        (pod("running", None), 1e6, None),
        (pod("running", Trouble.NODE_LOST), 20.0, None),
        (pod("running", Trouble.NODE_LOST), 20.1, "lost_worker"),
    ],
)
def test_a_pod_that_will_not_run_ends_its_attempt(seen: PodSight, for_s: float, cause: str | None) -> None:
    action = decide(begun(submitted()), replace(IN_CLUSTER, pod=seen, pod_for_s=for_s), LIMITS)
    if cause is None:
        assert action == Nothing()
    else:
        assert isinstance(action, EndAttempt)
        assert (action.state, action.cause) == (AttemptState.LOST, cause)
        assert seen.message in action.message


def test_what_cannot_be_scheduled_goes_elsewhere_sooner_when_there_is_an_elsewhere() -> None:
    waits = replace(IN_CLUSTER, pod=pod("pending", Trouble.UNSCHEDULABLE), pod_for_s=120.1)
    assert decide(begun(submitted()), waits, LIMITS) == Nothing()
    action = decide(begun(submitted()), replace(waits, other_cloud_open=True), LIMITS)
    assert isinstance(action, EndAttempt)
    state = act(begun(submitted()), action)
    assert decide(state, Sight(), LIMITS) == StartAttempt(avoid=frozenset({"a"}))


def test_what_an_attempt_said_through_prefect_is_believed_before_its_exit_code() -> None:
    ended = replace(AT_WORK, run=Run.ENDED, run_for_s=6.0, said="store_away")
    ended = replace(ended, pod=pod("failed", Trouble.EXITED, 1), pod_for_s=6.0)
    action = decide(begun(submitted()), ended, LIMITS)
    assert isinstance(action, EndAttempt)
    assert action.cause == "store_away"


def test_a_silent_end_of_a_pod_that_started_is_the_releases_fault() -> None:
    ended = replace(AT_WORK, pod=pod("succeeded", None, 0), pod_for_s=15.0, heartbeat_age_s=20.1)
    action = decide(begun(submitted()), ended, LIMITS)
    assert isinstance(action, EndAttempt)
    assert action.cause == "no_heartbeat"


def test_a_second_job_of_a_run_that_left_without_a_word_ends_nothing() -> None:
    """Prefect may start two: the one that found the other at work ends well, and the other goes on."""
    both = replace(AT_WORK, pod=pod("succeeded", None, 0), pod_for_s=1e6)
    assert decide(begun(submitted()), both, LIMITS) == Nothing()


def test_a_job_that_somebody_deleted_is_not_the_releases_fault() -> None:
    gone = replace(AT_WORK, run=Run.ENDED, run_for_s=31.0, pod=None, heartbeat_age_s=40.0)
    action = decide(begun(submitted()), gone, LIMITS)
    assert isinstance(action, EndAttempt)
    assert action.cause == "evicted"
    assert decide(begun(submitted()), replace(gone, dark_for_s=6.0), LIMITS) == Nothing()


def test_a_job_that_is_gone_while_prefect_still_says_running() -> None:
    """Nobody watched it go: it is not the release's silence."""
    gone = replace(AT_WORK, pod=None, pod_for_s=15.1, heartbeat_age_s=130.0)
    action = decide(begun(submitted()), gone, LIMITS)
    assert isinstance(action, EndAttempt)
    assert action.cause == "evicted"


def test_a_registry_that_is_away_uses_up_nobodys_tries() -> None:
    """Each time it is waited for longer, so that an hour without it is no failure of a request."""
    state, waited = submitted(max_attempts=1), 0.0
    for _ in range(6):
        pulls = replace(IN_CLUSTER, pod=pod("pending", Trouble.IMAGE_PULL))
        seconds = 60.0
        while decide(begun(state), replace(pulls, pod_for_s=seconds), LIMITS) == Nothing():
            seconds += 60.0
        waited += seconds
        state = act(begun(state), decide(begun(state), replace(pulls, pod_for_s=seconds), LIMITS))
        assert isinstance(decide(state, Sight(), LIMITS), StartAttempt)
    assert waited > 3600.0


def test_what_is_full_everywhere_keeps_its_place_in_the_end() -> None:
    state = submitted()
    for _ in range(MOST_SPILLS):
        state = failed(begun(state), "unschedulable", "lost")
    waits = replace(IN_CLUSTER, run_for_s=1e6, pod=pod("pending", Trouble.UNSCHEDULABLE), pod_for_s=1e6)
    assert decide(begun(state), replace(waits, other_cloud_open=True), LIMITS) == Nothing()


# --- a region that goes dark ---------------------------------------------------------------------------


@pytest.mark.parametrize("run", [Run.UNKNOWN, Run.NONE, Run.WAITING, Run.PENDING, Run.RUNNING, Run.ENDED])
def test_a_dark_region_loses_its_attempts_whatever_prefect_says(run: Run) -> None:
    dark = replace(AT_WORK, run=run, heartbeat_age_s=25.0, dark_for_s=20.1)
    action = decide(begun(submitted()), dark, LIMITS)
    assert isinstance(action, EndAttempt)
    assert (action.state, action.cause) == (AttemptState.LOST, "dead_region")
    assert not Cause(action.cause).counted
    assert decide(begun(submitted()), replace(dark, dark_for_s=20.0), LIMITS) != action


def test_a_replica_that_alone_cannot_ask_a_cluster_loses_nothing_that_waits_there() -> None:
    """The cloud's worker asks Prefect for work: it is this replica that is blind."""
    blind = replace(IN_CLUSTER, dark_for_s=1e6, polled=True)
    assert decide(begun(submitted()), blind, LIMITS) == Nothing()
    action = decide(begun(submitted()), replace(blind, polled=False), LIMITS)
    assert isinstance(action, EndAttempt)
    assert action.cause == "dead_region"


def test_an_attempt_that_beats_is_not_lost_with_its_api() -> None:
    assert decide(begun(submitted()), replace(AT_WORK, dark_for_s=1e6), LIMITS) == Nothing()


def test_losing_a_region_costs_a_request_none_of_its_tries() -> None:
    state = submitted(max_attempts=1)
    for _ in range(3):
        state = failed(begun(state), "dead_region", "lost")
        assert isinstance(decide(state, Sight(), LIMITS), StartAttempt)


# --- a cloud that is emptied ---------------------------------------------------------------------------


def test_what_runs_on_a_drained_cloud_is_asked_to_leave() -> None:
    assert decide(begun(submitted()), replace(AT_WORK, moving=True), LIMITS) == Evict()
    silent = replace(AT_WORK, moving=True, heartbeat_age_s=120.1)
    assert isinstance(decide(begun(submitted()), silent, LIMITS), EndAttempt)


def test_what_has_not_started_there_goes_elsewhere_at_once() -> None:
    action = decide(begun(submitted()), replace(IN_CLUSTER, moving=True), LIMITS)
    assert isinstance(action, EndAttempt)
    assert (action.state, action.cause) == (AttemptState.SUPERSEDED, "no_capacity")


# --- any sight ----------------------------------------------------------------------------------------

durations = st.sampled_from([0.0, 4.0, 6.0, 16.0, 21.0, 61.0, 121.0, 301.0, 1e6])
sights = st.builds(
    Sight,
    run=st.sampled_from(Run),
    run_for_s=durations,
    said=st.sampled_from([None, "store_away"]),
    started=st.booleans(),
    heartbeat_age_s=st.none() | durations,
    worker=st.sampled_from(Worker),
    moving=st.booleans(),
    dark_for_s=durations,
    cluster=st.just(True),
    pod=st.none()
    | st.builds(
        PodSight,
        phase=st.sampled_from(["pending", "running", "succeeded", "failed"]),
        trouble=st.none() | st.sampled_from(Trouble),
        exit_code=st.sampled_from([None, 0, 1, 75, 137]),
    ),
    pod_for_s=durations,
)


@given(sights)
@settings(max_examples=500, deadline=None)
def test_every_decision_is_one_that_the_journal_takes(sight: Sight) -> None:
    for state in (begun(submitted()), begun(submitted(), Track.CANARY)):
        action = decide(state, sight, LIMITS)
        act(state, action)
        if isinstance(action, EndAttempt):
            assert Cause(action.cause) is not Cause.UNKNOWN


@given(sights)
@settings(max_examples=500, deadline=None)
def test_a_dark_region_never_counts_against_the_release(sight: Sight) -> None:
    dark = replace(sight, dark_for_s=20.1, heartbeat_age_s=None)
    action = decide(begun(submitted()), dark, LIMITS)
    assert isinstance(action, EndAttempt)
    assert action.cause == "dead_region"
