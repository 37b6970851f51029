"""How the train flow tells Prefect that an attempt ended."""

from __future__ import annotations

import asyncio
import importlib
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.exceptions import Abort

from flows.report import Duplicate, Outcome
from flows.sights import DUPLICATE, SAID
from lora_ops.errors import StoreFull, StoreUnavailable

module = importlib.import_module("flows.train")


def _ended(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Any:
    class Broken:
        def __init__(self, *_: Any) -> None:
            pass

        async def run(self) -> str:
            raise error

    context = SimpleNamespace(platform=SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(module, "Attempt", Broken)
    monkeypatch.setattr(module, "flow_context", lambda actor: context)
    monkeypatch.setattr(module, "get_run_logger", logging.getLogger)
    return asyncio.run(module.train.fn("req-1", 1))


def test_a_double_with_a_run_of_its_own_gives_its_slot_back(monkeypatch: pytest.MonkeyPatch) -> None:
    state = _ended(monkeypatch, Duplicate(own_run=True))
    assert (state.is_cancelled(), state.name) == (True, DUPLICATE)


def test_two_processes_of_one_run_leave_it_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Abort):
        _ended(monkeypatch, Duplicate(own_run=False))


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (StoreUnavailable("away"), "StoreAway"),
        (StoreFull("full"), "NoSpace"),
        (Outcome("LostWorker", "gone"), "LostWorker"),
        (Outcome("WrongCode", "other"), "WrongCode"),
    ],
)
def test_what_could_not_be_told_to_the_store_is_in_the_name(
    monkeypatch: pytest.MonkeyPatch, error: Exception, name: str
) -> None:
    state = _ended(monkeypatch, error)
    assert (state.is_failed(), state.name) == (True, name)
    assert name in SAID
