"""`lora-ops storage gc`: finds what nothing can need any more (lora_ops/garbage.py) and deletes it.

Safe beside a running platform and beside a second gc. Killed anywhere, it is just run again.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import ValidationError

from lora_ops import keys
from lora_ops.errors import JournalError, ObjectExists, ObjectMissing
from lora_ops.garbage import MANIFEST, TOMBSTONE, Garbage, Item, Kind, Known, Limits, find_garbage
from lora_ops.request import RequestState
from lora_ops.state import AppState
from tasks.clock import StoreClock
from tasks.journal import Journal
from tasks.store import Metas, Store

_FOLDERS = ("checkpoints", "artifacts", "requests", "clock", "probe", "datasets", "releases")
_ENTRY = re.compile(r"^requests/([^/]+)/(\d{20})\.json$")
_PARALLEL = 16
_SETTLE_S = 2.0  # between a dataset's tombstone and the last look at who needs it


@dataclass(frozen=True, slots=True)
class Found:
    """What may be deleted."""

    garbage: list[Garbage]

    def of(self, *kinds: Kind) -> list[Garbage]:
        return [each for each in self.garbage if each.kind in kinds]

    def folders(self, kind: Kind) -> list[str]:
        return sorted({each.folder for each in self.garbage if each.kind is kind})

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(each.size for each in self.garbage)


def find(store: Store, limits: Limits) -> Found:
    """What may be deleted. Raises JournalError for an app whose state cannot be read, StoreUnavailable."""
    known, listed = _look(store)
    clock = StoreClock(store, f"gc-{secrets.token_hex(4)}")
    try:
        now = clock.now().earliest - store.time_resolution
    finally:
        clock.close()
    items = [
        Item(meta.key, meta.size, max(0.0, now - meta.last_modified))
        for metas in listed.values()
        for meta in metas
    ]
    return Found(find_garbage(items, known, limits))


def sweep(store: Store, garbage: Sequence[Garbage], limits: Limits, deleted: Callable[[int], None]) -> int:
    """Delete it, `deleted` told the bytes of each object; returns their sum. Raises StoreUnavailable."""
    alone = {each.key: each.size for each in garbage if not each.folder}
    freed = sum(alone.values())
    _delete(store, alone, lambda key: deleted(alone[key]))
    folders: dict[tuple[Kind, str], list[Garbage]] = {}
    for each in garbage:
        if each.folder:
            folders.setdefault((each.kind, each.folder), []).append(each)
    for (kind, folder), members in folders.items():
        gone = {Kind.RELEASE: _drop_release, Kind.DATASET: _drop_dataset, Kind.UNFINISHED: _drop_unfinished}[
            kind
        ](store, folder, members, limits)
        if gone:
            for each in members:
                freed += each.size
                deleted(each.size)
    return freed


def _look(store: Store) -> tuple[Known, dict[str, Metas]]:
    """Markers first: who is not open then, and has its result later, is over for ever."""
    marked = frozenset(meta.key.removeprefix("open/") for meta in store.list("open"))
    with ThreadPoolExecutor(len(_FOLDERS)) as pool:
        listed = dict(zip(_FOLDERS, pool.map(store.list, _FOLDERS), strict=True))
    newest: dict[str, tuple[int, str]] = {}
    for meta in listed["requests"]:
        if match := _ENTRY.match(meta.key):
            newest[match[1]] = max(newest.get(match[1], (-1, "")), (int(match[2]), meta.key))
    concerned = marked | {meta.key.split("/")[1] for name in _FOLDERS[:2] for meta in listed[name]}
    concerned |= {meta.key.split("/")[1] for meta in listed["requests"] if "/attempts/" in meta.key}
    requests = _requests(store, {each: newest[each] for each in concerned if each in newest})
    apps = [_app(store, name) for name in store.list_folders("journal")]
    return Known(marked, requests, apps), listed


def _requests(store: Store, newest: dict[str, tuple[int, str]]) -> dict[str, RequestState]:
    """The states that can be read; what cannot is unknown, and nothing of it is garbage."""
    states = {}
    for item in store.get_many(key for _, key in newest.values()):
        try:
            state = RequestState.model_validate(json.loads(item.data)["state"])
        except (ValueError, KeyError, TypeError):  # pydantic's is a ValueError
            continue
        states[item.key.split("/")[1]] = state
    return states


def _app(store: Store, name: str) -> AppState:
    entry = Journal(store, keys.journal(name)).read_last()
    if entry is None:
        return AppState(app=name)
    try:
        return AppState.model_validate(entry.state)
    except ValidationError as error:
        raise JournalError(
            f"`{entry.key}` in {store.url} carries no state of an app.",
            "Without it nobody knows what is needed: nothing was deleted. Restore it first.",
        ) from error


def _delete(store: Store, names: Iterable[str], deleted: Callable[[str], None]) -> None:
    def one(key: str) -> None:
        store.delete(key)
        deleted(key)

    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="gc") as pool:
        for _ in pool.map(one, names):
            pass


def _drop_release(store: Store, folder: str, members: Sequence[Garbage], limits: Limits) -> bool:
    """`release.json` first, so that it is not listed any more. A rollout that began meanwhile keeps it."""
    if not _still_garbage(store, members, limits):
        return False
    for each in sorted(members, key=lambda each: not each.key.endswith("/release.json")):
        store.delete(each.key)
    return True


def _drop_unfinished(store: Store, folder: str, members: Sequence[Garbage], limits: Limits) -> bool:
    """Whoever would finish the upload finds the tombstone; an upload that was finished meanwhile stays."""
    manifest = f"{folder}/{MANIFEST}"
    try:
        store.create(manifest, TOMBSTONE)
    except ObjectExists:
        if _read(store, manifest) != TOMBSTONE:
            return False
    _clear(store, folder)
    return True


def _drop_dataset(store: Store, folder: str, members: Sequence[Garbage], limits: Limits) -> bool:
    """The tombstone first, then a last look: a request that was submitted meanwhile gets its dataset back."""
    manifest = f"{folder}/{MANIFEST}"
    there = _read(store, manifest)
    if there is None:
        return False
    store.put(manifest, TOMBSTONE)
    kept = True
    try:
        time.sleep(_SETTLE_S)
        kept = not _still_garbage(store, members, limits)
    finally:
        if kept:
            store.put(manifest, there)
    if not kept:
        _clear(store, folder)
    return not kept


def _clear(store: Store, folder: str) -> None:
    """Everything of the folder, its tombstone last."""
    manifest = f"{folder}/{MANIFEST}"
    _delete(store, [meta.key for meta in store.list(folder) if meta.key != manifest], lambda _: None)
    store.delete(manifest)


def _still_garbage(store: Store, members: Sequence[Garbage], limits: Limits) -> bool:
    """Whether it is, by what the store says now. Its age was looked at before."""
    ageless = Limits(0.0, 0.0, releases=limits.releases, datasets=limits.datasets)
    items = [Item(each.key, each.size, 0.0) for each in members]
    return len(find_garbage(items, _look(store)[0], ageless)) == len(items)


def _read(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key).data
    except ObjectMissing:
        return None
