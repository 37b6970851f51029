"""What only a store on disk can get wrong: torn files, full disks, power cuts, rights."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from lora_ops.errors import ConfigError, ObjectExists, StoreError, StoreFull, StoreUnavailable
from tasks.store import Store, open_store
from tasks.store.file_store import FileStore

WRITE_AND_DIE = """
import os, sys
from tasks.store import open_store

store = open_store(sys.argv[1])
method, left = getattr(store, sys.argv[2]), int(sys.argv[3])

def die():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)

def hook(name, act):
    def hooked(*args, **kwargs):
        die()
        return act(*args, **kwargs)
    setattr(os, name, hooked)

for name in ("fsync", "link", "replace"):
    hook(name, getattr(os, name))
method("journal/a", b"x" * 200_000)
die()
print("written", flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("method", ["create", "put"])
@pytest.mark.parametrize("survived", [0, 1, 2, 3, 4])
def test_after_kill_9_an_object_is_whole_or_not_there(tmp_path: Path, method: str, survived: int) -> None:
    root = str(tmp_path / "store")
    died = subprocess.run(
        [sys.executable, "-c", WRITE_AND_DIE, root, method, str(survived)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert died.returncode == -9, died.stderr
    store = open_store(root)
    listed = [m.key for m in store.list("")]
    assert listed in ([], ["journal/a"])
    assert (survived >= 2) == bool(listed)  # not before it was published
    if listed:
        assert store.get("journal/a").data == b"x" * 200_000
        with pytest.raises(ObjectExists):
            store.create("journal/a", b"")
    else:
        store.create("journal/a", b"again")


def test_writes_reach_the_disk_before_they_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "s"))
    done: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "link", "replace")}
    for name, act in real.items():
        monkeypatch.setattr(os, name, lambda *a, name=name, act=act: (done.append(name), act(*a))[1])
    store.create("a/b", b"1")
    assert done == ["fsync", "link", "fsync"]  # the file, its name, the folder that holds the name
    done.clear()
    store.put("a/b", b"2")
    assert done == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    store = open_store(str(tmp_path / "s"))

    def full(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    write = store.put if call == "replace" else store.create
    with pytest.raises(StoreFull, match="no space left") as caught:
        write("a", b"1")
    assert caught.value.hint
    assert store.list("") == []
    assert [p for p in (tmp_path / "s").rglob("*") if p.is_file()] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always-full device")
def test_a_disk_that_fills_up_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "s"))

    def always_full(path: Path) -> BinaryIO:
        return Path("/dev/full").open("wb")

    monkeypatch.setattr("tasks.store.file_store._open_new", always_full)
    with pytest.raises(StoreFull):
        store.create("a", b"1" * 100_000)
    assert store.list("") == []


def test_half_written_files_of_the_dead_are_forgotten_after_a_day(tmp_path: Path) -> None:
    partial = tmp_path / "s" / ".partial"
    partial.mkdir(parents=True)
    old, young = partial / "old", partial / "young"
    young.write_bytes(b"half")
    old.write_bytes(b"half")
    day_ago = young.stat().st_mtime - 25 * 3600
    os.utime(old, (day_ago, day_ago))
    store = open_store(str(tmp_path / "s"))
    assert [p.name for p in partial.iterdir()] == ["young"]
    assert store.list("") == []


def test_a_removed_partial_folder_comes_back(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "s"))
    (tmp_path / "s" / ".partial").rmdir()
    store.create("a", b"1")
    assert store.get("a").data == b"1"


def test_an_object_cannot_be_a_folder_of_another(file_store: Store) -> None:
    file_store.put("a/b", b"1")
    for write in (file_store.put, file_store.create):
        with pytest.raises(StoreError, match="in the way"):
            write("a/b/c", b"2")
        with pytest.raises((StoreError, ObjectExists)):
            write("a", b"2")
    assert [m.key for m in file_store.list("")] == ["a/b"]


def test_file_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "a b" / "ö"
    for url in (
        "a b/ö",
        "file://./a b/ö",
        "file://./a%20b/%C3%B6",
        str(place),
        f"file://{place}",
        place.as_uri(),
    ):
        store = open_store(url)
        assert isinstance(store, FileStore)
        assert store.root == place
        assert store.url == place.as_uri()
    assert open_store(f"file://localhost{tmp_path}/a%20b/%C3%B6").url == place.as_uri()
    monkeypatch.chdir("/")
    store.put("x", b"")
    assert (place / "x").is_file()  # the folder was fixed when the store was opened


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "empty"),
        ("file://data/store", "names a host"),
        ("file://", "names a host"),
        ("s4://bucket", "not a kind of store"),
        ("http://example.org/x", "not a kind of store"),
    ],
)
def test_urls_that_cannot_be(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_store(url)
    assert caught.value.hint


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="not a folder"):
            open_store(str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o500)
    with pytest.raises(StoreUnavailable):
        open_store(str(tmp_path / "s" / "below"))


def test_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "s"))

    def refuse(*args: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreUnavailable, match="Permission denied") as caught:
        store.create("a", b"")
    assert "right to read and write" in caught.value.hint


def test_memory_stores_are_shared_by_name() -> None:
    one, two = open_store("memory://shared"), open_store("memory://shared")
    one.put("a", b"1")
    assert two.get("a").data == b"1"
    assert open_store("memory://").list("") == []
    assert one.url == "memory://shared"
