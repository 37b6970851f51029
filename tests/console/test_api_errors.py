"""Every failure has one shape, and no traceback leaves the server."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from console.app import create_app
from console.context import ServeContext


class TrainersError(Exception):
    """What the trainer raises, by its shape."""

    message = "The dataset has 2 problems."
    hint = "Mend them."
    exit_code = 3
    details = ("a.jpg: is empty", "b.jpg: is empty")


def _with_broken(context: ServeContext, error: Exception) -> TestClient:
    app = create_app(context)

    @app.get("/api/broken")
    def broken() -> dict[str, Any]:
        raise error

    return TestClient(
        app, base_url="http://127.0.0.1", client=("127.0.0.1", 1), raise_server_exceptions=False
    )


def test_a_fault_of_ours_is_one_paragraph(context: ServeContext) -> None:
    answer = _with_broken(context, KeyError("secret detail")).get("/api/broken")
    error = answer.json()["error"]
    assert answer.status_code == 500
    assert error["exit_code"] == 1
    assert "KeyError" in error["message"]
    assert "secret detail" not in answer.text
    assert "Traceback" not in answer.text


def test_the_trainers_errors_are_the_users(context: ServeContext) -> None:
    answer = _with_broken(context, TrainersError()).get("/api/broken")
    assert answer.status_code == 422
    assert answer.json()["error"] == {
        "kind": "config",
        "message": "The dataset has 2 problems.",
        "hint": "Mend them.",
        "exit_code": 3,
        "details": ["a.jpg: is empty", "b.jpg: is empty"],
    }


def test_a_body_that_does_not_fit(world: Any) -> None:
    error = world.post("/api/clouds/east/drain", 422, dryrun=True, reason=5)["error"]
    assert error["exit_code"] == 2
    assert any("dryrun" in line for line in error["details"])
    assert any("reason" in line for line in error["details"])
    assert not world.platform.state().clouds["east"].drained


def test_an_unknown_path_names_the_nearest(world: Any) -> None:
    error = world.get("/api/rollout", 404)["error"]
    assert error["exit_code"] == 5
    assert "/api/rollouts" in error["hint"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_a_method_that_does_not_exist(world: Any, method: str) -> None:
    answer = world.client.request(method, "/api/rollouts")
    assert answer.status_code == 405
    assert answer.json()["error"]["kind"] == "usage"
