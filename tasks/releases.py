"""Published releases: what each digest is, where it came from, and how to find one."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

from lora_ops.errors import JournalError, NotFoundError, ObjectExists, ObjectMissing, nearest
from lora_ops.state import BUNDLE
from tasks.store import Object, Store, key_digest


@dataclass(frozen=True)
class Release:
    """A published release. `created`: seconds since the epoch on the store's clock; `size` in bytes.

    `kind`: `bundle` or `image`. Of an image, `repository` is where it was built to or found, and `tree` the
    digest of the code in it, with which an attempt compares what it really runs.
    """

    digest: str
    revision: str
    source: str
    created_by: str
    lock_sha256: str
    size: int
    created: float
    kind: str = BUNDLE
    repository: str = ""
    tree: str = ""


def where(digest: str) -> str:
    """The release's prefix in the store."""
    return f"releases/{key_digest(digest)}"


def describe(store: Store, digest: str, **facts: Any) -> None:
    """Write what a release is. Idempotent: the first publisher's facts stay."""
    document = {"schema_version": 1, "digest": digest, **facts}
    with contextlib.suppress(ObjectExists):
        store.create(f"{where(digest)}/release.json", json.dumps(document, indent=2).encode())


def read_release(store: Store, digest: str) -> Release:
    """The release of a whole digest. Raises ObjectMissing."""
    return _release(store.get(f"{where(digest)}/release.json"))


def list_releases(store: Store) -> list[Release]:
    """All published releases, oldest first."""
    keys = [meta.key for meta in store.list("releases") if meta.key.endswith("/release.json")]
    return sorted(map(_release, store.get_many(keys)), key=lambda release: release.created)


def find_release(store: Store, digest: str) -> Release:
    """The release of a digest, or of the beginning of one (with or without `sha256:`).

    Raises NotFoundError (names the nearest) when there is none or more than one.
    """
    with contextlib.suppress(ObjectMissing):
        if digest.startswith("sha256:") and len(digest) == 71:
            return read_release(store, digest)
    start = digest.removeprefix("sha256:")
    known = list_releases(store)
    found = [r for r in known if start and r.digest.removeprefix("sha256:").startswith(start)]
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFoundError(
            f"`{digest}` is the beginning of {len(found)} releases.", "Give more of its digits."
        )
    raise NotFoundError(f"There is no release `{digest}`.", nearest(digest, [r.digest for r in known]))


def _release(item: Object) -> Release:
    try:
        facts: dict[str, Any] = json.loads(item.data)
        return Release(
            digest=str(facts["digest"]),
            revision=str(facts["revision"]),
            source=str(facts["source"]),
            created_by=str(facts["created_by"]),
            lock_sha256=str(facts["lock_sha256"]),
            size=int(facts["size"]),
            created=item.last_modified,
            kind=str(facts.get("kind", BUNDLE)),
            repository=str(facts.get("repository", "")),
            tree=str(facts.get("tree", "")),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(
            f"`{item.key}` is not the description of a release ({error}).", "Restore it."
        ) from error
