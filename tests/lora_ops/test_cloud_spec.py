"""Kubernetes clouds and the image in lora-ops.yaml."""

from __future__ import annotations

import pytest

from lora_ops.errors import ConfigError
from lora_ops.spec import parse_spec

EXAMPLE = """\
image: {repository: ghcr.io/team/lora-scripts, base: "nvidia/cuda:12.8.1-runtime-ubuntu24.04"}
insecure_registries: ["10.0.0.7:5000"]
clouds:
  aws-eu-central-1:
    kind: kubernetes
    provider: aws
    context: prod-eu
    namespace: training
    registry: 123.dkr.ecr.eu-central-1.amazonaws.com/team
    size: 3
    resources: {cpu: 500m, memory: 16Gi, gpu: 1}
    node_selector: {pool: gpu}
    tolerations: [{key: nvidia.com/gpu, effect: NoSchedule}]
    pull_secret: registry
    env_from: [store]
    deadline: 12h
  gcp-us-west1: {kind: kubernetes, context: prod-us}
"""
DIGEST = "sha256:" + "a" * 64


def test_every_cloud_pulls_the_same_digest_from_its_own_registry() -> None:
    spec = parse_spec(EXAMPLE, "lora-ops.yaml")
    assert spec.on_kubernetes
    assert spec.image is not None
    repository = spec.image.repository
    aws, gcp = spec.clouds["aws-eu-central-1"], spec.clouds["gcp-us-west1"]
    assert aws.image(repository, DIGEST) == (
        f"123.dkr.ecr.eu-central-1.amazonaws.com/team/lora-scripts@{DIGEST}"
    )
    assert gcp.image(repository, DIGEST) == f"ghcr.io/team/lora-scripts@{DIGEST}"
    assert aws.deadline == 12 * 3600
    assert aws.resources.cpu == "500m"


@pytest.mark.parametrize(
    ("clouds", "told"),
    [
        ("{a: {kind: kubernetes}}", "`clouds.a.context`"),
        ("{a: {kind: kubernetes, context: x}, b: {}}", "`clouds.b.kind`: kubernetes runs images"),
        ("{a: {context: x}}", "`clouds.a.context`: that is a key of `kind: kubernetes`"),
        ("{a: {kind: kubernetes, context: x, namespace: No_Good}}", "`clouds.a.namespace`"),
        ("{a: {kind: kubernetes, context: x, registry: 'https://r'}}", "`clouds.a.registry`"),
        ("{a: {kind: kubernetes, context: x, resources: {memory: lots}}}", "is not a quantity"),
        ("{a: {kind: kubernetes, context: x, volume_path: /tmp}}", "an absolute path of its own"),
    ],
)
def test_what_is_wrong_is_told_at_its_key(clouds: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(f"image: {{repository: r.io/t/x}}\nclouds: {clouds}\n", "lora-ops.yaml")
    assert told in "\n".join([caught.value.message, *caught.value.details])


def test_kubernetes_needs_a_repository() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec("clouds: {a: {kind: kubernetes, context: x}}\n", "lora-ops.yaml")
    assert "image: {repository" in "\n".join([caught.value.message, *caught.value.details])


@pytest.mark.parametrize(
    "repository", ["lora-scripts", "ghcr.io/team/x:latest", f"r.io/x@{DIGEST}", "r.io/X"]
)
def test_a_repository_is_a_whole_name_without_a_tag(repository: str) -> None:
    with pytest.raises(ConfigError):
        parse_spec(f"image: {{repository: '{repository}'}}\nclouds: {{a: {{}}}}\n", "lora-ops.yaml")
