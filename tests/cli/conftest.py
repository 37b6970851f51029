"""A stand-in for `lora-ops serve`: a real HTTP server with scripted answers, on a free local port."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


class StandIn:
    """Answers by route: one after the other, the last for ever. A callable gets the body."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.calls: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: two would wait for a delayed acknowledgement

            def do_GET(self) -> None:
                outer._handle(self, None)

            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                outer._handle(self, json.loads(self.rfile.read(size) or b"{}"))

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.thread.start()

    def on(self, route: str, *answers: Any, status: int = 200) -> None:
        """`GET /api/status` answers these documents."""
        self.answers[route] = [(status, answer) for answer in answers]

    def fail(self, route: str, status: int, **error: Any) -> None:
        self.on(route, {"error": {"hint": "", "details": [], **error}}, status=status)

    def bodies(self, route: str) -> list[Any]:
        return [body for method, path, body in self.calls if f"{method} {path.partition('?')[0]}" == route]

    def wait_for(self, route: str, count: int = 1) -> None:
        """Until the route has been asked so often."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.bodies(route)) >= count, timeout=60), self.calls

    def _handle(self, request: BaseHTTPRequestHandler, body: Any) -> None:
        route = f"{request.command} {request.path.partition('?')[0]}"
        with self.changed:
            self.calls.append((request.command, request.path, body))
            self.headers.append(dict(request.headers))
            answers = self.answers.get(route)
            if answers is None:
                missing = {
                    "error": {"kind": "not-found", "message": f"no route {route}", "hint": "", "exit_code": 5}
                }
                status, answer = 404, missing
            else:
                status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
            self.changed.notify_all()
        if isinstance(answer, Callable):
            answer = answer(body)
        if answer is None:  # hang up without an answer
            request.close_connection = True
            return
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """The stand-in, named by LORA_OPS_SERVER; the working folder is empty."""
    stand_in = StandIn()
    monkeypatch.setenv("LORA_OPS_SERVER", stand_in.url)
    monkeypatch.delenv("LORA_OPS_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    yield stand_in
    stand_in.close()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command line in this process: (exit status, stdout, stderr). Following never waits."""
    from cli import follow
    from cli.app import run

    monkeypatch.setattr(follow, "EVERY_S", 0.0)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(list(arguments))
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `lora-ops` as a process of its own, with this checkout's code."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, code: str = "", **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "cli.main"]
        child = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()
