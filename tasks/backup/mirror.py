"""The mirror in the background: `lora-ops serve` brings the backup up to date every few minutes."""

from __future__ import annotations

import logging
import threading

from lora_ops.errors import LoraOpsError, ObjectMissing
from tasks.backup.plan import MARK
from tasks.backup.sync import Progress, Report, sync
from tasks.clock import StoreClock
from tasks.store import Store

_log = logging.getLogger(__name__)


class _Stopped(Exception):
    """The process ends."""


def mirror_once(
    store: Store,
    backup: Store,
    every_s: float = 0.0,
    name: str = "mirror",
    progress: Progress | None = None,
) -> Report | None:
    """One sync; None when another process completed one within `every_s`, by the backup's own clock.

    Any number of processes may call it: two at once do the same work twice, and no harm. Raises as `sync`.
    """
    if every_s > 0 and _fresh(backup, every_s, name):
        return None
    return sync(store, backup, progress=progress)


class Mirror:
    """A thread that calls `mirror_once` until it is stopped. `error`: why the last try failed, if it did."""

    def __init__(self, store: Store, backup: Store, every_s: float, name: str = "serve") -> None:
        self.error: str | None = None
        self._store = store
        self._backup = backup
        self._every_s = every_s
        self._name = f"mirror-{name}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, within_s: float = 5.0) -> None:
        """Ask it to end after the objects that are under way; what is left the next mirror copies."""
        self._over.set()
        self._thread.join(within_s)

    def once(self) -> None:
        """One try. Its failure is remembered and logged when it is news, not raised."""
        error = None
        try:
            report = mirror_once(self._store, self._backup, self._every_s, self._name, self)
            if report is not None and report.problems:
                error = f"{len(report.problems)} objects cannot be copied: {report.problems[0]}"
        except _Stopped:
            return
        except LoraOpsError as failure:
            error = f"{failure.message} {failure.hint}".strip()
        if error is not None and error != self.error:
            _log.warning("the backup is not up to date: %s", error)
        self.error = error

    def begin(self, objects: int, size: int) -> None:
        """Part of Progress."""

    def copied(self, size: int) -> None:
        """Part of Progress."""
        if self._over.is_set():
            raise _Stopped

    def _run(self) -> None:
        while not self._over.is_set():
            self.once()
            self._over.wait(self._every_s)


def _fresh(backup: Store, every_s: float, name: str) -> bool:
    try:
        last = backup.head(MARK).last_modified
    except ObjectMissing:
        return False
    clock = StoreClock(backup, name)
    try:
        return clock.now().latest - last < every_s / 2
    finally:
        clock.close()
