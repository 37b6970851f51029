"""A platform that is made again from its backup, and the mirror of serve."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lora_ops import keys
from lora_ops.errors import ConflictError, NotFoundError
from tasks.backup import Mirror, mirror_once, restore, sync
from tasks.backup.restore import MARK as RESTORE_MARK
from tasks.datasets import download_folder, fetch_dataset, newest_checkpoint
from tasks.platform import Platform
from tasks.store import Store, open_store
from tasks.store.faulty import Fault, FaultyStore, Killed
from tests.tasks.backup_copies import check_whole
from tests.tasks.backup_world import World, contents

# --- restore ---


def test_a_platform_is_made_again(world: World, backup: Store, tmp_path: Path) -> None:
    over, open_one = world.live()
    sync(world.store, backup)
    store = open_store(str(tmp_path / "again"))
    report = restore(store, backup)
    assert report.problems == []
    check_whole(store)
    platform = Platform(store, "team", "test")
    assert platform.state() == world.platform.state()
    assert [m.key for m in store.list("open")] == [keys.open_marker(open_one)]
    assert platform.request(over) == world.platform.request(over)
    assert newest_checkpoint(store, open_one) == f"checkpoints/{open_one}/1/step-2"
    download_folder(store, keys.artifacts(over, 2), tmp_path / "artifact")
    order = platform.request(open_one).order
    assert order is not None
    fetch_dataset(store, str(order.dataset), str(order.dataset_digest), tmp_path / "cache")
    platform.record("cloud-drained", {"cloud": "east"})  # it goes on
    assert sync(store, backup).missing.keys() == {"journal"}


def test_a_restore_overwrites_nothing(world: World, backup: Store) -> None:
    world.live()
    sync(world.store, backup)
    before = contents(world.store)
    with pytest.raises(ConflictError, match="is not empty"):
        restore(world.store, backup)
    assert contents(world.store) == before


@pytest.mark.parametrize("stop", [1, 2, 5, 12, 20, 28])
def test_a_restore_that_was_killed_goes_on(world: World, backup: Store, stop: int) -> None:
    world.live()
    sync(world.store, backup)
    store, left = open_store("memory://"), stop

    def plan(method: str, key: str) -> Fault | None:
        nonlocal left
        left -= method in ("put", "create")
        return Fault.KILLED_AFTER if left < 0 else None

    with pytest.raises(Killed):
        restore(FaultyStore(store, plan), backup)
    restore(store, backup)
    assert RESTORE_MARK not in contents(store)
    assert Platform(store, "team", "test").state() == world.platform.state()
    check_whole(store)


def test_nothing_to_restore(backup: Store) -> None:
    store = open_store("memory://")
    with pytest.raises(NotFoundError, match="holds no platform"):
        restore(store, backup)
    assert store.list("") == []


def test_a_dry_restore_writes_nothing(world: World, backup: Store) -> None:
    world.live()
    sync(world.store, backup)
    store = open_store("memory://")
    plan = restore(store, backup, dry_run=True)
    assert [m.key for m in store.list("")] == []
    assert plan.missing["journal"]["objects"] == 1


# --- the mirror of serve ---


def test_one_mirror_of_several_works(world: World, backup: Store) -> None:
    world.live()
    assert mirror_once(world.store, backup, 600) is not None
    world.platform.record("cloud-drained", {"cloud": "east"})
    assert mirror_once(world.store, backup, 600) is None
    report = mirror_once(world.store, backup)
    assert report is not None
    assert report.objects == 1


def test_a_mirror_tells_its_trouble_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.live()
    inner = open_store("memory://")
    away = True
    backup = FaultyStore(inner, lambda method, key: Fault.NO_REQUEST if away else None)
    mirror = Mirror(world.store, backup, 600)
    mirror.once()
    mirror.once()
    assert mirror.error is not None
    assert len(caplog.records) == 1
    away = False
    mirror.once()
    assert mirror.error is None
    check_whole(inner)


def test_a_mirror_stops_in_the_middle(world: World, backup: Store) -> None:
    world.live()
    began, go_on = threading.Event(), threading.Event()

    def plan(method: str, key: str) -> None:
        if method in ("put", "create") and not key.startswith(("probe/", "clock/")):
            began.set()
            assert go_on.wait(60)

    mirror = Mirror(world.store, FaultyStore(backup, plan), 600)
    mirror.start()
    assert began.wait(60)
    mirror.stop(0)
    go_on.set()
    mirror.stop(60)
    assert not mirror._thread.is_alive()
    assert backup.list("journal") == []
    check_whole(backup)
