"""Looks renew the lease and are written only when they say something new; probes are submitted once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows import looks, probes
from flows.looks import Looker, judge_now
from flows.probes import Prober, derived_id, probe_key, submit_verification
from lora_ops import keys
from lora_ops.gates.samples import Sample, Start
from lora_ops.lease import may_start
from lora_ops.request import Order, Pin
from lora_ops.state import Track
from tasks.platform import Platform
from tests.flows.reconciler_world import NEW, World, later


class _Quiet:
    def info(self, *words: object) -> None: ...

    warning = info


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(looks, "get_run_logger", _Quiet)
    return World(tmp_path)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The orders that were submitted; the real `submit` decodes data, which is not the matter here."""
    made: list[dict[str, Any]] = []

    def submit(platform: Platform, text: str, **order: Any) -> Any:
        name = str(order["request_id"])
        if platform.request(name).order is None:
            made.append({"text": text, **order})
            fields = {key: value for key, value in order.items() if key in Order.model_fields}
            dumped = Order(**fields).model_dump(mode="json")
            platform.record_request(name, "submitted", {"order": dumped})
        return platform.request(name)

    monkeypatch.setattr(probes, "submit", submit)
    return made


def _sample(world: World, n: int, cause: str | None = None, cloud: str = "east") -> None:
    rollout = world.active
    facts: dict[str, Any] = {"request": f"req-{n}", "attempt": 1, "cloud": cloud, "track": "canary"}
    facts |= {"digest": NEW}
    start = keys.start(rollout.id, cloud, "canary", f"req-{n}", 1)
    world.store.create(start, Start(**facts).model_dump_json().encode())
    sample = Sample(**facts, cause=cause, at_horizon=cause is None)
    world.store.create(
        keys.sample(rollout.id, cloud, "canary", f"req-{n}", 1), sample.model_dump_json().encode()
    )


# --- looks ---


def test_a_look_is_written_when_counts_change_or_half_the_lease_is_gone(world: World) -> None:
    rollout = world.rollout(lease_s=60.0)
    looker = Looker(world.platform, rollout.id, 0)
    for _ in range(3):
        looker.look(rollout)
    assert len(world.platform.looks(rollout.id)) == 1
    _sample(world, 1)
    for _ in range(3):
        looker.look(rollout)
    assert len(world.platform.looks(rollout.id)) == 2
    later(world.platform, 29.0)
    looker.look(rollout)
    assert len(world.platform.looks(rollout.id)) == 2
    later(world.platform, 2.0)
    looker.look(rollout)
    assert [seen.n for seen in world.platform.looks(rollout.id)] == [0, 1, 2]
    assert [n for n, _ in looker.unshown] == [0, 1, 2]


def test_looks_renew_the_lease_until_one_fails(world: World) -> None:
    rollout = world.rollout(lease_s=60.0)
    before = world.platform.lease_until(rollout)
    assert before is not None
    looker = Looker(world.platform, rollout.id, 0)
    looker.look(rollout)
    renewed = world.platform.lease_until(rollout)
    assert renewed is not None
    assert renewed >= before
    assert world.platform.looks(rollout.id)[-1].look.good_for_lease
    for n in range(4):
        _sample(world, n, "trainer_error")
    assert looker.look(rollout).verdict == "fail"
    assert looker.newest == 1
    assert not world.platform.looks(rollout.id)[-1].look.good_for_lease
    assert world.platform.lease_until(rollout) == renewed
    assert not may_start(renewed, renewed)


def test_a_look_of_a_flow_that_was_given_up_renews_nothing(world: World) -> None:
    """It was suspended between judging and writing, and another epoch took over."""
    rollout = world.rollout(lease_s=60.0)
    old = Looker(world.platform, rollout.id, 0)
    old.look(rollout)
    found = judge_now(world.platform, rollout)
    assert found is not None
    world.record("flow-restarted")
    restarted = world.active
    before = world.platform.lease_until(restarted)
    assert before == world.platform.lease_until(rollout), "what it saw while it led still counts"
    old._write(rollout, found, world.platform.clock.now().earliest)
    assert world.platform.lease_until(restarted) == before
    assert len(world.platform.looks(rollout.id)) == 2
    new = Looker(world.platform, rollout.id, 1)
    new.look(restarted)  # the newest look says nothing for the lease: one of its own is due
    assert new.newest == 2
    renewed = world.platform.lease_until(restarted)
    assert renewed is not None
    assert before is not None
    assert renewed > before


def test_a_look_counts_from_when_its_evidence_was_gathered(world: World) -> None:
    rollout = world.rollout(lease_s=60.0)
    first = Looker(world.platform, rollout.id, 0)
    later(world.platform, 20.0)
    first.look(rollout)
    written = world.platform.looks(rollout.id)[-1]
    assert world.platform.lease_until(rollout) == written.time + 60.0, "never from after its writing"
    later(world.platform, -40.0)  # as if 20 s went by between the judging and the writing
    _sample(world, 1)
    first.look(rollout)
    suspended = world.platform.looks(rollout.id)[-1]
    assert suspended.gathered is not None
    assert suspended.gathered < suspended.time - 15.0
    assert world.platform.lease_until(rollout) == written.time + 60.0


