"""`lora-ops train`, `runs`, `release`, `cloud` and `status` against the stand-in."""

import json

import pytest

ID = "req-06dk3v9z1q7a4bc"
SHA = "sha256:" + "b" * 64


def request(state="running", **changes):
    attempt = {
        "n": 1, "cloud": "east", "track": "canary", "digest": SHA, "state": "running", "cause": None,
        "message": "", "started": "2026-11-23T15:00:00Z", "ended": None, "flow_run_url": "http://p/1",
    }  # fmt: skip
    return {
        "id": ID, "name": "style", "state": state, "submitted": "2026-11-23T15:00:00Z", "attempts": [attempt],
        "progress": {"step": 5, "steps": 20, "loss": 0.125, "step_s": 1.0, "eta_s": 15.0}, "result": None,
        "error": None, "dataset": SHA, "config_digest": SHA, **changes,
    }  # fmt: skip


@pytest.fixture
def config(tmp_path):
    (tmp_path / "style.yaml").write_text("lora_rank: 8  # größer\n", encoding="utf-8")
    return "style.yaml"


def test_train_submits_the_file_as_it_is(cli, serve, config, tmp_path):
    serve.on("POST /api/requests", {"id": ID}, status=201)
    status, out, err = cli("train", config, "--canary", "never", "--cloud", "west", "--idempotency-key", "k")
    assert (status, err) == (0, "")
    assert f"lora-ops runs watch {ID}" in out
    [body] = serve.bodies("POST /api/requests")
    assert body.pop("actor")
    assert [body] == [
        {
            "config": "lora_rank: 8  # größer\n", "source": "style.yaml", "cwd": str(tmp_path),
            "name": "style", "canary": "never", "cloud": "west", "cloud_only": False,
            "idempotency_key": "k", "dry_run": False,
        }
    ]  # fmt: skip
    assert cli("train", config, "-q")[1] == f"{ID}\n"


def test_train_dry_run(cli, serve, config):
    serve.on("POST /api/requests", {"cloud": "east", "track": "stable"})
    assert "east" in cli("train", config, "--dry-run")[1]
    assert serve.bodies("POST /api/requests")[0]["dry_run"] is True


@pytest.mark.parametrize(("name", "code"), [("none.yaml", 3), (".", 3), ("bad.yaml", 3)])
def test_train_of_a_file_that_cannot_be_read(cli, serve, tmp_path, name, code):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    status, _, err = cli("train", name)
    assert status == code
    assert name in err
    assert serve.calls == []


def test_train_refuses_another_canary_word(cli, serve, config):
    assert cli("train", config, "--canary", "always")[0] == 2


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 100), ("cancelled", 103)])
def test_train_wait_and_watch_exit_by_the_result(cli, serve, config, state, code):
    serve.on("POST /api/requests", {"id": ID})
    fault = (
        {"cause": "user", "message": "a picture is corrupt", "hint": "mend it"} if state == "failed" else None
    )
    ending = [request("waiting"), request(), request(), request(state, error=fault)]
    serve.on(f"GET /api/requests/{ID}", *ending)
    status, out, err = cli("train", config, "--wait")
    assert status == code
    assert len(out.splitlines()) == 3
    assert ("a picture is corrupt" in err) == (state == "failed")
    serve.on(f"GET /api/requests/{ID}", *ending)
    status, out, _ = cli("runs", "watch", ID, "--json")
    assert status == code
    assert json.loads(out)["state"] == state


def test_watch_that_is_not_finished_in_time(cli, serve):
    serve.on(f"GET /api/requests/{ID}", request())
    status, out, _ = cli("runs", "watch", ID, "--timeout", "0", "--json")
    assert status == 101
    assert json.loads(out)["state"] == "running"


def test_watch_of_an_unknown_request(cli, serve):
    serve.fail(
        f"GET /api/requests/{ID}", 404, kind="not-found", message="no request", hint="Did you mean ..."
    )
    status, out, err = cli("runs", "watch", ID, "--json")
    assert status == 102
    assert json.loads(out)["error"]["exit_code"] == 102
    assert "Did you mean" in err


def test_ls_and_show(cli, serve):
    serve.on("GET /api/requests", {"schema_version": 1, "items": [request()]})
    serve.on(f"GET /api/requests/{ID}", request())
    out = cli("runs", "ls", "--state", "running", "--limit", "5")[1]
    for said in (ID, "style", "east/canary", "step 5/20 loss 0.125 15 s left"):
        assert said in out
    assert serve.calls[0][1] == "/api/requests?state=running&limit=5&probes=0"
    assert cli("runs", "ls", "-q")[1] == f"{ID}\n"
    out = cli("runs", "show", ID)[1]
    for said in ("sha256:bbbbbbbbbbbb", "east/canary", "config digest"):
        assert said in out
    assert json.loads(cli("runs", "show", ID, "--json")[1])["id"] == ID


def test_logs(cli, serve):
    serve.on(f"GET /api/requests/{ID}/logs", {"text": "step 1\n", "next": 7})
    assert cli("runs", "logs", ID) == (0, "step 1\n", "")
    document = json.loads(cli("runs", "logs", ID, "--json")[1])
    assert (document["text"], document["next"]) == ("step 1\n", 7)


