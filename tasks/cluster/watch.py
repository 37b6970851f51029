"""What runs on a cluster, seen every few seconds. A region that goes dark keeps connections open and never
answers: each cluster has a thread of its own, and what it saw last stays, with when that was."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lora_ops.errors import LoraOpsError
from lora_ops.pods import PodSight, needs_events, read_job
from tasks.cluster.client import Cluster

APP, REQUEST, ATTEMPT = "lora-ops/app", "lora-ops/request", "lora-ops/attempt"
STOP_S = 1.0


@dataclass(frozen=True, slots=True)
class SeenJob:
    """A Job of ours. `created`: seconds since the epoch on the API's clock. `active`: it has not ended.
    `request` is empty and `attempt` 0 for a Job that is no attempt (a self-check, a probe of the cloud)."""

    name: str
    request: str
    attempt: int
    cloud: str
    labels: Mapping[str, str]
    created: float
    active: bool
    sight: PodSight


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a cluster showed. `answered_at`: this process's `time.monotonic()` when the last full answer was
    asked for, None before the first; `error`: what is wrong since then, empty when nothing is."""

    answered_at: float | None
    error: str
    jobs: tuple[SeenJob, ...]


class ClusterWatch:
    """Polls the Jobs of an app, their pods, and the events that explain them. `snapshot` never waits."""

    def __init__(self, cloud: str, cluster: Cluster, app: str, every_s: float = 2.0) -> None:
        self.cloud = cloud
        self.cluster = cluster
        self._selector = f"{APP}={app}"
        self._every_s = every_s
        self._seen = Snapshot(None, "", ())
        self._unwanted: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch-{cloud}", daemon=True)

    def start(self) -> None:
        """Begin to look. Call it once."""
        self._thread.start()

    def stop(self) -> None:
        """End it; a call that a dark region does not answer is not waited for."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def snapshot(self) -> Snapshot:
        """What was seen last."""
        return self._seen

    def discard(self, job: str) -> None:
        """Let the Job be deleted, by this watch's thread: its pod gets SIGTERM and its grace."""
        self._unwanted.add(job)

    def look(self) -> None:
        """One round, now. What goes wrong changes only `error`."""
        asked = time.monotonic()
        try:
            jobs = self.cluster.jobs(self._selector)
            pods = self.cluster.pods(self._selector)
            explain = any(needs_events(job, pods) for job in jobs)
            events, unexplained = self._events() if explain else ([], "")
            seen = tuple(sorted((_seen(self.cloud, job, pods, events) for job in jobs), key=_order))
            self._seen = Snapshot(asked, unexplained, seen)
            for name in tuple(self._unwanted):
                self.cluster.delete_job(name)
                self._unwanted.discard(name)
        except LoraOpsError as error:
            self._fail(error.message)
        except Exception as error:  # noqa: BLE001 - a thread that ends would show an old sight for ever
            self._fail(f"{type(error).__name__}: {error}")

    def _events(self) -> tuple[list[Any], str]:
        """They only explain: without them the Jobs and pods are still seen."""
        try:
            return self.cluster.events(), ""
        except LoraOpsError as error:
            return [], error.message

    def _fail(self, message: str) -> None:
        self._seen = Snapshot(self._seen.answered_at, message, self._seen.jobs)

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._ended.wait(self._every_s)
        self.cluster.close()


def _seen(cloud: str, job: Mapping[str, Any], pods: list[Any], events: list[Any]) -> SeenJob:
    meta = job["metadata"]
    labels = meta.get("labels") or {}
    sight = read_job(job, pods, events)
    attempt = str(labels.get(ATTEMPT, ""))
    created = 0.0
    with suppress(ValueError):
        created = datetime.fromisoformat(str(meta.get("creationTimestamp"))).timestamp()
    return SeenJob(
        name=str(meta["name"]),
        request=str(labels.get(REQUEST, "")),
        attempt=int(attempt) if attempt.isdecimal() else 0,
        cloud=cloud,
        labels=labels,
        created=created,
        active=sight.phase in ("pending", "running"),
        sight=sight,
    )


def _order(job: SeenJob) -> tuple[float, str]:
    return job.created, job.name
