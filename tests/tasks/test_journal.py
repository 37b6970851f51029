from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.errors import ConflictError, JournalError, ObjectMissing, StoreUnavailable
from tasks.journal import Entry, Journal, LostRace
from tasks.store import Store, open_store
from tasks.store.faulty import Fault, FaultyStore, Killed


def event(name: str, **more: Any) -> dict[str, Any]:
    return {"schema_version": 1, "id": name, "kind": "test", **more}


def journal(store: Store, prefix: str = "journal/app") -> Journal:
    return Journal(store, prefix, sleep=lambda seconds: None)


def planned(store: Store, faults: dict[str, list[Fault | None]]) -> FaultyStore:
    """Faults by method, used up call by call."""

    def plan(method: str, key: str) -> Fault | None:
        left = faults.get(method, [])
        return left.pop(0) if left else None

    return FaultyStore(store, plan)


def ids(entries: list[Entry]) -> list[str]:
    return [entry.document["id"] for entry in entries]


@pytest.fixture(params=["memory_store", "file_store"])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(request.param)
    return found


def test_an_empty_journal(store: Store) -> None:
    empty = journal(store)
    assert empty.read_last() is None
    assert empty.read_all() == []
    with pytest.raises(ObjectMissing):
        empty.read(0)


def test_entries_are_numbered_read_and_timed(store: Store) -> None:
    writer = journal(store)
    for n in range(12):
        entry = writer.append(event(f"e{n}", seq=n, state={"n": n}), n)
        assert (entry.seq, entry.state) == (n, {"n": n})
        assert entry.last_modified == store.head(f"journal/app/{n:020d}.json").last_modified
    fresh = journal(store)
    assert ids(fresh.read_all()) == [f"e{n}" for n in range(12)]
    assert ids(fresh.read_all(after=9)) == ["e10", "e11"]
    assert fresh.read_all(after=11) == []
    assert journal(store).read_last() == writer.read_last() == fresh.read(11)


def test_a_reader_that_fell_behind_catches_up(store: Store) -> None:
    writer, reader = journal(store), journal(store)
    for n in range(40):
        writer.append(event(f"e{n}"), n)
        if n in (0, 1, 5, 39):  # none, one, a few, and more new ones than are probed for
            last = reader.read_last()
            assert last is not None
            assert last.seq == n


def test_the_newest_is_found_without_a_list(memory_store: Store) -> None:
    counted = FaultyStore(memory_store, lambda method, key: None)
    reader, writer = journal(counted), journal(memory_store)
    for n in range(30):
        writer.append(event(f"e{n}"), n)
    reader.read_last()
    counted.calls.clear()
    writer.append(event("e30"), 30)
    last = reader.read_last()
    assert last is not None
    assert last.seq == 30
    assert [method for method, _ in counted.calls] == ["get", "get"]


def test_reading_an_old_entry_does_not_forget_the_newest(memory_store: Store) -> None:
    counted = FaultyStore(memory_store, lambda method, key: None)
    mine = journal(counted)
    for n in range(5):
        mine.append(event(f"e{n}"), n)
    mine.read(0)
    counted.calls.clear()
    last = mine.read_last()
    assert last is not None
    assert last.seq == 4
    assert len(counted.calls) == 1


def test_other_objects_below_the_prefix_are_none_of_its_business(store: Store) -> None:
    mine = journal(store, "requests/r1")
    store.put("requests/r1/config.yaml", b"a: 1")
    store.put("requests/r1/attempts/1/start.json", b"{}")
    store.put("requests/r1/attempts/1/00000000000000000009.json", b"{}")
    store.put("requests/r10/00000000000000000007.json", b"{}")
    assert mine.read_last() is None
    mine.append(event("a"), 0)
    fresh = journal(store, "requests/r1").read_last()
    assert fresh is not None
    assert fresh.seq == 0


def test_the_second_writer_of_a_number_loses(store: Store) -> None:
    one, two = journal(store), journal(store)
    one.append(event("a"), 0)
    with pytest.raises(LostRace) as caught:
        two.append(event("b"), 0)
    assert caught.value.entry.document["id"] == "a"
    assert caught.value.exit_code == ConflictError.exit_code
    assert ids(journal(store).read_all()) == ["a"]


