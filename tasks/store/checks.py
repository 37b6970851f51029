"""`lora-ops storage check`: what a store promises, tried out, with a remedy for what it does not keep."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from lora_ops.errors import LoraOpsError, StoreError
from lora_ops.storage_spec import Address
from tasks.clock import StoreClock
from tasks.store.base import Store
from tasks.store.file_store import FileStore
from tasks.store.proof import prove_create_only

_ROUNDS = 5
_SLOW_S = 0.5
_OFF_S = 30.0
_FREE_BYTES = 5e9
_FULL_BYTES = 5e8


class Level(StrEnum):
    """`warn`: it works, and something is better changed."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `remedy`: what to do, when it is not ok."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def check_store(
    open_it: Callable[[], Store], address: Address, more: Callable[[Store], Iterator[Finding]]
) -> Iterator[Finding]:
    """Open it and try it out; `more` looks at what it holds. Stops at the first promise that all rests on."""
    try:
        store = open_it()
        folders = store.list_folders("")
        yield Finding("open", Level.OK, f"holds {', '.join(folders) or 'nothing yet'}")
        prove_create_only(store, again=True)
        yield Finding("create-only", Level.OK, "a second writer is refused")
        yield _latency(store)
        yield _clock(store)
    except LoraOpsError as error:
        yield Finding(error.kind, Level.FAIL, error.message, error.hint)
        return
    if isinstance(store, FileStore):
        yield _space(store)
    if store.url.startswith("s3://"):
        from tasks.store.s3_checks import check_bucket

        yield from check_bucket(address, store)
    elif store.url.startswith(("gs://", "az://")):
        yield Finding(
            "bucket", Level.OK, "versions, retention and encryption are the bucket's: docs/storage.md"
        )
    try:
        yield from more(store)
    except LoraOpsError as error:
        yield Finding(error.kind, Level.FAIL, error.message, error.hint)


def _latency(store: Store) -> Finding:
    """Median of a few writes and reads, on this process's monotonic clock."""
    writes, reads = [], []
    key = f"probe/latency/{secrets.token_hex(8)}"
    try:
        for _ in range(_ROUNDS):
            began = time.monotonic()
            store.put(key, b"x" * 1000)
            wrote = time.monotonic()
            store.get(key)
            writes.append(wrote - began)
            reads.append(time.monotonic() - wrote)
    finally:
        with contextlib.suppress(StoreError):
            store.delete(key)
    write, read = statistics.median(writes), statistics.median(reads)
    found = f"a write takes {write * 1000:.0f} ms, a read {read * 1000:.0f} ms"
    if max(write, read) < _SLOW_S:
        return Finding("latency", Level.OK, found)
    return Finding(
        "latency",
        Level.WARN,
        found,
        "A decision takes a few of them: use a store in the region of `lora-ops serve`.",
    )


def _clock(store: Store) -> Finding:
    clock = StoreClock(store, f"check-{secrets.token_hex(4)}")
    try:
        now, here = clock.now(), time.time()
    finally:
        clock.close()
    low, high = now.earliest - here, now.latest - here
    found = f"{low:+.2f} to {high:+.2f} s from this machine's, resolution {store.time_resolution:g} s"
    if low <= _OFF_S and high >= -_OFF_S:
        return Finding("clock", Level.OK, found)
    return Finding(
        "clock", Level.WARN, found, "lora-ops only uses the store's; set this machine's (NTP) for its logs."
    )


def _space(store: FileStore) -> Finding:
    free = shutil.disk_usage(store.root).free
    level = Level.OK if free > _FREE_BYTES else Level.WARN if free > _FULL_BYTES else Level.FAIL
    remedy = "" if level is Level.OK else "Free some, or `lora-ops storage gc`."
    return Finding("space", level, f"{free / 1e9:.1f} GB free", remedy)
