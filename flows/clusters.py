"""The kubernetes clouds as one process of ours sees them: a polling thread each, asked without waiting."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping

from lora_ops.pods import PodSight
from lora_ops.request import RequestState
from lora_ops.spec import PlatformSpec
from lora_ops.state import AppState, Phase
from tasks.cluster.watch import ClusterWatch, SeenJob, Snapshot
from tasks.platform import Platform

log = logging.getLogger("lora_ops.reconciler")

AttemptKey = tuple[str, int]
#: An API server that has not answered for so long gives no evidence about its pods (seconds).
FRESH_S = 15.0
#: An attempt that has ended says its last words to Prefect before its Job goes (seconds).
FAREWELL_S = 60.0
#: The label that says whose a Job is, and its value for the self-check of a platform's first release.
ROLLOUT, FIRST = "lora-ops/rollout", "first"


class Clusters:
    """Watches of the kubernetes clouds, by name; none on a platform of local clouds."""

    def __init__(self, watches: Mapping[str, ClusterWatch] | None = None) -> None:
        self.watches = dict(watches or {})
        self._began = time.monotonic()
        self._ended: dict[tuple[str, str], float] = {}

    @classmethod
    def of(cls, spec: PlatformSpec) -> Clusters:
        """The spec's; started by `start`."""
        if not spec.on_kubernetes:
            return cls()
        from tasks.cluster.client import Cluster

        return cls(
            {
                name: ClusterWatch(name, Cluster(cloud.context, cloud.namespace), spec.app)
                for name, cloud in spec.clouds.items()
                if cloud.context is not None
            }
        )

    def start(self) -> None:
        self._began = time.monotonic()
        for watch in self.watches.values():
            watch.start()

    def stop(self) -> None:
        for watch in self.watches.values():
            watch.stop()

    def __contains__(self, cloud: str) -> bool:
        return cloud in self.watches

    def snapshot(self, cloud: str) -> Snapshot:
        return self.watches[cloud].snapshot()

    def silent_s(self, cloud: str) -> float:
        """How long its API server has not answered; 0 for a local cloud."""
        if cloud not in self.watches:
            return 0.0
        answered = self.snapshot(cloud).answered_at
        return time.monotonic() - (self._began if answered is None else answered)

    def fresh(self, cloud: str) -> bool:
        """Whether what is known of its pods is true now."""
        answered = cloud in self.watches and self.snapshot(cloud).answered_at is not None
        return answered and self.silent_s(cloud) < FRESH_S

    def problem(self, cloud: str) -> str:
        """Why its API server cannot be asked, in one line; "" while it answers."""
        return self.snapshot(cloud).error if cloud in self.watches else ""

    def pod(self, cloud: str, key: AttemptKey) -> PodSight | None:
        """What is seen of an attempt's pod; None when there is no Job, or nobody can know."""
        job = self._job(cloud, key)
        return job.sight if job is not None else None

    def trouble(self, cloud: str, key: AttemptKey) -> str:
        """Why an attempt does not run, in one sentence; "" when nothing is known to be wrong."""
        sight = self.pod(cloud, key) if cloud in self.watches and self.fresh(cloud) else None
        return sight.message if sight is not None and sight.trouble is not None else ""

    def last_words(self, cloud: str, key: AttemptKey) -> str:
        """The end of what a pod that failed has printed; "" when nothing is known of it."""
        sight = self.pod(cloud, key)
        return sight.said.strip() if sight is not None else ""

    def discard(self, cloud: str, key: AttemptKey) -> bool:
        """Let the attempt's Jobs be deleted: their pods get SIGTERM, and their grace to save a checkpoint.
        False when none is seen."""
        jobs = [job for job in self.snapshot(cloud).jobs if (job.request, job.attempt) == key and job.active]
        for job in jobs:
            self.watches[cloud].discard(job.name)
        return bool(jobs)

    def sweep(self, platform: Platform, state: AppState, wanted: Collection[AttemptKey]) -> None:
        """Delete the active Jobs that nobody waits for: of attempts that are over or were given up (in a
        region that was dark, say), and the self-checks of rollouts that are past them. `wanted`: attempts
        that are known to be open."""
        now = time.monotonic()
        for cloud in self.watches:
            if not self.fresh(cloud):
                continue
            for job in self.snapshot(cloud).jobs:
                if not job.active or (job.request, job.attempt) in wanted:
                    continue
                since = self._ended.setdefault((cloud, job.name), now)
                if job.request:
                    stray = _is_over(platform.request(job.request), job.attempt, now - since)
                    platform.forget_request(job.request)
                else:
                    stray = _check_is_over(job, state)
                if stray:
                    log.info("%s: Job %s is nobody's any more: deleted", cloud, job.name)
                    self.watches[cloud].discard(job.name)
            there = {job.name for job in self.snapshot(cloud).jobs}
            for known in [each for each in self._ended if each[0] == cloud and each[1] not in there]:
                del self._ended[known]

    def _job(self, cloud: str, key: AttemptKey) -> SeenJob | None:
        """The attempt's newest Job, one that runs before one that has ended: Prefect may have created two."""
        if cloud not in self.watches:
            return None
        found = [job for job in self.snapshot(cloud).jobs if (job.request, job.attempt) == key]
        return max(found, key=lambda job: (job.active, job.created), default=None)


def _is_over(request: RequestState, n: int, ended_for_s: float) -> bool:
    """Given up: at once. Ended by itself: after its farewell. Unknown: another platform's, since an attempt
    is journalled before its Job is made."""
    current = request.current
    if current is not None and current.n == n:
        return False
    mine = next((each for each in request.attempts if each.n == n), None)
    if mine is None:
        return False
    return ended_for_s > FAREWELL_S if mine.state.spoke else True


def _check_is_over(job: SeenJob, state: AppState) -> bool:
    """A rollout's self-check when that is past building; other checks end at their own deadline."""
    named, rollout = job.labels.get(ROLLOUT), state.rollout
    if named is None or named == FIRST:
        return False
    return rollout is None or rollout.id != named or rollout.phase is not Phase.BUILDING
