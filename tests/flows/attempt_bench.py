"""One attempt in this process: a store in memory, and the stand-in trainer as its child."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flows import attempt as attempts
from flows.attempt import Attempt
from flows.context import FlowContext
from lora_ops import keys
from lora_ops.gates.samples import Sample
from tasks.platform import Platform
from tasks.source_tree import tree_digest
from tasks.store.faulty import FaultyStore
from tests.flows.reconciler_world import Plan, World, no_fault
from tests.stub.make import make_stub_config


class Bench:
    """A platform whose stable release is a stub tree, from which this process claims to run."""

    def __init__(self, folder: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.tree = folder, tree
        self.digest = tree_digest(tree)
        self.world = World(folder)
        for name in ("east", "west"):
            self.world.platform.record("cloud-set", {"name": name, "size": 2})
        self.config = make_stub_config(folder / "cfg")
        monkeypatch.setattr(attempts.flows, "__file__", str(tree / "flows" / "__init__.py"))
        monkeypatch.setattr(attempts, "POLL_S", 0.02)

    def record(self, request: str, digest: str | None = None, **data: Any) -> None:
        data = {"cloud": "east", "track": "stable", "digest": digest or self.digest, **data}
        self.world.platform.record_request(request, "attempt-started", data)

    def request(self) -> str:
        request = self.world.request()
        self.world.store.create(keys.request_config(request), self.config.read_bytes())
        return request

    def attempt(self, request: str, n: int = 1, plan: Plan = no_fault) -> Attempt:
        platform = Platform(FaultyStore(self.world.store, plan), "loras", "train")
        return Attempt(FlowContext(platform, self.folder / "home", "east-1"), request, n)

    def run(self, request: str, n: int = 1, plan: Plan = no_fault) -> str:
        return asyncio.run(self.attempt(request, n, plan).run())

    def sample(self, rollout: str, request: str, track: str = "canary") -> Sample:
        key = keys.sample(rollout, "east", track, request, 1)
        return Sample.model_validate_json(self.world.store.get(key).data)
