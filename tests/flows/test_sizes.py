"""The journal's sizes become the limits of Prefect's queues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.sizes import Sizes
from lora_ops.errors import NotFoundError, UnreachableError
from tests.flows.reconciler_world import World


def limits(size: int) -> dict[str, int | None]:
    return {"canary": size, "stable": size}


def test_limits_follow_the_journal(tmp_path: Path) -> None:
    world = World(tmp_path)
    sizes = Sizes(world.prefect)
    sizes.tick(world.platform.state())
    sizes.tick(world.platform.state())
    assert world.prefect.limits == {"east": limits(1), "west": limits(1)}
    assert world.prefect.calls == ["limit_queues"] * 2
    world.rollout(sizes={"west": 3})
    sizes.tick(world.platform.state())
    assert world.prefect.limits == {"east": limits(1), "west": limits(3)}
    assert world.prefect.calls == ["limit_queues"] * 3


def test_prefect_away_is_asked_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    sizes = Sizes(world.prefect)
    world.prefect.away = True
    with pytest.raises(UnreachableError):
        sizes.tick(world.platform.state())
    world.prefect.away = False
    sizes.tick(world.platform.state())
    assert set(world.prefect.limits) == {"east", "west"}


def test_a_pool_that_is_missing_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    asked = []

    def limit_queues(pool: str, limits: Any) -> None:
        asked.append(pool)
        if pool == "east":
            raise NotFoundError("no such pool")

    monkeypatch.setattr(world.prefect, "limit_queues", limit_queues)
    Sizes(world.prefect).tick(world.platform.state())
    assert asked == ["east", "west"]
