"""Gates of some clouds only: what is judged, asked of a provider, and which probes are submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows import probes
from flows.looks import judge_now
from flows.probes import Prober, probe_key
from lora_ops.gates.counts import Metric
from lora_ops.gates.external import ExternalCounts
from lora_ops.gates.promql import Scope
from lora_ops.gates.verdict import GateSpec
from lora_ops.state import Provider
from tasks.metrics import counting
from tasks.metrics.counting import count_all
from tests.flows.reconciler_world import NEW, OLD, World

EAST = {"metric": "error_rate", "limit": 0.05, "clouds": ["east"]}
BOTH = {"metric": "start_latency", "limit": 60}
WEST = {"metric": "memory_ratio", "limit": 1.5, "clouds": ["west"]}


def test_a_rollout_in_waves_counts_its_pairs_from_the_first_wave_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    rollout = world.rollout(gates=[EAST, BOTH, WEST], waves=[["east"], ["west"]])
    look = judge_now(world.platform, rollout)
    assert look is not None
    assert {(result.gate, result.cloud) for result in look.results} == {
        ("error_rate", "east"),
        ("start_latency", "east"),
    }
    assert look.tests == 4, "the pairs of both waves: 2 on east, 2 on west"
    assert {result.threshold for result in look.results} == {400.0}


def test_only_the_clouds_of_its_scope_are_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting._Question, "counts", lambda self: ExternalCounts(k=0, n=1))
    gates = [GateSpec(metric=Metric.ERROR_RATE, limit=0.05, provider="prom", clouds=("east",))]
    gates.append(GateSpec(metric=Metric.START_LATENCY, limit=9, provider="prom"))
    scopes = [Scope("loras", "roll-1", cloud, NEW, OLD, 0.0, 1.0) for cloud in ("east", "west")]
    asked = count_all(gates, scopes, {"prom": Provider(url="http://127.0.0.1:9")})
    assert set(asked) == {("error_rate", "east"), ("start_latency", "east"), ("start_latency", "west")}
    assert count_all(gates[:1], scopes[1:], {}) == {}


def test_pairs_of_probes_only_where_something_compares_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    submitted: list[tuple[str, str]] = []

    def submit(platform: Any, text: str, **order: Any) -> Any:
        submitted.append((order["pin"].cloud, order["pin"].track.value))
        return platform.request(order["request_id"])

    monkeypatch.setattr(probes, "submit", submit)
    rollout = world.rollout(
        gates=[EAST, WEST], probes={"config": "p.yaml", "parallel": 1, "max_per_cloud": 9}
    )
    world.store.put(probe_key(rollout.id), b"seed: 0\n")
    Prober(world.platform).keep(rollout)
    assert submitted == [("east", "canary"), ("west", "canary"), ("west", "stable")]
