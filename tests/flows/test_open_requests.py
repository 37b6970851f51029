"""The reconciler's care for requests, killed and cut off at every call: each ends in exactly one result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.context import HEARTBEAT_ENV, STALL_ENV
from flows.open_requests import OpenRequests
from lora_ops import keys
from lora_ops.errors import StoreUnavailable
from lora_ops.gates.samples import Outcome
from lora_ops.reconcile import Limits, Run
from lora_ops.request import AttemptState, Pin, RequestState, ResultState
from lora_ops.state import Track
from tasks.store.faulty import Fault
from tests.flows.reconciler_world import ALIVE, NEW, OLD, SPEC, WRITES, World, counting, drive, nth, patch

ROUTE_AWAY = [Track.CANARY, Track.STABLE]


@dataclass(frozen=True)
class Story:
    """What happens to one request, and how it must end whatever breaks on the way."""

    name: str
    script: tuple[str, ...]
    tracks: tuple[Track, ...]
    states: tuple[str, ...]
    result: ResultState
    rollout: bool = False
    order: dict[str, object] = field(default_factory=dict)
    between: Callable[[World, str], Callable[[int], None]] = lambda world, request: lambda turn: None


def _roll_back(world: World, request: str) -> Callable[[int], None]:
    def between(turn: int) -> None:
        if turn == 2 and world.platform.state().rollout is not None:
            world.record("rolled-back", reason="a gate failed")

    return between


def _cancel(world: World, request: str) -> Callable[[int], None]:
    def between(turn: int) -> None:
        state = world.platform.request(request)
        if turn == 2 and state.result is None and not state.cancel:
            world.platform.record_request(request, "cancel-requested", {})

    return between


STABLE, CANARY = Track.STABLE, Track.CANARY
STORIES = [
    Story("it succeeds", ("succeed",), (STABLE,), ("succeeded",), ResultState.SUCCEEDED),
    Story(
        "its process dies", ("die", "succeed"), (STABLE, STABLE), ("lost", "succeeded"), ResultState.SUCCEEDED
    ),
    Story("it always fails", ("trainer_error",), (STABLE,) * 2, ("failed",) * 2, ResultState.FAILED),
    Story("it always dies", ("die",), (STABLE,) * 2, ("lost",) * 2, ResultState.FAILED),
    Story(
        "the canary fails it",
        ("trainer_error", "succeed"),
        (CANARY, STABLE),
        ("failed", "succeeded"),
        ResultState.SUCCEEDED,
        rollout=True,
    ),
    Story(
        "the canary dies silently",
        ("vanish", "succeed"),
        (CANARY, STABLE),
        ("lost", "succeeded"),
        ResultState.SUCCEEDED,
        rollout=True,
    ),
    Story(
        "rolled back while the canary runs",
        ("hang", "succeed"),
        (CANARY, STABLE),
        ("superseded", "succeeded"),
        ResultState.SUCCEEDED,
        rollout=True,
        between=_roll_back,
    ),
    Story(
        "rolled back while it waits for the canary",
        ("wait", "succeed"),
        (CANARY, STABLE),
        ("superseded", "succeeded"),
        ResultState.SUCCEEDED,
        rollout=True,
        between=_roll_back,
    ),
    Story(
        "cancelled while it runs",
        ("hang",),
        (STABLE,),
        ("superseded",),
        ResultState.CANCELLED,
        between=_cancel,
    ),
    Story(
        "a probe fails on the canary",
        ("trainer_error",),
        (CANARY,),
        ("failed",),
        ResultState.FAILED,
        rollout=True,
        order={"probe": "roll/0", "pin": Pin(cloud="west", track=CANARY)},
    ),
]


@pytest.fixture
def new_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], World]:
    def make() -> World:
        world = World(tmp_path)
        patch(world, monkeypatch)
        return world

    return make


def _told(story: Story, make: Callable[[], World], plan: object = None) -> tuple[World, RequestState]:
    world = make()
    if story.rollout:
        world.rollout()
    request = world.request(**story.order)
    between = story.between(world, request)
    if plan is None:
        return world, drive(world, request, story.script, between=between)
    return world, drive(world, request, story.script, plan, between)  # type: ignore[arg-type]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_whoever_is_killed_after_whatever_call(story: Story, new_world: Callable[[], World]) -> None:
    """Between two writes nothing changes, so a kill on each side of every write is a kill on every line."""
    calls, plan = counting()
    world, state = _told(story, new_world, plan)
    _expect(story, world, state)
    writes = sum(method in WRITES for method, _ in calls)
    assert writes >= 3
    for n in range(writes):
        for fault in (Fault.KILLED_BEFORE, Fault.KILLED_AFTER):
            world, state = _told(story, new_world, nth(n, fault, WRITES))
            _expect(story, world, state)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_any_call_may_be_cut_off(story: Story, new_world: Callable[[], World]) -> None:
    """The same process goes on: the call was lost on its way there, or its answer on its way back."""
    calls, plan = counting()
    _told(story, new_world, plan)
    for n in range(len(calls)):
        for fault in (Fault.NO_REQUEST, Fault.NO_ANSWER):
            world, state = _told(story, new_world, nth(n, fault))
            _expect(story, world, state)


def _expect(story: Story, world: World, state: RequestState) -> None:
    assert state.result is not None
    assert state.result.state is story.result
    assert tuple(each.track for each in state.attempts) == story.tracks
    assert tuple(each.state.value for each in state.attempts) == story.states
    for attempt in state.attempts:
        run = world.prefect.run_of(state.id, attempt.n)
        assert run.deployment == f"train/{attempt.cloud}"
        assert run.queue == attempt.track.value
        assert run.env["PYTHONPATH"].endswith(attempt.digest.removeprefix("sha256:"))
        assert attempt.digest == (NEW if attempt.track is Track.CANARY else OLD)


def test_reconcilers_race(new_world: Callable[[], World]) -> None:
    """Four of them at the same store and Prefect: one result and one run an attempt all the same."""
    world = new_world()
    world.rollout(weight=50)
    requests = [world.request() for _ in range(12)]
    reconcilers = [world.reconciler() for _ in range(4)]
    for _ in range(12):
        threads = [threading.Thread(target=each.tick, args=(ALIVE,)) for each in reconcilers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        world.work(("die", "succeed"))
        world.now += 10.0
    for request in requests:
        state = world.platform.request(request)
        assert state.result is not None
        assert state.result.state is ResultState.SUCCEEDED
        assert [each.state for each in state.attempts] == [AttemptState.LOST, AttemptState.SUCCEEDED]
    assert len(world.prefect.by_key) == 24
    assert not world.store.list("open")


def test_a_tick_without_prefect_leaves_all_as_it_is(new_world: Callable[[], World]) -> None:
    world = new_world()
    request = world.request()
    reconciler = world.reconciler()
    reconciler.tick(ALIVE)
    world.prefect.away = True
    for _ in range(50):
        world.now += 60.0
        reconciler.tick(ALIVE)
    assert world.platform.request(request).attempts[0].state is AttemptState.OPEN
    world.prefect.away = False
    reconciler.tick(ALIVE)
    world.work(("succeed",))
    reconciler.tick(ALIVE)
    world.check_over(request)


def test_a_prefect_that_lost_its_database_gets_the_run_again(new_world: Callable[[], World]) -> None:
    world = new_world()
    request = world.request()
    reconciler = world.reconciler()
    reconciler.tick(ALIVE)
    world.prefect.by_key.clear()
    reconciler.tick(ALIVE)
    world.work(("succeed",))
    reconciler.tick(ALIVE)
    assert world.check_over(request).attempts[0].state is AttemptState.SUCCEEDED


def test_without_the_store_nothing_is_done(new_world: Callable[[], World]) -> None:
    world = new_world()
    world.request()
    reconciler = world.reconciler(lambda method, key: Fault.NO_REQUEST)
    with pytest.raises(StoreUnavailable):
        reconciler.tick(ALIVE)
    assert not world.prefect.by_key


def test_a_clock_that_cannot_be_read_routes_to_stable(new_world: Callable[[], World]) -> None:
    world = new_world()
    world.rollout(weight=100)
    request = world.request()
    world.reconciler().tick(ALIVE)
    assert world.platform.request(request).attempts[0].track is Track.CANARY
    cut: list[Fault] = []
    blind = world.reconciler(lambda method, key: cut[0] if cut and key.startswith("clock/") else None)
    blind.platform.clock.now()
    cut.append(Fault.NO_REQUEST)
    blind.platform.clock._failed_at = blind.platform.clock._monotonic() - 60  # it is due to be measured anew
    second = world.request()
    blind.tick(ALIVE)
    assert world.platform.request(second).attempts[0].track is Track.STABLE


def test_a_lapsed_lease_moves_what_has_not_started(new_world: Callable[[], World]) -> None:
    """Waiting canary attempts go to stable; one that runs goes on; new ones are not created."""
    world = new_world()
    world.rollout(weight=100, lease_s=5.0)
    waiting, running = world.request(), world.request()
    reconciler = world.reconciler()
    reconciler.tick(ALIVE)
    world.start(running, world.platform.request(running).attempts[0])
    clock = reconciler.platform.clock
    measured = clock._monotonic
    clock._monotonic = lambda: measured() + 20.0  # the store's time, twenty seconds later
    clock._offset = clock._offset._replace(measured=measured() + 20.0)  # type: ignore[union-attr]
    reconciler.tick(ALIVE)
    assert [each.track for each in world.platform.request(waiting).attempts] == ROUTE_AWAY
    assert [each.track for each in world.platform.request(running).attempts] == [Track.CANARY]
    later = world.request()
    reconciler.tick(ALIVE)
    assert world.platform.request(later).attempts[0].track is Track.STABLE


def test_a_silent_death_counts_only_while_its_worker_lives(new_world: Callable[[], World]) -> None:
    """The worker of the attempt, not one that was started in its place."""
    world = new_world()
    reconciler = world.reconciler()
    reconciler.limits = Limits(heartbeat_deadline_s=-1.0)
    mine, others = world.request(), world.request()
    reconciler.tick(ALIVE)
    world.work(("hang",))
    replaced = {cloud: frozenset({f"{cloud}-2"}) for cloud in ALIVE}
    for request, workers in ((mine, ALIVE), (others, replaced)):
        reconciler.store.delete(keys.open_marker(others if request == mine else mine))
        reconciler.store.put(keys.open_marker(request), b"{}")
        for _ in range(2):  # without a marker it is forgotten, so that its run is looked for first
            reconciler.tick(workers)
    assert world.platform.request(mine).attempts[0].cause == "no_heartbeat"
    assert world.platform.request(others).attempts[0].cause == "lost_worker"
    assert world.prefect.run_of(mine, 1).name == "Cancelling"
    assert world.prefect.run_of(others, 1).name == "Cancelled"  # nobody is left who would end it


def test_a_run_that_could_not_reach_prefect_is_no_fault_of_its_release(
    new_world: Callable[[], World],
) -> None:
    """As far as a worker can tell, it ended before contact: but its exit code says why."""
    world = new_world()
    rollout = world.rollout()
    request = world.request()
    reconciler = world.reconciler()
    reconciler.tick(ALIVE)
    run = world.prefect.run_of(request, 1)
    run.run, run.name = Run.ENDED, "Crashed"
    run.detail = "Flow run infrastructure exited with non-zero status code 75. Unknown."
    reconciler.tick(ALIVE)
    world.now += 10.0
    reconciler.tick(ALIVE)
    attempt = world.platform.request(request).attempts[0]
    assert (attempt.state, attempt.cause) == (AttemptState.LOST, "prefect_away")
    _, samples = world.platform.attempts(rollout.id)
    assert [sample.outcome for sample in samples] == [Outcome.UNCOUNTED]


def test_a_run_that_was_given_up_by_a_dead_reconciler_is_ended(new_world: Callable[[], World]) -> None:
    """Killed between `lost` and the cancel: the run would keep its slot for ever."""
    world = new_world()
    request = world.request()
    first = world.reconciler()
    first.tick(ALIVE)
    world.work(("hang",))
    n = world.platform.request(request).attempts[0].n
    lost = {"n": n, "cause": "no_heartbeat", "message": "silent"}
    world.platform.record_request(request, "attempt-lost", lost)
    world.reconciler().tick(ALIVE)
    assert world.prefect.run_of(request, n).run is Run.CANCELLED
    assert world.platform.request(request).attempts[1].state is AttemptState.OPEN


def test_a_dark_cloud_is_spared_while_another_is_open(new_world: Callable[[], World]) -> None:
    world = new_world()
    reconciler = world.reconciler()
    requests = [world.request() for _ in range(8)]
    reconciler.tick(ALIVE, frozenset({"east"}))
    assert {world.platform.request(each).attempts[0].cloud for each in requests} == {"west"}
    last = world.request(pin=Pin(cloud="east"), verifies="roll/promoted")
    reconciler.tick(ALIVE, frozenset({"east"}))
    assert world.platform.request(last).attempts[0].cloud == "east"


def test_a_cloud_that_left_the_spec_keeps_nothing(new_world: Callable[[], World]) -> None:
    world = new_world()
    world.platform.record("cloud-set", {"name": "north", "stable": OLD, "share": 1000.0})
    request = world.request(cloud="north")
    reconciler = world.reconciler()
    reconciler.tick({**ALIVE, "north": frozenset({"north-1"})})
    world.platform.record("cloud-drained", {"cloud": "north"})
    world.reconciler().tick(ALIVE)
    attempts = world.platform.request(request).attempts
    assert (attempts[0].cloud, attempts[0].cause) == ("north", "no_capacity")
    assert attempts[-1].cloud in ALIVE
    assert attempts[-1].state is AttemptState.OPEN


def test_a_marker_of_a_dead_submitter_is_cleared_away(
    new_world: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world()
    world.store.put(keys.open_marker("req-000000000000000"), b"{}")
    monkeypatch.setattr("lora_ops.reconcile.ABANDON_AFTER_S", -1.0)
    world.reconciler().tick(ALIVE)
    state = world.platform.request("req-000000000000000")
    assert state.result is not None
    assert state.result.state is ResultState.ABANDONED
    assert not world.store.list("open")


def _hanging(world: World) -> tuple[OpenRequests, str]:
    """A request whose attempt runs and never ends."""
    request = world.request()
    reconciler = world.reconciler()
    reconciler.tick(ALIVE)
    world.work(("hang",))
    reconciler.tick(ALIVE)
    return reconciler, request


def _heard_long_ago(reconciler: OpenRequests) -> None:
    """The store's clock is far beyond the last heartbeat."""
    later = SimpleNamespace(earliest=1e11, latest=1e11)
    reconciler.platform.clock = SimpleNamespace(now=lambda: later, ok=True)  # type: ignore[assignment]


