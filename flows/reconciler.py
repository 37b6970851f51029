"""The reconciler: a stateless loop that brings every open request to its result and keeps a rollout led.

Any number of them may run; the create-only put decides. What it remembers only saves work.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from flows.clusters import Clusters
from flows.open_requests import OpenRequests
from flows.sizes import Sizes
from flows.supervision import Supervision
from flows.verification import Verification
from lora_ops.errors import LoraOpsError
from lora_ops.spec import PlatformSpec
from tasks.platform import Platform
from tasks.prefect_api import PrefectApi

log = logging.getLogger("lora_ops.reconciler")

HEALTH_EVERY_S = 5.0


class Reconciler:
    """`tick()` once, or `start()` a thread that ticks every `every_s` seconds until `stop()`."""

    def __init__(
        self,
        platform: Platform,
        prefect: PrefectApi,
        spec: PlatformSpec,
        base: Path,
        every_s: float = 1.0,
        clusters: Clusters | None = None,
    ) -> None:
        self.platform = platform
        self.prefect = prefect
        self.spec = spec
        self.every_s = every_s
        self._workers: dict[str, frozenset[str]] = {}
        self._health_at = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.clusters = clusters or Clusters()
        self.requests = OpenRequests(platform, prefect, spec, base, self.clusters)
        self.supervision = Supervision(platform, prefect)
        self.verification = Verification(platform)
        self.sizes = Sizes(prefect)

    def health(self) -> dict[str, bool]:
        """Whether each cloud can take attempts, as far as Prefect and the clusters could be asked."""
        return self.requests.sights.health(self._workers)

    def tick(self) -> None:
        """One pass. A store or Prefect that does not answer is tried again at the next."""
        self._look_at_workers()
        for act in (
            self.supervision.tick,
            lambda: self.verification.tick(self.platform.state()),
            lambda: self.requests.tick(self._workers, frozenset(self.verification.dark)),
            self.requests.sweep,
            lambda: self.sizes.tick(self.platform.state()),
        ):
            try:
                act()
            except LoraOpsError as error:
                log.warning("%s %s", error.message, error.hint)

    def start(self) -> None:
        self.clusters.start()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self.clusters.stop()

    def run_url(self, request_id: str, n: int) -> str | None:
        """The attempt's page in Prefect's UI, when this process has seen its run."""
        run_id = self.requests.run_id(request_id, n)
        return self.prefect.ui_url(run_id) if run_id else None

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            try:
                self.tick()
            except Exception:
                log.exception("the reconciler's turn failed; the next one tries again")

    def _look_at_workers(self) -> None:
        if time.monotonic() < self._health_at:
            return
        missing = not all(self._workers.get(name) for name in self.spec.clouds)
        self._health_at = time.monotonic() + (
            0.0 if missing else HEALTH_EVERY_S
        )  # one may come at any moment
        try:
            for name in self.spec.clouds:
                seen = self.prefect.workers(name)
                self._workers[name] = frozenset(worker for worker, status in seen if status == "ONLINE")
        except LoraOpsError as error:
            log.warning("%s", error.message)
