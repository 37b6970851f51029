"""Copies objects from one store to another, each checked against its sha256 where a manifest says it."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from lora_ops.errors import ConflictError, ObjectExists, ObjectMissing
from tasks.backup.plan import Folder
from tasks.store import Meta, Store

_IN_MEMORY = 8 * 1024 * 1024


class Copier:
    """Copies from `source` to `target`. `problems`: what could not be copied, a line each."""

    def __init__(self, source: Store, target: Store, copied: Callable[[int], None]) -> None:
        """`copied`: told the bytes of each object."""
        self.source = source
        self.target = target
        self.problems: list[str] = []
        self.objects = 0
        self.bytes = 0
        self._copied = copied
        self._lock = threading.Lock()

    def once(self, meta: Meta) -> None:
        """An object that never changes. Raises ConflictError when another is in its place."""
        try:
            data = self.source.get(meta.key).data
        except ObjectMissing:
            return  # cleared away meanwhile
        self._create(meta.key, data)
        self._count(len(data))

    def again(self, meta: Meta) -> None:
        """An object that its writer overwrote now and then."""
        try:
            data = self.source.get(meta.key).data
        except ObjectMissing:
            return
        self.target.put(meta.key, data)
        self._count(len(data))

    def entry(self, meta: Meta) -> None:
        """A journal's entry. Raises ConflictError for another one in its place, ObjectMissing."""
        data = self.source.get(meta.key).data
        self._create(meta.key, data)
        self._count(len(data))

    def folder(self, folder: Folder) -> None:
        """The files of its manifest, then the manifest. A file that is not what it says: no manifest."""
        try:
            manifest = self.source.get(folder.manifest.key).data
        except ObjectMissing:
            return  # cleared away meanwhile
        try:
            digests = {
                f"{folder.files_at}/{file['path']}": str(file["sha256"])
                for file in json.loads(manifest)["files"]
            }
        except (ValueError, KeyError, TypeError):
            return self._problem(f"`{folder.manifest.key}` is not a manifest")
        missing = {meta.key: meta for meta in folder.missing}
        for key, sha256 in digests.items():
            if key in missing and not self._file(missing[key], sha256):
                return None
        if folder.manifest.key in missing:
            self._create(folder.manifest.key, manifest)
            self._count(len(manifest))
        return None

    def _file(self, meta: Meta, sha256: str) -> bool:
        """Whether it was copied; what it is not is a problem."""
        try:
            if meta.size > _IN_MEMORY:
                good = self._by_disk(meta, sha256)
            else:
                data = self.source.get(meta.key).data
                good = hashlib.sha256(data).hexdigest() == sha256
                if good:
                    self.target.put(meta.key, data)
        except ObjectMissing:
            self._problem(f"`{meta.key}` is missing, and its manifest names it")
            return False
        if not good:
            self._problem(f"`{meta.key}` is not what its manifest says")
            return False
        self._count(meta.size)
        return True

    def _by_disk(self, meta: Meta, sha256: str) -> bool:
        with tempfile.TemporaryDirectory(prefix="lora-ops-") as folder:
            path = Path(folder) / "object"
            self.source.get_file(meta.key, path)
            with path.open("rb") as file:
                good = hashlib.file_digest(file, "sha256").hexdigest() == sha256
            if good:
                self.target.put_file(meta.key, path)
        return good

    def _create(self, key: str, data: bytes) -> None:
        try:
            self.target.create(key, data)
        except ObjectExists:
            if self.target.get(key).data != data:
                raise apart(self.target, key) from None

    def _problem(self, line: str) -> None:
        with self._lock:
            self.problems.append(line)

    def _count(self, size: int) -> None:
        with self._lock:
            self.objects += 1
            self.bytes += size
        self._copied(size)


def apart(target: Store, key: str) -> ConflictError:
    """The two stores do not belong together."""
    return ConflictError(
        f"`{key}` in {target.url} is another one: these stores have gone apart.",
        "It holds another platform, or this one was begun anew instead of being restored. Name a new place as"
        " `backup.url`, or `lora-ops storage sync --restore` into an empty store.",
    )
