"""One computation for all who wait for it: scrapes that come faster than they are answered never pile up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Thread-safe. What `get` returns was begun after it was asked for, so it is never old."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._running = threading.Lock()
        self._counting = threading.Lock()
        self._asked = 0
        self._made: tuple[int, T] | None = None

    def get(self) -> T:
        """Raises what the computation raises."""
        with self._counting:
            self._asked += 1
            mine = self._asked
        with self._running:
            if self._made is None or self._made[0] < mine:
                with self._counting:
                    upto = self._asked
                self._made = (upto, self._compute())
            return self._made[1]
