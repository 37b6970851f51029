"""A cluster's API as it answers, refuses and stays silent: a stand-in HTTP server, a real kubeconfig."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ops.errors import AuthError, ConfigError, ConflictError, NotFoundError, UnreachableError
from lora_ops.pods import Trouble
from tasks.cluster import run_job as run_job_module
from tasks.cluster.client import Cluster
from tasks.cluster.run_job import run_job
from tasks.cluster.watch import ClusterWatch
from tests.tasks.cluster_api import Api, kubeconfig

SEEN = Path(__file__).parents[1] / "lora_ops" / "pods_seen"


@pytest.fixture
def api():
    found = Api()
    yield found
    found.close()


@pytest.fixture
def cluster(api, tmp_path):
    found = Cluster("aws-prod", "team", kubeconfig=kubeconfig(tmp_path, api.url, token="secret"))
    yield found
    found.close()


JOBS = "/apis/batch/v1/namespaces/team/jobs"
PODS = "/api/v1/namespaces/team/pods"
EVENTS = "/api/v1/namespaces/team/events"


def test_no_kubeconfig(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"there is no kubeconfig: .*none does not exist") as caught:
        Cluster("aws-prod", "team").version()
    assert "Set KUBECONFIG" in caught.value.hint


def test_an_unknown_context_is_answered_with_the_nearest(tmp_path):
    path = kubeconfig(tmp_path, "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"no context `aws-prd` in .*kubeconfig") as caught:
        Cluster("aws-prd", "team", kubeconfig=path).version()
    assert caught.value.hint == "Did you mean `aws-prod`?"


@pytest.mark.parametrize("text", ["", "[", "just words", "contexts: [{}]", "apiVersion: v1\nkind: Config\n"])
def test_a_file_that_is_no_kubeconfig(tmp_path, text):
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(ConfigError, match="kubeconfig"):
        Cluster("aws-prod", "team", kubeconfig=path).version()


def test_kubeconfig_may_be_several_files(api, tmp_path, monkeypatch):
    api.on("GET /version", {"gitVersion": "v1.31.4"})
    good = kubeconfig(tmp_path, api.url)
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'none'}:{good}")
    cluster = Cluster("gcp-prod", "team")
    assert cluster.version() == "v1.31.4"
    cluster.close()


def test_the_servers_clock_is_read(api, cluster):
    api.on("GET /version", {"gitVersion": "v1.31.4"})
    server = cluster.server()
    assert server.date is not None
    assert server.date == int(server.date)


def test_credentials_that_are_refused_name_the_tokens_end(api, tmp_path):
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 1_700_000_000}).encode()).decode().rstrip("=")
    cluster = Cluster("aws-prod", "team", kubeconfig=kubeconfig(tmp_path, api.url, token=f"x.{claims}.y"))
    api.refuse("GET /version", 401, "Unauthorized")
    with pytest.raises(AuthError, match="context `aws-prod` refuses your credentials") as caught:
        cluster.version()
    assert caught.value.details == ["Its token ends at 2023-11-14 22:13:20 UTC."]
    assert "Log in again" in caught.value.hint
    kubeconfig(tmp_path, api.url, token="renewed")
    api.on("GET /version", {"gitVersion": "v1"})
    assert cluster.version() == "v1"
    assert api.calls[-1][2]["authorization"] == "Bearer renewed"
    cluster.close()


def test_a_missing_right_names_verb_resource_and_namespace(api, cluster):
    told = 'jobs.batch is forbidden: User "x" cannot list resource "jobs"'
    api.refuse(f"GET {JOBS}", 403, told, reason="Forbidden")
    with pytest.raises(AuthError, match="you may not list jobs in namespace `team`") as caught:
        cluster.jobs()
    assert caught.value.details == [told]
    assert "lora-ops-serve" in caught.value.hint


def test_a_namespace_that_does_not_exist(api, cluster):
    api.refuse(f"POST {JOBS}", 404, 'namespaces "team" not found', reason="NotFound")
    with pytest.raises(NotFoundError, match="no namespace `team`") as caught:
        cluster.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}})
    assert caught.value.hint == "kubectl --context aws-prod create namespace team"
    assert cluster.namespace_labels() is None


def test_a_namespace_that_is_being_deleted(api, cluster):
    told = "unable to create new content in namespace team because it is being terminated"
    api.refuse(f"POST {JOBS}", 403, told)
    with pytest.raises(ConflictError, match="is being deleted"):
        cluster.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}})


def test_a_manifest_that_is_refused_names_its_fields(api, cluster):
    causes = [{"field": "spec.size", "message": "must be positive"}]
    api.refuse(f"POST {JOBS}", 422, "Job is invalid", details={"causes": causes})
    with pytest.raises(ConfigError, match="Job is invalid") as caught:
        cluster.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}})
    assert caught.value.details == ["spec.size: must be positive"]


@pytest.mark.parametrize("code", [429, 500, 503])
def test_an_api_in_trouble_is_away_and_asked_once(api, cluster, code):
    api.on("GET /version", "<html>bad gateway</html>", code=code)
    with pytest.raises(UnreachableError, match=str(code)):
        cluster.version()
    assert len(api.calls) == 1


def test_a_refused_connection(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    cluster = Cluster("aws-prod", "team", kubeconfig=kubeconfig(tmp_path, f"https://127.0.0.1:{port}"))
    with pytest.raises(UnreachableError, match="context `aws-prod` at https://127"):
        cluster.version()
    cluster.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_frozen_api_accepts_and_never_answers(tmp_path, scheme):
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        url = f"{scheme}://127.0.0.1:{frozen.getsockname()[1]}"
        cluster = Cluster("aws-prod", "team", kubeconfig=kubeconfig(tmp_path, url), timeout_s=0.3)
        with pytest.raises(UnreachableError, match=r"does not answer within 0\.3 s"):
            cluster.jobs()
        cluster.close()


def test_a_certificate_that_nobody_vouches_for(tmp_path):
    trustme = pytest.importorskip("cryptography.x509")
    assert trustme
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_self_signed(tmp_path))
    api = Api(context)
    cluster = Cluster("aws-prod", "team", kubeconfig=kubeconfig(tmp_path, api.url))
    with pytest.raises(ConfigError, match="certificate of the API of context `aws-prod`") as caught:
        cluster.version()
    assert "certificate-authority-data" in caught.value.hint
    cluster.close()
    api.close()


def _self_signed(folder: Path) -> Path:
    import datetime as dt
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stranger")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2100, 1, 1, tzinfo=dt.UTC))
        .add_extension(here, critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "server.pem"
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_lists_come_from_the_cache_and_by_label(api, cluster):
    api.on(f"GET {PODS}", {"items": [{"metadata": {"name": "p"}}]})
    assert cluster.pods("a=b,c=d") == [{"metadata": {"name": "p"}}]
    assert api.calls[-1][1] == f"{PODS}?resourceVersion=0&labelSelector=a%3Db%2Cc%3Dd"
    assert api.calls[-1][2]["authorization"] == "Bearer secret"


def test_only_the_metadata_of_a_secret_is_asked_for(api, cluster):
    api.on("GET /api/v1/namespaces/team/secrets/pull", {"metadata": {}})
    assert cluster.exists("secrets", "pull")
    assert "as=PartialObjectMetadata" in api.calls[-1][2]["accept"]
    assert not cluster.exists("secrets", "other")


def test_creating_twice_and_deleting_twice(api, cluster):
    manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}}
    api.on(f"POST {JOBS}", manifest, code=201)
    assert cluster.create(manifest)
    api.refuse(f"POST {JOBS}", 409, "exists", reason="AlreadyExists")
    assert not cluster.create(manifest)
    api.on(f"DELETE {JOBS}/j", {})
    cluster.delete_job("j")
    assert api.calls[-1][3] == {"propagationPolicy": "Background"}
    del api.answers[f"DELETE {JOBS}/j"]
    cluster.delete_job("j")


def test_apply_is_server_side(api, cluster):
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}}
    where = "/apis/rbac.authorization.k8s.io/v1/namespaces/team/roles/r"
    api.on(f"PATCH {where}", role, code=201)
    assert cluster.apply([role]) == ["roles/r created"]
    method, path, headers, body = api.calls[-1]
    assert (method, path, body) == ("PATCH", f"{where}?fieldManager=lora-ops&force=true", role)
    assert headers["content-type"] == "application/apply-patch+yaml"
    api.on(f"PATCH {where}", role)
    assert cluster.apply([role]) == ["roles/r applied"]


def test_a_namespace_that_one_may_not_change_is_left_alone(api, cluster):
    """Nor may they look at it, as a rule; without it the next manifest says so."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}}
    api.refuse("PATCH /api/v1/namespaces/team", 403, "no")
    assert cluster.apply([namespace]) == ["namespaces/team left as it is"]
    api.refuse("PATCH /api/v1/namespaces/team/serviceaccounts/a", 403, "no")
    with pytest.raises(AuthError, match="you may not patch serviceaccounts/a in namespace `team`") as caught:
        cluster.apply([namespace, account])
    assert "administrator" in caught.value.hint


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def seen(name: str) -> dict:
    return json.loads((SEEN / f"{name}.json").read_text())