def test_appending_the_same_event_again_is_success(store: Store) -> None:
    first = journal(store).append(event("a"), 0)
    assert journal(store).append(event("a"), 0) == first
    assert ids(journal(store).read_all()) == ["a"]


@pytest.mark.parametrize("fault", [Fault.NO_ANSWER, Fault.NO_REQUEST, Fault.RETRIED])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_dropped_answer_is_not_a_lost_race(store: Store, fault: Fault, times: int) -> None:
    faulty = planned(store, {"create": [fault] * times})
    entry = journal(faulty).append(event("a"), 0)
    assert entry.document["id"] == "a"
    assert ids(journal(store).read_all()) == ["a"]


def test_a_dropped_answer_after_which_another_won_is_a_lost_race(memory_store: Store) -> None:
    class TheyComeFirst(FaultyStore):
        def create(self, key: str, data: bytes) -> None:
            if not self.calls:
                self.inner.create(key, json.dumps(event("theirs")).encode())
            super().create(key, data)

    faulty = TheyComeFirst(memory_store, lambda method, key: Fault.NO_REQUEST if method == "create" else None)
    faulty.plan = lambda method, key: Fault.NO_REQUEST if len(faulty.calls) == 1 else None
    with pytest.raises(LostRace):
        journal(faulty).append(event("mine"), 0)


def test_a_store_that_stays_away_leaves_the_outcome_open(memory_store: Store) -> None:
    faulty = planned(memory_store, {"create": [Fault.NO_ANSWER] * 100})
    faulty.plan = lambda method, key: Fault.NO_REQUEST if method == "create" else None
    with pytest.raises(StoreUnavailable):
        journal(faulty).append(event("a"), 0)
    assert journal(memory_store).append(event("a"), 0).seq == 0


def test_no_gaps(store: Store) -> None:
    writer = journal(store)
    with pytest.raises(JournalError, match="no entry 0"):
        writer.append(event("b"), 1)
    writer.append(event("a"), 0)
    journal(store).append(event("b"), 1)
    writer.append(event("c"), 2)
    assert ids(journal(store).read_all()) == ["a", "b", "c"]


def test_a_deleted_entry_is_noticed(store: Store) -> None:
    writer = journal(store)
    for n in range(3):
        writer.append(event(f"e{n}"), n)
    store.delete(writer.key(1))
    with pytest.raises(JournalError, match="no entry 1"):
        journal(store).read_all()


@pytest.mark.parametrize("bad", [{}, {"id": ""}, {"id": 3}, {"id": "a", "seq": 7}])
def test_an_event_without_id_or_with_another_number_is_refused(store: Store, bad: dict[str, Any]) -> None:
    with pytest.raises(JournalError, match="needs an `id`"):
        journal(store).append(bad, 0)
    assert store.list("") == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON"),
        (b'{"id": "a", "ki', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"kind": "x"}', "no `id`"),
        (b'{"id": "a", "seq": 4}', "number 4"),
    ],
)
def test_a_torn_or_foreign_document_is_named(store: Store, data: bytes, said: str) -> None:
    mine = journal(store)
    store.put(mine.key(0), data)
    for read in (mine.read_last, mine.read_all, lambda: mine.append(event("b"), 0), lambda: mine.read(0)):
        with pytest.raises(JournalError, match=said) as caught:
            read()
        assert mine.key(0) in caught.value.message


def test_decide_sees_the_newest_state(store: Store) -> None:
    mine = journal(store)
    seen: list[Any] = []

    def decision(state: dict[str, Any] | None, entry: Entry | None) -> dict[str, Any]:
        seen.append((state, entry.seq if entry else None))
        return event(f"e{len(seen)}", state={"n": len(seen)})

    mine.decide(decision)
    mine.decide(decision)
    assert seen == [(None, None), ({"n": 1}, 0)]
    assert mine.decide(lambda state, entry: None) is None