def test_another_process_goes_on_where_the_first_was_killed(world: World) -> None:
    """It neither writes the same counts again nor reuses a number; two at once agree."""
    rollout = world.rollout(lease_s=60.0)
    Looker(world.platform, rollout.id, 0).look(rollout)
    second = Platform(world.store, "loras", "deploy 2")
    looker = Looker(second, rollout.id, 1)
    looker.look(rollout)
    assert looker.newest == 0
    _sample(world, 1)
    first = Looker(world.platform, rollout.id, 0)
    found = judge_now(second, rollout)
    assert found is not None
    first.look(rollout)
    looker._write(rollout, found, second.clock.now().earliest)  # decided before it saw the other's
    assert [seen.n for seen in world.platform.looks(rollout.id)] == [0, 1, 2]


def test_samples_of_the_step_before_are_not_fresh(world: World) -> None:
    rollout = world.rollout(plans={"east": [10, 100], "west": [10, 100]})
    looker = Looker(world.platform, rollout.id, 0)
    for n in range(3):
        _sample(world, n)
    assert looker.look(rollout).fresh == {"east": 3, "west": 0}
    world.record("step-started", wave=0, step=1)
    again = world.active
    assert looker.look(again).fresh == {"east": 0, "west": 0}
    _sample(world, 9)
    assert looker.look(again).fresh == {"east": 1, "west": 0}


def test_nothing_is_judged_before_the_release_is_exposed(world: World) -> None:
    rollout = world.rollout()
    world.record("aborted")
    data = {"id": "roll-000000000000009", "source": {"path": "/src"}}
    policy = rollout.policy.model_dump(mode="json")
    world.platform.record("rollout-started", {**data, "policy": policy})
    sight = Looker(world.platform, world.active.id, 0).look(world.active)
    assert sight.verdict is None
    assert world.platform.looks(world.active.id) == []


# --- probes ---


def _with_probes(world: World, **policy: Any) -> None:
    config = {"config": "probe.yaml", "parallel": 2, "max_per_cloud": 5}
    world.rollout(probes=config, **policy)
    world.store.put(probe_key(world.active.id), b"seed: 0\nmax_steps: 9\n")


def test_probes_are_kept_under_way_and_survive_a_restart(
    world: World, submitted: list[dict[str, Any]]
) -> None:
    _with_probes(world)
    prober = Prober(world.platform)
    assert prober.keep(world.active) == 4
    assert prober.keep(world.active) == 0
    assert [each["pin"] for each in submitted] == [
        Pin(cloud=cloud, track=Track.CANARY) for cloud in ("east", "east", "west", "west")
    ]
    assert {each["max_attempts"] for each in submitted} == {1}
    assert len({each["text"] for each in submitted}) == 2  # a seed each, the same on both clouds
    fresh = Prober(Platform(world.store, "loras", "deploy 2"))
    fresh.keep(world.active)
    assert len(submitted) == 4
    _end(world, submitted[0]["request_id"])
    fresh.keep(world.active)
    assert [each["pin"].cloud for each in submitted[4:]] == ["east"]


def test_a_ratio_gate_wants_pairs_of_one_seed(world: World, submitted: list[dict[str, Any]]) -> None:
    _with_probes(world, gates=[{"metric": "memory_ratio", "limit": 1.5}])
    Prober(world.platform).keep(world.active)
    pairs: dict[str, list[dict[str, Any]]] = {}
    for each in submitted:
        pairs.setdefault(each["probe"], []).append(each)
    assert len(pairs) == 4
    for pair in pairs.values():
        assert [each["pin"].track for each in pair] == [Track.CANARY, Track.STABLE]
        assert pair[0]["text"] == pair[1]["text"]
        assert pair[0]["pin"].cloud == pair[1]["pin"].cloud


def test_probes_are_bounded_and_stop_while_it_is_paused(
    world: World, submitted: list[dict[str, Any]]
) -> None:
    _with_probes(world)
    world.record("paused", reason="wait")
    prober = Prober(world.platform)
    assert prober.keep(world.active) == 0
    world.record("resumed")
    for _ in range(20):
        prober.keep(world.active)
        for each in list(submitted):
            _end(world, each["request_id"])
    assert len(submitted) == 10


def test_the_verification_of_one_move_is_one_request(world: World, submitted: list[dict[str, Any]]) -> None:
    _with_probes(world)
    for turn in ("promoted", "promoted", "restored"):
        submit_verification(world.platform, world.active.id, "east", turn)
    assert len(submitted) == 2
    assert all("max_steps: 1" in each["text"] for each in submitted)
    assert derived_id(world.active.id, "a") != derived_id(world.active.id, "b")


def _end(world: World, request: str) -> None:
    if world.platform.request(request).result is None:
        world.platform.record_request(request, "result", {"state": "cancelled"})
