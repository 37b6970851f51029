"""Requests over HTTP: submitted, listed, followed, cancelled, retried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_ops import ids, keys
from tasks.log_window import pack

CONFIG = "train_data_dir: ./facts\nbase_model: ./base.gguf\noutput_dir: ./out\nlearning_rate: 2e-4\n"
OLD = f"sha256:{'a' * 64}"


def _submit(world: Any, training: Path, status: int = 201, **changes: Any) -> Any:
    body = {"config": CONFIG, "source": "run.yaml", "cwd": str(training), "name": "ada", **changes}
    return world.post("/api/requests", status, **body)


# --- submitting ---------------------------------------------------------------------------------


def test_submit_needs_nothing_of_its_folder_later(world: Any, training: Path) -> None:
    made = _submit(world, training)
    assert (made["state"], made["name"], made["canary"], made["attempts"]) == ("submitted", "ada", True, [])
    assert ids.check_id(made["id"])
    stored = yaml.safe_load(world.store.get(keys.request_config(made["id"])).data)
    assert stored["train_data_dir"] == "."
    assert stored["base_model"] == str(training / "base.gguf")
    assert stored["learning_rate"] == 2e-4
    listed = [
        meta.key for meta in world.store.list(f"datasets/facts/{made['dataset_digest'].replace(':', '-')}")
    ]
    assert any(key.endswith("/train.jsonl") for key in listed)
    assert [meta.key for meta in world.store.list("open")] == [f"open/{made['id']}"]
    assert world.get(f"/api/requests/{made['id']}")["id"] == made["id"]
    (event,) = world.get(f"/api/requests/{made['id']}/history")["items"]
    assert (event["seq"], event["kind"], event["actor"]) == (0, "submitted", "api")


def test_one_key_is_one_request(world: Any, training: Path) -> None:
    made = _submit(world, training, idempotency_key="k1")
    assert _submit(world.restarted(), training, idempotency_key="k1")["id"] == made["id"]
    assert _submit(world, training, idempotency_key="k2")["id"] > made["id"]
    error = _submit(world, training, 409, idempotency_key="k1", name="another")["error"]
    assert made["id"] in error["message"]
    assert len(world.get("/api/requests")["items"]) == 2


def test_dry_run_checks_all_and_writes_nothing(world: Any, training: Path) -> None:
    before = [meta.key for meta in world.store.list("")]
    plan = _submit(world, training, 200, dry_run=True)
    assert (plan["kind"], plan["items"], plan["dataset"]) == ("text", 3, "facts")
    assert [meta.key for meta in world.store.list("")] == before
    _submit(world, training, 404, dry_run=True, cloud="nowhere")


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"config": "train_data_dirr: x"}, 422, ["run.yaml:1", "train_data_dir"]),
        ({"config": "a: [1\n"}, 422, ["run.yaml"]),
        ({"config": CONFIG.replace("base.gguf", "bse.gguf")}, 422, ["bse.gguf", "base.gguf"]),
        ({"config": CONFIG.replace("facts", "fact")}, 422, ["fact"]),
        ({"cwd": ""}, 422, ["relative"]),
        ({"cloud": "eas"}, 404, ["Did you mean `east`?"]),
        ({"canary": "always"}, 422, ["canary"]),
    ],
)
def test_the_users_faults_leave_nothing_behind(
    world: Any, training: Path, change: dict[str, Any], status: int, told: list[str]
) -> None:
    before = [meta.key for meta in world.store.list("")]
    error = _submit(world, training, status, **change)["error"]
    for each in told:
        assert each in json.dumps(error)
    assert [meta.key for meta in world.store.list("")] == before


def test_every_bad_row_is_told_at_once(world: Any, training: Path) -> None:
    (training / "facts" / "train.jsonl").write_text('{"messages": []}\nnot json\n{"x": 1}\n')
    error = _submit(world, training, 422)["error"]
    assert error["exit_code"] == 3
    assert [line.split(": ")[0] for line in error["details"]] == [f"train.jsonl:{n}" for n in (1, 2, 3)]


# --- listing and following ----------------------------------------------------------------------


def test_the_states_of_a_request(world: Any) -> None:
    name = world.request()
    assert world.get(f"/api/requests/{name}")["state"] == "waiting"
    world.contact(name)
    beat = {"step": 5, "steps": 20, "loss": float("nan"), "step_s": 2.0, "phase": "train"}
    world.store.put(keys.heartbeat(name, 1), json.dumps(beat).encode())
    found = world.get(f"/api/requests/{name}")
    assert found["state"] == "running"
    assert found["progress"]["eta_s"] == 30
    assert found["progress"]["loss"] is None
    assert found["attempts"][0]["state"] == "running"
    assert found["attempts"][0]["flow_run_url"] == f"http://ui/{name}-1"
    world.succeed(name)
    found = world.get(f"/api/requests/{name}")
    assert (found["state"], found["progress"], found["error"]) == ("succeeded", None, None)
    assert found["result"]["files"] == [{"path": "lora.safetensors"}]
    assert found["result"]["artifact_url"] == f"{world.store.url.rstrip('/')}/artifacts/{name}/1"
    assert found["submitted"] <= found["attempts"][0]["started"] <= found["attempts"][0]["ended"]


def test_a_failure_says_what_to_do(world: Any) -> None:
    name = world.request()
    failed = {"n": 1, "cause": "user_error", "message": "a.jpg is corrupt"}
    world.platform.record_request(name, "attempt-failed", failed)
    assert world.get(f"/api/requests/{name}")["state"] == "waiting"
    result = {"state": "failed", "cause": "user_error", "message": "a.jpg is corrupt"}
    world.platform.record_request(name, "result", result)
    found = world.get(f"/api/requests/{name}")
    assert (found["state"], found["error"]["cause"]) == ("failed", "user_error")
    assert f"runs retry {name}" in found["error"]["hint"]


def test_the_list_is_newest_first_without_probes(world: Any) -> None:
    first, second = world.request(), world.request()
    probe = world.request(probe="roll/1")
    world.contact(second)
    assert [each["id"] for each in world.get("/api/requests")["items"]] == [second, first]
    assert [each["id"] for each in world.get("/api/requests", probes=1)["items"]] == [probe, second, first]
    assert [each["id"] for each in world.get("/api/requests", limit=1)["items"]] == [second]
    assert [each["id"] for each in world.get("/api/requests", state="running")["items"]] == [second]
    world.succeed(second)
    assert [each["id"] for each in world.get("/api/requests", state="succeeded")["items"]] == [second]
    assert "running" in world.get("/api/requests", 400, state="runing")["error"]["hint"]


def test_an_abandoned_submission_is_no_request(world: Any) -> None:
    name = ids.new_id(ids.REQUEST, 1.0, 1)
    world.store.put(keys.open_marker(name), b"{}")
    world.store.create(keys.request_config(name), b"{}")
    assert world.get("/api/requests", probes=1)["items"] == []
    world.get(f"/api/requests/{name}", 404)
    world.platform.record_request(name, "abandoned", {})
    assert world.get("/api/requests", probes=1)["items"] == []


def test_an_unknown_id_names_the_nearest(world: Any) -> None:
    name = world.request()
    for path in ("", "/logs", "/history"):
        assert name in world.get(f"/api/requests/{name[:-1]}x{path}", 404)["error"]["hint"]
    world.get("/api/requests/..%2f..%2fopen", 404)
    world.get("/api/requests/%00", 404)


# --- logs ---------------------------------------------------------------------------------------


def test_logs_go_on_by_bytes_and_never_split_a_character(world: Any) -> None:
    name = world.request()
    path = f"/api/requests/{name}/logs"
    assert world.get(path)["text"] == ""
    whole = "Schritt 1 …\nSchritt 2 ✓\n".encode()
    text, at = "", 0
    for end in range(1, len(whole) + 1):
        world.store.put(keys.log(name, 1), whole[:end])
        part = world.get(path, after=at)
        text, at = text + part["text"], part["next"]
        assert part["attempt"] == 1
    assert text == whole.decode()
    assert at == len(whole)
    assert world.get(path, after=at)["text"] == ""


def test_logs_begin_again_when_the_log_was_cut(world: Any) -> None:
    name = world.request()
    world.store.put(keys.log(name, 1), b"newest part")
    assert world.get(f"/api/requests/{name}/logs", after=10_000)["text"] == "newest part"


def test_logs_say_what_is_not_kept(world: Any) -> None:
    """The store keeps a sliding window: a follower gets what is there, and how much is not."""
    name = world.request()
    path, whole, got, lost, at = f"/api/requests/{name}/logs", b"", "", 0, 0
    for n in range(60):
        whole += f"step {n}\n".encode()
        kept = whole[-40:].partition(b"\n")[2] if len(whole) > 40 else whole
        world.store.put(keys.log(name, 1), pack(len(whole) - len(kept), kept))
        if n % 7 in (0, 1, 2):
            part = world.get(path, after=at)
            got, lost, at = got + part["text"], lost + part["dropped"], part["next"]
            assert got.endswith(f"step {n}\n")
            assert at == len(whole)
    assert lost == len(whole) - len(got) - (len(whole) - at)
    assert lost > 0
    assert world.get(path, after=at)["dropped"] == 0


def test_logs_of_an_attempt(world: Any) -> None:
    name = world.request()
    world.store.put(keys.log(name, 1), b"first \xff")
    lost = {"n": 1, "cause": "lost_worker", "message": ""}
    world.platform.record_request(name, "attempt-lost", lost)
    record = {"cloud": "west", "track": "stable", "digest": OLD}
    world.platform.record_request(name, "attempt-started", record)
    world.store.put(keys.log(name, 2), b"second")
    path = f"/api/requests/{name}/logs"
    assert world.get(path)["text"] == "second"
    assert world.get(path, attempt=1)["text"] == "first \ufffd"
    assert "2" in world.get(path, 404, attempt=3)["error"]["hint"]
    world.get(path, 422, after=-1)


# --- steering -----------------------------------------------------------------------------------


def test_cancel_is_a_wish_until_the_result(world: Any) -> None:
    name = world.request()
    world.post(f"/api/requests/{name}/cancel", dry_run=True)
    assert not world.platform.request(name).cancel
    for _ in range(2):
        found = world.post(f"/api/requests/{name}/cancel", reason="wrong data", actor="ada")
        assert (found["cancel_requested"], found["state"]) == (True, "waiting")
    kinds = [(e["kind"], e["actor"]) for e in world.get(f"/api/requests/{name}/history")["items"]]
    assert kinds[2:] == [("cancel-requested", "ada")]
    world.succeed(name)
    assert world.post(f"/api/requests/{name}/cancel", 409)["error"]["exit_code"] == 6


def test_retry_names_the_old_one(world: Any, training: Path) -> None:
    old = _submit(world, training)["id"]
    assert world.post(f"/api/requests/{old}/retry", 409)["error"]["exit_code"] == 6
    world.platform.record_request(old, "result", {"state": "cancelled", "message": "Cancelled on request."})
    (training / "facts" / "train.jsonl").unlink()
    assert world.post(f"/api/requests/{old}/retry", dry_run=True)["id"] == old
    new = world.post(f"/api/requests/{old}/retry", 201)
    assert (new["retry_of"], new["state"]) == (old, "submitted")
    assert new["id"] != old
    first, second = (world.store.get(keys.request_config(each)).data for each in (old, new["id"]))
    assert first == second
    assert new["dataset_digest"] == world.get(f"/api/requests/{old}")["dataset_digest"]


def test_a_probe_is_never_retried(world: Any) -> None:
    name = world.request(probe="roll/1")
    world.contact(name)
    world.succeed(name)
    world.post(f"/api/requests/{name}/retry", 409)
