"""Proves that a store honours create-only before anything relies on it."""

from __future__ import annotations

import contextlib
import uuid

from lora_ops.errors import ObjectExists, StoreLies
from tasks.store.base import Store

_proven: set[str] = set()


def prove_create_only(store: Store, again: bool = False) -> None:
    """Create one object twice: the second must fail and change nothing, or StoreLies is raised.

    Once a process for each store's URL, unless `again`. Leaves nothing behind.
    """
    if store.url in _proven and not again:
        return
    key = f"probe/create-only/{uuid.uuid4().hex}"
    first, second = b"first", b"second"
    with contextlib.suppress(ObjectExists):  # nobody else knows this key: it would be our own lost answer
        store.create(key, first)
    try:
        try:
            store.create(key, second)
            honest = False
        except ObjectExists:
            honest = store.get(key).data == first
    finally:
        store.delete(key)
    if not honest:
        raise StoreLies(
            f"The store {store.url} does not honour create-only writes: a second writer was let in.",
            "Two writers could own the same decision: a rollout promoted and rolled back at once. Use a store"
            " that honours `If-None-Match: *` (AWS S3, GCS, Azure, a recent MinIO) or a folder, and see that"
            " no proxy drops that header.",
        )
    _proven.add(store.url)
