"""Folders of files in the store, whole or not there: datasets, checkpoints, artifacts.

A `MANIFEST.json` (path, size and sha256 of each file) is written last. Without it there is nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_ops.errors import (
    ConflictError,
    NotFoundError,
    ObjectExists,
    ObjectMissing,
    StoreError,
    nearest,
)
from lora_ops.garbage import MANIFEST, TOMBSTONE
from tasks.cache import disk_errors, materialise
from tasks.store import Store, digest_from_key, key_digest
from tasks.store.names import check_key

_STEP = re.compile(r"(\d+)$")


class StoredFile(NamedTuple):
    """One file of a manifest: its posix path below the folder, its bytes, its sha256 in hex."""

    path: str
    size: int
    sha256: str


def store_dataset(store: Store, name: str, files: Iterable[tuple[str, Path]], digest: str) -> None:
    """Copy files, as (posix path in the dataset, local path), to `datasets/<name>/<digest>/files/…`.

    Idempotent; after a crash it goes on where it was: a file that is there with the same bytes is kept.
    Raises StoreError for a name that no store holds, LoraOpsError for an unreadable file, StoreUnavailable,
    StoreFull.
    """
    where = _dataset(name, digest)
    if _manifest(store, where) is None:
        _upload(store, where, f"{where}/files", sorted(files), {"name": name, "digest": digest}, keep=True)


def fetch_dataset(store: Store, name: str, digest: str, cache_dir: Path) -> Path:
    """The folder of this machine with the dataset's files, `<cache_dir>/<name>/<hex>`, copied when need be.

    Each file is checked against its sha256 when it is copied, and by its size on later calls. Files are
    read-only. Safe with concurrent callers and kill -9. Raises NotFoundError, StoreError for a file that is
    not what the manifest says, StoreUnavailable, StoreFull.
    """
    where = _dataset(name, digest)
    manifest = _manifest(store, where)
    if manifest is None:
        raise NotFoundError(
            f"There is no dataset `{name}` with digest {digest}.", _known(store, name, digest)
        )

    def good(folder: Path) -> bool:
        return all(_size(folder / file.path) == file.size for file in manifest)

    def fill(folder: Path) -> None:
        _download(store, f"{where}/files", manifest, folder)
        for file in manifest:
            (folder / file.path).chmod(0o444)

    return materialise(cache_dir.absolute() / name / key_digest(digest).removeprefix("sha256-"), good, fill)


def upload_folder(store: Store, prefix: str, folder: Path) -> list[StoredFile]:
    """Copy a folder's files to `<prefix>/…` with `<prefix>/MANIFEST.json` last; returns the manifest.

    Idempotent; immutable once the manifest is there. Raises ConflictError when the manifest that is there
    names other files, StoreError for an empty folder, a link or a name that no store holds.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    files = [(p.relative_to(folder).as_posix(), p) for p in paths if p != folder / MANIFEST]
    links = [relative for relative, path in files if path.is_symlink() or not path.is_file()]
    if links or not files:
        what = f"holds `{links[0]}`, which is not a plain file" if links else "is empty"
        raise StoreError(f"The folder {folder} {what}.", "Only plain files can be stored.")
    there = _manifest(store, prefix)
    if there is None:
        return _upload(store, prefix, prefix, files, {}, keep=False)
    mine = [_hashed(relative, path) for relative, path in files]
    if mine != there:
        raise ConflictError(
            f"`{prefix}` in {store.url} already holds other files.", "What is stored there never changes."
        )
    return there


def download_folder(store: Store, prefix: str, dest: Path) -> list[StoredFile]:
    """Copy what `upload_folder` stored into the new folder `dest`; returns the manifest.

    Each file is checked against its sha256; `dest` appears when all are there. A `dest` that already holds
    these files is left as it is. Raises NotFoundError without a manifest, ConflictError when `dest` holds
    something else, StoreError for a file that is not what the manifest says.
    """
    manifest = _manifest(store, prefix)
    if manifest is None:
        raise NotFoundError(f"There is no finished folder `{prefix}` in {store.url}.", "It has no manifest.")
    dest = dest.absolute()
    with disk_errors(dest.parent):
        if dest.is_dir() and any(dest.iterdir()):
            if all(_size(dest / f.path) == f.size and _hashed(f.path, dest / f.path) == f for f in manifest):
                return manifest
            raise ConflictError(f"{dest} already holds something else.", "Give a new folder, or remove it.")
        half = dest.with_name(f".{dest.name}.{uuid.uuid4().hex[:8]}.half")
        half.mkdir(parents=True)
        try:
            _download(store, prefix, manifest, half)
            half.rename(dest)  # replaces an empty folder
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return manifest


