"""What one store lacks of another, and in which order it is to be copied.

Whatever a journal's entry speaks of is listed after that entry was, and copied before it: killed anywhere,
the copy is a platform of some moment, whole but for its newest decisions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from lora_ops.errors import JournalError
from lora_ops.garbage import MANIFEST, TOMBSTONE
from tasks.datasets import newest_checkpoint
from tasks.store import Meta, Metas, Store

MARK = "mirror/last.json"  # in the backup: when and from where it was last completed

_ENTRY = re.compile(r"^((?:journal|requests)/[^/]+)/(\d{20})\.json$")
_TALE = re.compile(r"^requests/([^/]+)/attempts/\d+/(log\.txt|heartbeat\.json)$")
_DEPTH = {"datasets": 3, "artifacts": 3, "checkpoints": 4}  # segments of a folder with a manifest
_ONCE = ("releases", "rollouts", "idempotency", "requests")  # create-only objects, but for a few
_LEFT_OUT = ("journal", "open", "clock", "probe", "mirror", "restore")
_FLOW = re.compile(r"^rollouts/[^/]+/flow\.json$")  # a heartbeat


@dataclass(frozen=True, slots=True)
class Folder:
    """A finished folder. `files_at`: what the paths of its manifest are relative to."""

    prefix: str
    files_at: str
    manifest: Meta
    missing: Metas


@dataclass(slots=True)
class Plan:
    """What is missing. `tales`: what its writer overwrites. `entries`: of each journal, in order.

    Not of the same size in both stores: `apart`, entries; `differs`, other objects that never change.
    """

    folders: list[Folder] = field(default_factory=list)
    objects: Metas = field(default_factory=list)
    tales: Metas = field(default_factory=list)
    entries: dict[str, Metas] = field(default_factory=dict)
    apart: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)

    def metas(self) -> Iterator[Meta]:
        """Every object that is to be copied."""
        for folder in self.folders:
            yield from folder.missing
        yield from self.objects
        yield from self.tales
        for metas in self.entries.values():
            yield from metas

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Objects and bytes that are missing, by the first segment of their keys."""
        found: dict[str, dict[str, int]] = {}
        for meta in self.metas():
            count = found.setdefault(meta.key.partition("/")[0], {"objects": 0, "bytes": 0})
            count["objects"] += 1
            count["bytes"] += meta.size
        return found


def make_plan(source: Store, there: Mapping[str, int], still_open: Iterable[str]) -> Plan:
    """What of `source` is missing in a store that holds `there` (key to size).

    `still_open`: the requests without a result; of these the newest checkpoint is kept, of the others the
    logs. Raises JournalError for a journal with a gap, StoreUnavailable.
    """
    plan = Plan()
    journals = _journals([*source.list("journal"), *source.list("requests")])
    unfinished = frozenset(still_open)
    for name in ("datasets", "artifacts", "checkpoints"):
        listed = source.list(name)
        wanted = None
        if name == "checkpoints":
            wanted = {newest_checkpoint(source, each) for each in sorted(unfinished)}
        plan.folders += _folders(name, listed, there, wanted)
    for name in _ONCE:
        for meta in source.list(name):
            if not _ENTRY.match(meta.key) and not _FLOW.match(meta.key):
                _one(plan, meta, there, unfinished)
    for name in sorted(set(source.list_folders("")) - {*_DEPTH, *_ONCE, *_LEFT_OUT}):  # a newer version's
        plan.tales += [meta for meta in source.list(name) if there.get(meta.key) != meta.size]
    for prefix, entries in journals.items():
        _journal(plan, prefix, entries, there)
    return plan


def _one(plan: Plan, meta: Meta, there: Mapping[str, int], unfinished: frozenset[str]) -> None:
    tale = _TALE.match(meta.key)
    if tale is not None:
        if tale[1] not in unfinished and there.get(meta.key) != meta.size:
            plan.tales.append(meta)
    elif meta.key not in there:
        plan.objects.append(meta)
    elif there[meta.key] != meta.size:
        plan.differs.append(meta.key)


def _folders(
    name: str, listed: Metas, there: Mapping[str, int], wanted: set[str | None] | None
) -> Iterator[Folder]:
    depth = _DEPTH[name]
    below: dict[str, Metas] = {}
    for meta in listed:
        parts = meta.key.split("/")
        if len(parts) > depth:
            below.setdefault("/".join(parts[:depth]), []).append(meta)
    for prefix, metas in below.items():
        manifest = next((meta for meta in metas if meta.key == f"{prefix}/{MANIFEST}"), None)
        missing = [meta for meta in metas if there.get(meta.key) != meta.size]
        if manifest is None or manifest.size == len(TOMBSTONE) or not missing:
            continue
        if wanted is None or prefix in wanted:
            files_at = f"{prefix}/files" if name == "datasets" else prefix
            yield Folder(prefix, files_at, manifest, missing)


def _journals(listed: Iterable[Meta]) -> dict[str, Metas]:
    found: dict[str, Metas] = {}
    for meta in listed:
        if match := _ENTRY.match(meta.key):
            found.setdefault(match[1], []).append(meta)
    for prefix, metas in found.items():
        for seq, meta in enumerate(metas):
            if meta.key != f"{prefix}/{seq:020d}.json":
                raise JournalError(
                    f"The journal `{prefix}` has no entry {seq}, but a later one (`{meta.key}`).",
                    "Someone deleted it: restore it from a backup or from the bucket's versions.",
                )
    return found


def _journal(plan: Plan, prefix: str, entries: Metas, there: Mapping[str, int]) -> None:
    missing = [meta for meta in entries if meta.key not in there]
    plan.apart += [meta.key for meta in entries if there.get(meta.key, meta.size) != meta.size]
    if missing:
        plan.entries[prefix] = missing
