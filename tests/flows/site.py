"""One platform on this machine, as `lora-ops up` starts it, with the stand-in trainer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import httpx
import psutil

from flows.start import begin_rollout
from lora_ops import keys
from lora_ops.request import RequestState
from lora_ops.state import Finished, Rollout, Source
from tasks.daemons import Daemon
from tasks.platform import Platform
from tasks.prefect_api import PrefectApi
from tasks.specs import load_spec
from tasks.store import open_store
from tests.stub.make import REPO, make_stub_config, make_stub_source

T = TypeVar("T")

SPEC = """\
app: stubs
backup: {{url: "file://backup", every: 10s}}
prefect: {{api_url: "http://127.0.0.1:{prefect}/api"}}
serve: {{port: {serve}}}
clouds:
  east: {{size: 2}}
  west: {{size: 2}}
rollout:
  steps: [50]
  harmful: 90%
  lease: 20s
  hold: 2s
  look_every: 500ms
  verify_timeout: 60s
  deadline: 4m
  fresh_samples: 1
  probes: {{config: cfg/stub.yaml}}
requests: {{max_attempts: 3, start_deadline: 40s, heartbeat_deadline: 20s, spill_after: 60s}}
"""


#: The seed of a request's config chooses what any release of these tests does with it.
USERS_FAULT, ALWAYS_FAILS, SLOW = 1001, 1002, 1003
BY_SEED = {
    str(USERS_FAULT): {"cause": "user", "fail_share": 1.0},
    str(ALWAYS_FAILS): {"cause": "trainer", "fail_share": 1.0},
    str(SLOW): {"steps": 3000},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(look: Callable[[], T | None], what: str, timeout_s: float = 120.0) -> T:
    """What `look` gives when it gives something; AssertionError that names `what` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)


