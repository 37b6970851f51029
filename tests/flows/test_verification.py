"""Every pointer that a rollout moved is verified by effect: by what a probe really ran there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows import probes
from flows.open_requests import OpenRequests
from flows.probes import probe_key
from flows.verification import Verification
from lora_ops import keys
from lora_ops.request import Order
from lora_ops.state import Rollout
from tasks.platform import Platform
from tests.flows.reconciler_world import ALIVE, NEW, OLD, World, patch


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    patch(made, monkeypatch)

    def submitted(platform: Platform, text: str, **order: Any) -> Any:
        """`flows.submit.submit` without looking at data."""
        name = str(order.pop("request_id"))
        known = platform.request(name)
        if known.order is not None:
            return known
        fields = {key: value for key, value in order.items() if key in Order.model_fields}
        platform.store.put(keys.open_marker(name), b"{}")
        dumped = Order(**fields).model_dump(mode="json")
        return platform.record_request(name, "submitted", {"order": dumped})

    monkeypatch.setattr(probes, "submit", submitted)
    return made


def _with_probe(world: World, **policy: Any) -> Rollout:
    rollout = world.rollout(**policy)
    world.store.put(probe_key(rollout.id), b"seed: 0\n")
    return rollout


def _verdicts(world: World, name: str) -> dict[str, str]:
    state = world.platform.state()
    if state.rollout is not None and state.rollout.id == name:
        return state.rollout.verified
    return next(each.verified for each in state.finished if each.id == name)


def _turn(world: World, reconciler: Verification, requests: OpenRequests) -> None:
    reconciler.tick(world.platform.state())
    requests.tick(ALIVE)
    world.work(("succeed",))


def test_a_promotion_and_a_way_back_are_verified_by_what_really_runs(world: World) -> None:
    rollout = _with_probe(world)
    world.record("wave-promoted", wave=0)
    reconciler, requests = Verification(world.platform), world.reconciler()
    for _ in range(3):
        _turn(world, reconciler, requests)
    assert _verdicts(world, rollout.id) == {"east": "verified", "west": "verified"}
    world.record("rolled-back", reason="late")
    for _ in range(3):
        _turn(world, reconciler, requests)
    assert _verdicts(world, rollout.id) == {"east": "verified", "west": "verified"}
    ran = [run.env["PYTHONPATH"][-64:] for run in world.prefect.by_key.values()]
    assert sorted(ran) == sorted([NEW[7:]] * 2 + [OLD[7:]] * 2)


def test_a_pointer_that_leads_elsewhere_is_said_loudly(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The probe was routed by what the router knew, and that was not what the journal says."""
    rollout = _with_probe(world)
    world.record("wave-promoted", wave=0)
    reconciler = Verification(world.platform)
    reconciler.tick(world.platform.state())
    for meta in world.store.list("open"):
        probe = meta.key.rpartition("/")[2]
        data = {"cloud": world.platform.request(probe).order.pin.cloud, "track": "stable", "digest": OLD}
        world.platform.record_request(probe, "attempt-started", data)
        world.platform.record_request(probe, "result", {"state": "succeeded", "attempt": 1})
    reconciler.tick(world.platform.state())
    assert _verdicts(world, rollout.id) == {"east": "unverified", "west": "unverified"}
    assert [each.levelname for each in caplog.records] == ["ERROR", "ERROR"]
    assert OLD in caplog.records[0].message


def _again(rollout: Rollout) -> dict[str, Any]:
    policy = rollout.policy.model_dump(mode="json")
    return {"id": "roll-000000000000009", "source": {"path": "/src"}, "policy": policy}


def test_a_dark_cloud_is_unverified_in_time_and_verified_when_it_returns(world: World) -> None:
    rollout = _with_probe(world, verify_timeout_s=-1.0)
    world.record("wave-promoted", wave=0)
    dark = {"east": frozenset[str](), "west": ALIVE["west"]}
    reconciler, requests = Verification(world.platform), world.reconciler()
    reconciler.tick(world.platform.state())
    assert _verdicts(world, rollout.id) == {"east": "unverified", "west": "unverified"}
    requests.tick(dark)
    world.work(("succeed",))
    world.record("holding")
    world.record("promoted", reason="held")
    reconciler.tick(world.platform.state())
    assert _verdicts(world, rollout.id) == {"east": "unverified", "west": "verified"}
    assert reconciler.dark == {"east"}

    users = world.request(cloud="east")  # it is back, but nobody knows yet what it runs
    requests.tick(ALIVE, frozenset(reconciler.dark))
    assert world.platform.request(users).attempts[0].cloud == "west"
    world.work(("succeed",))
    reconciler.tick(world.platform.state())
    assert _verdicts(world, rollout.id) == {"east": "verified", "west": "verified"}
    assert reconciler.dark == set()


def test_a_probe_that_fails_leaves_the_cloud_unverified_but_open(world: World) -> None:
    rollout = _with_probe(world)
    world.record("wave-promoted", wave=0)
    reconciler, requests = Verification(world.platform), world.reconciler()
    for _ in range(8):
        reconciler.tick(world.platform.state())
        requests.tick(ALIVE)
        world.work(("user_error",))
        world.now += 10.0
    assert set(_verdicts(world, rollout.id).values()) == {"unverified"}
    assert reconciler.dark == set()


def test_without_a_probe_config_it_is_said_once(world: World) -> None:
    rollout = world.rollout()
    world.record("rolled-back", reason="a gate failed")
    reconciler = Verification(world.platform)
    for _ in range(3):
        reconciler.tick(world.platform.state())
    assert set(_verdicts(world, rollout.id).values()) == {"unverified"}
    kinds = [entry.document["kind"] for entry in world.platform.history()]
    assert kinds.count("unverified") == 2


def test_a_rollout_that_failed_its_self_check_verifies_nothing(world: World) -> None:
    rollout = world.rollout()
    world.record("aborted")
    world.platform.record("rollout-started", _again(rollout))
    world.record("validated")
    world.record("built", release=NEW, revision="abc")
    world.record("failed", reason="self-check")
    reconciler = Verification(world.platform)
    reconciler.tick(world.platform.state())
    assert _verdicts(world, "roll-000000000000009") == {}
