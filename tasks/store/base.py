"""What lora-ops asks of an object store."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lora_ops.errors import ObjectMissing


@dataclass(frozen=True, slots=True)
class Meta:
    """An object without its bytes. `last_modified`: seconds since the epoch on the store's own clock."""

    key: str
    last_modified: float
    size: int


@dataclass(frozen=True, slots=True)
class Object:
    """An object. `last_modified`: seconds since the epoch on the store's own clock."""

    key: str
    data: bytes
    last_modified: float


# Aliases, because `Store.list` hides the builtin from the annotations in the class.
Metas = list[Meta]
Names = list[str]
Objects = list[Object]


class Store(abc.ABC):
    """An object store, as journals need it. `tasks.store.contract.StoreContract` checks all of this.

    **Objects.** A key names a sequence of bytes, possibly none. A reader sees an object whole or not at
    all, whatever happens to its writer (kill -9, a cut connection, a full disk). What was written is seen
    by every later read and list, of any process. Keys are segments joined by `/` (`names.check_key`);
    one key must not be the folder of another.

    **Create-only.** `create` succeeds for exactly one of any number of concurrent writers; all others get
    ObjectExists and change nothing. An answer can be lost on its way: ObjectExists, or StoreUnavailable,
    may follow a create that did succeed. Whoever must know puts an id of their own into the bytes and
    reads them back (`tasks.journal` does).

    **One clock.** `last_modified` is the moment of the write on the store's clock, rounded down to
    `time_resolution` seconds: the write happened in [last_modified, last_modified + time_resolution].
    Writes that follow each other never go back in time. `get`, `head` and `list` agree on it.

    **Lists** are sorted by key, whatever the store underneath does; a prefix is a folder, so `a` lists
    `a/b` and never `ab/c`.

    **Trouble.** Every method raises StoreUnavailable when the store does not answer (after a few tries
    where trying again is harmless), refuses the credentials or does not exist, StoreFull when there is no
    space, and StoreError for a key that no store could hold. All methods may be called from any thread.
    """

    url: str
    time_resolution: float

    @abc.abstractmethod
    def get(self, key: str) -> Object:
        """The object. Raises ObjectMissing."""

    @abc.abstractmethod
    def head(self, key: str) -> Meta:
        """The object without its bytes. Raises ObjectMissing."""

    @abc.abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write the object, over an older one if there is one."""

    @abc.abstractmethod
    def create(self, key: str, data: bytes) -> None:
        """Write the object if there is none yet. Raises ObjectExists."""

    @abc.abstractmethod
    def list(self, prefix: str, after: str | None = None) -> Metas:
        """All objects below the folder `prefix`, at any depth, sorted; only keys greater than `after`."""

    @abc.abstractmethod
    def list_folders(self, prefix: str) -> Names:
        """The names (not keys) of the folders directly below `prefix` that hold an object, sorted."""

    @abc.abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; silent when there is none."""

    def get_many(self, keys: Iterable[str]) -> Objects:
        """The objects that exist among `keys`, in the order of `keys`."""
        found = []
        for key in keys:
            try:
                found.append(self.get(key))
            except ObjectMissing:
                continue
        return found

    def put_file(self, key: str, path: Path) -> None:
        """`put` of a file's content, without holding all of it in memory where the store can do that."""
        self.put(key, path.read_bytes())

    def get_file(self, key: str, path: Path) -> None:
        """Write the object's bytes into the new file `path`. Raises ObjectMissing; leaves no half file."""
        path.write_bytes(self.get(key).data)