class Site:
    """The platform of one folder. `up` starts it, `stop` ends every process of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = folder / ".lora-ops"
        self.made = 0
        make_stub_source(folder, by_seed=BY_SEED)
        self.config = make_stub_config(folder / "cfg")
        (folder / "lora-ops.yaml").write_text(SPEC.format(prefect=free_port(), serve=free_port()))
        self.spec = load_spec(folder / "lora-ops.yaml")
        self.platform = Platform(open_store(self.spec.store), self.spec.app, "test")
        self.prefect = PrefectApi(self.spec.prefect.api_url)
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.spec.serve.port}/api", timeout=30)

    # --- its processes ---

    def env(self) -> dict[str, str]:
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "LORA_OPS"))
        }
        return {**kept, "OMP_NUM_THREADS": "1"}

    def cli(self, *args: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *args],
            cwd=self.folder,
            env={**self.env(), "PYTHONPATH": str(REPO), "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )

    def up(self) -> None:
        done = self.cli("up")
        assert done.returncode == 0, done.stderr

    def daemon(self, name: str) -> psutil.Process:
        found = Daemon(name, self.base).process()
        assert found is not None, f"{name} does not run"
        return found

    def processes(self) -> list[psutil.Process]:
        """All that run in this folder's environment: daemons, flow runs, trainers."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("LORA_OPS_HOME") == str(self.base):
                    found.append(process)
        return found

    def stop(self) -> list[str]:
        """`lora-ops down`, then by force what it left, whose command lines are returned."""
        with suppress(subprocess.TimeoutExpired):
            self.cli("down", timeout_s=90)
        left = []
        for process in self.processes():
            with suppress(psutil.Error):
                left.append(" ".join(process.cmdline()))
                process.kill()
        self.api.close()
        self.prefect.close()
        return left

    # --- releases and rollouts ---

    def source(self, **behaviour: Any) -> Path:
        """A release that nobody has deployed yet."""
        self.made += 1
        facts = {"by_seed": BY_SEED, "number": self.made, **behaviour}
        return make_stub_source(self.folder / "sources" / str(self.made), **facts)

    def begin(self, source: Path, queue: bool = False, **rollout: Any) -> str:
        """Start a rollout whose policy differs in `rollout` from lora-ops.yaml's; its id."""
        spec = self.spec.model_copy(update={"rollout": self.spec.rollout.model_copy(update=rollout)})
        where = Source(path=str(source), dirty=True)
        return begin_rollout(self.platform, spec, where, actor="test", queue=queue)[0]

    def active(self, rollout_id: str) -> Rollout | None:
        rollout = self.platform.state().rollout
        return rollout if rollout is not None and rollout.id == rollout_id else None

    def finished(self, rollout_id: str) -> Finished | None:
        return next((each for each in self.platform.state().finished if each.id == rollout_id), None)

    def ended(self, rollout_id: str, timeout_s: float = 150.0) -> Finished:
        return eventually(lambda: self.finished(rollout_id), f"{rollout_id} ended", timeout_s)

    def in_phase(self, rollout_id: str, *phases: str, timeout_s: float = 90.0) -> Rollout:
        """The rollout once it is in one of the phases."""

        def look() -> Rollout | None:
            over = self.finished(rollout_id)
            assert over is None, f"{rollout_id} is {over.phase.value}: {over.reason}" if over else ""
            rollout = self.active(rollout_id)
            return rollout if rollout is not None and rollout.phase.value in phases else None

        return eventually(look, f"{rollout_id} is {' or '.join(phases)}", timeout_s)

    def calm(self) -> None:
        """End what is queued and under way."""
        state = self.platform.state()
        for entry in state.queue:
            self.platform.record("rollout-overtaken", {"id": entry.id})
        if state.rollout is not None:
            self.platform.record("aborted", {"rollout": state.rollout.id, "reason": "the test is over"})

    def decide(self, rollout_id: str, verb: str, status: int = 200, **body: Any) -> dict[str, Any]:
        answer = self.api.post(f"/rollouts/{rollout_id}/{verb}", json=body)
        assert answer.status_code == status, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def kinds(self, rollout_id: str) -> list[str]:
        """The kinds of the rollout's events, in order."""
        return [
            str(entry.document["kind"])
            for entry in self.platform.history()
            if rollout_id in (entry.document["data"].get("rollout"), entry.document["data"].get("id"))
        ]

    # --- requests ---

    def submit(self, seed: int | None = None, status: int = 201, **body: Any) -> str:
        text = self.config.read_text() + (f"seed: {seed}\n" if seed is not None else "")
        answer = self.api.post("/requests", json={"config": text, "cwd": str(self.config.parent), **body})
        assert answer.status_code == status, answer.text
        return str(answer.json()["id"])

    def result(self, request_id: str, timeout_s: float = 120.0) -> RequestState:
        """The request once it has its result and its marker is gone."""

        def look() -> RequestState | None:
            state = self.platform.request(request_id)
            return state if state.result is not None else None

        state = eventually(look, f"{request_id} has its result", timeout_s)
        eventually(lambda: request_id not in self.open_requests(), f"the marker of {request_id} is gone", 30)
        return state

    def attempted(self, request_id: str, timeout_s: float = 60.0) -> RequestState:
        """The request once its attempt has started."""

        def look() -> RequestState | None:
            state = self.platform.request(request_id)
            n = state.current.n if state.current is not None else 0
            return state if n and self.exists(keys.heartbeat(request_id, n)) else None

        return eventually(look, f"{request_id} runs", timeout_s)

    def open_requests(self) -> set[str]:
        return {meta.key.rpartition("/")[2] for meta in self.platform.store.list("open")}

    def results_in_journal(self, request_id: str) -> int:
        history = self.platform.request_history(request_id)
        return sum(entry.document["kind"] == "result" for entry in history)

    def exists(self, key: str) -> bool:
        return any(meta.key == key for meta in self.platform.store.list(key.rpartition("/")[0]))

    def artifact(self, request_id: str, n: int, name: str) -> bytes:
        return self.platform.store.get(f"{keys.artifacts(request_id, n)}/{name}").data

    def trainer_events(self, request_id: str, n: int) -> list[dict[str, Any]]:
        """What the trainer of an attempt that succeeded told."""
        return [json.loads(line) for line in self.artifact(request_id, n, "events.jsonl").splitlines()]

    @contextmanager
    def traffic(self, every_s: float = 6.0) -> Iterator[list[str]]:
        """Requests that keep coming in; the list of their ids. A server that is away is tried again."""
        stop, submitted = Event(), list[str]()
        failures: list[BaseException] = []

        def run() -> None:
            while not stop.is_set():
                try:
                    with suppress(httpx.TransportError):
                        submitted.append(self.submit())
                except AssertionError as error:
                    failures.append(error)
                stop.wait(every_s)

        thread = Thread(target=run, daemon=True)
        thread.start()
        try:
            yield submitted
        finally:
            stop.set()
            thread.join(30)
        assert not failures, failures[0]

    def all_succeeded(self, request_ids: list[str]) -> None:
        """Each of them has exactly one result, and it is success."""
        assert request_ids
        for request_id in request_ids:
            state = self.result(request_id)
            assert state.result is not None
            assert (state.result.state.value, state.result.message) == (
                "succeeded",
                f"artifacts at {keys.artifacts(request_id, state.result.attempt or 0)}",
            )
            assert self.results_in_journal(request_id) == 1
