"""The contract, for each kind of store."""

from __future__ import annotations

import math

import pytest
from obstore.store import MemoryStore

from lora_ops.errors import ObjectExists, StoreLies
from tasks.store import Metas, Store, open_store, prove_create_only
from tasks.store.contract import StoreContract
from tasks.store.faulty import FaultyStore
from tasks.store.obstore_store import ObstoreStore


class TestFileStore(StoreContract):
    @pytest.fixture
    def store(self, file_store: Store) -> Store:
        return file_store


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self, memory_store: Store) -> Store:
        return memory_store


@pytest.mark.s3
class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, s3_store: Store) -> Store:
        return s3_store


def no_fault(method: str, key: str) -> None:
    return None


def test_times_are_rounded_down_to_the_resolution() -> None:
    """Some servers' lists say milliseconds where their heads say seconds; moto's do not."""
    coarse = ObstoreStore("memory://coarse", MemoryStore(), time_resolution=1.0)
    coarse.put("a", b"")
    stamps = [coarse.head("a").last_modified, coarse.get("a").last_modified, coarse.list("")[0].last_modified]
    assert stamps == [math.floor(stamps[0])] * 3


class LyingStore(FaultyStore):
    """Accepts `If-None-Match` and ignores it, as some S3-compatible servers do."""

    def create(self, key: str, data: bytes) -> None:
        self.inner.put(key, data)


class TwoFacedStore(FaultyStore):
    """Answers that the object exists, having replaced it."""

    def create(self, key: str, data: bytes) -> None:
        try:
            self.inner.create(key, data)
        except ObjectExists:
            self.inner.put(key, data)
            raise


@pytest.mark.parametrize("liar", [LyingStore, TwoFacedStore])
def test_a_store_that_lies_is_refused(liar: type[FaultyStore], memory_store: Store) -> None:
    store = liar(memory_store, no_fault)
    with pytest.raises(StoreLies) as caught:
        prove_create_only(store)
    assert store.url in caught.value.message
    assert "If-None-Match" in caught.value.hint
    assert memory_store.list("probe") == []


def test_the_contract_fails_for_a_store_that_lies(memory_store: Store) -> None:
    store = LyingStore(memory_store, no_fault)
    suite = StoreContract()
    with pytest.raises(pytest.fail.Exception):
        suite.test_create_never_replaces(store, "at")
    with pytest.raises(AssertionError):
        suite.test_a_race_has_one_winner(store, "at")


def test_the_contract_fails_for_unsorted_lists(memory_store: Store) -> None:
    class Unsorted(FaultyStore):
        def list(self, prefix: str, after: str | None = None) -> Metas:
            return self.inner.list(prefix, after)[::-1]

    with pytest.raises(AssertionError):
        StoreContract().test_lists_are_sorted_and_recursive(Unsorted(memory_store, no_fault), "at")


def test_the_proof_is_kept_for_the_process(memory_store: Store) -> None:
    store = FaultyStore(memory_store, no_fault)
    prove_create_only(store)
    asked = len(store.calls)
    assert asked == 4  # create, create, get, delete
    prove_create_only(store)
    assert len(store.calls) == asked
    prove_create_only(store, again=True)
    assert len(store.calls) == 2 * asked


def test_open_store_proves_when_asked(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = open_store(tmp_path_factory.mktemp("s").as_uri(), prove=True)
    assert store.list("") == []
