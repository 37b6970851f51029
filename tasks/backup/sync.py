"""`lora-ops storage sync`: brings a backup up to date with its store. Never deletes, never overwrites."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from lora_ops import SCHEMA_VERSION
from lora_ops.errors import ConfigError
from lora_ops.storage_spec import BackupSpec
from tasks.backup.copying import Copier, apart
from tasks.backup.plan import MARK, Plan, make_plan
from tasks.store import Meta, Store, open_store, prove_create_only

_PARALLEL = 8
T = TypeVar("T")


class Progress(Protocol):
    """Who wants to know how far it is. What it raises ends the copying, after what is under way."""

    def begin(self, objects: int, size: int) -> None: ...

    def copied(self, size: int) -> None: ...


class Silent:
    """Nobody wants to know."""

    def begin(self, objects: int, size: int) -> None: ...

    def copied(self, size: int) -> None: ...


@dataclass(slots=True)
class Report:
    """What was copied, or would be. `problems`: what could not be, a line each. `size` in bytes."""

    objects: int = 0
    size: int = 0
    missing: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def sync(store: Store, backup: Store, *, dry_run: bool = False, progress: Progress | None = None) -> Report:
    """Copy to `backup` what it lacks. Resumable, safe beside a running platform and beside another sync.

    Raises ConflictError when the two have gone apart, JournalError for a gap in a journal, StoreUnavailable.
    """
    check_two(store, backup)
    prove_create_only(backup)
    still_open = [meta.key.removeprefix("open/") for meta in store.list("open")]
    report = copy_store(store, backup, still_open, dry_run=dry_run, progress=progress)
    if not dry_run:
        mark = {"schema_version": SCHEMA_VERSION, "from": store.url, "problems": len(report.problems)}
        backup.put(MARK, json.dumps(mark).encode())
    return report


def copy_store(
    source: Store,
    target: Store,
    still_open: Iterable[str],
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    before_journal: Callable[[], None] = lambda: None,
) -> Report:
    """`before_journal` is called when all is there but the apps' journals, which make a platform of it."""
    there = {meta.key: meta.size for meta in target.list("")}
    plan = make_plan(source, there, still_open)
    _check_together(source, target, there, plan)
    report = Report(missing=plan.by_kind(), problems=[f"`{key}` differs in size" for key in plan.differs])
    if dry_run:
        return report
    told = progress or Silent()
    told.begin(sum(1 for _ in plan.metas()), sum(meta.size for meta in plan.metas()))
    copier = Copier(source, target, told.copied)
    _in_parallel(copier.folder, plan.folders)
    last = [
        meta for meta in plan.objects if meta.key.endswith("/release.json")
    ]  # says that the release is there
    _in_parallel(copier.once, [meta for meta in plan.objects if meta not in last])
    _in_parallel(copier.once, last)
    _in_parallel(copier.again, plan.tales)

    def journal(metas: list[Meta]) -> None:
        for meta in metas:
            copier.entry(meta)

    _in_parallel(journal, [plan.entries[each] for each in plan.entries if each.startswith("requests/")])
    before_journal()
    for prefix, metas in plan.entries.items():
        if prefix.startswith("journal/"):
            journal(metas)
    report.objects, report.size = copier.objects, copier.bytes
    report.problems += copier.problems
    return report


def open_backup(backup: BackupSpec) -> Store:
    """The store that `backup:` names. Raises as `open_store`."""
    return open_store(backup.url, credentials_block=backup.credentials_block)


def check_two(store: Store, backup: Store) -> None:
    """ConfigError when one lies in the other: each copy would be copied again."""
    ours, theirs = (f"{each.url.rstrip('/')}/" for each in (store, backup))
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise ConfigError(
            f"The backup {backup.url} and the store {store.url} lie in each other.",
            "Name a place of its own as `backup.url`, best in another region or at another provider.",
        )


def _check_together(source: Store, target: Store, there: dict[str, int], plan: Plan) -> None:
    """ConflictError when the newest entry that both hold of an app's journal is not the same."""
    for key in plan.apart:
        raise apart(target, key)
    for app in source.list_folders("journal"):
        common = {meta.key for meta in source.list(f"journal/{app}")} & there.keys()
        newest = max(common, default=None)
        if newest is not None and source.get(newest).data != target.get(newest).data:
            raise apart(target, newest)


def _in_parallel(act: Callable[[T], None], items: Iterable[T]) -> None:
    """All of them; after the first failure nothing more is begun, and it is raised."""
    stop = threading.Event()

    def one(item: T) -> None:
        if not stop.is_set():
            act(item)

    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="sync") as pool:
        running = [pool.submit(one, item) for item in items]
        try:
            for each in as_completed(running):
                each.result()
        finally:
            stop.set()
