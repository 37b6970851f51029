"""Leases on the store's clock, judged by processes whose own clocks are anything."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lora_ops.lease import canary_open, due, lease_until, may_start, needs_lease, renews_from
from lora_ops.state import Phase, Rollout
from tests.lora_ops.worlds import NEW, OLD, drive, platform, policy, started, step

times = st.floats(0, 1e5)


@dataclass(frozen=True)
class Clock:
    """A process's clock: wrong by `skew_s`, measured once by a write that takes `round_trip_s`."""

    skew_s: float
    round_trip_s: float
    lands: float  # when in the round trip the store writes, 0 to 1
    resolution_s: float

    def stamp(self, store_now: float) -> float:
        """`last_modified` of what the store writes now: never later than now, at most a tick earlier."""
        return math.floor(store_now / self.resolution_s) * self.resolution_s

    def latest(self, measured_at: float, store_now: float) -> float:
        """The pessimistic end of `now`, as the process works it out at the store's time `store_now`."""
        before = measured_at + self.skew_s
        written = self.stamp(measured_at + self.lands * self.round_trip_s)
        offset_high = written + self.resolution_s - before
        return store_now + self.skew_s + offset_high


clocks = st.builds(
    Clock,
    skew_s=st.floats(-1e6, 1e6),
    round_trip_s=st.floats(0, 5),
    lands=st.floats(0, 1),
    resolution_s=st.sampled_from([0.001, 1.0, 2.0]),
)


@given(clocks, st.lists(times, max_size=5), times, times, st.floats(5, 3600))
@settings(max_examples=500, deadline=None)
def test_no_attempt_starts_after_the_lease_on_the_stores_clock(
    clock: Clock, looks: list[float], began: float, decides_at: float, lease_s: float
) -> None:
    measured_at = max(0.0, decides_at - 30)
    assume(measured_at + clock.round_trip_s <= decides_at)
    until = lease_until(clock.stamp(began), [clock.stamp(look) for look in looks], lease_s)
    truly = max([began, *looks]) + lease_s
    slack = 1e-6  # rounding of floats: skews are up to a million seconds
    if may_start(clock.latest(measured_at, decides_at), until):
        assert decides_at < truly + slack
    blind_s = clock.round_trip_s + 2 * clock.resolution_s
    if decides_at < truly - blind_s - slack:
        assert may_start(clock.latest(measured_at, decides_at), until), "pessimistic beyond what is unknown"


def test_a_lease_ends_at_its_end_and_there_may_be_none() -> None:
    assert may_start(99.9, 100.0)
    assert not may_start(100.0, 100.0)
    assert not may_start(0.0, None)
    assert not may_start(math.nan, 100.0)


@given(times, st.lists(times), times, st.floats(5, 3600))
def test_a_look_only_ever_prolongs_a_lease(
    began: float, looks: list[float], look: float, lease_s: float
) -> None:
    before = lease_until(began, looks, lease_s)
    after = lease_until(began, [*looks, look], lease_s)
    assert after == max(before, look + lease_s)
    assert before >= began + lease_s


@given(times, times, times, st.floats(5, 3600), st.integers(0, 2), st.integers(0, 2))
def test_a_lease_outlives_its_evidence_by_no_more_than_its_length(
    gathered: float, suspended_s: float, began: float, lease_s: float, epoch: int, of: int
) -> None:
    """However long a flow is suspended between judging and writing, and whoever has taken over since."""
    since = renews_from(of, gathered + suspended_s, gathered, epoch, began)
    assert since is None or lease_until(0.0, [since], lease_s) == gathered + lease_s
    assert (since is None) == (of < epoch and gathered + suspended_s >= began)


def test_a_look_of_old_counts_from_its_writing_and_an_epoch_that_began_unseen_fences_all() -> None:
    assert renews_from(0, 50.0, None, 0, None) == 50.0
    assert renews_from(0, 50.0, 60.0, 0, None) == 50.0
    assert renews_from(0, 50.0, 40.0, 1, None) is None
    assert renews_from(1, 50.0, 40.0, 1, 30.0) == 40.0


@pytest.mark.parametrize(
    ("age_s", "changed", "wanted"),
    [(0, True, True), (0, False, False), (29, False, False), (30, False, True)],
)
def test_a_look_is_due_when_the_counts_changed_or_half_of_the_lease_is_gone(
    age_s: float, changed: bool, wanted: bool
) -> None:
    assert due(age_s, 60, changed) is wanted


def test_only_a_canary_needs_a_lease() -> None:
    assert {phase for phase in Phase if needs_lease(phase)} == {Phase.CANARYING, Phase.AWAITING_APPROVAL}


def rollout_after(steps: int) -> Rollout:
    rules = policy([("a",), ("b", "c")], plan=(10, 100))
    state = drive(step(platform(), started(rules=rules)), steps)
    assert state.rollout is not None
    return state.rollout


def test_a_canary_is_open_for_its_own_release_in_waves_that_have_come() -> None:
    """Also after its promotion: what was queued for the canary runs the same digest."""
    opened = {
        steps: [cloud for cloud in "abc" if canary_open(rollout_after(steps), "roll-1", cloud, NEW)]
        for steps in (0, 4, 5, 7, 8, 10, 11)
    }
    assert opened == {0: [], 4: [], 5: ["a"], 7: ["a"], 8: list("abc"), 10: list("abc"), 11: list("abc")}
    rollout = rollout_after(8)
    assert not canary_open(None, "roll-1", "a", NEW)
    assert not canary_open(rollout, "roll-0", "a", NEW)
    assert not canary_open(rollout, "roll-1", "a", OLD)
    assert not canary_open(rollout, "roll-1", "x", NEW)
