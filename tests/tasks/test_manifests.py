"""Manifests are valid for many Kubernetes versions, restricted, linted; Jobs say what their cloud does."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ops.cloud_spec import CloudSpec
from tasks import manifests
from tasks.manifests.jobs import ENGINE
from tests import kube_rules
from tests.tasks.made_manifests import (
    FILES,
    IMAGE,
    attempt,
    check,
    cloud_of,
    container_of,
    env_of,
    everything,
    pod_of,
    stored,
)

VERSIONS = ("1.25", "1.29", "1.33", "1.37")


def strings(**options: Any) -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), **options)


labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
clouds = st.builds(
    CloudSpec,
    kind=st.just("kubernetes"),
    context=strings(min_size=1),
    namespace=labels,
    pull_secret=st.none() | labels,
    env_from=st.lists(labels, max_size=2, unique=True).map(tuple),
    env=st.dictionaries(st.from_regex(r"X[A-Z_]{0,9}", fullmatch=True), strings(), max_size=3),
    volume_claim=st.none() | labels,
    volume_path=st.sampled_from(["/data", "/mnt/lora ops"]),
    resources=st.fixed_dictionaries({"gpu": st.integers(0, 8), "cpu": st.sampled_from(["500m", 4])}),
    node_selector=st.dictionaries(labels, strings(max_size=9), max_size=2),
    tolerations=st.lists(
        st.fixed_dictionaries({"key": labels, "operator": st.just("Equal"), "value": strings()}), max_size=2
    ).map(tuple),
    deadline=st.integers(1, 10**6),
    grace=st.integers(0, 900),
    ttl=st.integers(0, 10**5),
)
properties = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# --- the shape ---


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", FILES)
def test_kubernetes_knows_every_key(file: str, version: str) -> None:
    for manifest in everything()[file]:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("file", FILES)
def test_every_pod_is_restricted_and_linted(file: str) -> None:
    pods = [each for each in everything()[file] if kube_rules.pod_spec(each) is not None]
    assert pods
    assert [kube_rules.restricted(pod_of(each)) for each in pods] == [[] for _ in pods]
    assert kube_rules.lint(everything()[file]) == []


@pytest.mark.parametrize("file", FILES)
def test_namespaces_admit_only_restricted_pods(file: str) -> None:
    for manifest in everything()[file]:
        if manifest["kind"] == "Namespace":
            found = manifest["metadata"]["labels"]
            assert {found[f"pod-security.kubernetes.io/{each}"] for each in ("enforce", "audit", "warn")} == {
                "restricted"
            }


@properties
@given(cloud=clouds)
def test_any_cloud_gives_restricted_jobs_that_kubernetes_knows(cloud: CloudSpec) -> None:
    for job in (stored(attempt(cloud)), check(cloud)):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)
        assert kube_rules.restricted(pod_of(job)) == []
        resources = container_of(job)["resources"]
        assert resources["requests"] == resources["limits"]
        assert env_of(job).items() >= cloud.env.items()
        assert pod_of(job).get("nodeSelector", {}) == cloud.node_selector
        assert [each["value"] for each in pod_of(job).get("tolerations", [])] == [
            each.value for each in cloud.tolerations
        ]
        assert yaml.safe_load(manifests.dump([job])) == job


@pytest.mark.parametrize(
    "odd",
    ["\x85", "a\n\u2028b", "\r\n", "\x7f", "\ufeff", "\n", " \n x\n", "é\n😀", "<< x >>", "%", "yes", "0x1"],
)
def test_every_text_comes_through(odd: str) -> None:
    job = check(cloud_of(), env={"ODD": odd})
    assert env_of(job)["ODD"] == odd
    assert yaml.safe_load(manifests.dump([job])) == job


def test_an_attempt_has_what_its_cloud_says() -> None:
    job = attempt(cloud_of(), env={"LORA_OPS_STORE": "s3://bucket", "HOME": "/data/home"}, name="r-1-1")
    spec, pod, container = job["spec"], pod_of(job), container_of(job)
    assert job["metadata"]["generateName"] == "r-1-1-"
    assert job["metadata"]["namespace"] == "lora-ops"
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (43_200, 600)
    assert (spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert pod["terminationGracePeriodSeconds"] == 180
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == "lora-ops-trainer"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["nodeSelector"] == {"gpu": "a100"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert container["image"] == IMAGE
    assert container["command"] == ENGINE
    assert container["args"] == []
    assert container["resources"]["limits"] == {
        "cpu": "4",
        "memory": "16Gi",
        "ephemeral-storage": "50Gi",
        "nvidia.com/gpu": "1",
    }
    assert [each["secretRef"]["name"] for each in container["envFrom"]] == ["store", "wandb"]
    env = env_of(job)
    assert env["LORA_OPS_STORE"] == "s3://bucket"
    assert env["HOME"] == "/data/home", "a run's own variables win"
    assert env["AWS_ENDPOINT_URL"] == "http://minio.example.com:9000"
    assert env["LORA_OPS_CACHE"] == "/data/cache", "the cache is on the shared volume"
    assert env["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "crash"


def test_what_is_written_lies_in_volumes_of_a_limited_size() -> None:
    pod = pod_of(attempt(cloud_of()))
    volumes = {each["name"]: each for each in pod["volumes"]}
    mounts = {each["mountPath"]: volumes[each["name"]] for each in pod["containers"][0]["volumeMounts"]}
    assert mounts["/scratch"]["emptyDir"] == {"sizeLimit": "50Gi"}
    assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert mounts["/tmp"]["emptyDir"]["sizeLimit"]
    assert mounts["/data"] == {"name": "data", "persistentVolumeClaim": {"claimName": "shared"}}
    env = env_of(check(cloud_of("gcp")))
    writable = {
        key: env[key] for key in ("HOME", "TMPDIR", "LORA_OPS_HOME", "LORA_OPS_CACHE", "PREFECT_HOME")
    }
    assert all(f"{path}/".startswith("/scratch/") for path in writable.values()), writable


def test_a_cloud_without_gpus_asks_for_none() -> None:
    assert set(container_of(attempt(cloud_of("gcp")))["resources"]["limits"]) == {
        "cpu",
        "memory",
        "ephemeral-storage",
    }


def test_a_run_s_labels_are_on_the_job_and_on_its_pod_beside_the_cloud_s() -> None:
    job = attempt(cloud_of())
    for found in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        assert found["lora-ops/request"] == "r-1"
        assert found["lora-ops/app"] == "lora-training"
        assert found["lora-ops/cloud"] == "aws"
        assert "prefect.io/flow-run-id" in found


def test_a_check_is_one_job_however_often_it_is_made() -> None:
    once, other = check(cloud_of()), check(cloud_of(), purpose="probe")
    assert once == check(cloud_of())
    assert once["metadata"]["name"] == "self-check-aws"
    assert other["metadata"]["name"] != once["metadata"]["name"]
    assert (
        check(cloud_of(), labels={"lora-ops/rollout": "ro-1"})["metadata"]["labels"].items()
        >= {
            "lora-ops/rollout": "ro-1",
            "lora-ops/component": "check",
        }.items()
    )
    long = [check(cloud_of(), purpose=f"self-check-{'x' * 60}{n}")["metadata"]["name"] for n in range(2)]
    assert len(set(long)) == 2
    assert all(len(each) <= 63 for each in long)
