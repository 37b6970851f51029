"""An attempt whose trainer hangs, whose store is away, whose disk is full, or that has a double."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import attempt as attempts
from flows import report
from flows.facts import Facts, cause_of
from flows.report import Duplicate, Outcome
from lora_ops import keys
from lora_ops.errors import LoraOpsError, StoreError, StoreFull, StoreUnavailable
from lora_ops.gates.samples import Cause
from lora_ops.request import AttemptState, ResultState
from tasks import home
from tasks.store.faulty import Fault
from tests.flows.attempt_bench import Bench
from tests.flows.reconciler_world import Plan, no_fault
from tests.stub.make import make_stub_source

HANGS, SLOW = b"seed: 1\n", b"seed: 2\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    behaviour = {"1": {"step_s": 600.0}, "2": {"step_s": 0.3, "checkpoint_every": 1}}
    return make_stub_source(tmp_path_factory.mktemp("tree"), step_s=0.0, by_seed=behaviour)


@pytest.fixture
def bench(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(attempts, "BEAT_S", 0.05)
    monkeypatch.setattr(attempts, "GRACE_S", 0.2)
    return Bench(tmp_path, tree, monkeypatch)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only pauses move; the pauses are recorded."""
    pauses: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(pauses), sleep=pauses.append)
    monkeypatch.setattr(report, "time", clock)
    return pauses


def _attempt(bench: Bench, seed: bytes, plan: Plan = no_fault, **context: float) -> tuple[str, Any]:
    request = bench.request()
    bench.world.store.put(keys.request_config(request), bench.config.read_bytes() + seed)
    rollout = bench.world.active if bench.world.platform.state().rollout is not None else None
    bench.record(request, rollout=rollout.id if rollout is not None else None)
    made = bench.attempt(request, 1, plan)
    made.context = replace(made.context, **context)
    return request, made


# --- a trainer that hangs ---


def test_a_trainer_that_hangs_is_a_failure_of_its_release(bench: Bench) -> None:
    rollout = bench.world.rollout()
    request, attempt = _attempt(bench, HANGS, stall_s=0.5)
    with pytest.raises(Outcome, match="stall_deadline"):
        asyncio.run(attempt.run())
    found = bench.world.platform.request(request).attempts[0]
    assert (found.state, found.cause) == (AttemptState.FAILED, "no_heartbeat")
    sample = bench.sample(rollout.id, request, "stable")
    assert sample.cause is Cause.NO_HEARTBEAT
    assert sample.cause.counted


def test_events_lines_and_checkpoints_are_signs_of_life(bench: Bench) -> None:
    attempt = bench.attempt("req-1")
    attempt.report = report.Report(attempt.platform, "req-1", 1, SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    for events, printed, life in (
        ([{"event": "step", "step": 1, "steps": 2}], 0, True),
        ([], 0, False),
        ([], 7, True),
        ([], 7, False),
        ([{"event": "checkpoint", "path": "checkpoints/step-1"}], 7, True),
    ):
        attempt.heard = 0.0
        attempt.hear(SimpleNamespace(events=lambda told=events: told, printed=lambda size=printed: size))  # type: ignore[arg-type]
        assert (attempt.heard > 0) is life


def test_a_dataset_that_is_being_encoded_is_a_sign_of_life(bench: Bench) -> None:
    attempt = bench.attempt("req-1")
    assert not attempt.caching()
    entry = home.cache(attempt.home) / "latents" / "ab" / "cd.safetensors"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"x")
    assert attempt.caching()
    attempt.begun = True
    assert not attempt.caching()


