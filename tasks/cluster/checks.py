"""What a cloud needs, checked one thing after the other, each with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from lora_ops.cloud_spec import CloudSpec
from lora_ops.errors import LoraOpsError, NotFoundError, UnreachableError
from lora_ops.spec import PlatformSpec
from tasks.clock import Interval
from tasks.cluster.client import Cluster
from tasks.cluster.quota import outside, too_small
from tasks.manifests.worker import AUTH_KEY, AUTH_SECRET
from tasks.store import Store

Status = Literal["ok", "warning", "failed"]
#: What serve does in a cloud's namespace: the Role `lora-ops-serve`.
RIGHTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("jobs", "batch", "", ("get", "list", "watch", "create", "delete")),
    ("pods", "", "", ("get", "list", "watch")),
    ("pods", "", "log", ("get",)),
    ("events", "", "", ("list", "watch")),
)
CLOCK_WARN_S, CLOCK_FAIL_S = 5.0, 60.0
ENFORCE = "pod-security.kubernetes.io/enforce"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `remedy`: the next step of what is not ok."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Subject:
    """A cloud and what of its platform the checks need. `stable`: the digest that it runs, or will run.
    `store`: the platform's; `now`: its clock. `prefect_secret`: Prefect's API wants a shared password."""

    name: str
    cloud: CloudSpec
    spec: PlatformSpec
    stable: str | None
    store: Store
    now: Callable[[], Interval]
    prefect_secret: bool = False

    @property
    def prefect_api_url(self) -> str:
        """Where the cloud's pods find Prefect."""
        return self.cloud.prefect_api_url or self.spec.prefect.api_url

    def image(self) -> str | None:
        """The stable release's, as the cloud pulls it; None before the first release."""
        if self.stable is None or self.spec.image is None:
            return None
        return self.cloud.image(self.spec.image.repository, self.stable)


def check_api(subject: Subject, cluster: Cluster) -> Iterator[Check]:
    """Kubeconfig, API, clock, rights, and what the namespace holds. Ends at what the rest depends on."""
    try:
        cluster.open()
        yield Check("kubeconfig", "ok", f"context {cluster.context}, namespace {cluster.namespace}")
    except LoraOpsError as error:
        yield failed("kubeconfig", error)
        return
    before = _time(subject)
    try:
        server = cluster.server()
    except LoraOpsError as error:
        yield failed("api", error)
        return
    yield Check("api", "ok", f"{cluster.host}, {server.version}")
    yield _clock(server.date, before, _time(subject))
    for check in (_rights, _namespace, _accounts, _secrets, _room):
        try:
            yield from check(subject, cluster)
        except UnreachableError as error:
            yield failed("api", error)
            return
        except LoraOpsError as error:
            yield failed(check.__name__.strip("_"), error)


def failed(name: str, error: LoraOpsError) -> Check:
    """The check that this error ended."""
    return Check(name, "failed", " ".join([error.message, *error.details]), error.hint)


def _time(subject: Subject) -> Interval | LoraOpsError:
    try:
        return subject.now()
    except LoraOpsError as error:
        return error


def _clock(date: float | None, before: Interval | LoraOpsError, after: Interval | LoraOpsError) -> Check:
    """The API's clock against the store's. Its `Date` is a whole second, read between the two moments."""
    for moment in (before, after):
        if isinstance(moment, LoraOpsError):
            return failed("clock", moment)
    assert isinstance(before, Interval) and isinstance(after, Interval)  # noqa: PT018 - for mypy
    if date is None:
        return Check("clock", "warning", "the API sends no Date", "A proxy in between may remove it.")
    low, high = date - after.latest, date + 1 - before.earliest
    offset = 0.0 if low <= 0 <= high else min(low, high, key=abs)
    found = (
        f"{abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the store's"
        if offset
        else "the store's"
    )
    status: Status = "ok"
    if abs(offset) > CLOCK_WARN_S:
        status = "failed" if abs(offset) > CLOCK_FAIL_S else "warning"
    return Check("clock", status, found, "Let NTP set the clock of the cluster's machines.")


