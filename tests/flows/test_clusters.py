"""What serve does about the Jobs of clusters, on snapshots of a stand-in watch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from flows import clusters as module
from flows.clusters import FAREWELL_S, FRESH_S, Clusters
from lora_ops.pods import PodSight, Trouble
from lora_ops.state import AppState
from tasks.cluster.watch import ClusterWatch, SeenJob, Snapshot
from tests.flows.reconciler_world import World, patch


class Watch:
    """A stand-in: what it shows is set, what is to be deleted is kept."""

    def __init__(self) -> None:
        self.answered: float | None = time.monotonic()
        self.jobs: list[SeenJob] = []
        self.discarded: list[str] = []

    def snapshot(self) -> Snapshot:
        return Snapshot(self.answered, "", tuple(self.jobs))

    def discard(self, name: str) -> None:
        self.discarded.append(name)

    def show(self, name: str, request: str = "", n: int = 0, **changes: Any) -> None:
        facts: dict[str, Any] = {"labels": {}, "created": 1.0, "active": True, "sight": PodSight("running")}
        self.jobs.append(SeenJob(name, request, n, "east", **{**facts, **changes}))


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def clusters(watch: Watch) -> Clusters:
    return Clusters({"east": cast(ClusterWatch, watch)})


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    patch(made, monkeypatch)
    return made


def test_of_two_jobs_the_one_that_runs_is_the_attempts(watch: Watch, clusters: Clusters) -> None:
    watch.show("first", "r", 1)
    watch.show("second", "r", 1, created=2.0, active=False, sight=PodSight("succeeded"))
    found = clusters.pod("east", ("r", 1))
    assert found is not None
    assert found.phase == "running"
    assert clusters.pod("east", ("r", 2)) is None
    assert clusters.discard("east", ("r", 1))
    assert watch.discarded == ["first"]
    assert not clusters.discard("east", ("r", 2))


def test_trouble_is_told_only_while_the_api_answers(watch: Watch, clusters: Clusters) -> None:
    watch.show("job", "r", 1, sight=PodSight("pending", Trouble.UNSCHEDULABLE, "No node can take it."))
    assert clusters.trouble("east", ("r", 1)) == "No node can take it."
    assert clusters.trouble("west", ("r", 1)) == ""
    watch.answered = time.monotonic() - FRESH_S
    assert clusters.trouble("east", ("r", 1)) == ""
    assert not clusters.fresh("east")
    assert clusters.silent_s("west") == 0.0


def test_the_sweep_takes_what_was_given_up_and_nothing_else(
    watch: Watch, clusters: Clusters, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]

    class _Time:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr(module, "time", _Time)
    watch.answered = 1000.0
    lost, ended, running = (world.request() for _ in range(3))
    for request in (lost, ended, running):
        data = {"cloud": "east", "track": "stable", "digest": "sha256:x", "rollout": None, "trial": False}
        world.platform.record_request(request, "attempt-started", data)
    world.platform.record_request(lost, "attempt-lost", {"n": 1, "cause": "dead_region", "message": ""})
    world.platform.record_request(ended, "attempt-failed", {"n": 1, "cause": "trainer_error", "message": ""})
    watch.show("zombie", lost, 1)
    watch.show("leaving", ended, 1)
    watch.show("training", running, 1)
    watch.show("elsewhere", "req-nobody-knows", 1)
    watch.show("done", lost, 1, active=False, sight=PodSight("succeeded"))
    watch.show("first-check", labels={"lora-ops/rollout": "first"})
    watch.show("old-check", labels={"lora-ops/rollout": "roll-old"})
    state = AppState(app="loras")
    clusters.sweep(world.platform, state, {(running, 1)})
    assert sorted(watch.discarded) == ["old-check", "zombie"]
    clusters.sweep(world.platform, state, set())
    assert "training" not in watch.discarded  # the journal says that it is open
    now[0] += FAREWELL_S + 1
    watch.answered = now[0]
    clusters.sweep(world.platform, state, {(running, 1)})
    assert "leaving" in watch.discarded
    assert not {"elsewhere", "training", "done", "first-check"} & set(watch.discarded)


def test_a_region_that_does_not_answer_is_not_swept(watch: Watch, clusters: Clusters, world: World) -> None:
    watch.show("zombie", world.request(), 1)
    watch.answered = time.monotonic() - FRESH_S
    clusters.sweep(world.platform, AppState(app="loras"), set())
    assert watch.discarded == []


def test_a_drain_survives_the_process_that_read_it(new_world: Callable[[], World]) -> None:
    """A fresh reconciler has seen no run yet: it looks for it instead of forgetting the drain."""
    world = new_world()
    request = world.request(cloud="east")
    workers = {"east": frozenset({"east-1"}), "west": frozenset({"west-1"})}
    world.reconciler().tick(workers)
    world.work(("hang",))
    world.platform.record("cloud-drained", {"cloud": "east", "move": True})
    world.platform.store.put(
        f"requests/{request}/attempts/1/heartbeat.json", b"{}"
    )  # it was heard of a moment ago
    again = world.reconciler()
    for _ in range(3):
        again.tick(workers)
    assert world.prefect.run_of(request, 1).name == "Cancelling"


@pytest.fixture
def new_world(world: World) -> Callable[[], World]:
    return lambda: world
