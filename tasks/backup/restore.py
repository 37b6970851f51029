"""`lora-ops storage sync --restore`: a platform's store made again from its backup."""

from __future__ import annotations

import json
from collections.abc import Iterator

from lora_ops import SCHEMA_VERSION, keys
from lora_ops.errors import ConflictError, JournalError, NotFoundError, ObjectMissing
from lora_ops.request import RequestState
from tasks.backup.sync import Progress, Report, check_two, copy_store
from tasks.store import Store, prove_create_only

MARK = "restore/from.json"  # in the store, until it is whole again

_NO_MATTER = ("clock/", "probe/", "restore/")


def restore(
    store: Store, backup: Store, *, dry_run: bool = False, progress: Progress | None = None
) -> Report:
    """Copy all of the backup into an empty store; after a crash it goes on where it was.

    The requests that had no result are open again. Raises ConflictError when the store is not empty,
    NotFoundError when the backup holds no platform, JournalError, StoreUnavailable.
    """
    check_two(store, backup)
    if not backup.list_folders("journal"):
        raise NotFoundError(f"The backup {backup.url} holds no platform.", "Is `backup.url` the right one?")
    _check_empty(store, backup)
    prove_create_only(store)
    still_open = list(_still_open(backup))
    if not dry_run:
        store.put(MARK, json.dumps({"schema_version": SCHEMA_VERSION, "from": backup.url}).encode())

    def open_again() -> None:
        for request in still_open:
            store.put(keys.open_marker(request), b"{}")

    report = copy_store(
        backup, store, still_open, dry_run=dry_run, progress=progress, before_journal=open_again
    )
    if not dry_run:
        store.delete(MARK)
    return report


def _check_empty(store: Store, backup: Store) -> None:
    held = [meta.key for meta in store.list("") if not meta.key.startswith(_NO_MATTER)]
    if not held:
        return
    try:
        origin = json.loads(store.get(MARK).data).get("from")
    except ObjectMissing:
        origin = None
    if origin != backup.url:
        raise ConflictError(
            f"The store {store.url} is not empty: it holds `{held[0]}` and {len(held) - 1} more objects.",
            "A restore never overwrites. Name an empty place as `store`, and stop everything that uses it.",
        )


def _still_open(backup: Store) -> Iterator[str]:
    """The requests of the backup whose newest entry carries no result."""
    newest: dict[str, str] = {}
    for meta in backup.list("requests"):
        parts = meta.key.split("/")
        if len(parts) == 3 and parts[2].removesuffix(".json").isdecimal():
            newest[parts[1]] = meta.key  # sorted: the last is the newest
    for item in backup.get_many(newest.values()):
        try:
            state = RequestState.model_validate(json.loads(item.data)["state"])
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(
                f"`{item.key}` in {backup.url} is not an entry of a request's journal ({error}).",
                "The backup was changed: take this object from the bucket's versions.",
            ) from error
        if state.result is None:
            yield item.key.split("/")[1]
