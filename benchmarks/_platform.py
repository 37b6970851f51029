"""A platform of its own for a benchmark: `lora-ops up` on free ports, stopped whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

OURS = ("LORA_OPS_", "PREFECT_")


class Running:
    """A platform that is up: its command line and its API."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.http = httpx.Client(base_url=url, timeout=60)

    def cli(self, *arguments: str) -> dict[str, Any]:
        """The JSON document that `lora-ops ARGUMENTS --json` prints. RuntimeError with its last words."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
        command = [sys.executable, "-P", "-m", "cli.main", *arguments, "--json"]
        done = subprocess.run(
            command, cwd=self.folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode != 0:
            tail = "\n".join(done.stderr.strip().splitlines()[-15:])
            raise RuntimeError(f"lora-ops {' '.join(arguments)} ended with {done.returncode}:\n{tail}")
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        return self._told(self.http.get(path, params=query))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._told(self.http.post(path, json=body))

    @staticmethod
    def _told(answer: httpx.Response) -> dict[str, Any]:
        if answer.is_error:
            asked = f"{answer.request.method} {answer.request.url}"
            raise RuntimeError(f"{asked}: {answer.status_code} {answer.text}")
        document: dict[str, Any] = answer.json()
        return document


@contextlib.contextmanager
def platform(folder: Path, spec: dict[str, Any], say: Callable[[str], None]) -> Iterator[Running]:
    """Up while the block runs; down after it, by pid, also on Ctrl-C and SIGTERM.

    `folder` gets lora-ops.yaml, store and logs; a trainer's tree in it is the first release.
    """
    prefect, serve = _free_ports(2)
    whole = {
        **spec,
        "prefect": {"api_url": f"http://127.0.0.1:{prefect}/api"},
        "serve": {"host": "127.0.0.1", "port": serve},
    }
    (folder / "lora-ops.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    running = Running(folder, f"http://127.0.0.1:{serve}")
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        say("starting the platform")
        running.cli("up")
        yield running
    finally:
        with _deaf():
            say("stopping the platform")
            running.http.close()
            running.cli("down")
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A second Ctrl-C must not leave half of the processes behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
