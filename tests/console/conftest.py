"""A platform on a memory store, with evidence written as the train and deploy flows write it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from console.app import create_app
from console.context import ServeContext
from flows.looks import judge_now
from lora_ops import ids, keys
from lora_ops.gates.samples import Sample
from lora_ops.request import Order
from lora_ops.spec import PlatformSpec, parse_spec
from tasks.platform import Platform
from tasks.prefect_api import PrefectApi
from tasks.store import Store, open_store

OLD = f"sha256:{'a' * 64}"
NEW = f"sha256:{'b' * 64}"
SPEC = """
app: loras
clouds: {east: {size: 2}, west: {size: 1}}
rollout:
  steps: [10, 50]
  gates: [{metric: error_rate, limit: 5%}]
"""


class AnsweringPrefect(PrefectApi):
    """Prefect as far as the console asks it."""

    def ok(self) -> bool:
        return True

    def workers(self, pool: str) -> list[tuple[str, str]]:
        return [(f"{pool}-1", "ONLINE")]


@dataclass
class World:
    """The platform of a test, its app's client, and what writes evidence into its store."""

    store: Store
    platform: Platform
    context: ServeContext
    client: TestClient
    made: int = field(default=0)

    def get(self, path: str, status: int = 200, **query: Any) -> Any:
        answer = self.client.get(path, params=query)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def restarted(self) -> World:
        """A second process on the same store."""
        platform = Platform(self.store, self.platform.app, "serve 2")
        context = ServeContext(
            self.context.spec,
            self.context.spec_path,
            platform,
            self.context.prefect,
            self.context.home,
            None,
            self.context.run_url,
            self.context.health,
        )
        return World(self.store, platform, context, client_of(context))

    # --- rollouts ---

    def rollout(self, *, canarying: bool = True) -> str:
        """A rollout of NEW, by default with its first step under way."""
        self.made += 1
        name = ids.new_id(ids.ROLLOUT, 1_700_000_000 + self.made, self.made)
        policy = self.context.spec.policy().model_dump(mode="json")
        self.platform.record("rollout-started", {"id": name, "source": {"path": "/src"}, "policy": policy})
        if canarying:
            self.record(name, "validated")
            self.record(name, "built", release=NEW, revision="abc123")
            self.record(name, "self-checked")
            self.record(name, "distributed", clouds={"east": NEW, "west": NEW})
            self.record(name, "step-started", wave=0, step=0)
        return name

    def record(self, rollout: str, kind: str, **data: Any) -> None:
        self.platform.record(kind, {"rollout": rollout, **data}, reason=data.get("reason", ""))

    def look(self, rollout: str, n: int) -> None:
        state = self.platform.state().rollout
        assert state is not None
        look = judge_now(self.platform, state)
        assert look is not None
        body = {"schema_version": 1, "look": look.model_dump(mode="json")}
        self.store.create(keys.look(rollout, n), json.dumps(body).encode())

    # --- requests ---

    def request(
        self, *, rollout: str | None = None, track: str = "stable", digest: str = OLD, **order: Any
    ) -> str:
        """A request with one attempt on east, not started yet."""
        self.made += 1
        name = ids.new_id(ids.REQUEST, 1_700_000_000 + self.made, self.made)
        self.store.put(keys.open_marker(name), b"{}")
        self.store.create(keys.request_config(name), b"{}")
        dumped = Order(name=f"run {self.made}", config_digest=OLD, **order).model_dump(mode="json")
        self.platform.record_request(name, "submitted", {"order": dumped})
        record = {"cloud": "east", "track": track, "digest": digest, "rollout": rollout}
        self.platform.record_request(name, "attempt-started", record)
        return name

    def contact(self, name: str) -> None:
        attempt = self.platform.request(name).attempts[-1]
        body = {
            "request": name,
            "attempt": attempt.n,
            "cloud": attempt.cloud,
            "track": attempt.track,
            "digest": attempt.digest,
            "executor": "x",
        }
        key = keys.start(attempt.rollout, attempt.cloud, attempt.track.value, name, attempt.n)
        self.store.create(key, json.dumps(body).encode())

    def sample(self, name: str, *, cause: str | None = None, late: bool = False, **facts: Any) -> None:
        attempt = self.platform.request(name).attempts[-1]
        assert attempt.rollout is not None
        sample = Sample(
            request=name,
            attempt=attempt.n,
            cloud=attempt.cloud,
            track=attempt.track.value,
            digest=attempt.digest,
            cause=cause,
            at_horizon=cause is None or late,
            late=late,
            **facts,
        )
        key = keys.sample(attempt.rollout, attempt.cloud, attempt.track.value, name, attempt.n, late)
        self.store.create(key, sample.model_dump_json().encode())

    def canary(self, rollout: str, cause: str | None = None, **facts: Any) -> str:
        """A canary request of which the attempt is over."""
        name = self.request(rollout=rollout, track="canary", digest=NEW)
        self.contact(name)
        self.sample(name, cause=cause, **facts)
        if cause is None:
            self.succeed(name)
        else:
            failed = {"n": 1, "cause": cause, "message": "boom"}
            self.platform.record_request(name, "attempt-failed", failed)
        return name

    def succeed(self, name: str) -> None:
        n = self.platform.request(name).attempts[-1].n
        files = [{"path": "lora.safetensors"}]
        self.platform.record_request(name, "result", {"state": "succeeded", "attempt": n, "files": files})


