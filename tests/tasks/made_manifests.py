"""A platform of two clouds, its manifests, and the Jobs that Prefect's worker makes of its templates."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

from lora_ops.cloud_spec import CloudSpec
from lora_ops.spec import parse_spec
from tasks import manifests
from tasks.manifests import Manifest
from tests import kube_rules

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
IMAGE = f"ghcr.io/team/lora-scripts@{DIGEST}"
FILES = ("aws.yaml", "gcp.yaml", "serve.yaml")
SPEC = """\
app: lora-training
store: s3://bucket/lora
prefect: {api_url: "https://prefect.example.com:4443/api"}
image: {repository: ghcr.io/team/lora-scripts}
providers: {prod: {url: "http://prometheus.example.com:9090"}}
clouds:
  aws:
    kind: kubernetes
    context: aws
    registry: 123.dkr.ecr.eu-central-1.amazonaws.com/team
    pull_secret: pull
    env_from: [store, wandb]
    env: {AWS_ENDPOINT_URL: "http://minio.example.com:9000"}
    volume_claim: shared
    node_selector: {gpu: a100}
    tolerations: [{key: nvidia.com/gpu, effect: NoSchedule}]
    deadline: 12h
    grace: 3m
    ttl: 10m
  gcp: {kind: kubernetes, context: gcp, namespace: team-b, resources: {gpu: 0}}
"""


def attempt(cloud: CloudSpec, name: str = "aws", /, **variables: Any) -> Manifest:
    """The Job that Prefect's own worker makes of the base job template for one run."""
    from prefect.client.schemas.objects import FlowRun
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    class Nobody:
        """A client that is never asked: no block or variable is referred to."""

    values = {"image": IMAGE, "labels": {"lora-ops/request": "r-1"}, **variables}
    configuration = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(
            manifests.job_template(name, cloud, "lora-training"), values, client=Nobody()
        )
    )
    run = FlowRun.model_validate({"flow_id": "11111111-1111-1111-1111-111111111111", "name": "fine-cat"})
    configuration.prepare_for_flow_run(run, worker_name=manifests.worker_name(name))
    job: Manifest = configuration.job_manifest
    return job


def stored(job: Manifest) -> Manifest:
    """As an API server keeps it: without two keys that Prefect wants where Kubernetes has none."""
    pod = {k: v for k, v in pod_of(job).items() if k not in ("parallelism", "completions")}
    template = {**job["spec"]["template"], "spec": pod}
    return {**job, "spec": {**job["spec"], "template": template}}


def pod_of(manifest: Manifest) -> Manifest:
    found = kube_rules.pod_spec(manifest)
    assert found is not None
    return dict(found)


def container_of(manifest: Manifest) -> Manifest:
    (only,) = pod_of(manifest)["containers"]
    return dict(only)


def env_of(manifest: Manifest) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container_of(manifest)["env"] if "value" in each}


def cloud_of(name: str = "aws") -> CloudSpec:
    return parse_spec(SPEC, "lora-ops.yaml").clouds[name]


def check(cloud: CloudSpec, **changes: Any) -> Manifest:
    return manifests.check_job(
        **{
            "name": "aws",
            "cloud": cloud,
            "app": "lora-training",
            "image": IMAGE,
            "purpose": "self-check",
            "command": ["python", "-P", "-m", "tasks.image_check"],
            **changes,
        }
    )


def of_kind(kind: str, found: list[Manifest]) -> dict[str, Manifest]:
    """The manifests of that kind, by name."""
    named = [each for each in found if each["kind"] == kind and "name" in each["metadata"]]
    return {each["metadata"]["name"]: each for each in named}


@cache
def everything() -> dict[str, list[Manifest]]:
    """File by file what is applied together, with an attempt's Job and a check's in those of a cloud."""
    spec = parse_spec(SPEC, "lora-ops.yaml")
    files = {"serve.yaml": manifests.serve_manifests(SPEC, IMAGE)}
    for file, found in manifests.render(spec, IMAGE).items():
        name = file.removesuffix(".yaml")
        cloud = spec.clouds[name]
        files[file] = [*found, stored(attempt(cloud, name)), check(cloud, name=name)]
    return files
