"""Prefect's form approves the wave that it asked about, however late its answer comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.states import State

from flows import approve as module
from flows.approve import Approval
from lora_ops.state import Phase
from tests.flows.reconciler_world import World


class _Quiet:
    def warning(self, *words: object) -> None: ...


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A rollout of two waves; the first awaits approval."""
    made = World(tmp_path)
    made.rollout(
        waves=[["east"], ["west"]], approval=True, accept_unverified_approval=True, verify_timeout_s=-1.0
    )
    made.record("approval-requested", wave=0)
    return made


def _next_wave_awaits(world: World) -> None:
    world.record("approved", by="ann", wave=0)
    world.record("wave-promoted", wave=0)
    world.record("step-started", wave=1, step=0)
    world.record("approval-requested", wave=1)


def _answer(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[], None] = lambda: None,
    wave: int | None = None,
    **form: Any,
) -> State[Any]:
    """What the flow ends as when a person fills the form in after `before`."""

    async def filled(**_: Any) -> Approval:
        before()
        return Approval(**form)

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(module, "pause_flow_run", filled)
    monkeypatch.setattr(module, "get_run_logger", _Quiet)
    monkeypatch.setattr(module, "_decided", never)
    monkeypatch.setattr(module, "flow_context", lambda actor: SimpleNamespace(platform=world.platform))
    ended: State[Any] = asyncio.run(module.approve.fn(world.active.id, wave=wave))
    return ended


@pytest.mark.parametrize("wave", [0, None])
def test_the_form_approves_its_wave(world: World, monkeypatch: pytest.MonkeyPatch, wave: int | None) -> None:
    assert _answer(world, monkeypatch, approve=True, name="Cid", wave=wave).is_completed()
    assert world.active.approved
    assert world.platform.history()[-1].document["data"]["wave"] == 0


@pytest.mark.parametrize("wave", [0, None])
def test_a_form_that_is_sent_late_does_not_approve_the_next_wave(
    world: World, monkeypatch: pytest.MonkeyPatch, wave: int | None
) -> None:
    ended = _answer(world, monkeypatch, lambda: _next_wave_awaits(world), approve=True, wave=wave)
    assert ended.is_failed()
    assert "this approves wave 1, but wave 2" in str(ended.message)
    assert (world.active.phase, world.active.approved) == (Phase.AWAITING_APPROVAL, False)


def test_a_form_is_withdrawn_when_another_wave_awaits_approval(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _next_wave_awaits(world)
    name = world.active.id
    asyncio.run(asyncio.wait_for(module._decided(world.platform, name, 0), 10))
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(module._decided(world.platform, name, 1), 0.2))
