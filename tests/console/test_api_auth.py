"""Nobody is served by default."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from console.app import create_app
from console.auth import check_bind, is_loopback
from console.context import ServeContext
from lora_ops.errors import AuthError

LOCAL = ("127.0.0.1", 50000)
HERE = "http://127.0.0.1:8700"


def _client(context: ServeContext, token: str | None, **options: object) -> TestClient:
    app = create_app(dataclasses.replace(context, token=token))
    return TestClient(app, base_url=str(options.get("base_url", HERE)), client=options.get("client", LOCAL))  # type: ignore[arg-type]


def test_every_route_wants_the_token(context: ServeContext) -> None:
    client = _client(context, "s3cret", client=("10.0.0.7", 1))
    walked = set()
    for route in _routes(client.app.routes):  # type: ignore[attr-defined]
        path = route.path.replace("{", "").replace("}", "")
        for method in route.methods if path != "/healthz" else ():
            assert client.request(method, path).status_code == 401, (method, path)
            walked.add((method, route.path))
    promised = client.app.openapi()["paths"]  # type: ignore[attr-defined]
    assert {path for _, path in walked} >= promised.keys() - {"/healthz"}
    assert len(walked) >= 24


def _routes(routes: Iterable[Any]) -> Iterator[Any]:
    """Those of included routers too, which FastAPI keeps behind one entry each."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from _routes(route.original_router.routes)
        else:
            yield route


def test_token_opens_and_a_wrong_one_does_not(context: ServeContext) -> None:
    client = _client(context, "s3cret", client=("10.0.0.7", 1), base_url="https://ops.example.org")
    assert client.get("/api/clouds", headers={"Authorization": "Bearer s3cret"}).status_code == 200
    for header in ("Bearer wrong", "Bearer ", "Basic s3cret", "Bearer s3cret2", "s3cret", "Bearer naïve"):
        answer = client.get("/api/clouds", headers={"Authorization": header.encode()})
        assert answer.status_code == 401, header
        assert answer.json()["error"]["exit_code"] == 4
        assert answer.headers["www-authenticate"] == "Bearer"


def test_unknown_paths_are_refused_before_they_are_unknown(context: ServeContext) -> None:
    assert _client(context, "s3cret").get("/api/nothing").status_code == 401


def test_health_is_open(context: ServeContext) -> None:
    answer = _client(context, "s3cret", client=("10.0.0.7", 1)).get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"ok": True})


@pytest.mark.parametrize("peer", ["10.0.0.7", "192.168.1.1", "::ffff:10.0.0.7", "testclient"])
def test_without_a_token_other_machines_are_refused(context: ServeContext, peer: str) -> None:
    assert _client(context, None, client=(peer, 1)).get("/api/clouds").status_code == 401


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_without_a_token_this_machine_is_served(context: ServeContext, peer: str) -> None:
    assert _client(context, None, client=(peer, 1)).get("/api/clouds").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8700", 200),
        ("127.0.0.1", 200),
        ("[::1]:8700", 200),
        ("LOCALHOST", 200),
        ("evil.example.org", 403),
        ("127.0.0.1.evil.example.org:8700", 403),
        ("", 403),
        ("[::1", 403),
    ],
)
def test_a_rebound_name_is_refused(context: ServeContext, host: str, status: int) -> None:
    answer = _client(context, None).get("/api/clouds", headers={"Host": host})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": HERE}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": HERE}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example.org"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
@pytest.mark.parametrize("token", [None, "s3cret"])
def test_another_sites_page_changes_nothing(
    context: ServeContext, headers: dict[str, str], status: int, token: str | None
) -> None:
    given = {"Authorization": f"Bearer {token}"} if token else {}
    client = _client(context, token)
    answer = client.post("/api/clouds/east/drain", json={}, headers={**headers, **given})
    assert answer.status_code == status
    assert context.platform.state().clouds["east"].drained == (status == 200)
    assert client.get("/api/clouds", headers={**headers, **given}).status_code == 200


def test_bind_beyond_this_machine_needs_a_token() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_bind(host, None)
    check_bind("0.0.0.0", "s3cret")
    for host in ("0.0.0.0", "::", "10.0.0.7", "ops.example.org", ""):
        with pytest.raises(AuthError) as caught:
            check_bind(host, None)
        assert caught.value.exit_code == 4
        assert "LORA_OPS_TOKEN" in caught.value.hint


def test_loopback_names() -> None:
    assert is_loopback("[::1]")
    assert not is_loopback("localhost.evil.example.org")