def _rights(subject: Subject, cluster: Cluster) -> Iterator[Check]:
    for resource, group, below, verbs in RIGHTS:
        missing = [verb for verb in verbs if not cluster.allowed(verb, resource, group, below)]
        name = f"rights {resource}{f'/{below}' if below else ''}"
        if missing:
            remedy = (
                f"kubectl --context {cluster.context} -n {cluster.namespace} create rolebinding "
                "lora-ops-serve-you --role=lora-ops-serve --user=YOU"
            )
            yield Check(name, "failed", f"you may not {', '.join(missing)}", remedy)
        else:
            yield Check(name, "ok", ", ".join(verbs))


def _namespace(subject: Subject, cluster: Cluster) -> Iterator[Check]:
    if not cluster.allowed("get", "namespaces"):
        yield Check("namespace", "ok", "you may not look at it; the probe pod tells")
        return
    labels = cluster.namespace_labels()
    if labels is None:
        remedy = f"lora-ops cloud add {subject.name}, or `lora-ops manifests render --cloud {subject.name}`."
        yield Check("namespace", "failed", f"there is no {cluster.namespace}", remedy)
        return
    level = labels.get(ENFORCE)
    remedy = f"kubectl --context {cluster.context} label namespace {cluster.namespace} {ENFORCE}=restricted"
    found = f"pod security: {level or 'not enforced'}"
    yield Check("namespace", "ok" if level == "restricted" else "warning", found, remedy)


def _accounts(subject: Subject, cluster: Cluster) -> Iterator[Check]:
    name = subject.cloud.service_account
    yield _named("service account", "serviceaccounts", name, cluster, f"serviceaccount {name}")


def _secrets(subject: Subject, cluster: Cluster) -> Iterator[Check]:
    """Whether they are there; what is in them stays in the cluster."""
    cloud = subject.cloud
    wanted = {name: f"secret generic {name} --from-env-file=FILE" for name in cloud.env_from}
    if cloud.pull_secret:
        wanted[cloud.pull_secret] = f"secret docker-registry {cloud.pull_secret} --docker-server=…"
    if subject.prefect_secret:
        wanted[AUTH_SECRET] = (
            f"secret generic {AUTH_SECRET} --from-literal={AUTH_KEY}=$PREFECT_API_AUTH_STRING"
        )
    for name, how in wanted.items():
        yield _named(f"secret {name}", "secrets", name, cluster, how)


def _named(check: str, resource: str, name: str, cluster: Cluster, how: str) -> Check:
    """`how`: what `kubectl create` makes it with."""
    if not cluster.allowed("get", resource):
        return Check(check, "ok", "you may not look for it; the probe pod tells")
    if cluster.exists(resource, name):
        return Check(check, "ok", "is there")
    remedy = f"kubectl --context {cluster.context} -n {cluster.namespace} create {how}"
    return Check(check, "failed", f"there is no {name} in {cluster.namespace}", remedy)


def _room(subject: Subject, cluster: Cluster) -> Iterator[Check]:
    """Quotas and limit ranges, for whoever may see them."""
    remedy = "Raise it, or lower the cloud's `resources` or `size` in lora-ops.yaml."
    if not cluster.allowed("list", "resourcequotas"):
        yield Check("quota", "ok", "you may not look at it; the probe pod tells")
    else:
        quotas = cluster.listed("resourcequotas")
        found = list(too_small(subject.cloud, quotas))
        for hopeless, what in found:
            yield Check("quota", "failed" if hopeless else "warning", what, remedy)
        if not found:
            yield Check("quota", "ok", f"{len(quotas)}, with room for {subject.cloud.size} a track")
    if cluster.allowed("list", "limitranges"):
        for what in outside(subject.cloud, cluster.listed("limitranges")):
            yield Check("limit range", "failed", what, remedy)


def check_registry(subject: Subject) -> Check:
    """The cloud's registry answers from here and holds the stable release, whole."""
    from tasks.images import Registries

    image = subject.image()
    if image is None:
        return Check(
            "registry", "warning", "there is no release yet", "Start with `lora-ops up --image REF`."
        )
    repository, _, digest = image.partition("@")
    try:
        Registries(subject.spec.insecure_registries).verify(repository, digest)
    except NotFoundError as error:
        remedy = f"`lora-ops cloud add {subject.name}` copies it there. {error.hint}"
        return Check("registry", "failed", " ".join([error.message, *error.details]), remedy.strip())
    except LoraOpsError as error:
        return failed("registry", error)
    return Check("registry", "ok", image)
