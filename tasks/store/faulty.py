"""A store that breaks on purpose, for tests: cut connections, lost answers, writers killed in the middle."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable
from typing import TypeVar

from lora_ops.errors import StoreError, StoreUnavailable
from tasks.store.base import Meta, Metas, Names, Object, Store

T = TypeVar("T")


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, nothing after it runs."""


class Fault(enum.Enum):
    """What happens to one call."""

    NO_REQUEST = "the request never reaches the store"
    NO_ANSWER = "the store acts, its answer is lost"
    RETRIED = "the store acts, its answer is lost, and the client itself tries again"
    KILLED_BEFORE = "the caller dies before the store acts"
    KILLED_AFTER = "the caller dies after the store acted"


class FaultyStore(Store):
    """`inner`, with the fault that `plan(method, key)` names for each call. `calls` records them."""

    def __init__(self, inner: Store, plan: Callable[[str, str], Fault | None]) -> None:
        self.inner = inner
        self.plan = plan
        self.url = inner.url
        self.time_resolution = inner.time_resolution
        self.calls: list[tuple[str, str]] = []

    def get(self, key: str) -> Object:
        return self._act("get", key, lambda: self.inner.get(key))

    def head(self, key: str) -> Meta:
        return self._act("head", key, lambda: self.inner.head(key))

    def put(self, key: str, data: bytes) -> None:
        return self._act("put", key, lambda: self.inner.put(key, data))

    def create(self, key: str, data: bytes) -> None:
        return self._act("create", key, lambda: self.inner.create(key, data))

    def list(self, prefix: str, after: str | None = None) -> Metas:
        return self._act("list", prefix, lambda: self.inner.list(prefix, after))

    def list_folders(self, prefix: str) -> Names:
        return self._act("list_folders", prefix, lambda: self.inner.list_folders(prefix))

    def delete(self, key: str) -> None:
        return self._act("delete", key, lambda: self.inner.delete(key))

    def _act(self, method: str, key: str, act: Callable[[], T]) -> T:
        self.calls.append((method, key))
        fault = self.plan(method, key)
        if fault is Fault.KILLED_BEFORE:
            raise Killed(f"before {method} {key}")
        if fault is Fault.NO_REQUEST:
            raise StoreUnavailable(f"{method} {key}: the connection was cut on the way there.")
        if fault is None:
            return act()
        with contextlib.suppress(StoreError):  # an error is an answer, too
            act()
        if fault is Fault.KILLED_AFTER:
            raise Killed(f"after {method} {key}")
        if fault is Fault.NO_ANSWER:
            raise StoreUnavailable(f"{method} {key}: the connection was cut on the way back.")
        return act()