def test_silence_is_given_up(new_world: Callable[[], World]) -> None:
    world = new_world()
    reconciler, request = _hanging(world)
    _heard_long_ago(reconciler)
    reconciler.tick(ALIVE)
    assert world.platform.request(request).attempts[0].cause == "no_heartbeat"


def test_silence_counts_from_the_return_of_a_store_that_was_away(new_world: Callable[[], World]) -> None:
    world = new_world()
    away: list[bool] = []
    reconciler = world.reconciler(lambda method, key: Fault.NO_REQUEST if away else None)
    request = world.request()
    reconciler.tick(ALIVE)
    world.work(("hang",))
    reconciler.tick(ALIVE)
    away.append(True)
    with pytest.raises(StoreUnavailable):
        reconciler.tick(ALIVE)
    away.clear()
    world.now += 3600.0
    _heard_long_ago(reconciler)
    for _ in range(2):
        reconciler.tick(ALIVE)
        assert world.platform.request(request).attempts[0].state is AttemptState.OPEN
    world.now += SPEC.requests.heartbeat_deadline + 1
    reconciler.tick(ALIVE)
    assert world.platform.request(request).attempts[0].cause == "no_heartbeat"


def test_a_double_that_ended_its_own_run_does_not_end_the_attempt(new_world: Callable[[], World]) -> None:
    """Prefect lost its database: the second run gives its slot back, the first process goes on."""
    world = new_world()
    reconciler, request = _hanging(world)
    world.prefect.by_key.clear()
    reconciler.tick(ALIVE)
    double = world.prefect.run_of(request, 1)
    double.run, double.name = Run.CANCELLED, "Duplicate"
    for _ in range(5):
        world.now += 10.0
        reconciler.tick(ALIVE)
    assert world.platform.request(request).attempts[0].state is AttemptState.OPEN
    _heard_long_ago(reconciler)
    reconciler.tick(ALIVE)
    assert world.platform.request(request).attempts[0].cause == "no_heartbeat"


