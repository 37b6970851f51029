"""Sync: a copy that is whole at every moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops import keys
from lora_ops.errors import ConfigError, ConflictError, JournalError, StoreUnavailable
from lora_ops.garbage import TOMBSTONE
from tasks.backup import sync
from tasks.backup.plan import MARK
from tasks.store import Store, open_store
from tasks.store.faulty import Fault, FaultyStore, Killed
from tests.tasks.backup_copies import check_folder, check_whole, truth
from tests.tasks.backup_world import DATASET, World, contents


def test_all_of_the_truth_is_copied_and_then_nothing(world: World, backup: Store) -> None:
    over, open_one = world.live()
    report = sync(world.store, backup)
    assert report.problems == []
    check_whole(backup)
    copied = truth(backup)
    left_out = {
        key for key in truth(world.store) if key not in copied and not key.startswith(f"checkpoints/{over}")
    }
    assert left_out == {
        f"checkpoints/{open_one}/1/step-1/weights",
        f"checkpoints/{open_one}/1/step-1/MANIFEST.json",
        keys.log(open_one, 1),
        keys.heartbeat(open_one, 1),
    }
    assert copied.items() <= truth(world.store).items()
    again = sync(world.store, backup)
    assert (again.objects, again.size, again.missing, again.problems) == (0, 0, {}, [])


def test_it_says_beforehand_what_it_would_copy(world: World, backup: Store) -> None:
    world.live()
    plan = sync(world.store, backup, dry_run=True)
    assert backup.list("") == []
    report = sync(world.store, backup)
    assert plan.missing == report.missing
    assert sum(each["objects"] for each in plan.missing.values()) == report.objects
    assert sum(each["bytes"] for each in plan.missing.values()) == report.size


def test_what_is_new_is_copied_and_nothing_is_deleted(world: World, backup: Store) -> None:
    over, open_one = world.live()
    sync(world.store, backup)
    before = contents(backup)
    for meta in world.store.list(f"checkpoints/{over}"):
        world.store.delete(meta.key)
    world.succeed(open_one, 1)
    report = sync(world.store, backup)
    assert set(report.missing) == {"artifacts", "requests"}
    assert {k for k in before if k != MARK} <= set(contents(backup))
    check_whole(backup)


def test_what_a_newer_version_keeps_is_copied_too(world: World, backup: Store) -> None:
    world.found()
    for data in (b"one", b"other"):
        world.store.put("catalogue/a", data)
        assert sync(world.store, backup).problems == []
        assert backup.get("catalogue/a").data == data


def test_what_gc_is_clearing_away_is_left_out(world: World, backup: Store) -> None:
    world.live()
    sync(world.store, backup)
    before = contents(backup)
    world.store.put(f"datasets/faces/{DATASET.replace(':', '-')}/MANIFEST.json", TOMBSTONE)
    report = sync(world.store, backup)
    assert (report.objects, report.problems) == (0, [])
    assert {**contents(backup), MARK: before[MARK]} == before


def test_a_log_is_kept_when_its_request_is_over(world: World, backup: Store) -> None:
    _, open_one = world.live()
    sync(world.store, backup)
    world.store.put(keys.log(open_one, 1), b"epoch 1\nepoch 2\n")
    world.succeed(open_one, 1)
    sync(world.store, backup)
    assert backup.get(keys.log(open_one, 1)).data == b"epoch 1\nepoch 2\n"


@settings(max_examples=60, deadline=None)
@given(stop=st.integers(0, 90), after=st.booleans())
def test_killed_anywhere_the_copy_is_whole_and_the_next_sync_goes_on(stop: int, after: bool) -> None:
    world, backup = _made(), open_store("memory://")
    left = stop

    def plan(method: str, key: str) -> Fault | None:
        nonlocal left
        if method not in ("put", "create"):
            return None
        left -= 1
        if left >= 0:
            return None
        return Fault.KILLED_AFTER if after else Fault.KILLED_BEFORE

    try:
        sync(world.store, FaultyStore(backup, plan))
    except Killed:
        check_whole(backup)
    assert sync(world.store, backup).problems == []
    check_whole(backup)
    assert truth(backup).items() <= truth(world.store).items()
    assert sync(world.store, backup).objects == 0


_worlds: list[World] = []


def _made() -> World:
    """One world for all examples: it is only read."""
    if not _worlds:
        import tempfile

        world = World(open_store("memory://"), Path(tempfile.mkdtemp(prefix="lora-ops-test-")))
        world.live()
        _worlds.append(world)
    return _worlds[0]


@pytest.mark.parametrize("fault", [Fault.NO_REQUEST, Fault.NO_ANSWER])
def test_a_store_that_goes_away_is_told_and_the_next_sync_goes_on(
    world: World, backup: Store, fault: Fault
) -> None:
    world.live()
    calls = iter(range(1000))
    cut = FaultyStore(backup, lambda method, key: fault if next(calls) == 30 else None)
    with pytest.raises(StoreUnavailable):
        sync(world.store, cut)
    check_whole(backup)
    assert sync(world.store, backup).problems == []
    check_whole(backup)


def test_two_at_once_and_a_platform_that_goes_on(world: World, backup: Store) -> None:
    world.live()
    failures: list[BaseException] = []
    over = threading.Event()

    def work(act: Callable[[], object]) -> None:
        try:
            while not over.is_set():
                act()
                check_whole(backup)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(lambda: sync(world.store, backup),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(12):
        request = world.request()
        world.succeed(request, world.attempt(request))
        world.platform.record("cloud-drained", {"cloud": "east"})
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sync(world.store, backup).problems == []
    check_whole(backup)


def test_a_file_that_is_not_what_its_manifest_says_is_not_copied(world: World, backup: Store) -> None:
    over, _ = world.live()
    damaged = f"{keys.artifacts(over, 2)}/sub/a.txt"
    world.store.put(damaged, b"b")
    report = sync(world.store, backup)
    assert report.problems == [f"`{damaged}` is not what its manifest says"]
    assert f"{keys.artifacts(over, 2)}/MANIFEST.json" not in contents(backup)
    world.store.put(damaged, b"a")
    assert sync(world.store, backup).problems == []
    check_whole(backup)


def test_a_file_that_is_gone_is_named(world: World, backup: Store) -> None:
    over, _ = world.live()
    gone = f"{keys.artifacts(over, 2)}/sub/a.txt"
    world.store.delete(gone)
    sync(world.store, backup)  # what was never listed is not missing to the plan
    world.store.put(gone, b"a")
    assert sync(world.store, backup).problems == []
    assert backup.get(gone).data == b"a"


def test_what_was_lost_in_the_backup_comes_back(world: World, backup: Store) -> None:
    over, _ = world.live()
    sync(world.store, backup)
    for key in (f"{keys.artifacts(over, 2)}/sub/a.txt", f"journal/team/{0:020d}.json"):
        backup.delete(key)
        assert sync(world.store, backup).objects == 1
        assert backup.get(key).data == world.store.get(key).data


def test_an_object_that_differs_in_the_backup_is_named_and_left(world: World, backup: Store) -> None:
    over, _ = world.live()
    sync(world.store, backup)
    key = keys.request_config(over)
    backup.put(key, b"other")
    assert sync(world.store, backup).problems == [f"`{key}` differs in size"]
    assert backup.get(key).data == b"other"


def test_a_big_file_goes_through_the_disk(
    world: World, backup: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.backup.copying._IN_MEMORY", 100)
    over, _ = world.live()
    assert sync(world.store, backup).problems == []
    check_whole(backup)
    check_folder(backup, keys.artifacts(over, 2))


def test_a_backup_of_another_platform_is_refused(world: World, backup: Store, tmp_path: Path) -> None:
    world.live()
    sync(world.store, backup)
    stranger = World(open_store("memory://"), tmp_path / "stranger")
    stranger.found()
    before = contents(backup)
    with pytest.raises(ConflictError, match="gone apart"):
        sync(stranger.store, backup)
    assert contents(backup) == before


def test_a_gap_in_the_journal_is_told(world: World, backup: Store) -> None:
    world.live()
    world.platform.record("cloud-drained", {"cloud": "east"})
    world.store.delete(f"journal/team/{0:020d}.json")
    with pytest.raises(JournalError, match="no entry 0"):
        sync(world.store, backup)
    assert backup.list("journal") == []


def test_a_store_is_no_backup_of_itself(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "a"))
    for where in ("a", "a/b"):
        with pytest.raises(ConfigError, match="lie in each other"):
            sync(store, open_store(str(tmp_path / where)))
