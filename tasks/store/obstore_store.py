"""The store over obstore: any URL that it opens, its differences evened out."""

from __future__ import annotations

import contextlib
import errno
import math
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore

from lora_ops.errors import ObjectExists, ObjectMissing, StoreError, StoreFull
from tasks.store.base import Meta, Metas, Names, Object, Objects, Store
from tasks.store.names import check_key, folder
from tasks.store.trouble import first_line, no_answer, no_bucket

_LIST_CHUNK = 1000
_STREAM_CHUNK = 8 * 1024 * 1024
_PARALLEL_GETS = 16
_FULL = re.compile(
    r"os error (28|122)\b|kind: StorageFull|507 Insufficient Storage|XMinioStorageFull|QuotaExceeded"
)
_NOT_A_FOLDER = re.compile(r"os error 20\b")


class ObstoreStore(Store):
    """A Store over one of obstore's. Lists are sorted here, and a missing object is silent to delete."""

    def __init__(self, url: str, inner: ObjectStore, time_resolution: float) -> None:
        self.url = url
        self.time_resolution = time_resolution
        self.inner = inner

    def get(self, key: str) -> Object:
        with self._errors(key):
            answer = obstore.get(self.inner, check_key(key))
            return Object(key, bytes(answer.bytes()), self._time(answer.meta))

    def head(self, key: str) -> Meta:
        with self._errors(key):
            return self._meta(obstore.head(self.inner, check_key(key)))

    def put(self, key: str, data: bytes) -> None:
        with self._errors(key):
            obstore.put(self.inner, check_key(key), data)

    def create(self, key: str, data: bytes) -> None:
        with self._errors(key):
            obstore.put(self.inner, check_key(key), data, mode="create")

    def list(self, prefix: str, after: str | None = None) -> Metas:
        below = folder(prefix)
        with self._errors(prefix):
            stream = obstore.list(self.inner, below or None, offset=after, chunk_size=_LIST_CHUNK)
            found = [self._meta(meta) for chunk in stream for meta in chunk]
        return sorted(
            (m for m in found if m.key.startswith(below) and (after is None or m.key > after)), key=_key
        )

    def list_folders(self, prefix: str) -> Names:
        with self._errors(prefix):
            answer = obstore.list_with_delimiter(self.inner, folder(prefix) or None)
        return sorted(common.rstrip("/").rpartition("/")[2] for common in answer["common_prefixes"])

    def delete(self, key: str) -> None:
        with contextlib.suppress(ObjectMissing), self._errors(key):
            obstore.delete(self.inner, check_key(key))

    def get_many(self, keys: Iterable[str]) -> Objects:
        with ThreadPoolExecutor(_PARALLEL_GETS, thread_name_prefix="store") as pool:
            return [found for found in pool.map(self._get_or_none, keys) if found is not None]

    def put_file(self, key: str, path: Path) -> None:
        with path.open("rb"):  # the user's missing file is not the store's missing object
            pass
        with self._errors(key):
            obstore.put(self.inner, check_key(key), path)

    def get_file(self, key: str, path: Path) -> None:
        half = path.with_name(f".{path.name[:100]}.half")
        with self._errors(key):
            chunks = iter(obstore.get(self.inner, check_key(key)).stream(_STREAM_CHUNK))
        try:
            with half.open("wb") as file:
                while True:
                    with self._errors(key):  # only the store's trouble: a full disk here is not a full store
                        chunk = next(chunks, None)
                    if chunk is None:
                        break
                    file.write(chunk)
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)

    def _get_or_none(self, key: str) -> Object | None:
        try:
            return self.get(key)
        except ObjectMissing:
            return None

    def _time(self, meta: obstore.ObjectMeta) -> float:
        """Whole seconds on remote stores: the lists of some are finer than their heads."""
        seconds = meta["last_modified"].timestamp()
        return float(math.floor(seconds)) if self.time_resolution >= 1 else seconds

    def _meta(self, meta: obstore.ObjectMeta) -> Meta:
        return Meta(meta["path"], self._time(meta), meta["size"])

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except AlreadyExistsError as error:
            raise ObjectExists(f"`{key}` exists already in {self.url}.") from error
        except FileNotFoundError as error:
            if no_bucket(error):
                raise no_answer(self.url, error) from error
            raise ObjectMissing(f"There is no `{key}` in {self.url}.") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise no_answer(self.url, error) from error
        except (InvalidPathError, ValueError) as error:
            raise StoreError(
                f"{key!r} cannot be the name of an object in {self.url}: {first_line(error)}"
            ) from error
        except OSError as error:
            raise self._os_error(key, error) from error
        except BaseError as error:
            if _NOT_A_FOLDER.search(str(error)):  # on disk, `a/b` where `a` is an object
                raise ObjectMissing(f"There is no `{key}` in {self.url}.") from error
            if _FULL.search(str(error)):
                raise self._full() from error
            raise no_answer(self.url, error) from error

    def _os_error(self, key: str, error: OSError) -> StoreError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._full()
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            return StoreError(
                f"`{key}` cannot be written: another object's name is a part of it ({error.strerror})."
            )
        return no_answer(self.url, error)

    def _full(self) -> StoreFull:
        return StoreFull(
            f"There is no space left in the store {self.url}.",
            "Free space or raise the quota, then run the same command again: nothing half-written was left.",
        )


def _key(meta: Meta) -> str:
    return meta.key
