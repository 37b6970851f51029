from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.errors import StoreUnavailable
from tasks.clock import MAX_DRIFT, REMEASURE_S, RETRY_S, Interval, StoreClock, monotonic
from tasks.store import Object, Store, open_store
from tasks.store.faulty import Fault, FaultyStore


class World:
    """True time, a machine with a drifting monotonic clock, a store with a skewed clock."""

    def __init__(self, boot: float, drift: float, skew: float, resolution: float) -> None:
        self.true = 1_800_000_000.0
        self.start = self.true
        self.boot, self.drift, self.skew, self.resolution = boot, drift, skew, resolution

    def monotonic(self) -> float:
        return self.boot + (self.true - self.start) * (1 + self.drift)

    def store_time(self) -> float:
        return self.true + self.skew


class TimedStore(FaultyStore):
    """A memory store on `world`'s clock; a put takes `way_there` and `way_back`."""

    def __init__(self, world: World, way_there: float = 0.0, way_back: float = 0.0) -> None:
        super().__init__(open_store("memory://"), lambda method, key: self.fault)
        self.world, self.way_there, self.way_back = world, way_there, way_back
        self.time_resolution = world.resolution
        self.fault: Fault | None = None
        self.written = 0.0

    def put(self, key: str, data: bytes) -> None:
        self.world.true += self.way_there
        super().put(key, data)
        self.written = self.world.store_time()
        self.world.true += self.way_back

    def get(self, key: str) -> Object:
        found = super().get(key)
        self.world.true += self.way_there + self.way_back
        rounded = math.floor(self.written / self.time_resolution) * self.time_resolution
        return Object(found.key, found.data, rounded)


seconds = st.floats(min_value=0, max_value=5)


@settings(deadline=None)  # other work on the machine must not fail it
@given(
    boot=st.floats(min_value=0, max_value=1e7),
    drift=st.floats(min_value=-2e-4, max_value=2e-4),
    skew=st.floats(min_value=-1e8, max_value=1e8),
    resolution=st.sampled_from([1.0, 0.01, 0.001]),
    way_there=seconds,
    way_back=seconds,
    waits=st.lists(st.floats(min_value=0, max_value=500), max_size=6),
)
def test_the_interval_holds_the_stores_time(
    boot: float,
    drift: float,
    skew: float,
    resolution: float,
    way_there: float,
    way_back: float,
    waits: list[float],
) -> None:
    world = World(boot, drift, skew, resolution)
    store = TimedStore(world, way_there, way_back)
    clock = StoreClock(store, "me", world.monotonic)
    for wait in [0.0, *waits]:
        world.true += wait
        now = clock.now()
        assert now.earliest - 1e-5 <= world.store_time() <= now.latest + 1e-5
        assert clock.ok
        # The way back of the answer, the resolution, and a minute's drift on either side: no wider than that.
        assert now.latest - now.earliest <= way_there + way_back + resolution + 0.1


def a_world(resolution: float = 1.0) -> World:
    return World(boot=500.0, drift=0.0, skew=-3600.0, resolution=resolution)


def puts(store: FaultyStore) -> int:
    return sum(method == "put" for method, _ in store.calls)


def test_it_measures_once_a_minute() -> None:
    world = a_world()
    store = TimedStore(world)
    clock = StoreClock(store, "me", world.monotonic)
    for _ in range(100):
        clock.now()
    assert puts(store) == 1
    world.true += REMEASURE_S - 1
    clock.now()
    assert puts(store) == 1
    world.true += 1
    clock.now()
    assert puts(store) == 2
    assert store.calls[0] == ("put", "clock/me")


def test_a_skewed_wall_clock_does_not_matter_and_a_moved_store_is_followed() -> None:
    world = a_world()
    clock = StoreClock(TimedStore(world), "me", world.monotonic)
    assert clock.now().earliest <= world.store_time()
    world.skew += 7200
    world.true += REMEASURE_S
    now = clock.now()
    assert now.earliest <= world.store_time() <= now.latest


@pytest.mark.parametrize("fault", [Fault.NO_REQUEST, Fault.NO_ANSWER])
def test_a_store_that_never_answered_gives_no_time(fault: Fault) -> None:
    world = a_world()
    store = TimedStore(world)
    store.fault = fault
    clock = StoreClock(store, "me", world.monotonic)
    assert not clock.ok
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        clock.now()


def test_a_store_that_goes_away_makes_it_not_ok_and_the_interval_wider() -> None:
    world = a_world(resolution=0.01)
    store = TimedStore(world)
    clock = StoreClock(store, "me", world.monotonic)
    width = clock.now().latest - clock.now().earliest
    store.fault = Fault.NO_REQUEST
    assert clock.ok  # not due yet
    world.true += REMEASURE_S
    assert not clock.ok
    now = clock.now()
    assert now.earliest <= world.store_time() <= now.latest
    assert now.latest - now.earliest == pytest.approx(width + 2 * REMEASURE_S * MAX_DRIFT, abs=1e-6)


def test_after_a_failure_it_tries_again_soon_but_not_at_once() -> None:
    world = a_world()
    store = TimedStore(world)
    store.fault = Fault.NO_REQUEST
    clock = StoreClock(store, "me", world.monotonic)
    for _ in range(10):
        assert not clock.ok
    assert puts(store) == 1
    store.fault = None
    world.true += RETRY_S
    assert clock.ok
    assert clock.now().earliest <= world.store_time()


def test_another_process_of_the_same_name_is_no_measurement() -> None:
    world = a_world()

    class Overwritten(TimedStore):
        def put(self, key: str, data: bytes) -> None:
            super().put(key, b"theirs")

    assert not StoreClock(Overwritten(world), "me", world.monotonic).ok


def test_on_a_real_store(file_store: Store) -> None:
    clock = StoreClock(file_store, "me")
    assert clock.ok
    before = clock.now()
    file_store.put("a", b"")
    after = clock.now()
    written = file_store.head("a").last_modified
    assert before.earliest <= written + file_store.time_resolution
    assert written <= after.latest
    assert isinstance(before, Interval)


def test_closing_removes_its_object(memory_store: Store) -> None:
    clock = StoreClock(memory_store, "me")
    assert clock.ok
    assert [m.key for m in memory_store.list("clock")] == ["clock/me"]
    clock.close()
    assert memory_store.list("clock") == []
    StoreClock(FaultyStore(memory_store, lambda method, key: Fault.NO_REQUEST), "me").close()


def test_the_monotonic_clock_does_not_go_back() -> None:
    readings = [monotonic() for _ in range(100)]
    assert readings == sorted(readings)
