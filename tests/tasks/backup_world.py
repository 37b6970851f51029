"""A store with a small platform in it: releases, datasets, requests in every state, a rollout's evidence."""

from __future__ import annotations

from pathlib import Path

from lora_ops import ids, keys
from tasks.bundle import Bundle, publish
from tasks.datasets import store_dataset, upload_folder
from tasks.platform import Platform
from tasks.store import Store

STABLE = "sha256:" + "a" * 64
CANARY = "sha256:" + "b" * 64
OLD = "sha256:" + "c" * 64
DATASET = "sha256:" + "d" * 64


class World:
    """What the tests build and ask for."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self.platform = Platform(store, "team", "test")
        self.count = 0

    def found(self) -> None:
        """An app with a cloud on STABLE."""
        self.release(STABLE)
        self.platform.record("cloud-set", {"name": "east", "stable": STABLE})

    def release(self, digest: str) -> None:
        publish(self.store, Bundle(digest, "rev", "src", "0" * 64, b"tar of " + digest.encode()))

    def dataset(self, name: str = "faces", digest: str = DATASET) -> None:
        path = self.file(f"{name}.png", b"picture " * 100)
        store_dataset(self.store, name, [("a/1.png", path), ("2.png", path)], digest)

    def file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def request(self, dataset: str | None = "faces", digest: str | None = DATASET) -> str:
        """Submitted, as flows.submit does it."""
        self.count += 1
        request = ids.new_id(ids.REQUEST, 1_700_000_000 + self.count, self.count)
        self.store.put(keys.open_marker(request), b"{}")
        self.store.create(keys.request_config(request), b"steps: 3\n")
        order = {"dataset": dataset, "dataset_digest": digest}
        self.platform.record_request(request, "submitted", {"order": order})
        return request

    def attempt(self, request: str, digest: str = STABLE) -> int:
        """Under way: a checkpoint, a heartbeat and a log."""
        data = {"cloud": "east", "track": "stable", "digest": digest}
        state = self.platform.record_request(request, "attempt-started", data)
        n = state.attempts[-1].n
        for step in (1, 2):
            self.upload(f"{keys.checkpoints(request, n)}/step-{step}", {"weights": bytes([step]) * 2000})
        self.store.put(keys.heartbeat(request, n), b'{"step": 2}')
        self.store.put(keys.log(request, n), b"epoch 1\n")
        return n

    def upload(self, prefix: str, files: dict[str, bytes]) -> None:
        folder = self.folder / prefix
        for name, data in files.items():
            self.file(f"{prefix}/{name}", data)
        upload_folder(self.store, prefix, folder)

    def lose(self, request: str, n: int, artifact: bool = False) -> None:
        if artifact:
            self.upload(keys.artifacts(request, n), {"lora.safetensors": b"zombie" * 100})
        self.platform.record_request(request, "attempt-lost", {"n": n, "cause": "lost_worker"})

    def succeed(self, request: str, n: int) -> None:
        self.upload(keys.artifacts(request, n), {"lora.safetensors": b"weights" * 100, "sub/a.txt": b"a"})
        self.platform.record_request(request, "result", {"state": "succeeded", "attempt": n})
        self.store.delete(keys.open_marker(request))

    def live(self) -> tuple[str, str]:
        """All of it; (a request that is over, one that is open)."""
        self.found()
        self.dataset()
        over, open_one = self.request(), self.request()
        lost = self.attempt(over)
        self.lose(over, lost, artifact=True)
        self.succeed(over, self.attempt(over))
        self.attempt(open_one)
        self.store.create(keys.start("roll-1", "east", "canary", over, 1), b'{"executor": "x"}')
        self.store.create(keys.look("roll-1", 0), b"{}")
        self.store.put(keys.flow("roll-1"), b"{}")
        self.store.create("idempotency/" + "e" * 64, b"{}")
        self.platform.clock.now()
        return over, open_one


def contents(store: Store) -> dict[str, bytes]:
    return {meta.key: store.get(meta.key).data for meta in store.list("")}
