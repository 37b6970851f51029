"""A CI that ends the run must leave no databases, servers or replicas behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest


@pytest.fixture(scope="session", autouse=True)
def terminated() -> Iterator[None]:
    """SIGTERM ends the tests, and so runs what the fixtures undo."""

    def end(number: int, frame: FrameType | None) -> None:
        pytest.exit("terminated", returncode=128 + number)

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)