def test_logs_follow_to_the_last_byte(cli, serve):
    serve.on(f"GET /api/requests/{ID}", request(), request(), request("succeeded"))
    pages = [{"text": "a", "next": 1}, {"text": "", "next": 1}, {"text": "b\n", "next": 3}]
    serve.on(f"GET /api/requests/{ID}/logs", *pages)
    assert cli("runs", "logs", "-f", ID) == (0, "ab\n", "")
    asked = [path.partition("?")[2] for _, path, _ in serve.calls if path.partition("?")[0].endswith("/logs")]
    assert asked == ["after=0", "after=1", "after=1"]


def test_logs_say_what_is_not_kept(cli, serve):
    serve.on(f"GET /api/requests/{ID}/logs", {"text": "b\n", "next": 900, "attempt": 1, "dropped": 898})
    status, out, err = cli("runs", "logs", ID)
    assert (status, out) == (0, "b\n")
    assert "898 bytes" in err
    assert json.loads(cli("runs", "logs", ID, "--json")[1])["dropped"] == 898


def test_logs_follow_from_attempt_to_attempt(cli, serve):
    """The rest of the one that ended, then each later one from its beginning."""
    serve.on(f"GET /api/requests/{ID}", request(), request("succeeded"))
    pages = [("a", 1, 1), ("x", 2, 3), ("rest\n", 6, 1), ("two\n", 4, 2), ("three\n", 6, 3)]
    answers = [{"text": text, "next": at, "attempt": n, "dropped": 0} for text, at, n in pages]
    serve.on(f"GET /api/requests/{ID}/logs", *answers)
    status, out, err = cli("runs", "logs", "-f", ID)
    assert (status, out) == (0, "arest\ntwo\nthree\n")
    assert err == "attempt 2:\nattempt 3:\n"
    asked = [path.partition("?")[2] for _, path, _ in serve.calls if path.partition("?")[0].endswith("/logs")]
    assert asked == ["after=0", "after=1", "after=1&attempt=1", "after=0&attempt=2", "after=0&attempt=3"]


def test_cancel_needs_yes_off_a_terminal(cli, serve):
    serve.on(f"POST /api/requests/{ID}/cancel", {"id": ID, "state": "cancelled"})
    assert cli("runs", "cancel", ID)[0] == 2
    assert serve.calls == []
    assert "would cancel" in cli("runs", "cancel", ID, "--dry-run")[1]
    assert cli("runs", "cancel", ID, "--yes", "--reason", "typo")[0] == 0
    dry, real = serve.bodies(f"POST /api/requests/{ID}/cancel")
    assert (dry["dry_run"], real["dry_run"], real["reason"]) == (True, False, "typo")


def test_retry_is_a_new_request(cli, serve):
    serve.on(f"POST /api/requests/{ID}/retry", {"id": "req-2"}, status=201)
    serve.on("GET /api/requests/req-2", request("succeeded", id="req-2"))
    assert "would submit anew" in cli("runs", "retry", ID, "--dry-run")[1]
    assert cli("runs", "retry", ID, "-q")[1] == "req-2\n"
    assert cli("runs", "retry", ID, "--wait")[0] == 0
    assert [body["dry_run"] for body in serve.bodies(f"POST /api/requests/{ID}/retry")] == [
        True,
        False,
        False,
    ]


def test_releases(cli, serve):
    release = {"digest": SHA, "revision": "abc", "created": "2026-11-23T15:00:00Z", "lock": {"torch": "2"}}
    serve.on("GET /api/releases", {"items": [release]})
    serve.on("GET /api/releases/sha256:bb", release)
    assert "sha256:bbbbbbbbbbbb" in cli("release", "ls")[1]
    assert cli("release", "ls", "-q")[1] == f"{SHA}\n"
    assert "torch" in cli("release", "show", "sha256:bb")[1]


def test_clouds(cli, serve):
    cloud = {
        "name": "east",
        "kind": "local",
        "size": 2,
        "stable": SHA,
        "canary": None,
        "weight": 0,
        "drained": True,
    }
    serve.on("GET /api/clouds", {"items": [cloud]})
    serve.on("GET /api/clouds/east", cloud)
    serve.on("POST /api/clouds/east/drain", cloud)
    assert "drained" in cli("cloud", "ls")[1]
    assert cli("cloud", "ls", "-q")[1] == "east\n"
    assert json.loads(cli("cloud", "show", "east", "--json")[1])["size"] == 2
    assert cli("cloud", "drain", "east")[0] == 2
    assert serve.bodies("POST /api/clouds/east/drain") == []
    assert "would drain" in cli("cloud", "drain", "east", "--dry-run")[1]
    assert cli("cloud", "drain", "east", "--yes", "--reason", "upgrade")[0] == 0
    dry, real = serve.bodies("POST /api/clouds/east/drain")
    assert (dry["dry_run"], real["dry_run"], real["reason"]) == (True, False, "upgrade")


def test_status(cli, serve):
    serve.on(
        "GET /api/status",
        {
            "app": "lora", "store": "file:///s", "prefect": {"url": "http://p", "ok": False}, "clouds": [],
            "rollout": {"id": "roll-1", "phase": "holding"}, "queue": [{"id": "roll-2"}],
            "requests": {"open": 2, "succeeded": 5}, "version": "0.1.0",
        },
    )  # fmt: skip
    out = cli("status")[1]
    for said in ("lora", "does not answer", "roll-1", "1 queued", "5 succeeded", serve.url):
        assert said in out
    assert cli("status", "-q")[1] == "roll-1\n"
