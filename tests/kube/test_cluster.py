"""The cluster client on a real API server: Jobs to their end, whatever end that is; rights; the watch."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_ops.cloud_spec import CloudSpec, Resources
from lora_ops.errors import AuthError, ConfigError, NotFoundError
from lora_ops.pods import Trouble
from tasks.cluster import run_job as run_job_module
from tasks.cluster.checks import RIGHTS
from tasks.cluster.client import Cluster
from tasks.cluster.kubeconfig import kubeconfig_files
from tasks.cluster.run_job import Ended, run_job
from tasks.cluster.watch import ClusterWatch
from tasks.manifests import check_job, worker_manifests
from tests.kube.regions import BASE, Region, kubectl

APP = "cluster-test"


@pytest.fixture(scope="module")
def region(regions: list[Region]) -> Region:
    return regions[0]


@pytest.fixture(scope="module")
def namespace(region: Region) -> Iterator[str]:
    name = f"cluster-{secrets.token_hex(3)}"
    kubectl(region.context, "create", "namespace", name)
    yield name
    kubectl(region.context, "delete", "namespace", name, "--wait=false")


@pytest.fixture
def cluster(region: Region, namespace: str) -> Iterator[Cluster]:
    found = Cluster(region.context, namespace, timeout_s=20)
    yield found
    found.close()


@pytest.fixture
def job(region: Region, namespace: str) -> Callable[..., dict[str, Any]]:
    """A Job in the restricted shape, with room to spare."""
    little = Resources(cpu="100m", memory="64Mi", scratch="64Mi", shm="16Mi", gpu=0)
    cloud = CloudSpec(
        kind="kubernetes",
        context=region.context,
        namespace=namespace,
        resources=little,
        service_account="default",
        grace=1,
    )

    def make(
        code: str, image: str = BASE, labels: dict[str, str] | None = None, **asked: str
    ) -> dict[str, Any]:
        changed = cloud.model_copy(update={"resources": little.model_copy(update=asked)})
        purpose = f"t-{secrets.token_hex(3)}"
        return check_job("here", changed, APP, image, purpose, ["python", "-c", code], {}, labels or {})

    return make


def run(cluster: Cluster, manifest: dict[str, Any], timeout_s: float = 120) -> Ended:
    said: list[str] = []
    ended = run_job(cluster, manifest, timeout_s, said.append)
    assert cluster.job(manifest["metadata"]["name"]) is None, said
    return ended


def test_who_it_is(cluster):
    server = cluster.server()
    assert server.version.startswith("v1.")
    assert server.date is not None
    assert abs(server.date - time.time()) < 60


def test_a_job_that_succeeds(cluster, job):
    ended = run(cluster, job("print('one'); print('two')"))
    assert (ended.exit_code, ended.logs, ended.ok) == (0, "one\ntwo\n", True)


def test_a_job_that_fails_tells_its_exit_code_and_its_words(cluster, job):
    ended = run(cluster, job("import sys; print('why'); sys.exit(3)"))
    assert (ended.exit_code, ended.sight.trouble, ended.logs) == (3, Trouble.EXITED, "why\n")


def test_a_job_that_needs_too_much_memory(cluster, job):
    ended = run(cluster, job("x = bytes(1) * (500 << 20)"))
    assert ended.sight.trouble is Trouble.OUT_OF_MEMORY
    assert "64Mi" in ended.sight.message


def test_a_job_that_cannot_be_pulled(cluster, job, region, monkeypatch):
    monkeypatch.setattr(run_job_module, "HOPELESS_S", 1.0)
    ended = run(cluster, job("", image=f"{region.registry}/none@sha256:{'ab' * 32}"), 300)
    assert (ended.exit_code, ended.sight.trouble) == (None, Trouble.IMAGE_PULL)
    assert f"{region.registry}/none@sha256:abababababab…" in ended.sight.message


def test_a_job_that_no_node_can_take(cluster, job):
    ended = run(cluster, job("", cpu="1000"), timeout_s=4)
    assert (ended.exit_code, ended.sight.trouble) == (None, Trouble.UNSCHEDULABLE)
    assert "Insufficient cpu" in ended.sight.message


def test_a_job_at_its_deadline(cluster, job):
    manifest = job("import time; time.sleep(600)")
    manifest["spec"]["activeDeadlineSeconds"] = 3
    assert run(cluster, manifest).sight.trouble is Trouble.DEADLINE


def test_a_job_that_somebody_deletes(cluster, job):
    manifest = job("import time; time.sleep(600)")
    name = manifest["metadata"]["name"]
    ended = run_job(cluster, manifest, 120, lambda line: _when_running(cluster, line, name))
    assert (ended.exit_code, ended.sight.trouble) == (None, Trouble.DELETED)


def _when_running(cluster: Cluster, line: str, name: str) -> None:
    if line.endswith("running"):
        cluster.delete_job(name)


def test_a_job_that_a_killed_process_left_is_taken_over(cluster, job):
    manifest = job("print('once')")
    assert cluster.create(manifest)
    assert not cluster.create(manifest)
    assert run(cluster, manifest).logs == "once\n"


def test_there_is_no_namespace(region, job):
    lost = Cluster(region.context, "not-there", timeout_s=20)
    manifest = job("")
    manifest["metadata"]["namespace"] = "not-there"
    with pytest.raises(NotFoundError, match="no namespace `not-there`"):
        lost.create(manifest)
    assert lost.jobs() == []
    assert lost.namespace_labels() is None
    lost.close()


def test_a_manifest_that_the_api_refuses(cluster, job):
    manifest = job("")
    manifest["spec"]["backoffLimit"] = -1
    with pytest.raises(ConfigError, match="greater than or equal to 0"):
        cluster.create(manifest)


def test_the_watch_sees_an_attempt_from_beginning_to_end(cluster, job, region, namespace):
    labels = {"lora-ops/request": "r1", "lora-ops/attempt": "2"}
    manifest = job("import time; time.sleep(600)", labels=labels)
    watch = ClusterWatch("aws", Cluster(region.context, namespace, timeout_s=20), APP, every_s=0.2)
    watch.start()
    try:
        cluster.create(manifest)
        seen = _until(watch, lambda jobs: jobs and jobs[0].sight.phase == "running")
        assert [(each.name, each.request, each.attempt, each.active) for each in seen] == [
            (manifest["metadata"]["name"], "r1", 2, True)
        ]
        assert abs(seen[0].created - time.time()) < 120
        watch.discard(seen[0].name)
        _until(watch, lambda jobs: not jobs)
        assert watch.snapshot().error == ""
    finally:
        watch.stop()
    assert f"watch-{watch.cloud}" not in {thread.name for thread in threading.enumerate()}


def _until(watch: ClusterWatch, holds: Callable[[Any], Any]) -> Any:
    end = time.monotonic() + 90
    while True:
        found = watch.snapshot()
        if found.answered_at is not None and holds(found.jobs):
            return found.jobs
        assert time.monotonic() < end, found
        time.sleep(0.1)


def as_account(cluster: Cluster, account: str, folder: Path) -> Cluster:
    """The same cluster with a token of a service account of the namespace."""
    path = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/{account}/token"
    body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
    answer = kubectl(cluster.context, "create", "--raw", path, "-f", "-", given=body)
    return with_token(cluster, json.loads(answer)["status"]["token"], folder)


def with_token(cluster: Cluster, token: str, folder: Path) -> Cluster:
    document = yaml.safe_load(kubeconfig_files()[0].read_text())
    (context,) = [each for each in document["contexts"] if each["name"] == cluster.context]
    document["users"] = [{"name": context["context"]["user"], "user": {"token": token}}]
    document["contexts"] = [context]
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return Cluster(cluster.context, cluster.namespace, kubeconfig=path, timeout_s=20)


def test_an_account_without_rights(cluster, region, namespace, tmp_path):
    kubectl(region.context, "-n", namespace, "create", "serviceaccount", "nobody")
    nobody = as_account(cluster, "nobody", tmp_path)
    assert not nobody.allowed("list", "jobs", "batch")
    with pytest.raises(AuthError, match=f"you may not list jobs in namespace `{namespace}`") as caught:
        nobody.jobs()
    assert "nobody" in caught.value.details[0]
    nobody.close()


@pytest.mark.parametrize("token", ["wrong", f"x.{base64.urlsafe_b64encode(b'{}').decode()}.y"])
def test_a_token_that_is_not_good(cluster, tmp_path, token):
    stranger = with_token(cluster, token, tmp_path)
    with pytest.raises(AuthError, match="refuses your credentials"):
        stranger.jobs()
    stranger.close()


def test_what_is_rendered_can_be_applied_twice_and_gives_serve_its_rights(
    region, namespace, cluster, tmp_path
):
    cloud = CloudSpec(kind="kubernetes", context=region.context, namespace=namespace)
    manifests = worker_manifests("here", cloud, APP, None, "http://192.0.2.1:4200/api")
    first, second = cluster.apply(manifests), cluster.apply(manifests)
    assert f"namespaces/{namespace} applied" in first  # kubectl made it
    assert "roles/lora-ops-serve created" in first
    assert {line.split()[-1] for line in second} == {"applied"}
    assert (cluster.namespace_labels() or {})["pod-security.kubernetes.io/enforce"] == "restricted"
    assert cluster.exists("serviceaccounts", cloud.service_account)
    serve = as_account(cluster, "lora-ops-serve", tmp_path)
    for resource, group, below, verbs in RIGHTS:
        assert all(serve.allowed(verb, resource, group, below) for verb in verbs), resource
    assert not serve.allowed("get", "secrets")
    with pytest.raises(AuthError, match="you may not patch serviceaccounts"):
        serve.apply(manifests)
    serve.close()
