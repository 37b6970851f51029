"""What an attempt tells the store: start, heartbeats, log, checkpoints, sample, artifact, end.

Everything here may be done again: after an answer that was lost, after the store was away.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from flows.facts import Facts
from lora_ops import SCHEMA_VERSION, keys
from lora_ops.errors import LoraOpsError, ObjectExists, Refused, StoreError, StoreUnavailable
from lora_ops.gates.samples import Sample
from lora_ops.request import Attempt as Record
from lora_ops.request import AttemptState, Order
from tasks import log_window
from tasks.child import TrainerChild
from tasks.datasets import upload_folder
from tasks.platform import Platform

BEAT_S = 2.0
LONGEST_PAUSE_S = 30.0


class Outcome(Exception):
    """How an attempt ended, for Prefect: `state` is the name of its final state."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state
        self.message = message


class Duplicate(Exception):
    """Another process runs this attempt. `own_run`: it has a flow run of its own, so this one may be ended;
    otherwise both are processes of one run (Prefect may start two): go without a word."""

    def __init__(self, own_run: bool) -> None:
        super().__init__("another process runs this attempt")
        self.own_run = own_run


class Report:
    """The voice of attempt `n` of `request`."""

    def __init__(self, platform: Platform, request: str, n: int, record: Record, order: Order) -> None:
        self.platform = platform
        self.store = platform.store
        self.request = request
        self.n = n
        self.record = record
        self.order = order
        self.executor = secrets.token_hex(8)
        self.facts = Facts()
        self.horizon = 0
        self.sampled = False
        self._owed: deque[Callable[[], None]] = deque()

    # --- the beginning ---

    def start(self, worker: str | None, run: str | None) -> float:
        """The attempt's first write, create-only; its latest possible time on the store's clock.

        `run`: the flow run's id. Raises Duplicate when another executor was first.
        """
        record = self.record
        key = keys.start(record.rollout, record.cloud, record.track.value, self.request, self.n)
        document = {
            "schema_version": SCHEMA_VERSION,
            "request": self.request,
            "attempt": self.n,
            "cloud": record.cloud,
            "track": record.track.value,
            "digest": record.digest,
            "probe": self.order.probe,
            "executor": self.executor,
            "worker": worker,
            "run": run,
        }
        try:
            self.store.create(key, _bytes(document))
        except ObjectExists:
            there = json.loads(self.store.get(key).data)
            if there.get("executor") != self.executor:
                first = there.get("run")
                raise Duplicate(own_run=None not in (first, run) and first != run) from None
        return self.store.head(key).last_modified + self.store.time_resolution

    # --- while it trains ---

    @contextmanager
    def pulse(self) -> Iterator[None]:
        """Heartbeats from a thread, so that a long download or upload is not taken for a death."""
        over = Event()

        def go_on() -> None:
            while not over.wait(5 * BEAT_S):
                with suppress(StoreError):
                    self.heartbeat()

        thread = Thread(target=go_on, name="pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def heartbeat(self) -> None:
        document = {
            "schema_version": SCHEMA_VERSION,
            "executor": self.executor,
            **self.facts.for_heartbeat(),
        }
        self.store.put(keys.heartbeat(self.request, self.n), _bytes(document))

    def beat(self, child: TrainerChild) -> None:
        """The heartbeat, and what the trainer printed."""
        self.heartbeat()
        self.store.put(keys.log(self.request, self.n), log_window.pack(*child.log_window()))

    def owe_sample(self) -> None:
        """The trainer has reached the horizon."""
        if not self.sampled and self._good_sample not in self._owed:
            self._owed.append(self._good_sample)

    def owe_checkpoint(self, path: Path) -> None:
        self._owed.append(lambda: self._upload_checkpoint(path))

    def settle(self) -> None:
        """Write what is owed, in order. What the store did not take stays owed (StoreUnavailable)."""
        while self._owed:
            self._owed[0]()
            self._owed.popleft()

    def _good_sample(self) -> None:
        self.sample(at_horizon=True)

    def _upload_checkpoint(self, path: Path) -> None:
        """The trainer drops old checkpoints while this goes on: one that is gone is owed no more."""
        there = _files(path)
        if not there:
            return
        try:
            upload_folder(self.store, f"{keys.checkpoints(self.request, self.n)}/{path.name}", path)
        except StoreUnavailable:
            raise
        except (LoraOpsError, OSError):
            if there <= _files(path):
                raise

    # --- the end ---

    def sample(
        self, *, cause: str | None = None, message: str = "", at_horizon: bool = False, ended: bool = False
    ) -> None:
        """The facts, create-only; a failure after the good sample is a `late` one. Only within rollouts."""
        record = self.record
        if record.rollout is None:
            return
        late = self.sampled and cause is not None
        document = Sample(
            request=self.request,
            attempt=self.n,
            cloud=record.cloud,
            track=record.track.value,
            digest=record.digest,
            probe=self.order.probe,
            cause=cause,
            message=message[:2000],
            horizon=max(1, self.horizon),
            at_horizon=at_horizon or late,
            ended=ended,
            late=late,
            **self.facts.for_sample(),
        )
        key = keys.sample(record.rollout, record.cloud, record.track.value, self.request, self.n, late)
        with suppress(ObjectExists):
            self.store.create(key, document.model_dump_json().encode())
        self.sampled = self.sampled or cause is None  # a failure that is told again is not a late one

    def publish(self, folder: Path, child: TrainerChild) -> None:
        """The sample, the artifact `folder`, and the result last."""
        self.settle()
        if self.record.rollout and not self.sampled:
            self.sample(ended=True)
        prefix = keys.artifacts(self.request, self.n)
        upload_folder(self.store, prefix, folder)
        self.beat(child)
        files = (self.facts.result or {}).get("files", [])
        self._end_with(
            "result",
            {"state": "succeeded", "attempt": self.n, "files": files, "message": f"artifacts at {prefix}"},
        )

    def failed(self, cause: str, message: str, hint: str, child: TrainerChild) -> None:
        """The sample at once, then the log, then the journal."""
        self.settle()
        self.sample(cause=cause, message=message)
        self.beat(child)
        lost = cause == "no_capacity"  # the machine's fault: it costs the request no try
        self.end("attempt-lost" if lost else "attempt-failed", cause, f"{message} {hint}".strip())

    def end(self, kind: str, cause: str, message: str) -> None:
        self._end_with(kind, {"n": self.n, "cause": cause, "message": message[:2000]})

    def _end_with(self, kind: str, data: dict[str, Any]) -> None:
        """Journal the end. Raises Outcome when the attempt was given up before."""
        try:
            self.platform.record_request(self.request, kind, data)
        except Refused as refusal:
            if self._ended_so(kind):
                return  # told before, and only the answer was lost
            raise Outcome(
                "Superseded", f"It was given up before it could publish: {refusal.message}"
            ) from None

    def _ended_so(self, kind: str) -> bool:
        """Only this executor can have ended the attempt with success or failure."""
        said = {"result": AttemptState.SUCCEEDED, "attempt-failed": AttemptState.FAILED}.get(kind)
        attempts = self.platform.request(self.request).attempts
        return any(each.n == self.n and each.state is said for each in attempts)


def patiently(act: Callable[[], None], within_s: float) -> None:
    """Do it; when the store does not answer, again and again with growing pauses, for `within_s` seconds."""
    end, pause = time.monotonic() + within_s, 1.0
    while True:
        try:
            return act()
        except StoreUnavailable:
            if time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _files(folder: Path) -> set[str]:
    return {os.path.join(where, name) for where, _, names in os.walk(folder) for name in names}


def _bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()
