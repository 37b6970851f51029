"""The manifests on a real API server with RBAC on: they apply, and a token may do what its Role says."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_ops.cloud_spec import CloudSpec
from lora_ops.errors import AuthError
from tasks import manifests
from tasks.cluster.client import Cluster
from tasks.manifests.jobs import COMPONENT
from tests import kube_rules
from tests.kube.regions import Region, kubectl
from tests.tasks.made_manifests import DIGEST, attempt, pod_of, stored

IMAGE = f"127.0.0.1:1/nowhere@{DIGEST}"
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
RESOURCES = {
    "": (
        "pods",
        "pods/log",
        "pods/exec",
        "pods/attach",
        "pods/portforward",
        "pods/eviction",
        "secrets",
        "configmaps",
        "events",
        "services",
        "serviceaccounts",
        "serviceaccounts/token",
        "persistentvolumeclaims",
        "namespaces",
        "nodes",
    ),
    "batch": ("jobs", "jobs/status", "cronjobs"),
    "apps": ("deployments", "replicasets", "daemonsets"),
    "rbac.authorization.k8s.io": ("roles", "rolebindings", "clusterroles", "clusterrolebindings"),
    "networking.k8s.io": ("networkpolicies",),
    "policy": ("podsecuritypolicies", "poddisruptionbudgets"),
}
SEEN = {
    "jobs": {"get", "list", "watch", "create", "delete"},
    "pods": {"get", "list", "watch"},
    "pods/log": {"get"},
}
MAY = {
    "lora-ops-worker": SEEN,
    "lora-ops-serve": {**SEEN, "events": {"list", "watch"}},
    "lora-ops-trainer": {},
}


@pytest.fixture(scope="module")
def region(regions: list[Region]) -> Region:
    return regions[0]


@pytest.fixture(scope="module")
def cloud(region: Region) -> Iterator[CloudSpec]:
    """A namespace of its own with everything applied but a worker that could be pulled."""
    namespace = f"manifests-{secrets.token_hex(3)}"
    cloud = CloudSpec.model_validate(
        {
            "kind": "kubernetes",
            "context": region.context,
            "namespace": namespace,
            "resources": {"gpu": 0, "cpu": "100m", "memory": "64Mi", "scratch": "1Gi", "shm": "16Mi"},
            "env": {"QUOTED": "é \"'\\ \n # {{ x }}"},
            "tolerations": [{"key": "nvidia.com/gpu"}],
            "node_selector": {"nowhere": "to-be-found"},
            "volume_claim": "shared",
        }
    )
    given = manifests.worker_manifests(region.cloud, cloud, "app", IMAGE, "http://prefect.invalid:4200/api")
    try:
        kubectl(region.context, "apply", "-f", "-", given=manifests.dump(given))
        yield cloud
    finally:
        kubectl(region.context, "delete", "namespace", namespace, "--wait=false", check=False)


def signed_in(account: str, region: Region, cloud: CloudSpec, folder: Path) -> Cluster:
    """The cluster as a pod with the token of that service account sees it."""
    path = f"/api/v1/namespaces/{cloud.namespace}/serviceaccounts/{account}/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = json.loads(
        kubectl(region.context, "create", "--raw", path, "-f", "-", given=json.dumps(request))
    )
    config = json.loads(kubectl(region.context, "config", "view", "--raw", "--minify", "-o", "json"))
    config["users"] = [{"name": account, "user": {"token": answer["status"]["token"]}}]
    config["contexts"][0]["context"]["user"] = account
    file = folder / account
    file.write_text(json.dumps(config))
    return Cluster(region.context, cloud.namespace, kubeconfig=file, timeout_s=20)


def named_as_asked(cluster: Cluster, verb: str, resource: str, group: str) -> bool:
    plain, _, sub = resource.partition("/")
    return cluster.allowed(verb, plain, group, sub)


@pytest.mark.parametrize("account", MAY)
def test_a_token_may_do_what_its_role_says_and_nothing_else(
    account: str, region: Region, cloud: CloudSpec, tmp_path: Path
) -> None:
    cluster = signed_in(account, region, cloud, tmp_path)
    asked = [
        (verb, resource, group) for group, found in RESOURCES.items() for resource in found for verb in VERBS
    ]
    allowed = {
        (verb, resource) for verb, resource, group in asked if named_as_asked(cluster, verb, resource, group)
    }
    assert allowed == {(verb, resource) for resource, verbs in MAY[account].items() for verb in verbs}
    elsewhere = Cluster(region.context, "kube-system", kubeconfig=tmp_path / account, timeout_s=20)
    for verb, resource in itertools.product(("get", "list", "create"), ("pods", "secrets", "jobs")):
        assert not named_as_asked(elsewhere, verb, resource, "batch" if resource == "jobs" else "")


def test_a_worker_reads_no_secret_and_nothing_of_other_namespaces(
    region: Region, cloud: CloudSpec, tmp_path: Path
) -> None:
    """Not what the API says of itself, but what it does."""
    cluster = signed_in("lora-ops-worker", region, cloud, tmp_path)
    assert cluster.jobs() == []
    with pytest.raises(AuthError, match="secrets"):
        cluster.listed("secrets")
    with pytest.raises(AuthError, match="secrets"):
        cluster.exists("secrets", "lora-ops-prefect")
    elsewhere = Cluster(region.context, "kube-system", kubeconfig=tmp_path / "lora-ops-worker", timeout_s=20)
    with pytest.raises(AuthError, match="kube-system"):
        elsewhere.pods()


def test_a_job_of_the_worker_s_is_restricted_as_the_api_server_has_it(
    region: Region, cloud: CloudSpec, tmp_path: Path
) -> None:
    cluster = signed_in("lora-ops-worker", region, cloud, tmp_path)
    made: dict[str, Any] = {
        "attempt": attempt(cloud, region.cloud, image=IMAGE),
        "check": manifests.check_job(region.cloud, cloud, "app", IMAGE, "self-check", ["true"]),
    }
    for job in made.values():
        assert cluster.create(job)
    assert not cluster.create(made["check"]), "a second one is the same one"
    names = {
        job["metadata"]["labels"][COMPONENT]: job["metadata"]["name"]
        for job in cluster.listed("jobs", "batch/v1", fresh=True)
    }
    assert set(names) == {"trainer", "check"}
    for kind, job in (("trainer", made["attempt"]), ("check", made["check"])):
        kept = cluster.job(names[kind])
        assert kept is not None
        assert kube_rules.restricted(pod_of(kept)) == []
        assert lost(stored(job)["spec"], kept["spec"]) == []
        cluster.delete_job(names[kind])


def lost(given: Any, kept: Any, where: str = "") -> list[str]:
    """What of `given` an API server did not keep as it was."""
    if isinstance(given, dict):
        if not isinstance(kept, dict):
            return [where]
        return [each for key, value in given.items() for each in lost(value, kept.get(key), f"{where}.{key}")]
    if isinstance(given, list):
        if given == [] and kept is None:
            return []
        if not isinstance(kept, list) or len(kept) != len(given):
            return [where]
        return [each for n, value in enumerate(given) for each in lost(value, kept[n], f"{where}[{n}]")]
    return [] if given == kept else [f"{where}: {given!r} is {kept!r}"]


def test_applied_twice_nothing_changes(region: Region, cloud: CloudSpec) -> None:
    given = manifests.worker_manifests(region.cloud, cloud, "app", IMAGE, "http://prefect.invalid:4200/api")
    answer = kubectl(region.context, "apply", "-f", "-", given=manifests.dump(given))
    assert [line for line in answer.splitlines() if not line.endswith("unchanged")] == []


def test_serve_applies_beside_it(region: Region, cloud: CloudSpec) -> None:
    text = (
        "store: s3://bucket\n"
        "prefect: {api_url: 'http://prefect.invalid/api'}\n"
        "image: {repository: ghcr.io/team/lora-scripts}\n"
        f"clouds: {{aws: {{kind: kubernetes, context: aws, namespace: {cloud.namespace}}}}}\n"
    )
    old = json.loads(kubectl(region.context, "version", "-o", "json"))["serverVersion"]["minor"]
    given = manifests.serve_manifests(text, IMAGE, cloud.namespace, budgets=int(old.rstrip("+")) >= 21)
    answer = kubectl(region.context, "apply", "-f", "-", given=manifests.dump(given))
    assert "deployment.apps/lora-ops-serve created" in answer
    kept = kubectl(region.context, "-n", cloud.namespace, "get", "configmap", "lora-ops-spec", "-o", "json")
    assert json.loads(kept)["data"]["lora-ops.yaml"] == text
