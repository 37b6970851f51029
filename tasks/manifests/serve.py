"""The platform's own processes in a cluster: replicated `lora-ops serve`, and the control pool's workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from lora_ops.errors import ConfigError
from lora_ops.spec import PlatformSpec, parse_spec
from tasks.manifests.jobs import COMPONENT, SCRATCH, scratch_env
from tasks.manifests.templates import Manifest, render_template
from tasks.manifests.worker import blocks, namespace_manifests, ports

SPEC = "/etc/lora-ops/lora-ops.yaml"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
KUBERNETES_API = 6443


@dataclass(frozen=True)
class _Process:
    """One Deployment. `patience`: failed liveness checks, 20 s apart, until it is restarted."""

    container: str
    command: list[str]
    env: dict[str, str]
    port_name: str
    port: int
    health: str
    patience: int
    requests: dict[str, str]
    limits: dict[str, str]

    @property
    def name(self) -> str:
        return f"lora-ops-{self.container}"

    @property
    def selector(self) -> dict[str, str]:
        return {"app.kubernetes.io/name": self.name}

    @property
    def labels(self) -> dict[str, str]:
        return {**self.selector, "app.kubernetes.io/part-of": "lora-ops", COMPONENT: self.container}


def serve_manifests(
    text: str,
    image: str,
    namespace: str = "lora-ops",
    *,
    egress: Sequence[str] = (),
    budgets: bool = True,
) -> list[Manifest]:
    """`lora-ops serve` and the control workers, two of each, with the lora-ops.yaml `text` in a ConfigMap.

    `image`: one with lora-ops installed, by digest (deployments/kubernetes/Dockerfile.serve). `budgets`:
    False leaves out the PodDisruptionBudget, which Kubernetes has from 1.21. ConfigError when the spec has
    what no pod could reach: a store on a disk, a loopback address, a probe beside the file.
    """
    spec = parse_spec(text, "lora-ops.yaml")
    _fits_pods(spec)
    return [
        *namespace_manifests(namespace),
        *render_template(
            "serve",
            namespace=namespace,
            image=image,
            text=text,
            text_sha256=hashlib.sha256(text.encode()).hexdigest(),
            processes=[_serve(spec), _control(spec)],
            budgets=budgets,
            ports=_ports(spec),
            blocks=blocks(egress),
        ),
    ]


def reachable(url: str, key: str) -> str:
    """`url`, or a ConfigError naming the spec's `key`: a pod's loopback is its own."""
    if (urlsplit(url).hostname or "") in LOOPBACK:
        raise ConfigError(
            f"{key} is {url}, which no pod can reach.",
            "Name the address at which clusters reach Prefect's API.",
        )
    return url


def _fits_pods(spec: PlatformSpec) -> None:
    reachable(spec.prefect.api_url, "prefect.api_url")
    for name, provider in spec.providers.items():
        reachable(provider.record().url, f"providers.{name}.url")
    if "://" not in spec.store or spec.store.startswith("file:"):
        raise ConfigError(
            f"the store {spec.store} is a folder of one machine.", "Use s3://, gs:// or az:// for `store`."
        )
    probes = spec.rollout.probes
    if probes is not None and not PurePosixPath(probes.config).is_absolute():
        raise ConfigError(
            f"the probe config {probes.config} lies beside lora-ops.yaml, where no pod has it.",
            "Put it and its data into the image, and name it by its absolute path there.",
        )


def _serve(spec: PlatformSpec) -> _Process:
    command = [
        "python",
        "-P",
        "-m",
        "cli.main",
        "serve",
        "--spec",
        SPEC,
        "--host",
        "0.0.0.0",
        "--port",
        "8700",
    ]
    return _Process(
        container="serve",
        command=command,
        env=_env(spec),
        port_name="http",
        port=8700,
        health="/healthz",
        patience=6,
        requests={"cpu": "250m", "memory": "1Gi", "ephemeral-storage": "2Gi"},
        limits={"cpu": "2", "memory": "1Gi", "ephemeral-storage": "2Gi"},
    )


def _control(spec: PlatformSpec) -> _Process:
    command = ["python", "-P", "-m", "prefect", "worker", "start", "--type", "process", "--pool", "control"]
    command += ["--name", "$(POD_NAME)", "--install-policy", "never", "--with-healthcheck"]
    return _Process(
        container="control",
        command=command,
        env={
            **_env(spec),
            "LORA_OPS_STORE": spec.store,
            "LORA_OPS_APP": spec.app,
            "LORA_OPS_WORKER": "$(POD_NAME)",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        },
        port_name="health",
        port=8080,
        health="/health",
        patience=15,
        requests={"cpu": "250m", "memory": "2Gi", "ephemeral-storage": "2Gi"},
        limits={"cpu": "2", "memory": "2Gi", "ephemeral-storage": "2Gi"},
    )


def _env(spec: PlatformSpec) -> dict[str, str]:
    return {
        **scratch_env(),
        "LORA_OPS_HOME": SCRATCH,
        "LORA_OPS_SPEC": SPEC,
        "KUBECONFIG": "/etc/lora-ops-kube/config",
        "PREFECT_API_URL": spec.prefect.api_url,
    }


def _ports(spec: PlatformSpec) -> list[int]:
    urls = [spec.prefect.api_url, *(each.record().url for each in spec.providers.values())]
    registries = [cloud.registry for cloud in spec.clouds.values()]
    registries += [spec.image.repository] if spec.image is not None else []
    # The scheme is only there for the port: a registry without one is asked by HTTPS.
    return sorted({*ports([*urls, *(f"https://{each}" for each in registries if each)]), KUBERNETES_API})