def test_decide_decides_again_after_a_lost_race(store: Store) -> None:
    mine, theirs = journal(store), journal(store)
    seen: list[int | None] = []

    def decision(state: dict[str, Any] | None, entry: Entry | None) -> dict[str, Any] | None:
        seen.append(entry.seq if entry else None)
        if len(seen) < 3:
            theirs.append(event(f"theirs{len(seen)}"), len(seen) - 1)
        return event("mine")

    entry = mine.decide(decision)
    assert entry is not None
    assert entry.seq == 2
    assert seen == [None, 0, 1]


def test_a_decision_that_holds_no_more_writes_nothing(store: Store) -> None:
    mine, theirs = journal(store), journal(store)

    def decision(state: dict[str, Any] | None, entry: Entry | None) -> dict[str, Any] | None:
        if entry is not None:
            return None
        theirs.append(event("theirs"), 0)
        return event("mine")

    assert mine.decide(decision) is None
    assert ids(mine.read_all()) == ["theirs"]


def test_decide_gives_up_in_the_end(memory_store: Store) -> None:
    mine, theirs = journal(memory_store), journal(memory_store)

    def decision(state: dict[str, Any] | None, entry: Entry | None) -> dict[str, Any]:
        seq = entry.seq + 1 if entry else 0
        theirs.append(event(f"theirs{seq}"), seq)
        return event("mine")

    with pytest.raises(ConflictError, match="4 times"):
        mine.decide(decision, rounds=4)


def test_many_threads_decide_and_none_is_lost(store: Store) -> None:
    def add(me: int) -> None:
        mine = Journal(store, "journal/app")

        def decision(state: dict[str, Any] | None, entry: Entry | None) -> dict[str, Any]:
            return event(f"e{me}", state={"sum": (state or {"sum": 0})["sum"] + me})

        mine.decide(decision)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(1, 25)))
    last = journal(store).read_last()
    assert last is not None
    assert last.seq == 23
    assert last.state == {"sum": sum(range(1, 25))}
    assert sorted(ids(journal(store).read_all())) == sorted(f"e{n}" for n in range(1, 25))


# --- any interleaving of two writers, with any faults ---

Step = Callable[[], None]


def writer_steps(store: Store, me: str, count: int, faults: list[Fault | None]) -> Iterator[None]:
    """A writer that adds `count` to the journal's counter, one call at a time; killed, it starts again.

    Its decision is idempotent by the state, as all of ours are: what is counted already is not done again.
    """
    done = 0
    while done < count:
        faulty = planned(store, {"create": faults})
        mine = journal(faulty)
        try:
            newest = mine.read_last()
            yield
            state = dict((newest.state if newest else None) or {})
            if state.get(me, 0) > done:
                done = state[me]
                continue
            state[me] = done + 1
            mine.append(event(f"{me}{done}", state=state), newest.seq + 1 if newest else 0)
            yield
        except (LostRace, StoreUnavailable):
            yield
        except Killed:
            yield


fault_lists = st.lists(st.sampled_from([None, *Fault]), max_size=8)


@settings(deadline=None)  # other work on the machine must not fail it
@given(order=st.lists(st.booleans(), max_size=60), faults_a=fault_lists, faults_b=fault_lists)
def test_any_interleaving_of_two_writers(
    order: list[bool], faults_a: list[Fault | None], faults_b: list[Fault | None]
) -> None:
    store = open_store("memory://")
    writers = [writer_steps(store, "a", 4, faults_a), writer_steps(store, "b", 4, faults_b)]
    for first in order:
        next(writers[0 if first else 1], None)
    for writer in writers:
        for _ in writer:
            pass
    entries = journal(store).read_all()
    assert [e.seq for e in entries] == list(range(8))
    assert sorted(ids(entries)) == sorted(f"{me}{n}" for me in "ab" for n in range(4))  # each once
    assert entries[-1].state == {"a": 4, "b": 4}
    for before, entry in zip([None, *entries], entries, strict=False):  # each decided on the one before it
        counts = dict((before.state if before else None) or {})
        me = entry.document["id"][0]
        counts[me] = counts.get(me, 0) + 1
        assert entry.state == counts
