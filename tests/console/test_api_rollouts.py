"""Rollouts over HTTP: started, shown, steered, ended."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lora_ops import ids, keys
from tasks.bundle import build_bundle, publish

OLD = f"sha256:{'a' * 64}"
NEW = f"sha256:{'b' * 64}"


def _git(repo: Path, *command: str) -> str:
    return subprocess.run(
        ["git", "-C", str(repo), "-c", "user.name=t", "-c", "user.email=t@t", *command],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


# --- starting -----------------------------------------------------------------------------------


def test_start_fixes_the_revision(world: Any, checkout: Path) -> None:
    made = world.post("/api/rollouts", 201, source=str(checkout), reason="try it", actor="ada", plan=[5, 100])
    meant = _git(checkout, "rev-parse", "HEAD")
    _git(checkout, "commit", "-q", "--allow-empty", "-m", "later")
    assert ids.check_id(made["id"])
    assert (made["phase"], made["reason"]) == ("validating", "try it")
    rollout = world.platform.state().rollout
    assert rollout.source.revision == meant
    assert rollout.policy.plans == {"east": (5, 100), "west": (5, 100)}
    (event,) = world.get(f"/api/rollouts/{made['id']}/history")["items"]
    assert (event["kind"], event["actor"], event["reason"]) == ("rollout-started", "ada", "try it")


def test_dry_run_tells_and_writes_nothing(world: Any, checkout: Path) -> None:
    before = world.platform.state().seq
    plan = world.post("/api/rollouts", source=str(checkout), dry_run=True)
    assert plan["waves"] == [["east", "west"]]
    assert plan["plans"] == {"east": [10, 50], "west": [10, 50]}
    assert plan["gates"] == [{"metric": "error_rate", "limit": 0.05}]
    assert (plan["probes"], plan["behind"]) == (None, None)
    assert world.platform.state().seq == before


def test_the_second_is_refused_with_the_firsts_name(world: Any, checkout: Path) -> None:
    first = world.post("/api/rollouts", 201, source=str(checkout))["id"]
    for dry_run in (False, True):
        error = world.post("/api/rollouts", 409, source=str(checkout), dry_run=dry_run)["error"]
        assert first in error["message"]
        assert error["exit_code"] == 6


def test_of_one_source_the_newest_waits(world: Any, checkout: Path) -> None:
    active = world.rollout(canarying=False)
    older = world.post("/api/rollouts", 202, source=str(checkout), queue=True)
    release = publish(world.store, build_bundle(checkout))
    other = world.post("/api/rollouts", 202, release=release[:15], queue=True)["id"]
    newer = world.post("/api/rollouts", 202, source=str(checkout), queue=True)["id"]
    assert older["phase"] == "queued"
    listed = world.get("/api/rollouts")["items"]
    assert [(item["id"], item["phase"]) for item in listed] == [
        (newer, "queued"),
        (other, "queued"),
        (active, "validating"),
    ]
    error = world.get(f"/api/rollouts/{older['id']}", 404)["error"]
    assert newer in error["hint"]
    kinds = [event["kind"] for event in world.get(f"/api/rollouts/{older['id']}/history")["items"]]
    assert kinds == ["rollout-queued", "rollout-overtaken"]


def test_a_queued_one_can_be_taken_out(world: Any, checkout: Path) -> None:
    world.rollout(canarying=False)
    name = world.post("/api/rollouts", 202, source=str(checkout), queue=True)["id"]
    world.post(f"/api/rollouts/{name}/pause", 409)
    assert world.post(f"/api/rollouts/{name}/abort", dry_run=True)["dry_run"]
    assert len(world.platform.state().queue) == 1
    world.post(f"/api/rollouts/{name}/abort", reason="not today")
    assert world.platform.state().queue == ()


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({}, 400, "source"),
        ({"source": "relative/path"}, 400, "absolute"),
        ({"source": "{clone}x"}, 404, "Did you mean `clone`?"),
        ({"source": "{clone}/.."}, 422, "git"),
        ({"source": "{clone}", "revision": "mian"}, 422, "main"),
        ({"source": "{clone}", "dirty": True, "revision": "main"}, 400, "working tree"),
        ({"source": "{clone}", "plan": [50, 10]}, 400, "never go down"),
        ({"source": "{clone}", "plan": [101]}, 400, "0 to 100"),
        ({"source": "{clone}", "plan": []}, 400, "0 to 100"),
        ({"release": NEW}, 404, "release"),
        ({"release": NEW, "dirty": True}, 400, "release"),
    ],
)
def test_what_cannot_become_a_rollout(
    world: Any, checkout: Path, body: dict[str, Any], status: int, told: str
) -> None:
    body = {k: v.format(clone=checkout) if isinstance(v, str) else v for k, v in body.items()}
    error = world.post("/api/rollouts", status, **body)["error"]
    assert told in json.dumps(error)
    assert world.platform.state().rollout is None


# --- showing ------------------------------------------------------------------------------------


def test_the_active_one_with_its_evidence(world: Any) -> None:
    name = world.rollout()
    world.canary(name)
    world.canary(name, "trainer_error")
    world.canary(name, "user_error")
    world.contact(world.request(rollout=name, track="canary", digest=NEW))
    world.contact(world.request(rollout=name))
    world.look(name, 0)
    found = world.get(f"/api/rollouts/{name}")
    assert (found["phase"], found["wave"], found["step"], found["weight"]) == ("canarying", 0, 0, 10)
    assert (found["release"], found["revision"]) == (NEW, "abc123")
    east = found["clouds"]["east"]
    assert (east["weight"], east["plan"], east["stable"], east["canary"]) == (10, [10, 50], OLD, NEW)
    assert east["starts"] == {"stable": 1, "canary": 3}
    assert east["samples"] == {"stable": 0, "canary": 2}
    assert east["bad"] == {"stable": 0, "canary": 1}
    assert found["clouds"]["west"]["starts"] == {"stable": 0, "canary": 0}
    look = found["last_look"]
    assert (look["n"], look["verdict"]) == (0, found["verdict"])
    assert {(r["cloud"], r["gate"]) for r in look["results"]} == {
        ("east", "error_rate"),
        ("west", "error_rate"),
    }
    assert _time(found["lease_until"]) > _time(look["time"]) >= _time(found["started"])
    assert found["updated"] == look["time"]
    assert found["ended"] is None
    assert found["first_failure_to_rollback_s"] is None
    assert world.get(f"/api/rollouts/{name}/looks")["items"] == [look]
    assert world.get("/api/rollouts")["items"][0]["id"] == name


def test_the_durations_of_a_rollback(world_on_disk: Any) -> None:
    world = world_on_disk
    name = world.rollout()
    first, second = world.canary(name, "trainer_error"), world.canary(name, "out_of_memory")
    deciding = world.canary(name, "trainer_error")
    world.look(name, 0)
    after_the_look = world.canary(name, "trainer_error")
    others = world.canary(name), world.canary(name, "user_error")
    stable = world.request(rollout=name)
    world.sample(stable, cause="trainer_error")
    world.record(name, "rolled-back", reason="error_rate failed")
    straggler = world.canary(name, "trainer_error")
    times = {first: 1000.0, second: 1005.0, deciding: 1009.0, after_the_look: 1010.2, straggler: 1020.0}
    times |= {others[0]: 990.0, others[1]: 1010.0}
    _set_time(world, keys.sample(name, "east", "stable", stable, 1), 980.0)
    for request, time in times.items():
        _set_time(world, keys.sample(name, "east", "canary", request, 1), time)
    _set_time(world, f"{keys.journal('loras')}/{world.platform.state().seq:020d}.json", 1010.5)
    found = world.restarted().get(f"/api/rollouts/{name}")
    assert found["phase"] == "rolled-back"
    assert found["first_failure_to_rollback_s"] == pytest.approx(10.5)
    assert found["deciding_sample_to_rollback_s"] == pytest.approx(1.5)


def test_a_rollback_by_hand_has_no_durations(world: Any) -> None:
    name = world.rollout()
    world.canary(name)
    found = world.post(f"/api/rollouts/{name}/rollback")
    assert found["phase"] == "rolled-back"
    assert found["first_failure_to_rollback_s"] is None
    assert found["deciding_sample_to_rollback_s"] is None


def test_an_ended_one_stands_as_it_stood_before_its_end(world: Any) -> None:
    name = world.rollout()
    world.record(name, "step-started", wave=0, step=1)
    world.record(name, "wave-promoted", wave=0)
    world.record(name, "verified", cloud="east")
    world.record(name, "holding")
    world.record(name, "promoted", reason="the hold ended")
    world.record(name, "unverified", cloud="west")
    for each in (world, world.restarted()):
        found = each.get(f"/api/rollouts/{name}")
        assert (found["phase"], found["reason"], found["step"]) == ("promoted", "the hold ended", 1)
        assert found["clouds"]["east"] | {"plan": 0} == found["clouds"]["east"] | {
            "plan": 0,
            "promoted": True,
            "weight": 0,
            "stable": NEW,
        }
        assert found["verified"] == {"east": "verified", "west": "unverified"}
        assert found["lease_until"] is None
        assert found["first_failure_to_rollback_s"] is None
        assert _time(found["ended"]) <= _time(found["updated"])


def test_more_rollouts_than_the_state_remembers(world: Any) -> None:
    names = []
    for _ in range(22):
        names.append(world.rollout(canarying=False))
        world.record(names[-1], "failed", reason="no such revision")
    assert len(world.platform.state().finished) < len(names)
    listed = world.get("/api/rollouts")["items"]
    assert [item["id"] for item in listed] == names[::-1]
    assert world.get(f"/api/rollouts/{names[0]}")["phase"] == "failed"
    assert [item["id"] for item in world.get("/api/rollouts", limit=2)["items"]] == names[:-3:-1]


def test_an_unknown_one_names_the_nearest(world: Any) -> None:
    name = world.rollout()
    for path in ("", "/history", "/looks"):
        assert name in world.get(f"/api/rollouts/{name[:-1]}x{path}", 404)["error"]["hint"]
    assert world.post(f"/api/rollouts/{name[:-1]}x/pause", 404)["error"]["exit_code"] == 5
    assert "approve" in world.post(f"/api/rollouts/{name}/aprove", 404)["error"]["hint"]


# --- steering -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "kind", "phase"),
    [
        ("pause", "paused", "canarying"),
        ("promote", "promote-forced", "canarying"),
        ("abort", "aborted", "aborted"),
        ("rollback", "rolled-back", "rolled-back"),
        ("reject", "rolled-back", "rolled-back"),
    ],
)
def test_people_decide(world: Any, verb: str, kind: str, phase: str) -> None:
    name = world.rollout()
    before = world.platform.state().seq
    would = world.post(f"/api/rollouts/{name}/{verb}", reason="why", actor="ada", dry_run=True)
    assert (would["phase"], would["event"], would["dry_run"]) == (phase, kind, True)
    assert world.platform.state().seq == before
    found = world.post(f"/api/rollouts/{name}/{verb}", reason="why", actor="ada")
    assert (found["id"], found["phase"]) == (name, phase)
    event = world.get(f"/api/rollouts/{name}/history")["items"][-1]
    assert (event["kind"], event["actor"], event["reason"]) == (kind, "ada", "why")
    assert event["data"]["rollout"] == name


def test_approval_says_who(world: Any) -> None:
    name = world.rollout()
    assert world.post(f"/api/rollouts/{name}/approve", 409)["error"]["exit_code"] == 6
    world.record(name, "step-started", wave=0, step=1)
    world.record(name, "approval-requested")
    found = world.post(f"/api/rollouts/{name}/approve", actor="ada")
    assert (found["phase"], found["approved"]) == ("awaiting-approval", True)
    data = world.get(f"/api/rollouts/{name}/history")["items"][-1]["data"]
    assert (data["by"], data["via"], data["wave"]) == ("ada", "api", 0)


def test_an_approval_of_another_wave_is_refused(world: Any) -> None:
    name = world.rollout()
    world.record(name, "step-started", wave=0, step=1)
    world.record(name, "approval-requested", wave=0)
    late = world.post(f"/api/rollouts/{name}/approve", 409, wave=1)["error"]
    assert "this approves wave 2, but wave 1" in late["message"]
    assert f"lora-ops rollout approve {name} --wave 1" in late["hint"]
    assert world.post(f"/api/rollouts/{name}/pause", 400, wave=0)
    assert world.post(f"/api/rollouts/{name}/approve", wave=0)["approved"]


def test_pause_and_resume(world: Any) -> None:
    name = world.rollout()
    assert world.post(f"/api/rollouts/{name}/resume", 409)
    assert world.post(f"/api/rollouts/{name}/pause")["paused"]
    assert world.post(f"/api/rollouts/{name}/pause", 409)
    assert not world.post(f"/api/rollouts/{name}/resume")["paused"]


def test_after_the_end_the_way_back_is_another_rollout(world: Any) -> None:
    name = world.rollout()
    world.record(name, "step-started", wave=0, step=1)
    world.record(name, "wave-promoted", wave=0)
    world.record(name, "holding")
    world.record(name, "promoted")
    error = world.post(f"/api/rollouts/{name}/rollback", 409, dry_run=True)["error"]
    assert f"lora-ops deploy --canary --release {OLD}" in error["hint"]


def _time(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


def _set_time(world: Any, key: str, time: float) -> None:
    path = world.store.root / key
    assert path.is_file()
    os.utime(path, (time, time))
