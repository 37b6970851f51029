"""Whether the finished folders of a store are what their manifests say, and how far behind a backup is."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_ops.errors import ObjectMissing
from lora_ops.garbage import MANIFEST, TOMBSTONE
from lora_ops.units import age
from tasks.backup.plan import MARK
from tasks.backup.sync import sync
from tasks.clock import StoreClock
from tasks.store import Meta, Store
from tasks.store.checks import Finding, Level

SAMPLE = 5
_SHOWN = 3


def digests(store: Store, *, deep: bool = False, say: Callable[[str], None] = lambda _: None) -> Finding:
    """Hash the files of a few folders, drawn by lot, or of all (`deep`). `say`: told each folder."""
    found = [
        meta
        for name in ("artifacts", "checkpoints", "datasets")
        for meta in store.list(name)
        if meta.key.endswith(f"/{MANIFEST}") and meta.size != len(TOMBSTONE)
    ]
    chosen = found if deep else random.sample(found, min(SAMPLE, len(found)))
    bad: list[str] = []
    for meta in chosen:
        say(meta.key.removesuffix(f"/{MANIFEST}"))
        bad += _wrong(store, meta)
    told = f"{len(found)} finished folders, {len(chosen)} read: all are what their manifests say"
    if not bad:
        return Finding("digests", Level.OK, told)
    more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return Finding(
        "digests",
        Level.FAIL,
        f"{', '.join(bad[:_SHOWN])}{more}: missing, or not what the manifest says",
        "Take these objects from the backup or from the bucket's versions; whoever reads them is refused.",
    )


def behind(store: Store, backup: Store) -> Iterator[Finding]:
    """What the backup lacks, and when it was last completed. Raises ConflictError when they went apart."""
    plan = sync(store, backup, dry_run=True)
    lacks = sum(each["objects"] for each in plan.missing.values())
    size = sum(each["bytes"] for each in plan.missing.values())
    when = _last(backup)
    found = f"lacks {lacks} objects ({size / 1e6:.1f} MB), last completed {when or 'never'}"
    level = Level.OK if when is not None and not plan.problems else Level.WARN
    remedy = "" if level is Level.OK else "Run `lora-ops storage sync`."
    yield Finding("mirror", level, "; ".join([found, *plan.problems[:_SHOWN]]), remedy)


def _last(backup: Store) -> str | None:
    try:
        then = backup.head(MARK).last_modified
    except ObjectMissing:
        return None
    clock = StoreClock(backup, f"check-{secrets.token_hex(4)}")
    try:
        return f"{age(max(0.0, clock.now().earliest - then))} ago"
    finally:
        clock.close()


def _wrong(store: Store, manifest: Meta) -> Iterator[str]:
    """The keys that are not what it says."""
    prefix = manifest.key.removesuffix(f"/{MANIFEST}")
    files_at = f"{prefix}/files" if prefix.startswith("datasets/") else prefix
    try:
        files = json.loads(store.get(manifest.key).data)["files"]
        named = [(f"{files_at}/{file['path']}", str(file["sha256"])) for file in files]
    except ObjectMissing:
        return  # cleared away meanwhile
    except (ValueError, KeyError, TypeError):
        yield manifest.key
        return
    gone = [key for key, sha256 in named if _sha256(store, key) != sha256]
    if gone and store.list(prefix):
        yield from gone


def _sha256(store: Store, key: str) -> str | None:
    with tempfile.TemporaryDirectory(prefix="lora-ops-") as folder:
        path = Path(folder) / "object"
        try:
            store.get_file(key, path)
        except ObjectMissing:
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