def client_of(context: ServeContext) -> TestClient:
    return TestClient(create_app(context), base_url="http://127.0.0.1:8700", client=("127.0.0.1", 50000))


@pytest.fixture
def spec() -> PlatformSpec:
    return parse_spec(SPEC, "lora-ops.yaml")


def context_on(store: Store, spec: PlatformSpec, folder: Path) -> ServeContext:
    platform = Platform(store, spec.app, "serve")
    for name, cloud in spec.clouds.items():
        platform.record("cloud-set", {"name": name, "stable": OLD, "size": cloud.size, "share": cloud.share})
    return ServeContext(
        spec=spec,
        spec_path=folder / "lora-ops.yaml",
        platform=platform,
        prefect=AnsweringPrefect("http://127.0.0.1:4200/api"),
        home=folder,
        token=None,
        run_url=lambda request, n: f"http://ui/{request}-{n}",
        health=lambda: {"east": True, "west": False},
    )


@pytest.fixture
def context(spec: PlatformSpec, tmp_path: Path) -> ServeContext:
    return context_on(open_store("memory://"), spec, tmp_path)


@pytest.fixture
def world(context: ServeContext) -> Iterator[World]:
    with client_of(context) as client:
        yield World(context.platform.store, context.platform, context, client)


@pytest.fixture
def world_on_disk(spec: PlatformSpec, tmp_path: Path) -> Iterator[World]:
    """The times of its objects can be set: they are files."""
    context = context_on(open_store(str(tmp_path / "store")), spec, tmp_path)
    with client_of(context) as client:
        yield World(context.platform.store, context.platform, context, client)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout of which a release can be made."""
    repo = tmp_path / "clone"
    for folder in ("flows", "tasks", "lora_ops", "trainer"):
        (repo / folder).mkdir(parents=True)
        (repo / folder / "__init__.py").write_text("")
    (repo / "constraints.txt").write_text("torch==2.8\n")
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", "-C", str(repo), *command], check=True)
    return repo


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny language-model training: base.gguf, facts/train.jsonl."""
    monkeypatch.setenv("LORA_OPS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    (folder / "facts").mkdir(parents=True)
    (folder / "base.gguf").write_bytes(b"GGUF" + bytes(64))
    row = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]}
    (folder / "facts" / "train.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    return folder


CONFIG = "train_data_dir: ./facts\nbase_model: ./base.gguf\noutput_dir: ./out\nlearning_rate: 2e-4\n"
