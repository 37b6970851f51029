"""One attempt against a store in memory, with the stand-in trainer as its child."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.attempt import Attempt
from flows.report import Duplicate, Outcome
from lora_ops import keys
from lora_ops.gates.samples import Cause
from lora_ops.request import AttemptState, ResultState
from tasks.store.faulty import Fault, Killed
from tests.flows.attempt_bench import Bench
from tests.flows.reconciler_world import OLD, WRITES, Plan, nth
from tests.stub.make import REPO, make_stub_source


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stub_source(tmp_path_factory.mktemp("tree"), step_s=0.0, by_seed={"7": {"fail_share": 1.0}})


@pytest.fixture
def bench(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, tree, monkeypatch)


def test_an_attempt_publishes_once(bench: Bench) -> None:
    request = bench.request()
    bench.record(request)
    assert bench.run(request) == "succeeded"
    state = bench.world.platform.request(request)
    assert state.result is not None
    assert state.result.state is ResultState.SUCCEEDED
    kept = {meta.key.rpartition("/")[2] for meta in bench.world.store.list(keys.artifacts(request, 1))}
    assert {"adapter.safetensors", "lineage.json", "events.jsonl", "MANIFEST.json"} <= kept
    assert bench.world.store.list(keys.checkpoints(request, 1))
    assert not list((bench.folder / "home" / "scratch").iterdir())
    with pytest.raises(Outcome, match="not under way"):
        bench.run(request)


def test_code_of_another_release_is_never_a_sample(bench: Bench) -> None:
    rollout = bench.world.rollout()
    request = bench.request()
    bench.record(request, OLD, rollout=rollout.id)
    with pytest.raises(Outcome, match="pinned to") as caught:
        bench.run(request)
    assert caught.value.state == "WrongCode"
    attempt = bench.world.platform.request(request).attempts[0]
    assert (attempt.state, attempt.cause) == (AttemptState.LOST, "wrong_code")
    assert not Cause(bench.sample(rollout.id, request, "stable").cause or "").counted


def test_a_child_from_elsewhere_is_never_a_sample(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be with a working directory before the bundle on the path."""
    elsewhere = bench.folder / "elsewhere"
    shutil.copytree(bench.tree, elsewhere)

    def wrong_env(root: Path, cache: Path) -> Mapping[str, str]:
        return {"PYTHONPATH": str(elsewhere), "PATH": "/usr/bin:/bin"}

    monkeypatch.setattr("tasks.child.child_env", wrong_env)
    rollout = bench.world.rollout()
    request = bench.request()
    bench.record(request, rollout=rollout.id)
    with pytest.raises(Outcome, match="elsewhere") as caught:
        bench.run(request)
    assert caught.value.state == "WrongCode"
    attempt = bench.world.platform.request(request).attempts[0]
    assert (attempt.state, attempt.cause) == (AttemptState.LOST, "wrong_code")
    assert not bench.world.store.list(keys.artifacts(request, 1))
    assert bench.sample(rollout.id, request, "stable").cause is Cause.WRONG_CODE


def test_the_second_process_of_a_run_goes_without_a_word(bench: Bench) -> None:
    request = bench.request()
    bench.record(request)
    bench.world.start(request, bench.world.platform.request(request).attempts[0])
    before = bench.world.platform.request(request)
    with pytest.raises(Duplicate):
        bench.run(request)
    assert bench.world.platform.request(request) == before


def test_a_canary_whose_lease_ran_out_does_not_start(bench: Bench) -> None:
    rollout = bench.world.rollout(lease_s=0.0)
    request = bench.request()
    bench.record(request, rollout=rollout.id, track="canary")
    with pytest.raises(Outcome) as caught:
        bench.run(request)
    assert caught.value.state == "Superseded"
    attempt = bench.world.platform.request(request).attempts[0]
    assert (attempt.state, attempt.cause) == (AttemptState.SUPERSEDED, "superseded")
    assert bench.world.platform.attempts(rollout.id) == ([], [])


