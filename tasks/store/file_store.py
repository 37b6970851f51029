"""A store in a folder of this machine: obstore reads it, and what is written survives a power cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import obstore
from obstore.store import LocalStore

from lora_ops.errors import ConfigError, ObjectExists, StoreError, StoreUnavailable
from tasks.store.base import Metas, Names, Objects
from tasks.store.names import RESERVED, check_key, folder
from tasks.store.obstore_store import ObstoreStore

_STALE_S = 24 * 3600.0


class FileStore(ObstoreStore):
    """Objects are files below `root`; the machine's clock is the store's clock.

    obstore's own create (write beside, then hard-link) is atomic, but it does not fsync: after a power
    cut a decision could be an empty file. So writing is done here: a file in `.partial/`, fsync, then
    link (create) or rename (put), then fsync of the folder.
    """

    def __init__(self, root: Path) -> None:
        """Raises ConfigError when `root` is a file, StoreUnavailable when it cannot be made."""
        root = Path(os.path.abspath(root.expanduser()))
        self.root = root
        self._partial = root / RESERVED
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            inner = LocalStore(root)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(
                f"The store {root} is not a folder.", "Name a folder (it is made on demand) in `store.url`."
            ) from error
        except OSError as error:
            raise StoreUnavailable(
                f"The store {root} cannot be made: {error.strerror}", "Check its rights."
            ) from error
        super().__init__(root.as_uri(), inner, time_resolution=0.01)  # the kernel stamps files once a tick
        self._forget_stale()

    def put(self, key: str, data: bytes) -> None:
        self._write(key, lambda file: file.write(data), os.replace)

    def create(self, key: str, data: bytes) -> None:
        with self._disk_errors(key):
            if self._path(key).is_file():  # saves the write; the link below decides
                raise ObjectExists(f"`{key}` exists already in {self.url}.")
        self._write(key, lambda file: file.write(data), os.link)

    def put_file(self, key: str, path: Path) -> None:
        with path.open("rb") as source:
            self._write(key, lambda file: shutil.copyfileobj(source, file, 1 << 20), os.replace)

    def list(self, prefix: str, after: str | None = None) -> Metas:
        found = super().list(prefix, after)
        return [m for m in found if not m.key.startswith(f"{RESERVED}/")] if not folder(prefix) else found

    def list_folders(self, prefix: str) -> Names:
        """Folders that hold an object: a delete leaves an empty one on disk."""
        below = folder(prefix)
        return [
            n
            for n in super().list_folders(prefix)
            if f"{below}{n}" != RESERVED and self._holds(f"{below}{n}")
        ]

    def get_many(self, keys: Iterable[str]) -> Objects:
        return [found for found in map(self._get_or_none, keys) if found is not None]

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _holds(self, below: str) -> bool:
        return any(len(chunk) > 0 for chunk in obstore.list(self.inner, below, chunk_size=1))

    def _write(
        self, key: str, fill: Callable[[BinaryIO], object], publish: Callable[[Path, Path], None]
    ) -> None:
        target = self._path(key)
        half = self._partial / uuid.uuid4().hex
        with self._disk_errors(key):
            try:
                with _open_new(half) as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                target.parent.mkdir(parents=True, exist_ok=True)
                publish(half, target)
                _fsync_folder(target.parent)
            finally:
                half.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _disk_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            if self._path(key).is_file():
                raise ObjectExists(f"`{key}` exists already in {self.url}.") from error
            raise self._in_the_way(key) from error
        except (NotADirectoryError, IsADirectoryError) as error:
            raise self._in_the_way(key) from error
        except OSError as error:
            raise self._os_error(key, error) from error

    def _in_the_way(self, key: str) -> StoreError:
        return StoreError(
            f"`{key}` cannot be written to {self.url}: what is there already is in the way.",
            "One object's name must not be the folder of another.",
        )

    def _forget_stale(self) -> None:
        """Remove half-written files of writers that were killed long ago, by the disk's own clock."""
        mark = self._partial / uuid.uuid4().hex
        with contextlib.suppress(OSError):
            mark.touch()
            now = mark.stat().st_mtime
            for half in self._partial.iterdir():
                if now - half.stat().st_mtime > _STALE_S:
                    half.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            mark.unlink()


def _open_new(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except FileNotFoundError:  # someone removed `.partial`
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
