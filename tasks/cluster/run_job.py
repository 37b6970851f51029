"""Runs one Job to its end and removes it: self-checks, and what `cloud check` tries in a pod."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lora_ops.errors import LoraOpsError, UnreachableError
from lora_ops.pods import PodSight, Trouble, read_job
from tasks.cluster.client import Cluster

POLL_S = 1.0
HOPELESS_S = 30.0
HOPELESS = (Trouble.IMAGE_PULL, Trouble.CONFIG)
LOG_LINES = 2000


@dataclass(frozen=True, slots=True)
class Ended:
    """`exit_code` is None when its program did not end by itself; `sight` says why."""

    exit_code: int | None
    logs: str
    sight: PodSight

    def report(self, key: str) -> dict[str, Any] | None:
        """The last line that is a JSON object with `key`, since libraries may print before it: of its
        termination message, which outlives the log, else of its log."""
        for text in (self.sight.said, self.logs):
            for line in reversed(text.strip().splitlines()):
                try:
                    document = json.loads(line)
                except ValueError:
                    continue
                if isinstance(document, dict) and key in document:
                    return document
        return None

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and self.sight.trouble is None


def run_job(
    cluster: Cluster, manifest: Mapping[str, Any], timeout_s: float, say: Callable[[str], None]
) -> Ended:
    """Create the Job (one of that name that a killed process left is taken over), wait, delete it always.

    Ends early when its image cannot be pulled, or its container not be made, for longer than 30 s. `say` is
    told each change. Raises what creating raises, and UnreachableError when the API was silent to the end.
    """
    name = str(manifest["metadata"]["name"])
    wait = _Wait(cluster, name, time.monotonic() + timeout_s, say)
    try:
        wait.until_free()
        wait.create(manifest)
        sight = wait.until_ended()
        return Ended(sight.exit_code if _ran(sight) else None, wait.logs(), sight)
    finally:
        try:
            cluster.delete_job(name)
        except LoraOpsError as error:
            say(f"Job {name} is left to its own deadline: {error.message}")


class _Wait:
    """Polls one Job. A call that gets no answer is made again until the deadline."""

    def __init__(self, cluster: Cluster, name: str, deadline: float, say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.name = name
        self.deadline = deadline
        self.say = say
        self.pods: list[dict[str, Any]] = []

    def until_free(self) -> None:
        """An earlier Job of that name may still be going."""
        while time.monotonic() < self.deadline:
            with suppress(UnreachableError):  # creating it tells that the API is away
                job = self.cluster.job(self.name)
                if job is None or not job["metadata"].get("deletionTimestamp"):
                    return
            time.sleep(POLL_S)

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Create the Job; an API that does not answer is asked again until the deadline."""
        while True:
            try:
                self.cluster.create(manifest)
                return
            except UnreachableError:
                if time.monotonic() + POLL_S > self.deadline:
                    raise
                time.sleep(POLL_S)

    def until_ended(self) -> PodSight:
        sight, told, since, silent = PodSight("pending"), "", None, None
        while time.monotonic() < self.deadline:
            try:
                sight, silent = self._look(), None
            except UnreachableError as error:
                silent = error
            hopeless = silent is None and sight.trouble in HOPELESS
            since = (since or time.monotonic()) if hopeless else None
            text = silent.message if silent else sight.message or sight.phase
            if text != told:
                self.say(f"Job {self.name}: {text}")
                told = text
            if sight.phase in ("succeeded", "failed", "none"):
                return sight
            if since is not None and time.monotonic() - since > HOPELESS_S:
                return sight
            time.sleep(POLL_S)
        if silent is not None:
            raise silent
        return sight

    def logs(self) -> str:
        """What its newest pod printed; empty when nothing can be read any more."""
        for pod in sorted(self.pods, key=lambda each: str(each["metadata"].get("creationTimestamp")))[-1:]:
            with suppress(LoraOpsError):
                return self.cluster.pod_logs(str(pod["metadata"]["name"]), LOG_LINES)
        return ""

    def _look(self) -> PodSight:
        job = self.cluster.job(self.name)
        if job is None:
            return PodSight("none", Trouble.DELETED, "Its Job was deleted.")
        self.pods = self.cluster.listed("pods", "v1", f"job-name={self.name}", fresh=True)
        return read_job(job, self.pods, self.cluster.events())


def _ran(sight: PodSight) -> bool:
    return sight.phase in ("succeeded", "failed")
