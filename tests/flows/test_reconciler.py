"""One turn of the reconciler: its parts do not hold each other up."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import reconciler as module
from flows.reconciler import Reconciler
from lora_ops.errors import UnreachableError
from lora_ops.state import Phase
from tests.flows.reconciler_world import SPEC, World, patch
from tests.flows.site import eventually


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    patch(made, monkeypatch)
    return made


def _reconciler(world: World) -> Reconciler:
    return Reconciler(world.platform, world.prefect, SPEC, world.home)


def test_a_turn_takes_all_of_it(world: World) -> None:
    rollout = world.rollout(weight=0)
    request = world.request()
    reconciler = _reconciler(world)
    reconciler.tick()
    assert reconciler.health() == {"east": True, "west": True}
    assert set(world.prefect.by_key) == {f"{rollout.id}-0", f"{request}-1"}
    assert reconciler.run_url(request, 1) is not None
    assert reconciler.run_url(request, 2) is None


def test_without_prefect_the_store_s_part_is_done(world: World) -> None:
    """An abandoned rollout is rolled back, and a request that is over loses its marker."""
    world.rollout(abandon_after_s=-1.0)
    request = world.request()
    world.platform.record_request(request, "cancel-requested", {})
    world.platform.record_request(request, "result", {"state": "cancelled"})
    world.prefect.away = True
    with pytest.raises(UnreachableError):
        world.prefect.runs(["any"])
    reconciler = _reconciler(world)
    reconciler.tick()
    assert not world.store.list("open")
    assert world.platform.state().finished[-1].phase is Phase.ROLLED_BACK
    assert reconciler.health() == {}


def test_a_worker_that_comes_is_seen_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is missing it is asked at every turn; else now and then."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    live, world.prefect.live = world.prefect.live, {"west": {"west-1": 1.0}}
    reconciler = _reconciler(world)
    request = world.request(cloud="east")
    reconciler.tick()
    assert reconciler.health() == {"east": False, "west": True}
    assert world.platform.request(request).attempts[0].cloud == "west"
    world.prefect.live = live
    now[0] += 1.0
    reconciler.tick()
    assert reconciler.health() == {"east": True, "west": True}
    now[0] += 1.0
    reconciler.tick()
    asked = world.prefect.calls.count("workers")
    now[0] += 1.0
    reconciler.tick()
    assert world.prefect.calls.count("workers") == asked


def test_the_thread_starts_and_stops(world: World) -> None:
    reconciler = Reconciler(world.platform, world.prefect, SPEC, world.home, every_s=0.001)
    request = world.request()
    reconciler.start()
    eventually(lambda: f"{request}-1" in world.prefect.by_key, "the thread has ticked", 30)
    reconciler.stop()
    assert reconciler._thread is not None
    assert not reconciler._thread.is_alive()
