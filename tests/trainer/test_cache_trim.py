"""The shared cache is trimmed by use, and two processes never see half an entry."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.cache import Cache
from trainer.files import write_atomic

DAY = 86_400


def entry(cache: Cache, number: int, size: int, age_days: float) -> Path:
    path = cache.put_bytes("things", {"n": number}, "", bytes(size), sync=False)
    used = time.time() - age_days * DAY
    os.utime(path, (used, used))
    return path


def test_the_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    paths = [entry(cache, number, 100, age) for number, age in enumerate((5, 3, 4, 2))]
    assert cache.trim(250) == 200
    assert [path.exists() for path in paths] == [False, True, False, True]
    assert cache.trim(250) == 0


def test_what_is_found_counts_as_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    old, older = entry(cache, 0, 100, 5), entry(cache, 1, 100, 9)
    assert cache.find("things", {"n": 1}, "") == older
    cache.trim(100)
    assert (old.exists(), older.exists()) == (False, True)


def test_what_was_used_within_a_day_stays_whatever_the_limit(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    fresh, old = entry(cache, 0, 500, 0.9), entry(cache, 1, 100, 1.1)
    assert cache.trim(1) == 100
    assert (fresh.exists(), old.exists()) == (True, False)


def test_no_limit_removes_nothing(tmp_path: Path) -> None:
    path = entry(Cache(tmp_path), 0, 100, 99)
    assert Cache(tmp_path).trim(0) == 0
    assert path.exists()


def test_folders_and_what_a_killed_writer_left(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    folder = cache.folder("models", {"k": 1}, lambda made: write_atomic(made / "part", bytes(300)))
    torn = folder.with_name(f".{folder.name}.x7d0")
    torn.mkdir()
    (torn / "half").write_bytes(b"x")
    assert cache.trim(1000, now=time.time() + 2 * DAY) == 0
    assert (folder.is_dir(), torn.exists()) == (True, False)
    assert cache.trim(100, now=time.time() + 2 * DAY) == 300
    assert not folder.exists()
    again = cache.folder("models", {"k": 1}, lambda made: write_atomic(made / "part", b"new"))
    assert (again / "part").read_bytes() == b"new"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(2, 40)), max_size=12), st.integers(1, 300))
def test_what_is_left_fits_and_is_the_newest(
    tmp_path_factory: object, entries: list[tuple[int, int]], limit: int
) -> None:
    root = tmp_path_factory.mktemp("trim")  # type: ignore[attr-defined]
    cache = Cache(root)
    paths = {entry(cache, n, size, age): (size, age) for n, (size, age) in enumerate(entries)}
    removed = cache.trim(limit)
    kept = [facts for path, facts in paths.items() if path.exists()]
    gone = [facts for path, facts in paths.items() if not path.exists()]
    assert sum(size for size, _ in kept) <= limit
    assert sum(size for size, _ in gone) == removed
    assert all(young <= old for _, young in kept for _, old in gone)


def _write_read_trim(root: str, seed: int, rounds: int) -> None:
    cache = Cache(Path(root))
    for turn in range(rounds):
        number = (turn * 7 + seed) % 5
        data = bytes([number]) * 20_000
        path = cache.put_bytes("things", {"n": number}, "", data, sync=False)
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (0, 0))
        found = cache.find("things", {"n": (number + 1) % 5}, "")
        if found is not None:
            try:
                read = found.read_bytes()
            except FileNotFoundError:
                read = b""
            assert read in (b"", bytes([(number + 1) % 5]) * 20_000)
        if turn % 10 == seed:
            cache.trim(30_000)


def test_two_writers_that_trim_see_whole_entries_only(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_read_trim, args=(str(tmp_path), n, 200)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    for path in tmp_path.glob("*/??/*"):
        os.utime(path, (0, 0))
    Cache(tmp_path).trim(30_000)
    assert sum(path.stat().st_size for path in tmp_path.glob("*/??/*")) == 20_000
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".trim.lock"]