def newest_checkpoint(store: Store, request: str) -> str | None:
    """The prefix of the request's farthest finished checkpoint, or None.

    Looks at `checkpoints/<request>/<attempt>/<step-name>/MANIFEST.json`: the highest number at the end of
    the step's name wins, then the latest attempt. A checkpoint without a manifest does not count.
    """
    base = f"checkpoints/{request}"
    best: tuple[int, int, float, str] | None = None
    for meta in store.list(base):
        parts = meta.key.removeprefix(f"{base}/").split("/")
        if len(parts) != 3 or parts[2] != MANIFEST:
            continue
        attempt, step = parts[0], _STEP.search(parts[1])
        rank = (
            int(step[1]) if step else -1,
            int(attempt) if attempt.isdecimal() else -1,
            meta.last_modified,
            f"{base}/{parts[0]}/{parts[1]}",
        )
        best = rank if best is None else max(best, rank)
    return best[3] if best else None


def _dataset(name: str, digest: str) -> str:
    if "/" in name:
        raise StoreError(f"`{name}` cannot be a dataset's name.", "Leave the slash out.")
    return f"datasets/{check_key(name)}/{key_digest(digest)}"


def _upload(
    store: Store,
    where: str,
    files_at: str,
    files: Sequence[tuple[str, Path]],
    facts: dict[str, Any],
    keep: bool,
) -> list[StoredFile]:
    """Files first, then the manifest. `keep`: a file that is there with the same bytes is not sent again."""
    for relative, _ in files:
        check_key(f"{files_at}/{relative}")  # before anything is written
    there = {meta.key: meta.size for meta in store.list(files_at)} if keep else {}
    manifest = []
    for relative, path in files:
        key = f"{files_at}/{relative}"
        with disk_errors(path.parent):
            before = path.stat()
            file = _hashed(relative, path)
            if there.get(key) != file.size or not _holds(store, key, file.sha256):
                store.put_file(key, path)
            after = path.stat()
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise StoreError(
                f"{path} changed while it was copied.", "Run the command again when it is quiet."
            )
        manifest.append(file)
    document = {"schema_version": 1, **facts, "files": [file._asdict() for file in manifest]}
    try:
        store.create(f"{where}/{MANIFEST}", json.dumps(document, indent=1).encode())
    except ObjectExists:
        if _manifest(store, where) != manifest:
            raise ConflictError(
                f"`{where}` in {store.url} was finished meanwhile, with other files.",
                "What is stored there never changes.",
            ) from None
    if keep:  # gc may have cleared kept files away as unfinished; now that the manifest is there, it cannot
        there = {meta.key: meta.size for meta in store.list(files_at)}
        for file, (_, path) in zip(manifest, files, strict=True):
            if there.get(f"{files_at}/{file.path}") != file.size:
                store.put_file(f"{files_at}/{file.path}", path)
    return manifest


def _download(store: Store, files_at: str, manifest: Sequence[StoredFile], folder: Path) -> None:
    for file in manifest:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        key = f"{files_at}/{file.path}"
        with contextlib.suppress(ObjectMissing):
            store.get_file(key, path)
        if _size(path) != file.size or _hashed(file.path, path) != file:
            raise StoreError(
                f"`{key}` in {store.url} is missing or not what its manifest says.",
                "It was changed or deleted: remove that folder from the store and store it again.",
            )


def _manifest(store: Store, prefix: str) -> list[StoredFile] | None:
    key = f"{prefix}/{MANIFEST}"
    try:
        data = store.get(key).data
    except ObjectMissing:
        return None
    if data == TOMBSTONE:
        raise ConflictError(
            f"`{prefix}` in {store.url} is being cleared away by `lora-ops storage gc`.",
            "Run the same command again when that is done; if nobody runs it any more, run it once.",
        )
    try:
        files = [
            StoredFile(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in json.loads(data)["files"]
        ]
        for file in files:
            check_key(file.path)  # nothing may be written outside of the folder
    except (ValueError, KeyError, TypeError, StoreError) as error:
        raise StoreError(f"`{key}` in {store.url} is not a manifest ({error}).", "Store it again.") from error
    return files


def _holds(store: Store, key: str, sha256: str) -> bool:
    """Whether the object is there, with these bytes."""
    return any(hashlib.sha256(found.data).hexdigest() == sha256 for found in store.get_many([key]))


def _hashed(relative: str, path: Path) -> StoredFile:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredFile(relative, file.tell(), sha256)


def _size(path: Path) -> int:
    """Bytes of the file, -1 when there is none."""
    return path.stat().st_size if path.is_file() else -1


def _known(store: Store, name: str, digest: str) -> str:
    names = store.list_folders("datasets")
    if name not in names:
        return nearest(name, names)
    digests = [d for d in map(digest_from_key, store.list_folders(f"datasets/{name}")) if d]
    return nearest(digest, digests)
