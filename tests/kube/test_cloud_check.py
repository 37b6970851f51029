"""`cloud add` and `cloud check` on real clusters, with a store and a Prefect that pods reach, or do not."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from lora_ops.spec import parse_spec
from tasks.clock import StoreClock
from tasks.cluster.checks import Check, Subject, check_api
from tasks.cluster.client import Cluster
from tasks.cluster.probe import check_pod
from tasks.manifests import worker_manifests
from tasks.store import open_store
from tests.flows.site import eventually, free_port
from tests.kube.regions import REPOSITORY, Region, kubectl
from tests.kube.site import KubeSite


@pytest.fixture
def subject(regions: list[Region]) -> Iterator[Subject]:
    """A cloud of its own namespace, whose store is a folder of this machine."""
    region = regions[0]
    namespace = f"check-{secrets.token_hex(3)}"
    document = {
        "store": f"file:///tmp/{secrets.token_hex(6)}",
        "image": {"repository": REPOSITORY},
        "clouds": {
            region.cloud: {
                "kind": "kubernetes",
                "context": region.context,
                "namespace": namespace,
                "resources": {"gpu": 0},
            }
        },
    }
    spec = parse_spec(json.dumps(document), "f")
    store = open_store(spec.store)
    clock = StoreClock(store, "check")
    yield Subject(region.cloud, spec.clouds[region.cloud], spec, None, store, clock.now)
    kubectl(region.context, "delete", "namespace", namespace, "--ignore-not-found", "--wait=false")
    clock.close()
    shutil.rmtree(spec.store.removeprefix("file://"))


@pytest.fixture
def cluster(subject: Subject) -> Iterator[Cluster]:
    found = Cluster(str(subject.cloud.context), subject.cloud.namespace, timeout_s=20)
    yield found
    found.close()


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {each.name: each for each in checks}


def apply(subject: Subject, cluster: Cluster) -> None:
    url = subject.prefect_api_url
    cluster.apply(worker_manifests(subject.name, subject.cloud, subject.spec.app, None, url))


def test_an_empty_cluster(subject, cluster):
    found = by_name(check_api(subject, cluster))
    assert found["namespace"].status == found["service account"].status == "failed"
    assert f"lora-ops cloud add {subject.name}" in found["namespace"].remedy
    assert found["api"].status == found["rights jobs"].status == "ok"


def test_a_namespace_that_is_ready_but_too_small(subject, cluster):
    apply(subject, cluster)
    found = by_name(check_api(subject, cluster))
    assert {each.status for each in found.values()} == {"ok"}, found
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {"requests.cpu": "100m"}},
    }
    cluster.apply([quota])
    found = by_name(check_api(subject, cluster))
    assert found["quota"].found == "quota small: requests.cpu 100m is less than one attempt takes"


@pytest.mark.server
def test_a_pod_that_cannot_reach_what_is_on_this_machine(subject, cluster, real_image):
    """The store is a folder here, and Prefect's URL is the pod itself: both are told, in the pod's words."""
    subject = replace(subject, stable=real_image)
    apply(subject, cluster)
    found = by_name(check_pod(subject, cluster, print))
    assert found["probe pod"].status == "ok", found
    assert "another store than the platform's" in found["store from a pod"].found
    assert "prefect_api_url" in found["prefect from a pod"].remedy
    assert cluster.jobs() == []


@pytest.mark.s3
def test_clocks_an_hour_apart(subject, cluster, tmp_path, monkeypatch):
    """The cluster's own clock is that of machines which others use: here the store's is wrong."""
    if shutil.which("faketime") is None and not os.environ.get("LORA_OPS_CI"):
        pytest.skip("Debian's faketime is not installed")
    port = free_port()
    command = ["faketime", "-f", "+1h", sys.executable, "-m", "moto.server", "-p", str(port)]
    with (tmp_path / "moto.log").open("wb") as log:
        moto = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: _answers(url) or None, "the store answers", 60)
        httpx.put(f"{url}/late").raise_for_status()
        for key, value in {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(f"AWS_{key}", value)
        clock = StoreClock(open_store("s3://late/x"), "check")
        wrong = replace(subject, now=clock.now)
        found = by_name(check_api(wrong, cluster))["clock"]
    finally:
        os.killpg(moto.pid, signal.SIGKILL)
        moto.wait()
    assert found.status == "failed"
    assert found.found.endswith("behind the store's")
    assert abs(int(found.found.split()[0]) - 3600) < 30


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.HTTPError:
        return False


@pytest.mark.server
def test_every_cloud_of_a_running_platform_passes(kube: KubeSite):
    done = kube.cli("cloud", "check", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0, document
    assert set(document["clouds"]) == set(kube.regions)
    for name, checks in document["clouds"].items():
        statuses = {each["name"]: each["status"] for each in checks}
        assert set(statuses.values()) == {"ok"}, (name, checks)
        assert {"store from a pod", "prefect from a pod", "worker", "secret lora-ops-prefect"} <= set(
            statuses
        )
        left = kubectl(
            kube.regions[name].context,
            *("-n", kube.namespace, "get", "jobs", "-l", "lora-ops/component=check", "-o", "name"),
        )
        assert left == ""


@pytest.mark.server
def test_adding_a_cloud_again_heals_it(kube: KubeSite):
    """Its worker is gone: `cloud add` without an option brings it back, and changes no line of the spec."""
    name, region = next(iter(kube.regions.items()))
    before = (kube.folder / "lora-ops.yaml").read_text()
    kubectl(region.context, "-n", kube.namespace, "delete", "deployment", f"lora-ops-worker-{name}")
    done = kube.cli("cloud", "add", name, "--json", timeout_s=400)
    checks = {each["name"]: each for each in json.loads(done.stdout)["clouds"][name]}
    assert done.returncode == 0, checks
    assert checks["worker"]["status"] == checks["service"]["status"] == "ok"
    assert (kube.folder / "lora-ops.yaml").read_text() == before
