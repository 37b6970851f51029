"""A computation that many wait for is made for all of them at once, and never before they asked."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from console.shared import Shared


def test_those_who_wait_share_the_next_one() -> None:
    begun, goes_on = threading.Semaphore(0), threading.Semaphore(0)
    made: list[int] = []

    def compute() -> int:
        begun.release()
        goes_on.acquire()
        made.append(len(made) + 1)
        return len(made)

    shared = Shared(compute)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(shared.get)
        begun.acquire()
        rest = [pool.submit(shared.get) for _ in range(6)]
        while shared._asked < 7:
            pass
        goes_on.release()
        begun.acquire()
        goes_on.release()
        assert first.result() == 1
        assert {each.result() for each in rest} == {2}
    assert made == [1, 2]


def test_one_who_comes_later_gets_a_fresh_one() -> None:
    numbers = iter(range(10))
    shared = Shared(lambda: next(numbers))
    assert [shared.get() for _ in range(3)] == [0, 1, 2]


def test_an_error_is_told_and_the_next_one_tries_again() -> None:
    answers: list[object] = [ValueError("away"), 5]

    def compute() -> object:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    shared = Shared(compute)
    with pytest.raises(ValueError, match="away"):
        shared.get()
    assert shared.get() == 5