def test_a_lease_that_ends_while_it_starts_leaves_no_sample_of_the_release(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is written, and its time lies after the lease."""
    rollout = bench.world.rollout()
    request = bench.request()
    bench.record(request, rollout=rollout.id, track="canary", digest=bench.digest)
    answers = iter([True, False])
    monkeypatch.setattr(Attempt, "may_run", lambda *words: next(answers))
    with pytest.raises(Outcome) as caught:
        bench.run(request)
    assert caught.value.state == "Superseded"
    assert bench.sample(rollout.id, request).cause is Cause.SUPERSEDED


def test_a_given_up_attempt_cannot_publish(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    request = bench.request()
    bench.record(request)
    attempt = bench.attempt(request)
    publish = attempt.publish

    def given_up_first(*words: Any) -> str:
        lost = {"n": 1, "cause": "no_heartbeat", "message": "silent"}
        bench.world.platform.record_request(request, "attempt-lost", lost)
        return publish(*words)

    monkeypatch.setattr(attempt, "publish", given_up_first)
    with pytest.raises(Outcome, match="given up before"):
        asyncio.run(attempt.run())
    state = bench.world.platform.request(request)
    assert state.result is None
    assert state.attempts[0].state is AttemptState.LOST


def test_its_worker_is_gone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = bench.world.rollout()
    request = bench.request()
    bench.record(request, rollout=rollout.id)
    attempt = bench.attempt(request)
    attempt.parent = -1
    with pytest.raises(Outcome) as caught:
        asyncio.run(attempt.run())
    assert caught.value.state == "LostWorker"
    found = bench.world.platform.request(request).attempts[0]
    assert (found.state, found.cause) == (AttemptState.LOST, "lost_worker")
    assert bench.sample(rollout.id, request, "stable").cause is Cause.LOST_WORKER


def test_a_failure_writes_its_sample_before_its_end(bench: Bench) -> None:
    rollout = bench.world.rollout()
    request = bench.request()
    bench.world.store.put(keys.request_config(request), bench.config.read_bytes() + b"seed: 7\n")
    bench.record(request, rollout=rollout.id)
    with pytest.raises(Outcome, match="stub failure"):
        bench.run(request)
    attempt = bench.world.platform.request(request).attempts[0]
    assert (attempt.state, attempt.cause) == (AttemptState.FAILED, "trainer_error")
    assert bench.sample(rollout.id, request, "stable").cause is Cause.TRAINER_ERROR


def _dead_from(n: int, fault: Fault) -> Plan:
    """Killed at its n-th write: what it would do on its way out never reaches the store."""
    first, dead = nth(n, fault, WRITES), list[int]()

    def plan(method: str, key: str) -> Fault | None:
        if dead:
            return Fault.KILLED_BEFORE
        found = first(method, key)
        dead.extend([1] if found else [])
        return found

    return plan


@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
def test_killed_on_any_write_the_next_attempt_succeeds(bench: Bench, fault: Fault) -> None:
    """What it left is either the result or nothing that the next one could trip over."""
    for n in range(40):
        request = bench.request()
        bench.record(request)
        try:
            bench.run(request, plan=_dead_from(n, fault))
            assert n > 5
            return
        except Killed:
            pass
        state = bench.world.platform.request(request)
        if state.result is None:
            lost = {"n": 1, "cause": "no_heartbeat", "message": "killed"}
            bench.world.platform.record_request(request, "attempt-lost", lost)
            bench.record(request)
            assert bench.run(request, 2) == "succeeded"
        state = bench.world.platform.request(request)
        assert state.result is not None
        assert state.result.state is ResultState.SUCCEEDED
        lineage = f"{keys.artifacts(request, state.result.attempt or 0)}/lineage.json"
        assert json.loads(bench.world.store.get(lineage).data)["attempt"] == state.result.attempt


def test_the_checkout_is_not_the_stub() -> None:
    """The tests above run another tree than the one that they are part of."""
    assert (REPO / "trainer" / "loop.py").is_file()
