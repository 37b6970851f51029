"""One kubernetes cloud of a platform: brought up, checked, and put into service."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from cli.local.bootstrap import Bootstrap, others_stable
from cli.local.platform import Local, use_prefect
from lora_ops.errors import LoraOpsError, UnreachableError
from lora_ops.spec import PlatformSpec
from lora_ops.state import AppState
from tasks.cluster.checks import Check, Subject, check_api, check_registry, failed
from tasks.cluster.client import Cluster

WORKER_START_S = 120.0
FIRST_RELEASE = "Start with `lora-ops up --image REF`, then add the cloud again."


class Setup:
    """`say`: a line of progress. What goes wrong on the way is a finding; `close` it at the end."""

    def __init__(self, local: Local, name: str, say: Callable[[str], None]) -> None:
        local.base.mkdir(parents=True, exist_ok=True)  # Prefect makes its home in it
        use_prefect(local)
        from tasks.platform import Platform
        from tasks.store import open_store

        self.local = local
        self.name = name
        self.say = say
        self.cloud = local.spec.clouds[name]
        assert self.cloud.context is not None  # the spec is refused without
        self.cluster = Cluster(self.cloud.context, self.cloud.namespace)
        self.platform = Platform(open_store(local.spec.store), local.spec.app, "cloud-check")
        self._release: str | None = None
        self._wait_s = 0.0
        from tasks.prefect_api import PrefectApi

        self._prefect = PrefectApi(local.prefect_url)

    def close(self) -> None:
        """Leave no connection open, and no clock in the store."""
        self.platform.close()
        self.cluster.close()
        self._prefect.close()

    def prepare(self, image: str | None, *, apply: bool) -> Iterator[Check]:
        """The release in the cloud's registry, the work pool, the worker.

        `image`: what the worker runs while there is no release. `apply`: make what the cluster needs.
        """
        yield from self._tried("image", lambda: self._bring(image))
        yield from self._tried("deployment", self._register)
        if apply:
            yield from self._tried("manifests", self._apply)

    def checks(self) -> Iterator[Check]:
        """All, from the kubeconfig to what a pod reaches and whether the worker polls."""
        from tasks.cluster.pool import check_pool
        from tasks.cluster.probe import check_pod

        try:
            self._release = self._release or _stable(self.platform.state(), self.name, self.local.spec)
        except LoraOpsError as error:
            yield failed("store", error)
        subject = self._subject()
        usable = True
        for each in check_api(subject, self.cluster):
            usable = usable and (each.status != "failed" or each.name not in ("kubeconfig", "api"))
            yield each
        registry = check_registry(subject)
        yield registry
        if usable and registry.status == "ok":
            for each in check_pod(subject, self.cluster, self.say):
                usable = usable and each.status == "ok"
                yield each
        if self._release is None and not self._prefect.ok():
            yield Check("work pool", "warning", "Prefect does not answer yet", "`lora-ops up` starts it.")
        else:
            yield from check_pool(subject, self._prefect, self._wait_s if usable else 0.0, self.say)

    def put_into_service(self) -> Iterator[Check]:
        """Journal the cloud, so that it gets requests. Before the first release, `lora-ops up` does that."""
        yield from self._tried("service", self._journal)

    # --- the steps ---

    def _bring(self, image: str | None) -> Check:
        from flows.images import Images
        from tasks.releases import find_release

        images = Images(self.platform.store, self.local.spec, self.say)
        stable = _stable(self.platform.state(), self.name, self.local.spec)
        if stable is not None:
            origin, self._release = find_release(self.platform.store, stable).repository, stable
        elif image is not None:
            origin, self._release = images.first(image, self.local.spec_path.parent)
        else:
            return Check("image", "warning", "there is no release yet, so no worker", FIRST_RELEASE)
        images.copy(origin, self._release, [self.name])
        return Check("image", "ok", self._subject().image() or "")

    def _register(self) -> Check:
        from flows.catalogue import register

        if not self._prefect.ok():
            if self._release is None and self.local.owns_prefect:
                return Check("deployment", "warning", "Prefect does not run yet", "`lora-ops up` starts it.")
            raise UnreachableError(
                f"Prefect's API at {self.local.prefect_url} does not answer.", "Run `lora-ops up`."
            )
        register(self._prefect, self.local.spec)
        return Check("deployment", "ok", f"train/{self.name} in the work pool {self.name}")

    def _apply(self) -> Check:
        from tasks.manifests import worker_manifests

        subject = self._subject()
        spec = self.local.spec
        url = subject.prefect_api_url
        manifests = worker_manifests(self.name, self.cloud, spec.app, subject.image(), url)
        done = self.cluster.apply(manifests)
        for line in done:
            self.say(line)
        self._wait_s = WORKER_START_S
        return Check("manifests", "ok", f"{len(done)} applied")

    def _journal(self) -> Check:
        if not self.platform.state().clouds:
            return Check("service", "warning", "there is no release yet", "Run `lora-ops up --image REF`.")
        Bootstrap(self.platform, self.local, self.say, None).clouds(self.name)
        if self.platform.state().clouds[self.name].drained:
            return Check("service", "warning", "it is drained", f"Run `lora-ops cloud undrain {self.name}`.")
        return Check("service", "ok", "it gets requests")

    def _tried(self, name: str, step: Callable[[], Check]) -> Iterator[Check]:
        try:
            yield step()
        except LoraOpsError as error:
            yield failed(name, error)

    def _subject(self) -> Subject:
        secret = bool(os.environ.get("PREFECT_API_AUTH_STRING"))
        store, now = self.platform.store, self.platform.clock.now
        return Subject(self.name, self.cloud, self.local.spec, self._release, store, now, secret)


def _stable(state: AppState, name: str, spec: PlatformSpec) -> str | None:
    """What the cloud runs; for a new one what the others run."""
    own = state.clouds.get(name)
    return own.stable if own is not None else others_stable(state, spec)