def test_a_dark_cloud_gets_nothing_while_another_is_open(new_world: Callable[[], World]) -> None:
    """Not even what was lost on the other one."""
    world = new_world()
    reconciler = world.reconciler()
    requests = [world.request() for _ in range(12)]
    for _ in range(4):
        reconciler.tick(ALIVE, frozenset({"west"}))
        world.work(("die", "succeed"))
        world.now += 10.0
    for request in requests:
        attempts = world.platform.request(request).attempts
        assert [each.cloud for each in attempts] == ["east", "east"]


def test_a_probe_waits_for_its_cloud(new_world: Callable[[], World]) -> None:
    world = new_world()
    rollout = world.rollout()
    probes = [
        world.request(probe=f"{rollout.id}/0", pin=Pin(cloud="west", track=track)) for track in ROUTE_AWAY
    ]
    reconciler = world.reconciler()
    reconciler.tick({**ALIVE, "west": frozenset()})
    assert not any(world.platform.request(probe).attempts for probe in probes)
    reconciler.tick(ALIVE)
    assert [world.platform.request(probe).attempts[0].track for probe in probes] == ROUTE_AWAY


def test_a_probe_of_a_closed_cloud_ends_with_its_rollout(new_world: Callable[[], World]) -> None:
    world = new_world()
    rollout = world.rollout()
    stable = world.request(probe=f"{rollout.id}/0", pin=Pin(cloud="west", track=Track.STABLE))
    world.record("rolled-back", reason="a gate failed")
    world.reconciler().tick({**ALIVE, "west": frozenset()})
    result = world.platform.request(stable).result
    assert result is not None
    assert result.state is ResultState.CANCELLED


def test_an_attempt_is_told_its_deadlines(new_world: Callable[[], World]) -> None:
    world = new_world()
    request = world.request()
    world.reconciler().tick(ALIVE)
    env = world.prefect.run_of(request, 1).env
    assert float(env[STALL_ENV]) == SPEC.requests.stall_deadline == 1800
    assert float(env[HEARTBEAT_ENV]) == SPEC.requests.heartbeat_deadline