def script(api: Api, *names: str) -> None:
    documents = [seen(name) for name in names]
    api.on(f"GET {JOBS}", {"items": [each["job"] for each in documents]})
    api.on(f"GET {PODS}", {"items": [pod for each in documents for pod in each["pods"]]})
    api.on(f"GET {EVENTS}", {"items": [event for each in documents for event in each["events"]]})


def test_the_watch_sees_jobs_and_keeps_them_when_the_api_is_gone(api, cluster):
    watch = ClusterWatch("aws", cluster, "lora", every_s=0.01)
    assert watch.snapshot().answered_at is None
    script(api, "unpullable", "good")
    watch.look()
    before = watch.snapshot()
    assert [(job.name, job.active, job.attempt) for job in before.jobs] == [
        ("good", False, 1),
        ("unpullable", True, 1),
    ]
    assert before.jobs[1].sight.trouble is Trouble.IMAGE_PULL
    assert before.jobs[0].created > 1.6e9
    assert "labelSelector=lora-ops%2Fapp%3Dlora" in api.calls[0][1]
    api.on(f"GET {PODS}", "", code=503)
    watch.look()
    after = watch.snapshot()
    assert "cannot answer now" in after.error
    assert (after.jobs, after.answered_at) == (before.jobs, before.answered_at)
    script(api, "good")
    watch.look()
    assert watch.snapshot().error == ""
    assert watch.snapshot().answered_at > before.answered_at


