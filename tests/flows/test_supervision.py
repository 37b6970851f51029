"""A rollout is kept led, whoever dies."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from flows import supervision
from flows.supervision import Supervision
from lora_ops import keys
from lora_ops.errors import UnreachableError
from lora_ops.leading import START_S, pause_s
from lora_ops.reconcile import Run
from lora_ops.state import Phase
from tasks.platform import Platform
from tasks.store.faulty import Fault, FaultyStore, Killed
from tests.flows.reconciler_world import WRITES, Plan, World, later, no_fault, nth, patch


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return _world(tmp_path, monkeypatch)


def _world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    patch(made, monkeypatch)

    class _Time:
        @staticmethod
        def monotonic() -> float:
            return made.now

    monkeypatch.setattr(supervision, "time", _Time)
    return made


def _supervision(world: World, plan: Plan = no_fault) -> Supervision:
    world.prefect.plan = lambda method: plan(method, "")
    return Supervision(Platform(FaultyStore(world.store, plan), "loras", "serve"), world.prefect)


def _beat(world: World, epoch: int = 0) -> None:
    world.store.put(keys.flow(world.active.id), json.dumps({"epoch": epoch}).encode())


def _flow(world: World, epoch: int = 0) -> Any:
    return world.prefect.by_key[f"{world.active.id}-{epoch}"]


# --- its flow ---


def test_a_flow_is_created_once_an_epoch(world: World) -> None:
    rollout = world.rollout()
    for _ in range(2):
        reconciler = _supervision(world)
        reconciler.tick()
        reconciler.tick()
    assert set(world.prefect.by_key) == {f"{rollout.id}-0"}
    run = _flow(world)
    assert run.deployment == "deploy/control"
    assert run.parameters == {"rollout": rollout.id, "epoch": 0}


@pytest.mark.parametrize("how", ["ended", "cancelled", "silent", "never started"])
def test_a_dead_flow_is_started_again_under_the_next_epoch(world: World, how: str) -> None:
    world.rollout()
    reconciler = _supervision(world)
    reconciler.tick()
    run = _flow(world)
    run.run = {
        "ended": Run.ENDED,
        "cancelled": Run.CANCELLED,
        "silent": Run.RUNNING,
        "never started": Run.PENDING,
    }[how]
    if run.run in (Run.RUNNING, Run.PENDING):
        reconciler.tick()
        assert world.active.epoch == 0  # it may be about to speak
        world.now += START_S + 1
    reconciler.tick()
    assert world.active.epoch == 1
    assert run.run in (Run.ENDED, Run.CANCELLED)  # nothing of it holds on to anything in Prefect
    reconciler.tick()
    assert _flow(world, 1).run is Run.WAITING


@pytest.mark.parametrize("run", [Run.PENDING, Run.RUNNING])
def test_a_run_is_judged_from_when_it_was_taken_not_by_its_wait_for_a_worker(world: World, run: Run) -> None:
    world.rollout()
    reconciler = _supervision(world)
    reconciler.tick()
    world.now += 3000.0
    reconciler.tick()
    _flow(world).run = run
    reconciler.tick()
    world.now += 20.0
    reconciler.tick()
    assert world.active.epoch == 0
    world.now += START_S
    reconciler.tick()
    assert world.active.epoch == 1


def test_a_flow_that_nobody_takes_is_given_up_after_its_time(world: World) -> None:
    """No worker ever came: the canary must not wait for it for ever."""
    world.rollout(abandon_after_s=3600.0)
    reconciler = _supervision(world)
    reconciler.tick()
    run = _flow(world)
    later(reconciler.platform, 3500.0)
    reconciler.tick()
    assert world.active.epoch == 0
    later(reconciler.platform, 101.0)
    reconciler.tick()
    assert "nobody led it" in world.platform.state().finished[-1].reason
    assert run.run is Run.CANCELLED


def test_a_flow_that_dies_again_and_again_is_started_again_ever_more_slowly(world: World) -> None:
    world.rollout()
    reconciler = _supervision(world)
    reconciler.tick()
    for epoch in range(4):
        for run in world.prefect.by_key.values():
            run.run = Run.ENDED
        if epoch:
            reconciler = _supervision(world)  # a fresh one waits no longer and no less
            later(reconciler.platform, pause_s(epoch) - 2.0)
            reconciler.tick()
            assert world.active.epoch == epoch
            later(reconciler.platform, 2.0)
        reconciler.tick()
        assert world.active.epoch == epoch + 1
        reconciler.tick()


def test_a_beat_of_an_older_epoch_does_not_speak_for_the_new(world: World) -> None:
    world.rollout()
    reconciler = _supervision(world)
    reconciler.tick()
    world.record("flow-restarted")
    reconciler.tick()
    _flow(world, 1).run = Run.RUNNING
    later(reconciler.platform, 10.0)
    reconciler.tick()
    world.now += 31.0
    _beat(world, epoch=0)
    reconciler.tick()
    assert world.active.epoch == 2


def test_a_flow_that_beats_is_left_alone(world: World) -> None:
    world.rollout()
    reconciler = _supervision(world)
    reconciler.tick()
    _flow(world).run = Run.RUNNING
    world.now += 10_000.0
    _beat(world)
    reconciler.tick()
    assert world.active.epoch == 0


def test_restarts_are_bounded_and_then_it_is_rolled_back(world: World) -> None:
    name = world.rollout(max_restarts=2).id
    reconciler = _supervision(world)
    later(reconciler.platform, 600.0)  # no pause is left to wait for
    for _ in range(12):
        for run in world.prefect.by_key.values():
            run.run = Run.ENDED
        reconciler.tick()
    state = world.platform.state()
    assert state.rollout is None
    assert (state.finished[-1].id, state.finished[-1].phase) == (name, Phase.ROLLED_BACK)
    assert "restarted 2 times" in state.finished[-1].reason
    assert set(world.prefect.by_key) == {f"{name}-{epoch}" for epoch in range(3)}


def test_before_its_canary_it_fails_instead(world: World) -> None:
    policy = world.rollout().policy.model_copy(update={"max_restarts": 0})
    world.record("aborted")
    data = {
        "id": "roll-000000000000009",
        "source": {"path": "/src"},
        "policy": policy.model_dump(mode="json"),
    }
    world.platform.record("rollout-started", data)
    reconciler = _supervision(world)
    reconciler.tick()
    _flow(world).run = Run.ENDED
    reconciler.tick()
    assert world.platform.state().finished[-1].phase is Phase.FAILED


def test_without_prefect_an_abandoned_rollout_is_rolled_back(world: World) -> None:
    """Nobody looks at it any more: the reconciler needs nothing but the store for that."""
    world.rollout(abandon_after_s=3600.0)
    reconciler = _supervision(world)
    reconciler.tick()
    world.prefect.away = True
    with pytest.raises(UnreachableError):
        reconciler.tick()
    assert world.active.phase is Phase.CANARYING
    later(reconciler.platform, 3601.0)
    with pytest.raises(UnreachableError):
        reconciler.tick()
    assert world.platform.state().finished[-1].phase is Phase.ROLLED_BACK


def test_a_silent_flow_is_abandoned_after_its_time(world: World) -> None:
    world.rollout(abandon_after_s=-1.0)
    _beat(world)
    _supervision(world).tick()
    assert world.platform.state().finished[-1].phase is Phase.ROLLED_BACK


def test_a_prefect_that_lost_its_database_gets_the_flow_again(world: World) -> None:
    world.rollout()
    reconciler = _supervision(world)
    reconciler.tick()
    world.prefect.by_key.clear()
    reconciler.tick()
    reconciler.tick()
    assert len(world.prefect.by_key) == 1


def test_the_next_of_the_queue_starts(world: World) -> None:
    rollout = world.rollout()
    queued = {
        "id": "roll-000000000000009",
        "source": {"path": "/other"},
        "policy": rollout.policy.model_dump(mode="json"),
    }
    world.platform.record("rollout-queued", queued)
    reconciler = _supervision(world)
    reconciler.tick()
    assert world.active.id == rollout.id
    world.record("aborted")
    reconciler.tick()
    reconciler.tick()
    assert world.active.id == "roll-000000000000009"
    assert world.platform.state().queue == ()
    assert f"{world.active.id}-0" in world.prefect.by_key


@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
def test_killed_anywhere_while_it_starts_a_flow_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """Whatever was done and whatever not: one epoch more, one run an epoch."""
    for n in range(8):
        world = _world(tmp_path, monkeypatch)
        name = world.rollout().id
        _supervision(world).tick()
        _flow(world).run = Run.ENDED
        with contextlib.suppress(Killed):
            _supervision(world, nth(n, fault, WRITES)).tick()
        last = _supervision(world)
        for _ in range(3):
            last.tick()
        assert world.active.epoch == 1
        assert set(world.prefect.by_key) == {f"{name}-0", f"{name}-1"}


def test_two_reconcilers_start_it_again_once(world: World) -> None:
    world.rollout()
    first, second = _supervision(world), _supervision(world)
    first.tick()
    second.tick()
    _flow(world).run = Run.ENDED
    for _ in range(3):
        for each in (first, second):
            each.tick()
    assert world.active.epoch == 1
