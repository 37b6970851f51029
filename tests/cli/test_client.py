"""Where the server is, and what a server that fails says."""

import json
import socket

import pytest

from cli.client import server_url
from lora_ops.errors import ConfigError, UsageError

STATUS = {
    "app": "a",
    "store": "file:///s",
    "prefect": {"url": "u", "ok": True},
    "clouds": [],
    "rollout": None,
}


def test_server_comes_from_the_option_then_the_environment_then_the_spec(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORA_OPS_SERVER", raising=False)
    assert server_url(None) == "http://127.0.0.1:8700"
    (tmp_path / "lora-ops.yaml").write_text("app: x\nserve:\n  host: 0.0.0.0\n  port: 9001\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert server_url(None) == "http://127.0.0.1:9001"
    monkeypatch.setenv("LORA_OPS_SERVER", "http://env:1/")
    assert server_url(None) == "http://env:1"
    assert server_url("https://option") == "https://option"
    with pytest.raises(UsageError):
        server_url("option:80")


def test_a_broken_spec_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORA_OPS_SERVER", raising=False)
    (tmp_path / "lora-ops.yaml").write_text("serve: [\n")
    with pytest.raises(ConfigError, match=r"lora-ops\.yaml"):
        server_url(None)


def test_token_is_a_bearer(cli, serve, monkeypatch):
    serve.on("GET /api/status", STATUS)
    monkeypatch.setenv("LORA_OPS_TOKEN", "secret")
    assert cli("status")[0] == 0
    assert serve.headers[0]["Authorization"] == "Bearer secret"


def test_nobody_listens(cli, monkeypatch):
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        status, out, err = cli("status", "--json", "--server", url)
    assert status == 7
    assert "lora-ops up" in err
    assert json.loads(out)["error"]["kind"] == "unreachable"


def test_rollback_without_a_server_names_the_way_without_it(cli):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for arguments in (["rollout", "rollback", "roll-1", "--yes"], ["rollout", "rollback", "--yes"]):
            status, _, err = cli(*arguments, "--server", url)
            assert status == 7
            assert "lora-ops rollout rollback --store URL" in err


@pytest.mark.parametrize(
    ("http", "kind", "exit_code"),
    [
        (401, "auth", 4),
        (404, "not-found", 5),
        (409, "conflict", 6),
        (422, "config", 3),
        (503, "unreachable", 7),
    ],
)
def test_errors_of_the_server_keep_kind_hint_and_exit_code(cli, serve, http, kind, exit_code):
    serve.fail("GET /api/status", http, kind=kind, message="so it is", hint="do this", details=["line 3"])
    status, out, err = cli("status")
    assert (status, out) == (exit_code, "")
    assert err == "error: so it is\n  line 3\nhint: do this\n"
    status, out, err = cli("status", "--json")
    body = json.loads(out)
    assert body["error"] == {
        "kind": kind, "message": "so it is", "hint": "do this", "exit_code": exit_code, "details": ["line 3"],
    }  # fmt: skip
    assert body["schema_version"] == 1
    assert err.startswith("error: ")


@pytest.mark.parametrize(
    ("answer", "http", "exit_code"), [(b"<html>", 200, 7), ([1], 200, 7), (b"no", 403, 4)]
)
def test_another_program_on_the_port(cli, serve, answer, http, exit_code):
    serve.on("GET /api/status", answer, status=http)
    status, _, err = cli("status")
    assert status == exit_code
    assert serve.url in err


def test_a_lost_answer_of_train_is_asked_for_again_with_one_key(cli, serve, tmp_path):
    (tmp_path / "c.yaml").write_text("lora_rank: 8\n")
    serve.on("POST /api/requests", None, {"id": "req-1"})
    assert cli("train", "c.yaml")[0] == 0
    first, second = serve.bodies("POST /api/requests")
    assert first == second
    assert first["idempotency_key"]


def test_a_lost_answer_of_anything_else_is_an_error(cli, serve):
    serve.on("POST /api/clouds/east/undrain", None)
    status, _, err = cli("cloud", "undrain", "east")
    assert status == 7
    assert "broke off" in err
    assert len(serve.calls) == 1
