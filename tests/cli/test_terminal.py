"""`lora-ops` as a process: signals, terminals, and what goes to which stream."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ID = "roll-06dk3v9z1q7a4bc"
RUN = "req-06dk3v9z1q7a4bc"
# A test run in the background may ignore SIGINT, and children inherit that.
INTERRUPTIBLE = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); \
from cli.main import main; sys.exit(main())"


def rollout(phase="canarying"):
    clouds = {"east": {"weight": 50, "stable": "sha256:" + "a" * 64, "canary": "sha256:" + "b" * 64}}
    return {"id": ID, "phase": phase, "wave": 0, "step": 0, "weight": 50, "clouds": clouds, "last_look": None}


class Terminal:
    """A process whose three streams are one pseudo-terminal."""

    def __init__(self, *arguments, **environment):
        self.controller, child_side = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            stdin=child_side,
            stdout=child_side,
            stderr=child_side,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", **environment},
            start_new_session=True,
        )
        os.close(child_side)
        self.screen = ""

    def read_until(self, text):
        while text not in self.screen:
            chunk = self._read()
            assert chunk, f"{text!r} never came: {self.screen!r}"
        return self.screen

    def type(self, text):
        os.write(self.controller, text.encode())

    def end(self):
        while self._read():
            pass
        return self.process.wait()

    def _read(self):
        ready, _, _ = select.select([self.controller], [], [], 60)
        assert ready, f"nothing more came: {self.screen!r}"
        try:
            chunk = os.read(self.controller, 65536).decode()
        except OSError:  # the other side is closed
            return ""
        self.screen += chunk
        return chunk

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.controller)


@pytest.fixture
def terminal(serve, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    opened = []

    def start(*arguments, **environment):
        opened.append(Terminal(*arguments, LORA_OPS_SERVER=serve.url, **environment))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    ("arguments", "route", "answer", "back"),
    [
        (["rollout", "watch", ID], f"GET /api/rollouts/{ID}", rollout(), f"lora-ops rollout watch {ID}"),
        (
            ["runs", "watch", RUN],
            f"GET /api/requests/{RUN}",
            {"id": RUN, "state": "running"},
            f"runs watch {RUN}",
        ),
        (
            ["runs", "logs", "-f", RUN],
            f"GET /api/requests/{RUN}/logs",
            {"text": "", "next": 0},
            "runs logs -f",
        ),
    ],
)
def test_ctrl_c_detaches_and_says_how_to_come_back(serve, process, arguments, route, answer, back):
    serve.on(f"GET /api/requests/{RUN}", {"id": RUN, "state": "running"})
    serve.on(route, answer)
    child = process(*arguments, code=INTERRUPTIBLE)
    serve.wait_for(route, 2)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert back in err
    assert "Traceback" not in err
    assert not [call for call in serve.calls if call[0] == "POST"]


def test_a_terminal_gets_a_live_picture(serve, terminal):
    serve.on(f"GET /api/rollouts/{ID}", rollout(), rollout("promoted"))
    watch = terminal("rollout", "watch", ID)
    assert watch.end() == 0
    for said in ("wave 1 step 1", "ATTEMPTS OF NEW", "east", "\x1b[32mpromoted\x1b[0m"):
        assert said in watch.screen


def test_no_color_is_honoured(serve, terminal):
    serve.on(f"GET /api/rollouts/{ID}", rollout("promoted"))
    show = terminal("rollout", "show", ID, NO_COLOR="1")
    assert show.end() == 0
    assert "promoted" in show.screen
    assert "\x1b[" not in show.screen


def test_json_on_a_terminal_is_still_one_document(serve, terminal):
    serve.on(f"GET /api/rollouts/{ID}", rollout("promoted"))
    show = terminal("rollout", "show", ID, "--json")
    assert show.end() == 0
    assert json.loads(show.screen)["id"] == ID


@pytest.mark.parametrize(("answer", "status", "posts"), [("y\n", 0, 1), ("n\n", 2, 0)])
def test_a_terminal_is_asked_before_a_rollback(serve, terminal, answer, status, posts):
    serve.on(f"POST /api/rollouts/{ID}/rollback", rollout("rolled-back"))
    rollback = terminal("rollout", "rollback", ID)
    rollback.read_until("[y/N]")
    assert serve.calls == []
    rollback.type(answer)
    assert rollback.end() == status
    assert len(serve.bodies(f"POST /api/rollouts/{ID}/rollback")) == posts


def test_a_closed_pipe_is_no_traceback(serve, process):
    serve.on("GET /api/rollouts", {"items": [rollout() for _ in range(5000)]})
    child = process("rollout", "ls", "--limit", "5000")
    child.stdout.close()
    child.stdout = None
    _, err = child.communicate(timeout=60)
    assert "Traceback" not in err
