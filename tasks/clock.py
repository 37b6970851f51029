"""The store's clock, as one process knows it: an interval, never a point. No two wall clocks are compared."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

from lora_ops.errors import StoreError, StoreUnavailable
from tasks.store import Store

REMEASURE_S = 60.0
RETRY_S = 5.0  # after a failed measurement
MAX_DRIFT = 5e-4  # seconds a second: a monotonic clock's worst rate error, several times what NTP allows


class Interval(NamedTuple):
    """A moment on the store's clock, seconds since the epoch: not before `earliest`, not after `latest`."""

    earliest: float
    latest: float


class _Offset(NamedTuple):
    """The store's clock minus this process's monotonic one, and when that was measured."""

    low: float
    high: float
    measured: float


def monotonic() -> float:
    """Seconds on a clock that also counts while the machine sleeps, where the system has one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class StoreClock:
    """Tells the store's time without asking it each time.

    A measurement writes `clock/<name>` between two readings m0 and m1 of the monotonic clock and reads the
    object's time t back. The write happened in [m0, m1] and in [t, t + resolution], so the offset lies in
    [t - m1, t + resolution - m0]. In between, `now` runs on the monotonic clock and widens by its drift.
    Measured anew after `REMEASURE_S`; give each process a `name` of its own. Thread-safe.
    """

    def __init__(self, store: Store, name: str, monotonic: Callable[[], float] = monotonic) -> None:
        self._store = store
        self._key = f"clock/{name}"
        self._monotonic = monotonic
        self._offset: _Offset | None = None
        self._failed_at: float | None = None
        self._error: StoreError | None = None
        self._lock = threading.Lock()

    @property
    def ok(self) -> bool:
        """False while the offset cannot be measured: route to stable only. Measures when that is due."""
        with self._lock:
            self._refresh()
            return self._offset is not None and self._failed_at is None

    def now(self) -> Interval:
        """The store's time now; measures when that is due. StoreUnavailable when it never could be.

        With the store gone, the last offset still serves, ever wider: look at `ok`.
        """
        with self._lock:
            self._refresh()
            if self._offset is None:
                raise StoreUnavailable(
                    f"The clock of the store {self._store.url} cannot be read: {self._error}",
                    "Without it no canary gets requests. Check that the store can be written.",
                )
            moment = self._monotonic()
            drift = (moment - self._offset.measured) * MAX_DRIFT
            return Interval(moment + self._offset.low - drift, moment + self._offset.high + drift)

    def close(self) -> None:
        """Remove this process's object from the store: call it when the process ends. Never raises."""
        with contextlib.suppress(StoreError):
            self._store.delete(self._key)

    def _refresh(self) -> None:
        moment = self._monotonic()
        if self._failed_at is not None:
            due = moment - self._failed_at >= RETRY_S
        else:
            due = self._offset is None or moment - self._offset.measured >= REMEASURE_S
        if not due:
            return
        try:
            self._offset = self._measure()
            self._failed_at = None
            self._error = None
        except StoreError as error:
            self._failed_at = self._monotonic()
            self._error = error

    def _measure(self) -> _Offset:
        mine = uuid.uuid4().hex.encode()
        before = self._monotonic()
        self._store.put(self._key, mine)
        after = self._monotonic()
        written = self._store.get(self._key)
        if written.data != mine:  # its time is not that of our write
            raise StoreUnavailable(f"`{self._key}` was overwritten by another process of the same name.")
        return _Offset(
            low=written.last_modified - after,
            high=written.last_modified + self._store.time_resolution - before,
            measured=before,
        )
