"""An append-only journal in the store: one decision an object, its number the lock."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_ops.errors import ConflictError, JournalError, ObjectExists, ObjectMissing, StoreUnavailable
from tasks.store import Object, Store

Document = dict[str, Any]

_NAME = re.compile(r"^(\d{20})\.json$")
_PROBES = 8  # this many new entries are looked for one by one, then a list is cheaper
_TRIES = 4  # to write one entry while the store does not answer


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision. `last_modified` is its time, in seconds since the epoch on the store's clock."""

    seq: int
    key: str
    document: Document
    last_modified: float

    @property
    def state(self) -> Document | None:
        """The state after this decision, where the writer put one."""
        state = self.document.get("state")
        return state if isinstance(state, dict) else None


class LostRace(ConflictError):
    """Another writer took this number; `entry` is what it wrote. Decide again from there."""

    kind = "lost-race"

    def __init__(self, entry: Entry) -> None:
        super().__init__(
            f"Another writer made decision {entry.seq} first (`{entry.key}`).", "Read it and decide again."
        )
        self.entry = entry


class Journal:
    """The journal `<prefix>/<seq:020d>.json`, numbered from 0 without a gap; nothing is ever edited.

    Other objects may lie below `prefix`. Every document has a writer-made `id`, by which a writer knows its
    own entry again after a lost answer. A Journal remembers the newest entry that it saw. Thread-safe.
    """

    def __init__(self, store: Store, prefix: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.store = store
        self.prefix = prefix.rstrip("/")
        self._sleep = sleep
        self._newest: Entry | None = None
        self._lock = threading.Lock()

    def key(self, seq: int) -> str:
        return f"{self.prefix}/{seq:020d}.json"

    def read_last(self) -> Entry | None:
        """The newest entry, or None in an empty journal. JournalError for a torn or foreign document."""
        newest = self._newest
        if newest is not None:
            for _ in range(_PROBES):
                following = self._read_or_none(newest.seq + 1)
                if following is None:
                    return newest
                newest = following
        last = max(self._listed(-1 if newest is None else newest.seq), default=None)
        if last is None:
            return newest
        return self.read(last)

    def read(self, seq: int) -> Entry:
        """Entry `seq`. Raises ObjectMissing, JournalError."""
        entry = self._parse(seq, self.store.get(self.key(seq)))
        self._remember(entry)
        return entry

    def read_all(self, after: int = -1) -> list[Entry]:
        """All entries with a number greater than `after`, in order. Raises JournalError, also for a gap."""
        found: list[Entry] = []
        for item in self.store.get_many([self.key(seq) for seq in self._listed(after)]):
            seq = after + 1 + len(found)
            if item.key != self.key(seq):
                raise JournalError(
                    f"The journal `{self.prefix}` has no entry {seq}, but a later one (`{item.key}`).",
                    "Someone deleted it: restore it from a backup or from the bucket's versions.",
                )
            found.append(self._parse(seq, item))
        if found:
            self._remember(found[-1])
        return found

    def append(self, event: Document, expect_seq: int) -> Entry:
        """Write `event` as entry `expect_seq`; the entry before it must exist.

        An entry that is there already and carries the event's own `id` is this event: success. Raises
        LostRace when it is another's, JournalError for an event without id or a number that would leave a
        gap, StoreUnavailable when the outcome is unknown (read again: the event may be in).
        """
        mine = event.get("id")
        if not isinstance(mine, str) or not mine or event.get("seq", expect_seq) != expect_seq:
            raise JournalError(
                f"An event of `{self.prefix}` needs an `id` and, if it has a `seq`, the value {expect_seq}."
            )
        self._check_no_gap(expect_seq)
        key = self.key(expect_seq)
        data = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        for attempt in range(_TRIES):
            if attempt:
                self._sleep(random.uniform(0, 0.1 * 2**attempt))
            try:
                self.store.create(key, data)
                break
            except ObjectExists:
                there = self.read(expect_seq)
                if there.document["id"] != mine:
                    raise LostRace(there) from None
                return there
            except StoreUnavailable:
                if attempt == _TRIES - 1:
                    raise
        entry = Entry(expect_seq, key, json.loads(data), self.store.head(key).last_modified)
        self._remember(entry)
        return entry

    def decide(
        self, decision: Callable[[Document | None, Entry | None], Document | None], rounds: int = 50
    ) -> Entry | None:
        """Append what `decision(state, newest entry)` returns; after a lost race, decide again.

        Both arguments are None in an empty journal; a decision that returns None ends it (nothing to do any
        more), and so does its exception. Raises ConflictError after `rounds` lost races.
        """
        for _ in range(rounds):
            newest = self.read_last()
            event = decision(newest.state if newest else None, newest)
            if event is None:
                return None
            try:
                return self.append(event, newest.seq + 1 if newest else 0)
            except LostRace:
                self._sleep(random.uniform(0, 0.02))
        raise ConflictError(
            f"Other writers of `{self.prefix}` were faster {rounds} times in a row.", "Try again in a moment."
        )

    def _listed(self, after: int) -> list[int]:
        start = self.key(after) if after >= 0 else None
        names = (
            meta.key.removeprefix(f"{self.prefix}/") for meta in self.store.list(self.prefix, after=start)
        )
        return [int(match[1]) for match in map(_NAME.match, names) if match]

    def _check_no_gap(self, seq: int) -> None:
        newest = self._newest
        if seq == 0 or (newest is not None and newest.seq >= seq - 1):
            return
        try:
            self.read(seq - 1)
        except ObjectMissing as error:
            raise JournalError(
                f"`{self.prefix}` has no entry {seq - 1}, so {seq} cannot be written."
            ) from error

    def _read_or_none(self, seq: int) -> Entry | None:
        try:
            return self.read(seq)
        except ObjectMissing:
            return None

    def _remember(self, entry: Entry) -> None:
        with self._lock:
            if self._newest is None or entry.seq > self._newest.seq:
                self._newest = entry

    def _parse(self, seq: int, item: Object) -> Entry:
        problem = ""
        try:
            document = json.loads(item.data)
        except ValueError as error:
            document, problem = None, f"it is not JSON ({error})"
        if not problem and not isinstance(document, dict):
            problem = "it is not a JSON object"
        elif not problem and not (isinstance(document.get("id"), str) and document["id"]):
            problem = "it has no `id`"
        elif not problem and document.get("seq", seq) != seq:
            problem = f"it says that it is number {document['seq']!r}"
        if problem:
            raise JournalError(
                f"`{item.key}` in {self.store.url} is not an entry of a journal: {problem}.",
                "lora-ops never writes such an object. Restore it; until then nothing is decided here.",
            )
        return Entry(seq, item.key, document, item.last_modified)
