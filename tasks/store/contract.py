"""The suite that every Store must pass. Needs pytest; subclass it and override the `store` fixture.

class TestMyStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store: ...
"""

from __future__ import annotations

import json
import math
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lora_ops.errors import ObjectExists, ObjectMissing, StoreError
from tasks.store.base import Store
from tasks.store.proof import prove_create_only

ODD_KEYS = [
    "odd/with space",
    "odd/ünïcödé-日本語-🦙",
    "odd/percent%20%2F%",
    "odd/question?and#hash&plus+equals=",
    "odd/quotes'\"`",
    "odd/star*[brackets]{braces}|pipe",
    "odd/number#1.png",
    "odd/.hidden",
    "odd/..dots..",
    "odd/~tilde:colon@at",
    "odd/" + "n" * 200,
    "odd/" + "/".join("deep" for _ in range(50)),
]
BAD_KEYS = ["", "/", "/lead", "trail/", "a//b", "a/./b", "../up", "a/..", "new\nline", "nul\0", "half\ud800"]
BAD_KEYS += [".partial/x", "a/ends#1", "back\\slash", "n" * 300, "/".join("n" * 200 for _ in range(6))]


class StoreContract:
    """Nothing here relies on the store being empty."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("override the `store` fixture")

    @pytest.fixture
    def at(self) -> str:
        """A folder that no other test uses."""
        return f"contract/{uuid.uuid4().hex}"

    # --- objects ---

    def test_what_is_put_is_got(self, store: Store, at: str) -> None:
        store.put(f"{at}/a", b"one")
        assert store.get(f"{at}/a").data == b"one"
        assert store.get(f"{at}/a").key == f"{at}/a"

    def test_put_replaces(self, store: Store, at: str) -> None:
        store.put(f"{at}/a", b"a long first content")
        store.put(f"{at}/a", b"two")
        assert store.get(f"{at}/a").data == b"two"
        assert store.head(f"{at}/a").size == 3

    def test_a_missing_object(self, store: Store, at: str) -> None:
        for read in (store.get, store.head):
            with pytest.raises(ObjectMissing):
                read(f"{at}/nothing")

    def test_a_folder_is_no_object_and_an_object_no_folder(self, store: Store, at: str) -> None:
        store.put(f"{at}/folder/a", b"1")
        for key in (f"{at}/folder", f"{at}/folder/a/below"):
            with pytest.raises(ObjectMissing):
                store.get(key)
            with pytest.raises(ObjectMissing):
                store.head(key)
            store.delete(f"{at}/folder/a/below")
        assert store.list(f"{at}/folder/a") == []

    def test_empty_objects(self, store: Store, at: str) -> None:
        store.put(f"{at}/put", b"")
        store.create(f"{at}/created", b"")
        assert store.get(f"{at}/put").data == b""
        assert [m.size for m in store.list(at)] == [0, 0]
        with pytest.raises(ObjectExists):
            store.create(f"{at}/created", b"more")

    def test_big_objects(self, store: Store, at: str) -> None:
        big = bytes(range(256)) * 4096 * 13  # 13 MiB: several parts of a multipart upload
        store.put(f"{at}/put", big)
        store.create(f"{at}/created", big)
        assert store.get(f"{at}/put").data == big
        assert store.get(f"{at}/created").data == big
        assert store.head(f"{at}/put").size == len(big)

    def test_files(self, store: Store, at: str, tmp_path: Path) -> None:
        content = bytes(range(256)) * 4096 * 9
        local = tmp_path / "local"
        local.mkdir()
        (local / "up").write_bytes(content)
        store.put_file(f"{at}/file", local / "up")
        store.get_file(f"{at}/file", local / "down")
        assert (local / "down").read_bytes() == content
        with pytest.raises(ObjectMissing):
            store.get_file(f"{at}/nothing", local / "none")
        with pytest.raises(FileNotFoundError):
            store.put_file(f"{at}/none", local / "none")
        assert sorted(p.name for p in local.iterdir()) == ["down", "up"]

    def test_get_many_skips_missing_ones_and_keeps_the_order(self, store: Store, at: str) -> None:
        for name in "abc":
            store.put(f"{at}/{name}", name.encode())
        found = store.get_many([f"{at}/{n}" for n in ("c", "nothing", "a", "b")])
        assert [o.data for o in found] == [b"c", b"a", b"b"]
        assert store.get_many([]) == []

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_odd_keys(self, store: Store, at: str, key: str) -> None:
        store.create(f"{at}/{key}", key.encode())
        with pytest.raises(ObjectExists):
            store.create(f"{at}/{key}", b"")
        assert store.get(f"{at}/{key}").data == key.encode()
        assert [m.key for m in store.list(at)] == [f"{at}/{key}"]
        store.delete(f"{at}/{key}")
        assert store.list(at) == []

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_bad_keys_are_refused(self, store: Store, key: str) -> None:
        with pytest.raises(StoreError):
            store.put(key, b"")
        with pytest.raises(StoreError):
            store.create(key, b"")
        with pytest.raises(StoreError):
            store.get(key)

    # --- create-only ---

    def test_create_never_replaces(self, store: Store, at: str) -> None:
        store.create(f"{at}/a", b"first")
        for data in (b"second", b"first", b""):
            with pytest.raises(ObjectExists):
                store.create(f"{at}/a", data)
        assert store.get(f"{at}/a").data == b"first"

    def test_create_after_put_and_after_delete(self, store: Store, at: str) -> None:
        store.put(f"{at}/a", b"put")
        with pytest.raises(ObjectExists):
            store.create(f"{at}/a", b"created")
        store.delete(f"{at}/a")
        store.create(f"{at}/a", b"created")
        assert store.get(f"{at}/a").data == b"created"

    def test_a_race_has_one_winner(self, store: Store, at: str) -> None:
        def contend(key: str, me: int) -> int | None:
            try:
                store.create(key, json.dumps({"id": me, "filler": "x" * 4096}).encode())
            except ObjectExists:
                return None
            return me

        with ThreadPoolExecutor(16) as pool:
            for turn in range(5):
                key = f"{at}/{turn}"
                won = [w for w in pool.map(contend, [key] * 16, range(16)) if w is not None]
                assert len(won) == 1
                assert json.loads(store.get(key).data)["id"] == won[0]

    def test_the_loser_of_a_race_sees_the_whole_winner(self, store: Store, at: str) -> None:
        def create_or_read(me: int) -> bytes:
            data = bytes([me]) * 100_000
            try:
                store.create(f"{at}/a", data)
            except ObjectExists:
                return store.get(f"{at}/a").data
            return data

        with ThreadPoolExecutor(8) as pool:
            seen = set(pool.map(create_or_read, range(8)))
        assert len(seen) == 1

    def test_a_reader_never_sees_half_of_an_overwrite(self, store: Store, at: str) -> None:
        store.put(f"{at}/a", b"0" * 50_000)

        def write(me: int) -> None:
            store.put(f"{at}/a", str(me).encode() * 50_000)

        with ThreadPoolExecutor(4) as pool:
            writes = [pool.submit(write, n) for n in range(1, 9)]
            reads = [pool.submit(store.get, f"{at}/a") for _ in range(20)]
            for read in reads:
                data = read.result().data
                assert len(data) == 50_000
                assert len(set(data)) == 1
            for done in writes:
                done.result()

    def test_the_store_proves_itself(self, store: Store) -> None:
        before = store.list("probe")
        prove_create_only(store, again=True)
        assert store.list("probe") == before

    # --- lists ---

    def test_lists_are_sorted_and_recursive(self, store: Store, at: str) -> None:
        names = ["b", "a", "a/x", "10", "9", "ü", "Z", "a-b", "c/d/e", "c/a"]
        names.remove("a")  # `a` is the folder of `a/x`
        for name in names:
            store.put(f"{at}/{name}", name.encode())
        listed = store.list(at)
        assert [m.key for m in listed] == sorted(f"{at}/{n}" for n in names)
        assert [m.size for m in listed] == [len(m.key.removeprefix(f"{at}/").encode()) for m in listed]
        assert store.list(f"{at}/") == listed

    def test_a_prefix_is_a_folder(self, store: Store, at: str) -> None:
        for key in ("prefix/a", "prefix2/b", "prefix-3/c", "pre/d", "prefix.json"):
            store.put(f"{at}/{key}", b"")
        assert [m.key for m in store.list(f"{at}/prefix")] == [f"{at}/prefix/a"]
        assert store.list(f"{at}/nothing") == []

    def test_after_is_exclusive_and_need_not_exist(self, store: Store, at: str) -> None:
        keys = [f"{at}/{n:020d}.json" for n in range(0, 30, 3)]
        for key in reversed(keys):
            store.put(key, b"")
        assert [m.key for m in store.list(at, after=keys[4])] == keys[5:]
        assert [m.key for m in store.list(at, after=f"{at}/{13:020d}.json")] == keys[5:]
        assert store.list(at, after=keys[-1]) == []
        assert [m.key for m in store.list(at, after=f"{at}/")] == keys

    def test_after_works_across_folders(self, store: Store, at: str) -> None:
        for name in ("a/1", "a/2", "b", "c/1"):
            store.put(f"{at}/{name}", b"")
        assert [m.key.removeprefix(f"{at}/") for m in store.list(at, after=f"{at}/a/1")] == [
            "a/2",
            "b",
            "c/1",
        ]

    def test_long_lists_are_whole(self, store: Store, at: str) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: store.put(f"{at}/{n:05d}", b""), range(1100)))
        assert [m.key for m in store.list(at)] == [f"{at}/{n:05d}" for n in range(1100)]
        assert len(store.list(at, after=f"{at}/00099")) == 1000

    def test_folders(self, store: Store, at: str) -> None:
        for key in ("x/1", "x/2/3", "y/1", "file", "xy/1"):
            store.put(f"{at}/{key}", b"")
        assert store.list_folders(at) == ["x", "xy", "y"]
        assert store.list_folders(f"{at}/x") == ["2"]
        assert store.list_folders(f"{at}/nothing") == []
        store.delete(f"{at}/y/1")
        assert store.list_folders(at) == ["x", "xy"]

    def test_the_root_lists_only_objects(self, store: Store, at: str) -> None:
        store.put(f"{at}/a", b"")
        assert f"{at}/a" in [m.key for m in store.list("")]
        assert "contract" in store.list_folders("")
        assert not any(name.startswith(".") for name in store.list_folders(""))

    def test_lists_while_others_write_and_delete(self, store: Store, at: str) -> None:
        store.put(f"{at}/stays", b"")

        def churn(me: int) -> None:
            for n in range(15):
                store.put(f"{at}/{me}/{n}", b"x")
                store.delete(f"{at}/{me}/{n}")

        with ThreadPoolExecutor(8) as pool:
            churning = [pool.submit(churn, me) for me in range(3)]
            lists = [pool.submit(store.list, folder) for folder in [at, ""] * 8]
            assert all(f"{at}/stays" in [m.key for m in found.result()] for found in lists)
            for done in churning:
                done.result()
        assert [m.key for m in store.list(at)] == [f"{at}/stays"]

    # --- delete ---

    def test_delete(self, store: Store, at: str) -> None:
        store.put(f"{at}/a", b"")
        store.put(f"{at}/b", b"")
        store.delete(f"{at}/a")
        store.delete(f"{at}/a")
        store.delete(f"{at}/never/was")
        assert [m.key for m in store.list(at)] == [f"{at}/b"]

    # --- time ---

    def test_times_have_the_stores_resolution(self, store: Store, at: str) -> None:
        assert 0 < store.time_resolution <= 1
        store.put(f"{at}/a", b"")
        stamp = store.get(f"{at}/a").last_modified
        assert stamp > 1_600_000_000  # seconds since the epoch, not milliseconds or a datetime
        if store.time_resolution >= 1:
            assert stamp == math.floor(stamp)

    def test_get_head_and_list_agree_on_the_time(self, store: Store, at: str) -> None:
        store.create(f"{at}/a", b"")
        stamps = {store.get(f"{at}/a").last_modified, store.head(f"{at}/a").last_modified}
        stamps.add(store.list(at)[0].last_modified)
        assert len(stamps) == 1

    def test_times_never_go_back(self, store: Store, at: str) -> None:
        stamps = []
        for n in range(30):
            (store.create if n % 2 else store.put)(f"{at}/{n:02d}", b"x")
            stamps.append(store.head(f"{at}/{n:02d}").last_modified)
        assert stamps == sorted(stamps)
        store.put(f"{at}/00", b"again")
        assert store.head(f"{at}/00").last_modified >= stamps[-1]
