"""What a cluster needs besides the Jobs: namespace, accounts and rights, the worker, network policies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from lora_ops.cloud_spec import CloudSpec
from tasks.manifests.jobs import COMPONENT, scratch_env, worker_name
from tasks.manifests.templates import Manifest, render_template

#: Everywhere but the link-local addresses: there the nodes' metadata services answer.
ANYWHERE: tuple[Manifest, ...] = (
    {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]},
    {"cidr": "::/0", "except": ["fd00:ec2::/32", "fe80::/10"]},
)
AUTH_SECRET = "lora-ops-prefect"
AUTH_KEY = "auth-string"


def worker_manifests(
    name: str,
    cloud: CloudSpec,
    app: str,
    image: str | None,
    prefect_api_url: str,
    egress: Sequence[str] = (),
) -> list[Manifest]:
    """Everything that the cloud `name` needs in its cluster, in the order in which it is applied.

    `image`: the worker's, by digest; None leaves its Deployment out. `egress`: the networks (CIDR) that pods
    may reach; by default all but the link-local ones.
    """
    return [
        *namespace_manifests(cloud.namespace),
        *render_template(
            "worker",
            name=name,
            cloud=cloud,
            image=image,
            labels={**_selector(name), "app.kubernetes.io/part-of": "lora-ops", **_cloud_labels(name)},
            selector=_selector(name),
            command=_command(name),
            env=_env(name, cloud, app, prefect_api_url),
        ),
        *render_template(
            "network",
            name=name,
            namespace=cloud.namespace,
            ports=ports([prefect_api_url, *cloud.env.values()]),
            blocks=blocks(egress),
        ),
    ]


def namespace_manifests(namespace: str) -> list[Manifest]:
    """The namespace, in which only restricted pods are admitted."""
    return render_template("namespace", namespace=namespace)


def ports(urls: Sequence[str]) -> list[int]:
    """443 and the ports of what in `urls` is a URL."""
    found = {443}
    for url in urls:
        with suppress(ValueError):  # an environment holds more than URLs
            where = urlsplit(url)
            if where.scheme in ("http", "https") and where.hostname:
                found.add(where.port or (443 if where.scheme == "https" else 80))
    return sorted(found)


def blocks(egress: Sequence[str]) -> list[Manifest]:
    """The networks as a policy's ipBlocks."""
    return [{"cidr": each} for each in egress] or list(ANYWHERE)


def _command(name: str) -> list[str]:
    words = ["python", "-P", "-m", "prefect", "worker", "start", "--type", "kubernetes"]
    words += ["--pool", name, "--name", worker_name(name)]
    return [*words, "--install-policy", "never", "--with-healthcheck"]


def _env(name: str, cloud: CloudSpec, app: str, prefect_api_url: str) -> dict[str, str]:
    observed = f"lora-ops/app={app},lora-ops/cloud={name}"
    kubernetes = "PREFECT_INTEGRATIONS_KUBERNETES"
    return {
        **scratch_env(),
        "PREFECT_API_URL": prefect_api_url,
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        # Without it the observer lists the whole cluster's pods, which its Role forbids.
        f"{kubernetes}_OBSERVER_NAMESPACES": cloud.namespace,
        f"{kubernetes}_OBSERVER_ADDITIONAL_LABEL_FILTERS": observed,
        f"{kubernetes}_WORKER_API_AUTH_STRING_SECRET_NAME": AUTH_SECRET,
        f"{kubernetes}_WORKER_API_AUTH_STRING_SECRET_KEY": AUTH_KEY,
    }


def _selector(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "lora-ops-worker", "app.kubernetes.io/instance": name}


def _cloud_labels(name: str) -> dict[str, str]:
    return {"lora-ops/cloud": name, COMPONENT: "worker"}