def test_events_are_not_asked_for_while_all_is_well(api, cluster):
    script(api, "running", "good")
    ClusterWatch("aws", cluster, "lora").look()
    assert [call[1].partition("?")[0] for call in api.calls] == [JOBS, PODS]


def test_an_answer_that_is_no_api_does_not_end_the_watch(api, cluster):
    watch = ClusterWatch("aws", cluster, "lora", every_s=0.01)
    api.on(f"GET {JOBS}", "welcome to the hotel's network")
    watch.start()
    until(lambda: bool(watch.snapshot().error))
    script(api, "good")
    until(lambda: watch.snapshot().answered_at is not None)
    watch.stop()
    assert [job.name for job in watch.snapshot().jobs] == ["good"]


def test_a_watch_of_a_frozen_cluster_is_stopped_without_waiting(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        path = kubeconfig(tmp_path, f"http://127.0.0.1:{frozen.getsockname()[1]}")
        watch = ClusterWatch("aws", Cluster("aws-prod", "team", kubeconfig=path, timeout_s=60), "lora")
        watch.start()
        with frozen.accept()[0] as connection:
            connection.recv(1)
            watch.stop()
        assert watch.snapshot().answered_at is None


def test_a_discarded_job_is_deleted_once_the_api_answers(api, cluster):
    script(api, "unpullable")
    watch = ClusterWatch("aws", cluster, "lora")
    watch.discard("unpullable")
    api.on(f"DELETE {JOBS}/unpullable", "", code=503)
    watch.look()
    assert watch.snapshot().error
    api.on(f"DELETE {JOBS}/unpullable", {})
    watch.look()
    watch.look()
    assert [call[0] for call in api.calls].count("DELETE") == 2
    assert watch.snapshot().error == ""


JOB = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "unpullable"}}


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(run_job_module, "POLL_S", 0.01)
    monkeypatch.setattr(run_job_module, "HOPELESS_S", 0.05)


def test_a_job_that_cannot_be_pulled_ends_early_and_is_deleted(api, cluster, hasty):
    document = seen("unpullable")
    script(api, "unpullable")
    api.on(f"POST {JOBS}", JOB, code=201)
    api.on(f"GET {JOBS}/unpullable", document["job"])
    api.on(f"DELETE {JOBS}/unpullable", {})
    said: list[str] = []
    ended = run_job(cluster, JOB, 600, said.append)
    assert (ended.exit_code, ended.sight.trouble, ended.logs) == (None, Trouble.IMAGE_PULL, "")
    assert "cannot be pulled" in said[-1]
    assert api.calls[-1][:2] == ("DELETE", f"{JOBS}/unpullable")


def test_a_job_is_deleted_although_the_api_went_away(api, cluster, hasty):
    api.on(f"POST {JOBS}", JOB, code=201)
    api.answers[f"GET {JOBS}/unpullable"] = [(404, {}), (503, {})]
    api.on(f"DELETE {JOBS}/unpullable", "", code=503)
    said: list[str] = []
    with pytest.raises(UnreachableError, match="cannot answer now"):
        run_job(cluster, JOB, 0.1, said.append)
    assert "left to its own deadline" in said[-1]
