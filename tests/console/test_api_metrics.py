"""`/metrics`: what Prometheus reads, and that it never goes back."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from console import tally
from lora_ops import keys
from lora_ops.errors import StoreUnavailable
from lora_ops.gates import promql
from lora_ops.spec import RolloutSpec

OLD = f"sha256:{'a' * 64}"
NEW = f"sha256:{'b' * 64}"
GATES = "lora_ops_gate_attempts_total"
CANARY = {"cloud": "east", "track": "canary", "release": NEW}


def _scrape(world: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = world.client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            assert sample.labels["app"] == "loras"
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def _of(found: Any, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset({"app": "loras", **labels}.items())))


def test_what_an_empty_platform_shows(world: Any) -> None:
    found = _scrape(world)
    assert _of(found, "lora_ops_build_info", version="0.1.0") == 1
    assert _of(found, "lora_ops_requests_open", state="submitted") == 0
    assert _of(found, "lora_ops_requests_total", state="succeeded") == 0
    assert _of(found, "lora_ops_cloud_up", cloud="east") == 1
    assert _of(found, "lora_ops_cloud_up", cloud="west") == 0
    assert _of(found, "lora_ops_canary_weight", cloud="east") == 0
    assert not any(name in ("lora_ops_lease_seconds", "lora_ops_rollout_phase") for name, _ in found)


def test_counts_come_from_the_store(world: Any) -> None:
    name = world.rollout()
    world.canary(name, step_seconds=[0.5, 0.7, 2.0], start_latency_s=3.0)
    world.canary(name, "trainer_error")
    world.canary(name, "trainer_error")
    world.canary(name, "evicted")
    world.contact(world.request(rollout=name, track="canary", digest=NEW, probe=f"{name}/0"))
    world.request(rollout=name, track="canary", digest=NEW)
    world.contact(world.request())
    world.look(name, 0)
    found = _scrape(world)
    assert _of(found, "lora_ops_attempts_started_total", **CANARY) == 5
    assert _of(found, "lora_ops_attempts_started_total", cloud="east", track="stable", release=OLD) == 1
    samples = "lora_ops_samples_total"
    assert _of(found, samples, **CANARY, result="good", cause="") == 1
    assert _of(found, samples, **CANARY, result="bad", cause="trainer_error") == 2
    assert _of(found, samples, **CANARY, result="uncounted", cause="evicted") == 1
    assert _of(found, "lora_ops_requests_total", state="succeeded") == 1
    assert _of(found, "lora_ops_requests_open", state="waiting") == 4
    assert _of(found, "lora_ops_requests_open", state="running") == 1
    assert _of(found, "lora_ops_step_seconds_bucket", **CANARY, le="0.5") == 1
    assert _of(found, "lora_ops_step_seconds_bucket", **CANARY, le="2.0") == 3
    assert _of(found, "lora_ops_step_seconds_count", **CANARY) == 3
    assert _of(found, "lora_ops_step_seconds_sum", **CANARY) == pytest.approx(3.2)
    assert _of(found, "lora_ops_start_latency_seconds_bucket", **CANARY, le="2.0") == 0
    assert _of(found, "lora_ops_start_latency_seconds_bucket", **CANARY, le="5.0") == 1
    assert _of(found, "lora_ops_canary_weight", cloud="west") == 10
    assert _of(found, "lora_ops_rollout_phase", rollout=name, phase="canarying") == 1
    assert _of(found, "lora_ops_rollout_phase", rollout=name, phase="holding") == 0
    evidence = _of(found, "lora_ops_gate_e_value", rollout=name, cloud="east", gate="error_rate")
    assert evidence is not None
    assert evidence > 1
    lease = _of(found, "lora_ops_lease_seconds")
    assert lease is not None
    assert 0 < lease <= world.context.spec.rollout.lease


def test_the_gates_counts_of_the_active_rollout(world: Any) -> None:
    """From zero on, so that no series means no scrape; a platform fault is taken out by its own counter."""
    name = world.rollout()
    lane = {"rollout": name, **CANARY, "gate": "error_rate"}
    found = _scrape(world)
    for cloud, track, release in (("east", "canary", NEW), ("west", "canary", NEW), ("west", "stable", OLD)):
        zero = {**lane, "cloud": cloud, "track": track, "release": release}
        assert _of(found, GATES, **zero, state="started") == 0
    world.canary(name)
    world.canary(name, "trainer_error")
    world.canary(name, "evicted")
    world.contact(world.request(rollout=name, track="canary", digest=NEW))
    found = _scrape(world)
    states = {state: _of(found, GATES, **lane, state=state) for state in promql.STATES}
    assert states == {"started": 4, "uncounted": 1, "finished": 2, "bad": 1}
    world.record(name, "rolled-back")
    assert not any(series == GATES for series, _ in _scrape(world))


def test_a_gate_of_some_clouds_is_exported_for_those(world: Any) -> None:
    spec = world.context.spec
    west = {"metric": "step_latency", "limit": "2s", "clouds": ["west"]}
    gates = [{"metric": "error_rate", "limit": "5%"}, west]
    rollout = RolloutSpec.model_validate({"gates": gates, "steps": spec.rollout.steps})
    object.__setattr__(world.context, "spec", spec.model_copy(update={"rollout": rollout}))
    world.rollout()
    lanes = {
        (dict(labels)["gate"], dict(labels)["cloud"]) for name, labels in _scrape(world) if name == GATES
    }
    assert lanes == {("error_rate", "east"), ("error_rate", "west"), ("step_latency", "west")}


def test_what_the_trainers_tell(world: Any) -> None:
    """By lane: a series for each request would grow for ever."""
    beats: list[Any] = [
        {"step": 10, "steps": 100, "loss": 0.5, "step_s": 1.0, "samples_per_s": 4.0, "memory_bytes": 7},
        {"step": 20, "steps": 100, "loss": 1.5, "step_s": 3.0, "samples_per_s": 8.0, "memory_bytes": 9},
        {"step": 0, "steps": 50, "loss": None, "step_s": None},
        "torn",
        {"step": "x", "loss": float("nan"), "memory_bytes": True},
    ]
    for beat in beats:
        request = world.request()
        world.contact(request)
        world.store.put(keys.heartbeat(request, 1), json.dumps(beat).encode())
    world.contact(world.request())  # no heartbeat yet
    over = world.request()
    world.contact(over)
    world.store.put(keys.heartbeat(over, 1), json.dumps(beats[0]).encode())
    world.succeed(over)
    found = _scrape(world)
    lane = {"cloud": "east", "track": "stable", "release": OLD}
    told = {
        name: _of(found, f"lora_ops_training_{name}", **lane)
        for name in (
            "attempts", "steps_done", "steps_wanted", "loss", "step_duration_seconds", "samples_per_second",
            "memory_bytes",
        )
    }  # fmt: skip
    assert told == {
        "attempts": 4,
        "steps_done": 30,
        "steps_wanted": 250,
        "loss": 1,
        "step_duration_seconds": 2,
        "samples_per_second": 12,
        "memory_bytes": 9,
    }
    age = _of(found, "lora_ops_training_heartbeat_age_seconds", **lane)
    assert age is not None
    assert age >= 0
    assert not any("request" in dict(labels) for _, labels in found)


def test_the_end_of_a_rollout_shows(world: Any) -> None:
    name = world.rollout()
    world.record(name, "rolled-back")
    found = _scrape(world)
    assert _of(found, "lora_ops_rollout_phase", rollout=name, phase="rolled-back") == 1
    assert _of(found, "lora_ops_rollout_phase", rollout=name, phase="canarying") == 0
    assert _of(found, "lora_ops_canary_weight", cloud="east") == 0


@pytest.mark.parametrize("settled", [False, True])
def test_counters_never_go_back(world: Any, monkeypatch: pytest.MonkeyPatch, settled: bool) -> None:
    """Not by a late failure, the end of the rollout, a restart, or what a process remembers."""
    if settled:
        monkeypatch.setattr(tally, "SETTLED_S", -1.0)
    name = world.rollout()
    seen = [_scrape(world)]
    late = world.request(rollout=name, track="canary", digest=NEW)
    world.contact(late)
    world.sample(late, step_seconds=[1.0])
    seen.append(_scrape(world))
    world.sample(late, cause="trainer_error", late=True, step_seconds=[1.0, 1.0])
    seen.append(_scrape(world))
    world.record(name, "rolled-back")
    seen.append(_scrape(world))
    failed = {"n": 1, "cause": "trainer_error", "message": ""}
    world.platform.record_request(late, "attempt-failed", failed)
    again = {"cloud": "west", "track": "stable", "digest": OLD}
    world.platform.record_request(late, "attempt-started", again)
    world.contact(late)
    seen.append(_scrape(world))
    world.platform.record_request(late, "result", {"state": "succeeded", "attempt": 2})
    seen.append(_scrape(world))
    second = world.rollout()
    world.canary(second)
    seen += [_scrape(world), _scrape(world.restarted())]
    for before, after in pairwise(seen):
        for key, value in before.items():
            if key[0].endswith(("_total", "_bucket", "_count", "_sum")):
                gone = value if key[0] == GATES else -1  # those end with their rollout
                assert after.get(key, gone) >= value, key
    last = seen[-1]
    assert last == seen[-2] | {key: last[key] for key in last if key[0] == "lora_ops_lease_seconds"}
    assert _of(last, "lora_ops_samples_total", **CANARY, result="good", cause="") == 2
    assert _of(last, "lora_ops_samples_total", **CANARY, result="bad", cause="trainer_error") == 1
    assert _of(last, "lora_ops_step_seconds_count", **CANARY) == 1


def test_a_settled_rollout_is_not_read_again(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "SETTLED_S", -1.0)
    name = world.rollout()
    world.canary(name)
    waiting = world.request(rollout=name, track="canary", digest=NEW)
    world.record(name, "rolled-back")
    reads = []
    original = world.platform.attempts
    monkeypatch.setattr(world.platform, "attempts", lambda each: reads.append(each) or original(each))
    _scrape(world)
    _scrape(world)
    assert len(reads) == 2  # an attempt of it is still under way
    superseded = {"n": 1, "cause": "superseded", "message": ""}
    world.platform.record_request(waiting, "attempt-superseded", superseded)
    world.platform.record_request(waiting, "result", {"state": "cancelled"})
    _scrape(world)
    _scrape(world)
    assert len(reads) == 3


def test_openmetrics_when_asked_for(world: Any) -> None:
    world.canary(world.rollout(), step_seconds=[0.5])
    accept = "application/openmetrics-text; version=1.0.0"
    answer = world.client.get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(answer.text)}
    assert {"lora_ops_samples", "lora_ops_step_seconds", "lora_ops_rollout_phase"} <= names


def test_no_metrics_rather_than_half_of_them(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Any, prefix: str) -> list[str]:
        raise StoreUnavailable("The store does not answer.", "Look at it.")

    monkeypatch.setattr(type(world.store), "list_folders", away)
    answer = world.client.get("/metrics")
    assert answer.status_code == 503
    assert answer.json()["error"]["exit_code"] == 7
