"""gc on a real store: what it finds, in which order it deletes, and who comes in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_ops import keys
from lora_ops.errors import ConflictError, JournalError
from lora_ops.garbage import MANIFEST, TOMBSTONE, Kind, Limits
from tasks import sweep as sweeping
from tasks.datasets import fetch_dataset, newest_checkpoint, store_dataset
from tasks.store import Store, key_digest, open_store
from tasks.store.faulty import Fault, FaultyStore, Killed
from tasks.sweep import find, sweep
from tests.tasks.backup_world import CANARY, DATASET, STABLE, World, contents

NOW = Limits(0.0, 0.0)
EVERYTHING = Limits(0.0, 0.0, releases=True, datasets=True)
OTHER = "sha256:" + "9" * 64


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_SETTLE_S", 0.0)


@pytest.fixture
def world(memory_store: Store, tmp_path: Path) -> World:
    return World(memory_store, tmp_path / "files")


def clear(store: Store, limits: Limits = EVERYTHING) -> int:
    return sweep(store, find(store, limits).garbage, limits, lambda count: None)


def dataset_keys(store: Store) -> list[str]:
    return [meta.key for meta in store.list("datasets")]


def test_what_is_over_goes_and_what_is_open_stays(world: World) -> None:
    over, open_one = world.live()
    before = contents(world.store)
    freed = clear(world.store, NOW)
    after = contents(world.store)
    gone = before.keys() - after.keys()
    assert freed == sum(len(before[key]) for key in gone)
    assert world.store.list(f"checkpoints/{over}") == []
    assert world.store.list(keys.artifacts(over, 1)) == []
    assert len(world.store.list(keys.artifacts(over, 2))) == 3
    assert newest_checkpoint(world.store, open_one) == f"checkpoints/{open_one}/1/step-2"
    assert not any(open_one in key for key in gone)
    assert not any(key.startswith(("journal/", "rollouts/", "releases/", "datasets/")) for key in gone)
    assert world.store.list("clock") == []
    assert clear(world.store, NOW) == 0


def test_what_is_young_stays(world: World) -> None:
    over, _ = world.live()
    found = find(world.store, Limits())
    assert {each.kind for each in found.garbage} == {Kind.CHECKPOINT, Kind.ARTIFACT}
    assert found.size > 0
    assert all(over in each.key for each in found.garbage)


def test_releases_that_nothing_names_go_and_the_rest_stays(world: World) -> None:
    world.live()
    for digest in (CANARY, OTHER):
        world.release(digest)
    world.attempt(world.request(), CANARY)
    found = find(world.store, EVERYTHING)
    assert found.folders(Kind.RELEASE) == [f"releases/{key_digest(OTHER)}"]
    clear(world.store)
    assert world.store.list_folders("releases") == [key_digest(STABLE), key_digest(CANARY)]


def test_a_release_of_a_rollout_that_begins_meanwhile_stays(world: World) -> None:
    world.live()
    world.release(OTHER)
    found = find(world.store, EVERYTHING)
    begin_rollout(world)
    assert sweep(world.store, found.of(Kind.RELEASE), EVERYTHING, lambda count: None) == 0
    assert len(world.store.list_folders("releases")) == 2


def begin_rollout(world: World) -> None:
    policy = {"waves": [["east"]], "plans": {"east": [100]}, "gates": []}
    data = {"id": "roll-9", "source": {"path": "/src"}, "policy": policy}
    world.platform.record("rollout-started", data)


def test_datasets_go_only_when_no_open_request_names_them(world: World) -> None:
    world.live()
    world.dataset("cats", OTHER)
    clear(world.store, Limits(0.0, 0.0))
    assert {key.split("/")[1] for key in dataset_keys(world.store)} == {"faces", "cats"}
    clear(world.store)
    assert {key.split("/")[1] for key in dataset_keys(world.store)} == {"faces"}


def test_a_request_that_comes_meanwhile_keeps_its_dataset(world: World, tmp_path: Path) -> None:
    world.live()
    world.dataset("cats", OTHER)
    found = find(world.store, EVERYTHING)
    world.request("cats", OTHER)
    assert sweep(world.store, found.of(Kind.DATASET), EVERYTHING, lambda count: None) == 0
    fetch_dataset(world.store, "cats", OTHER, tmp_path / "cache")


def test_an_upload_that_was_given_up_goes_and_can_be_done_anew(world: World, tmp_path: Path) -> None:
    world.found()
    half(world)
    clear(world.store, NOW)
    assert dataset_keys(world.store) == []
    world.dataset()
    fetch_dataset(world.store, "faces", DATASET, tmp_path / "cache")


def half(world: World) -> None:
    """A submitter dies before the manifest."""
    path = world.file("faces.png", b"picture " * 100)
    dies = FaultyStore(
        world.store, lambda m, key: Fault.KILLED_BEFORE if key.endswith(MANIFEST) and m == "create" else None
    )
    with pytest.raises(Killed):
        store_dataset(dies, "faces", [("a/1.png", path), ("2.png", path)], DATASET)


def test_an_upload_that_is_finished_meanwhile_stays(world: World, tmp_path: Path) -> None:
    world.found()
    half(world)
    found = find(world.store, NOW)
    world.dataset()
    assert sweep(world.store, found.garbage, NOW, lambda count: None) < found.size
    fetch_dataset(world.store, "faces", DATASET, tmp_path / "cache")


def test_an_upload_that_goes_on_while_it_is_cleared_is_told_or_whole(world: World, tmp_path: Path) -> None:
    """gc comes in before each call of a submitter who takes up a half-done upload."""
    for moment in range(20):
        store = open_store("memory://")
        each = World(store, tmp_path / str(moment))
        each.found()
        half(each)
        left = moment

        def plan(method: str, key: str, store: Store = store) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                clear(store, NOW)

        each.store = FaultyStore(store, plan)
        each.dataset()
        fetch_dataset(store, "faces", DATASET, tmp_path / f"cache{moment}")


def test_while_it_is_cleared_a_submitter_is_told(world: World, tmp_path: Path) -> None:
    world.found()
    half(world)
    told = []

    def plan(method: str, key: str) -> None:
        if method == "delete" and key.endswith(MANIFEST):
            with pytest.raises(ConflictError, match="cleared away") as caught:
                world.dataset()
            told.append(caught.value)

    faulty = FaultyStore(world.store, plan)
    sweep(faulty, find(world.store, NOW).garbage, NOW, lambda count: None)
    assert len(told) == 1
    world.dataset()


def test_killed_anywhere_it_goes_on(tmp_path: Path) -> None:
    stop = -1
    finished = False
    while not finished:
        stop += 1
        store = open_store("memory://")
        world = World(store, tmp_path / str(stop))
        world.live()
        world.dataset("cats", OTHER)
        left = stop

        def plan(method: str, key: str) -> Fault | None:
            nonlocal left
            left -= method in ("put", "create", "delete")
            return Fault.KILLED_AFTER if left < 0 else None

        found = find(store, EVERYTHING)
        try:
            sweep(FaultyStore(store, plan), found.garbage, EVERYTHING, lambda count: None)
            finished = True
        except Killed:
            pass
        clear(store)
        assert {key.split("/")[1] for key in dataset_keys(store)} == {"faces"}
        assert len(store.list_folders("releases")) == 1
        assert not [key for key, data in contents(store).items() if data == TOMBSTONE]
    assert stop > 10


def test_a_torn_request_is_unknown_and_kept(world: World) -> None:
    over, _ = world.live()
    newest = max(
        m.key for m in world.store.list(f"requests/{over}") if m.key.endswith(".json") and "att" not in m.key
    )
    world.store.put(newest, b"{torn")
    clear(world.store, NOW)
    assert len(world.store.list(f"checkpoints/{over}")) == 8


def test_a_torn_app_stops_it(world: World) -> None:
    world.live()
    world.store.put(f"journal/team/{1:020d}.json", json.dumps({"id": "x", "state": {"seq": []}}).encode())
    with pytest.raises(JournalError) as caught:
        find(world.store, EVERYTHING)
    assert "nothing was deleted" in caught.value.hint
