"""Each check of a cloud, found wanting: what it says and what it tells to do."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from subprocess import run

import pytest

from lora_ops.errors import StoreUnavailable, UnreachableError
from lora_ops.pods import PodSight, Trouble
from lora_ops.spec import parse_spec
from tasks.clock import Interval
from tasks.cluster import probe, reach
from tasks.cluster.checks import Check, Subject, check_api, check_registry
from tasks.cluster.client import Cluster
from tasks.cluster.pool import check_pool
from tasks.cluster.probe import check_pod
from tasks.cluster.run_job import Ended
from tasks.cluster.watch import APP
from tasks.store import open_store
from tests.tasks.cluster_api import Api, kubeconfig

DIGEST = "sha256:" + "ab" * 32
SPEC = """\
store: s3://bucket/app
image: {repository: ghcr.io/team/lora-scripts}
clouds:
  aws: {kind: kubernetes, context: aws-prod, namespace: team, registry: "127.0.0.1:9", env_from: [store]}
"""
REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
NS = "/api/v1/namespaces/team"


def now() -> Interval:
    return Interval(time.time() - 0.1, time.time() + 0.1)


def subject(text: str = SPEC, stable: str | None = DIGEST, clock=now, secret: bool = False) -> Subject:
    spec = parse_spec(text, "f")
    return Subject("aws", spec.clouds["aws"], spec, stable, open_store("memory://"), clock, secret)


@pytest.fixture
def api():
    """A cluster with nothing amiss."""
    found = Api()
    found.on("GET /version", {"gitVersion": "v1.31.4"})
    found.on(f"POST {REVIEW}", {"status": {"allowed": True}}, code=201)
    found.on(f"GET {NS}", {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    found.on(f"GET {NS}/serviceaccounts/lora-ops-trainer", {})
    found.on(f"GET {NS}/secrets/store", {})
    found.on(f"GET {NS}/resourcequotas", {"items": []})
    found.on(f"GET {NS}/limitranges", {"items": []})
    yield found
    found.close()


@pytest.fixture
def cluster(api, tmp_path):
    found = Cluster("aws-prod", "team", kubeconfig=kubeconfig(tmp_path, api.url, token="t"))
    yield found
    found.close()


def named(checks, name: str) -> Check:
    (found,) = [each for each in checks if each.name == name]
    return found


def test_all_is_well(cluster):
    checks = list(check_api(subject(), cluster))
    assert {each.status for each in checks} == {"ok"}
    assert len({each.name for each in checks}) == len(checks) == 11


def test_nothing_is_asked_without_a_kubeconfig(tmp_path):
    lost = Cluster("aws-prod", "team", kubeconfig=tmp_path / "none")
    (only,) = check_api(subject(), lost)
    assert (only.name, only.status) == ("kubeconfig", "failed")


def test_nothing_is_asked_of_an_api_that_is_away(api, cluster):
    api.on("GET /version", "", code=503)
    checks = list(check_api(subject(), cluster))
    assert [(each.name, each.status) for each in checks] == [("kubeconfig", "ok"), ("api", "failed")]


def test_an_api_that_goes_away_ends_the_checks(api, cluster):
    api.on(f"GET {NS}", "", code=503)
    checks = list(check_api(subject(), cluster))
    assert (checks[-1].name, checks[-1].status) == ("api", "failed")
    assert "service account" not in {each.name for each in checks}


@pytest.mark.parametrize(
    ("ahead", "status", "words"),
    [
        (0, "ok", "the store's"),
        (-3, "ok", "behind"),
        (20, "warning", "ahead of the store's"),
        (-3600, "failed", "3599 s behind the store's"),
        (3600, "failed", "ahead of"),
    ],
)
def test_the_clusters_clock(cluster, monkeypatch, ahead, status, words):
    monkeypatch.setattr(
        "http.server.BaseHTTPRequestHandler.date_time_string",
        lambda *_: formatdate(1_800_000_000.0 + ahead, usegmt=True),
    )
    found = named(
        check_api(subject(clock=lambda: Interval(1_800_000_000.1, 1_800_000_000.2)), cluster), "clock"
    )
    assert found.status == status
    assert words in found.found
    assert "NTP" in found.remedy or status == "ok"


def test_a_store_whose_time_is_not_known(cluster):
    def away() -> Interval:
        raise StoreUnavailable("the store is away", "Mend it.")

    found = named(check_api(subject(clock=away), cluster), "clock")
    assert (found.status, found.found, found.remedy) == ("failed", "the store is away", "Mend it.")


def test_missing_rights_are_named_with_what_grants_them(api, cluster):
    api.on(f"POST {REVIEW}", {"status": {"allowed": False}}, code=201)
    checks = list(check_api(subject(), cluster))
    found = named(checks, "rights jobs")
    assert found.found == "you may not get, list, watch, create, delete"
    assert "--role=lora-ops-serve" in found.remedy
    assert {each.name for each in checks if each.status == "failed"} == {
        "rights jobs",
        "rights pods",
        "rights pods/log",
        "rights events",
    }
    assert "probe pod tells" in named(checks, "secret store").found
    asked = [call[3]["spec"]["resourceAttributes"] for call in api.calls if call[1] == REVIEW]
    log = {"namespace": "team", "verb": "get", "resource": "pods", "group": "", "subresource": "log"}
    assert log in asked


def test_what_is_not_there_is_told_with_the_command_that_makes_it(api, cluster):
    for path in (NS, f"{NS}/serviceaccounts/lora-ops-trainer", f"{NS}/secrets/store"):
        del api.answers[f"GET {path}"]
    checks = list(check_api(subject(secret=True), cluster))
    assert named(checks, "namespace").found == "there is no team"
    assert "create serviceaccount lora-ops-trainer" in named(checks, "service account").remedy
    assert "create secret generic store" in named(checks, "secret store").remedy
    assert "auth-string=$PREFECT_API_AUTH_STRING" in named(checks, "secret lora-ops-prefect").remedy


def test_a_namespace_that_admits_anything_is_a_warning(api, cluster):
    api.on(f"GET {NS}", {"metadata": {}})
    found = named(check_api(subject(), cluster), "namespace")
    assert (found.status, found.found) == ("warning", "pod security: not enforced")
    assert found.remedy.endswith("team pod-security.kubernetes.io/enforce=restricted")


def test_quotas_and_limits(api, cluster):
    hard = {"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}}
    limit = {"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}}
    api.on(f"GET {NS}/resourcequotas", {"items": [hard]})
    api.on(f"GET {NS}/limitranges", {"items": [limit]})
    checks = list(check_api(subject(), cluster))
    assert named(checks, "quota").status == "warning"
    assert named(checks, "limit range").status == "failed"


def test_a_check_that_breaks_does_not_hide_the_others(api, cluster):
    api.on(f"GET {NS}", {"message": "no"}, code=418)
    checks = list(check_api(subject(), cluster))
    assert named(checks, "namespace").status == "failed"
    assert named(checks, "quota").status == "ok"


def test_no_release_yet(cluster):
    young = subject(stable=None)
    assert check_registry(young).status == "warning"
    (found,) = check_pod(young, cluster, print)
    assert found.status == "warning"


def test_a_registry_that_does_not_answer():
    assert check_registry(subject()).status == "failed"


def pod(monkeypatch, cluster, ended: Ended, of: Subject | None = None) -> list[Check]:
    made: list[dict] = []

    of = of or subject()

    def run_job(_: Cluster, manifest: dict, timeout_s: float, say: object) -> Ended:
        made.append(manifest)
        environment = manifest["spec"]["template"]["spec"]["containers"][0]["env"]
        (mark,) = [each["value"] for each in environment if each["name"] == reach.MARK_ENV]
        of.store.head(mark)
        return ended

    monkeypatch.setattr(probe, "run_job", run_job)
    checks = list(check_pod(of, cluster, print))
    assert of.store.list("probe") == []
    container = made[0]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"127.0.0.1:9/lora-scripts@{DIGEST}"
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert container["command"][-2:] == ["s3://bucket/app", of.prefect_api_url]
    assert made[0]["metadata"]["namespace"] == "team"
    assert made[0]["spec"]["activeDeadlineSeconds"] == 360  # start_deadline, and a minute
    assert APP not in made[0]["metadata"]["labels"]
    return checks


RAN = PodSight("succeeded", node="n1")


def test_a_probe_pod_that_reaches_all(monkeypatch, cluster):
    fine = {"ok": True, "found": "fine", "hint": ""}
    logs = f"warning: a library talks\n{json.dumps({'store': fine, 'prefect': fine})}\n"
    checks = pod(monkeypatch, cluster, Ended(0, logs, RAN))
    assert [(each.name, each.status) for each in checks] == [
        ("probe pod", "ok"),
        ("store from a pod", "ok"),
        ("prefect from a pod", "ok"),
    ]


def test_a_report_whose_log_is_gone(monkeypatch, cluster):
    fine = {"ok": True, "found": "fine", "hint": ""}
    said = replace(RAN, said=json.dumps({"store": fine, "prefect": fine}))
    assert {each.status for each in pod(monkeypatch, cluster, Ended(0, "", said))} == {"ok"}


def test_a_pod_that_looks_for_prefect_in_itself(monkeypatch, cluster):
    report = {
        "store": {"ok": False, "found": "no credentials", "hint": "Give it some."},
        "prefect": {"ok": False, "found": "refused", "hint": ""},
    }
    checks = pod(monkeypatch, cluster, Ended(0, json.dumps(report), RAN))
    assert named(checks, "store from a pod").remedy == "Give it some."
    assert "prefect_api_url" in named(checks, "prefect from a pod").remedy


@pytest.mark.parametrize(
    ("ended", "found", "remedy"),
    [
        (Ended(None, "", PodSight("pending", Trouble.IMAGE_PULL, "No pull.")), "No pull.", "pull_secret"),
        (Ended(None, "", PodSight("pending", Trouble.UNSCHEDULABLE, "No node.")), "No node.", "tolerations"),
        (Ended(1, "a\nb", PodSight("failed", Trouble.EXITED, "Exit 1.")), "Exit 1. b", "Look"),
        (Ended(None, "", PodSight("running")), "it did not end in time", "Look"),
    ],
)
def test_a_probe_pod_without_a_report(monkeypatch, cluster, ended, found, remedy):
    (only,) = pod(monkeypatch, cluster, ended)
    assert (only.status, only.found) == ("failed", found)
    assert remedy in only.remedy


class Prefect:
    api_url = "http://prefect/api"

    def __init__(self, *, ok: bool = True, pool: bool = True, workers: tuple = ()) -> None:
        self._ok, self._pool, self._workers = ok, pool, workers

    def ok(self) -> bool:
        return self._ok

    def has_pool(self, _: str) -> bool:
        return self._pool

    def workers(self, _: str) -> list[tuple[str, str]]:
        return list(self._workers)


@pytest.mark.parametrize(
    ("prefect", "name", "status", "words"),
    [
        (Prefect(ok=False), "work pool", "failed", "does not answer"),
        (Prefect(pool=False), "work pool", "failed", "has no aws"),
        (Prefect(), "worker", "failed", "none has ever polled"),
        (Prefect(workers=(("w", "OFFLINE"),)), "worker", "failed", "w is silent"),
        (Prefect(workers=(("w", "OFFLINE"), ("v", "ONLINE"))), "worker", "ok", "v"),
    ],
)
def test_the_pool_and_its_worker(prefect, name, status, words):
    found = list(check_pool(subject(), prefect))[-1]
    assert (found.name, found.status) == (name, status)
    assert words in found.found


def test_a_worker_that_comes_is_waited_for(monkeypatch):
    prefect = Prefect()
    said: list[str] = []
    monkeypatch.setattr("tasks.cluster.pool.POLL_S", 0.001)

    def say(line: str) -> None:
        said.append(line)
        prefect._workers = (("w", "ONLINE"),)

    assert list(check_pool(subject(), prefect, 60, say))[-1].status == "ok"
    assert said == ["waiting for the worker of aws"]


def test_the_pods_program_runs_by_its_text_alone(tmp_path):
    """As `python -P -c`: no file of ours is where it runs, only the image's packages."""
    api = Api()
    api.on("GET /api/admin/version", '"3.8.8"')
    text = Path(reach.__file__).read_text(encoding="utf-8")
    command = [sys.executable, "-P", "-c", text, f"file://{tmp_path}/store", f"{api.url}/api"]
    done = run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    found = json.loads(done.stdout)
    assert found["store"]["ok"], found
    strange = {**os.environ, reach.MARK_ENV: "probe/cloud-check/1"}
    told = json.loads(
        run(command, capture_output=True, text=True, cwd=tmp_path, check=True, env=strange).stdout
    )
    assert "another store than the platform's" in told["store"]["found"]
    assert "s3://" in told["store"]["hint"]
    assert found["prefect"] == {"ok": True, "found": f"{api.url}/api: version 3.8.8", "hint": ""}
    api.close()
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_what_the_pods_program_cannot_reach(monkeypatch):
    def away(_: str) -> str:
        raise UnreachableError("it is away", "Wait.")

    assert reach.tried(away, "url") == {"ok": False, "found": "url: it is away", "hint": "Wait."}
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:pw")
    api = Api()
    api.on("GET /api/admin/version", '"3"', code=401)
    assert "401" in str(reach.tried(reach.prefect, f"{api.url}/api")["found"])
    assert api.calls[0][2]["authorization"] == "Basic YWRtaW46cHc="
    api.close()