def test_what_vanishes_from_the_cache_meanwhile_is_no_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = bench.attempt("req-1")
    half = home.cache(attempt.home) / ".half-ab"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x")
    real, asked = os.stat, itertools.count()

    def stat(path: Any, **how: Any) -> os.stat_result:
        if str(path) == str(half) and next(asked) > 0:
            raise FileNotFoundError(errno.ENOENT, "gone", str(path))
        return real(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        attempt.caching()
        attempt.caching()


# --- a store that is away ---


class Outage:
    """From the first call that `begins` (a pattern) names, the next `calls` of them never reach the store."""

    def __init__(self, begins: str, calls: int, fault: Fault = Fault.NO_REQUEST) -> None:
        self.begins, self.calls, self.fault = begins, calls, fault
        self.begun = False

    def __call__(self, method: str, key: str) -> Fault | None:
        self.begun = self.begun or re.search(self.begins, f"{method} {key}") is not None
        if not self.begun or self.calls <= 0 or key.startswith("clock/"):
            return None
        self.calls -= 1
        return self.fault


@pytest.mark.parametrize("begins", ["heartbeat.json", "put checkpoints/", "get checkpoints/"])
def test_a_training_goes_on_while_the_store_is_away(bench: Bench, begins: str) -> None:
    outage = Outage(begins, 8)
    rollout = bench.world.rollout(horizon=2)
    request, attempt = _attempt(bench, SLOW, outage, heartbeat_s=60.0)
    assert asyncio.run(attempt.run()) == "succeeded"
    assert outage.calls == 0
    state = bench.world.platform.request(request)
    assert [each.state for each in state.attempts] == [AttemptState.SUCCEEDED]
    kept = {meta.key for meta in bench.world.store.list(keys.checkpoints(request, 1))}
    for step in range(1, 5):
        assert f"{keys.checkpoints(request, 1)}/step-{step:06d}/MANIFEST.json" in kept
    assert bench.sample(rollout.id, request, "stable").at_horizon


def test_a_store_that_stays_away_ends_the_training(bench: Bench) -> None:
    request, attempt = _attempt(bench, SLOW, Outage("heartbeat.json", 10**6), heartbeat_s=0.2)
    with pytest.raises(StoreUnavailable):
        asyncio.run(attempt.run())
    assert bench.world.platform.request(request).attempts[0].state is AttemptState.OPEN


def test_a_long_upload_is_no_absence_of_the_store(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One lost answer after it does not end the training."""
    late = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late[0], time=time.time)
    monkeypatch.setattr(attempts, "time", clock)
    lost = Outage("heartbeat.json", 1)

    def plan(method: str, key: str) -> Fault | None:
        if not late[0] and f"{method} {key}".startswith("put checkpoints/"):
            late[0] = 600.0
        return lost(method, key) if late[0] else None

    _, attempt = _attempt(bench, SLOW, plan, heartbeat_s=60.0)
    assert asyncio.run(attempt.run()) == "succeeded"
    assert lost.calls == 0


def test_a_checkpoint_that_the_trainer_drops_meanwhile_is_no_failure(bench: Bench) -> None:
    rollout = bench.world.rollout(horizon=2)
    request, attempt = _attempt(bench, SLOW)

    def plan(method: str, key: str) -> Fault | None:
        if f"{method} {key}".startswith("get checkpoints/") and "step-000001/" in key:
            for file in (attempt.output / "checkpoints" / "step-000001").iterdir():
                file.unlink()
        return None

    attempt.store.plan = plan
    assert asyncio.run(attempt.run()) == "succeeded"
    kept = {meta.key for meta in bench.world.store.list(keys.checkpoints(request, 1))}
    assert f"{keys.checkpoints(request, 1)}/step-000001/MANIFEST.json" not in kept
    assert f"{keys.checkpoints(request, 1)}/step-000002/MANIFEST.json" in kept
    assert bench.sample(rollout.id, request, "stable").cause is None


def test_a_failure_that_is_told_again_is_one_sample(bench: Bench, no_pauses: list[float]) -> None:
    rollout = bench.world.rollout()
    request, attempt = _attempt(bench, b"", Outage("log.txt", 2))
    attempt.report = report.Report(attempt.platform, request, 1, *attempt.read_record())
    attempt.report.facts = Facts(failure={"cause": "trainer", "type": "KeyError", "message": "x"})
    child = SimpleNamespace(log_window=lambda size=0: (0, b""))
    with pytest.raises(Outcome, match="trainer_error"):
        attempt.fail(child, 1)
    assert no_pauses
    assert len(bench.world.store.list(f"rollouts/{rollout.id}/samples")) == 1


@pytest.mark.parametrize("fault", [Fault.NO_REQUEST, Fault.NO_ANSWER])
@pytest.mark.parametrize("begins", ["artifacts/", "lineage", "create requests/[^/]+/0"])
def test_a_result_waits_for_its_store(
    bench: Bench, no_pauses: list[float], begins: str, fault: Fault
) -> None:
    """Also when the result was written and only the answer was lost."""
    request = bench.request()
    bench.record(request)
    outage = Outage(begins, 12, fault)
    assert asyncio.run(bench.attempt(request, 1, outage).run()) == "succeeded"
    assert no_pauses
    state = bench.world.platform.request(request)
    assert state.result is not None
    assert state.result.state is ResultState.SUCCEEDED
    kinds = [entry.document["kind"] for entry in bench.world.platform.request_history(request)]
    assert kinds.count("result") == 1


def test_it_does_not_wait_for_ever(bench: Bench, no_pauses: list[float]) -> None:
    request = bench.request()
    bench.record(request)
    with pytest.raises(StoreUnavailable):
        asyncio.run(bench.attempt(request, 1, Outage("artifacts/", 10**6)).run())
    assert attempts.PUBLISH_S / 2 < sum(no_pauses) <= attempts.PUBLISH_S
    assert max(no_pauses) <= report.LONGEST_PAUSE_S


# --- a disk that is full ---


def _full(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device", "/disk")


def test_a_full_disk_is_the_machines_fault(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = bench.world.rollout()
    request, attempt = _attempt(bench, b"")
    monkeypatch.setattr(attempt, "artifact", _full)
    with pytest.raises(Outcome, match="No space left"):
        asyncio.run(attempt.run())
    found = bench.world.platform.request(request).attempts[0]
    assert (found.state, found.cause) == (AttemptState.LOST, "no_capacity")
    assert bench.sample(rollout.id, request, "stable").cause is Cause.NO_CAPACITY
    assert not Cause.NO_CAPACITY.counted


def test_a_trainer_that_finds_the_disk_full_is_not_at_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = bench.world.rollout()
    request, attempt = _attempt(bench, b"")
    facts = Facts(failure={"cause": "trainer", "type": "DiskFullError", "message": "The disk is full"})
    attempt.report = report.Report(attempt.platform, request, 1, *attempt.read_record())
    attempt.report.facts = facts
    child = SimpleNamespace(log_window=lambda size=0: (0, b""))
    with pytest.raises(Outcome, match="no_capacity"):
        attempt.fail(child, 1)
    found = bench.world.platform.request(request).attempts[0]
    assert (found.state, found.cause) == (AttemptState.LOST, "no_capacity")
    assert bench.sample(rollout.id, request, "stable").cause is Cause.NO_CAPACITY


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.ENOSPC, "x"), "no_capacity"),
        (OSError(errno.EDQUOT, "x"), "no_capacity"),
        (OSError(errno.EACCES, "x"), "trainer_error"),
        (StoreFull("x"), "no_capacity"),
        (StoreError("x"), "store_away"),
        (LoraOpsError("x"), "trainer_error"),
        (KeyError("x"), "trainer_error"),
    ],
)
def test_whose_fault_it_is(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


def test_what_the_trainer_said_last_tells_of_a_full_disk() -> None:
    assert Facts().why_failed(1, "OSError: [Errno 28] No space left on device")[0] == "no_capacity"
    assert Facts().why_failed(1, "KeyError: 'x'")[0] == "trainer_error"


# --- a double ---


@pytest.mark.parametrize(
    ("first", "second", "own"), [("a", "b", True), ("a", "a", False), (None, "b", False), ("a", None, False)]
)
def test_a_double_knows_whether_its_run_is_its_own(
    bench: Bench, first: str | None, second: str | None, own: bool
) -> None:
    request = bench.request()
    bench.record(request)
    record = bench.world.platform.request(request).attempts[0]
    where = keys.start(record.rollout, record.cloud, record.track.value, request, 1)
    bench.world.store.create(where, json.dumps({"executor": "another", "run": first}).encode())
    attempt = bench.attempt(request)
    attempt.flow_run = second
    with pytest.raises(Duplicate) as caught:
        asyncio.run(attempt.run())
    assert caught.value.own_run is own
