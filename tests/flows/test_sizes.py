"""The journal's sizes become the limits of Prefect's queues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows.sizes import Sizes
from lora_ops.errors import NotFoundError, UnreachableError
from tests.flows.reconciler_world import World
from tests.flows.site import Site, eventually


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


@pytest.mark.server
def test_a_size_in_the_journal_is_the_limit_of_both_queues(site: Site) -> None:
    state = site.platform.state()
    name, was = next((name, cloud.size) for name, cloud in state.clouds.items())

    def limited(size: int) -> bool:
        with SyncPrefectClient(site.prefect.api_url) as client:
            queues = client.read_work_queues(work_pool_name=name)
        return {each.concurrency_limit for each in queues if each.name in ("canary", "stable")} == {size}

    for size in (was + 3, was):
        site.platform.record("cloud-set", {"name": name, "size": size})
        assert eventually(lambda size=size: limited(size), f"limits of {size}")
