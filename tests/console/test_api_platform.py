"""Clouds, releases, gates and the status page over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_ops import __version__
from lora_ops.errors import UnreachableError
from lora_ops.state import Track
from tasks.bundle import build_bundle, publish
from tasks.prefect_api import PrefectApi

OLD = f"sha256:{'a' * 64}"
NEW = f"sha256:{'b' * 64}"


# --- clouds -------------------------------------------------------------------------------------


def test_clouds_as_they_are(world: Any) -> None:
    name = world.rollout()
    world.contact(world.request(rollout=name, track="canary", digest=NEW))
    world.contact(world.request())
    world.contact(world.request())
    world.request()
    over = world.request()
    world.contact(over)
    world.succeed(over)
    east, west = world.get("/api/clouds")["items"]
    assert (east["name"], east["size"], east["stable"], east["canary"], east["weight"]) == (
        "east",
        2,
        OLD,
        NEW,
        10,
    )
    assert east["running"] == {Track.STABLE: 2, Track.CANARY: 1}
    assert east["queued"] == 1
    assert (east["healthy"], west["healthy"]) == (True, False)
    assert east["workers"] == [{"name": "east-1", "status": "ONLINE"}]
    assert world.get("/api/clouds/west")["running"] == {"stable": 0, "canary": 0}
    assert "west" in world.get("/api/clouds/wst", 404)["error"]["hint"]


def test_drain_and_undrain(world: Any) -> None:
    assert world.post("/api/clouds/east/drain", dry_run=True)["drained"]
    assert not world.platform.state().clouds["east"].drained
    for _ in range(2):
        assert world.post("/api/clouds/east/drain", reason="disk", actor="ada")["drained"]
    drained = [e for e in world.platform.history() if e.document["kind"] == "cloud-drained"]
    assert [(e.document["actor"], e.document["reason"]) for e in drained] == [("ada", "disk")]
    assert not world.post("/api/clouds/east/undrain")["drained"]
    assert world.post("/api/clouds/nowhere/drain", 404)["error"]["exit_code"] == 5


def test_clouds_are_shown_without_prefect(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: PrefectApi, pool: str) -> list[tuple[str, str]]:
        raise UnreachableError("Prefect does not answer.")

    monkeypatch.setattr(type(world.context.prefect), "workers", away)
    assert world.get("/api/clouds/east")["workers"] is None
    monkeypatch.setattr(type(world.context.prefect), "ok", lambda self: False)
    # Its client would try for long, so it is not even asked.
    monkeypatch.setattr(type(world.context.prefect), "workers", lambda self, pool: pytest.fail("asked"))
    assert [each["workers"] for each in world.get("/api/clouds")["items"]] == [None, None]
    assert world.get("/api/status")["prefect"]["ok"] is False


# --- releases -----------------------------------------------------------------------------------


def test_releases_and_where_they_run(world: Any, checkout: Path) -> None:
    first = publish(world.store, build_bundle(checkout), "ada")
    (checkout / "flows" / "__init__.py").write_text("x = 1\n")
    second = publish(world.store, build_bundle(checkout))
    world.platform.record("cloud-set", {"name": "north", "stable": first})
    assert {each["digest"] for each in world.get("/api/releases")["items"]} == {first, second}
    shown = world.get(f"/api/releases/{first.removeprefix('sha256:')[:12]}")
    assert (shown["digest"], shown["created_by"], shown["stable_on"]) == (first, "ada", ["north"])
    assert shown["clouds"] == {"north": "stable"}
    assert shown["created"].endswith("Z")
    assert len(shown["lock_sha256"]) == 64
    assert world.get(f"/api/releases/{second}")["rollouts"] == []
    assert world.get("/api/releases/sha256:00", 404)["error"]["exit_code"] == 5


def test_a_release_names_its_rollouts(world: Any, checkout: Path) -> None:
    digest = publish(world.store, build_bundle(checkout))
    names = []
    for end in ("aborted", None):
        names.append(world.rollout(canarying=False))
        world.record(names[-1], "validated")
        world.record(names[-1], "built", release=digest)
        if end:
            world.record(names[-1], end)
    assert world.get(f"/api/releases/{digest}")["rollouts"] == names[::-1]


# --- gates --------------------------------------------------------------------------------------


def test_explain_judges_now(world: Any) -> None:
    assert world.get("/api/gates/explain", 404)["error"]["exit_code"] == 5
    name = world.rollout()
    empty = world.get("/api/gates/explain")
    assert (empty["rollout"], empty["verdict"]) == (name, "inconclusive")
    for _ in range(4):
        world.canary(name, "trainer_error")
    found = world.get("/api/gates/explain", rollout=name)
    (east,) = [each for each in found["results"] if each["cloud"] == "east"]
    assert (east["k_fail"], east["n_fail"], east["verdict"]) == (4, 4, "fail")
    assert found["verdict"] == "fail"
    assert found["tests"] == 2
    assert "east" in found["summary"]
    world.record(name, "rolled-back")
    assert world.get("/api/gates/explain")["results"] == found["results"]


def test_explain_before_anything_is_built(world: Any) -> None:
    name = world.rollout(canarying=False)
    found = world.get("/api/gates/explain")
    assert (found["rollout"], found["results"], found["verdict"]) == (name, [], "inconclusive")
    assert "nothing to judge" in found["summary"]


# --- status -------------------------------------------------------------------------------------


def test_status_of_an_empty_platform(world: Any) -> None:
    found = world.get("/api/status")
    assert (found["app"], found["version"], found["rollout"], found["queue"]) == (
        "loras",
        __version__,
        None,
        [],
    )
    assert found["prefect"] == {"url": "http://127.0.0.1:4200/api", "ok": True}
    assert found["ui"] == "http://127.0.0.1:4200"
    assert found["requests"] == {
        "open": 0,
        "running": 0,
        "waiting": 0,
        "succeeded": 0,
        "failed": 0,
        "cancelled": 0,
    }


def test_status_counts_users_requests(world: Any, checkout: Path) -> None:
    name = world.rollout()
    queued = world.post("/api/rollouts", 202, source=str(checkout), queue=True)["id"]
    world.contact(world.request())
    world.request()
    world.contact(world.request(probe=f"{name}/0", rollout=name, track="canary", digest=NEW))
    done = world.request()
    world.contact(done)
    world.succeed(done)
    found = world.get("/api/status")
    counts = {key: count for key, count in found["requests"].items() if count}
    assert counts == {"open": 2, "running": 1, "waiting": 1, "succeeded": 1}
    assert (found["rollout"]["id"], found["rollout"]["clouds"]["east"]["starts"]["canary"]) == (name, 1)
    assert [each["id"] for each in found["queue"]] == [queued]
    assert [each["name"] for each in found["clouds"]] == ["east", "west"]
