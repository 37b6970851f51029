"""The manifests of a cloud's worker, of serve, and of a whole platform."""

from __future__ import annotations

import tomllib

import pytest
import yaml

from lora_ops.errors import ConfigError, NotFoundError, UsageError
from lora_ops.spec import parse_spec
from tasks import manifests
from tasks.manifests import Manifest
from tasks.manifests.templates import FOLDER
from tests.tasks.made_manifests import (
    DIGEST,
    IMAGE,
    SPEC,
    attempt,
    cloud_of,
    container_of,
    env_of,
    everything,
    of_kind,
)

# --- the worker ---


def test_the_worker_may_do_what_prefect_calls_and_no_more() -> None:
    roles = of_kind("Role", everything()["aws.yaml"])
    granted = {
        (role, resource): set(rule["verbs"])
        for role, found in roles.items()
        for rule in found["rules"]
        for resource in rule["resources"]
    }
    seen = {
        "jobs": {"get", "list", "watch", "create", "delete"},
        "pods": {"get", "list", "watch"},
        "pods/log": {"get"},
    }
    assert granted == {
        **{("lora-ops-worker", resource): verbs for resource, verbs in seen.items()},
        **{("lora-ops-serve", resource): verbs for resource, verbs in seen.items()},
        ("lora-ops-serve", "events"): {"list", "watch"},
    }


def test_only_the_worker_has_a_token() -> None:
    assert {
        name: pod["spec"]["template"]["spec"]["automountServiceAccountToken"]
        for file in everything().values()
        for name, pod in of_kind("Deployment", file).items()
    } == {
        "lora-ops-worker-aws": True,
        "lora-ops-worker-gcp": True,
        "lora-ops-serve": False,
        "lora-ops-control": False,
    }
    for file in everything().values():
        for account in of_kind("ServiceAccount", file).values():
            assert account["automountServiceAccountToken"] is False


def test_the_worker_observes_its_own_namespace_and_cloud_only() -> None:
    worker = of_kind("Deployment", everything()["gcp.yaml"])["lora-ops-worker-gcp"]
    env = env_of(worker)
    observer = "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER"
    assert env[f"{observer}_NAMESPACES"] == worker["metadata"]["namespace"] == "team-b"
    filters = dict(each.split("=") for each in env[f"{observer}_ADDITIONAL_LABEL_FILTERS"].split(","))
    assert attempt(cloud_of("gcp"), "gcp")["metadata"]["labels"].items() >= filters.items()
    assert env["PREFECT_API_URL"] == "https://prefect.example.com:4443/api"
    assert worker["spec"]["strategy"] == {"type": "Recreate"}
    assert worker["spec"]["replicas"] == 1


def test_the_worker_s_settings_are_prefect_s() -> None:
    """A misspelt variable would be ignored, and the observer would list the whole cluster."""
    from prefect_kubernetes.settings import KubernetesSettings

    known = {
        f"PREFECT_INTEGRATIONS_KUBERNETES_{part}_{key}".upper()
        for part in ("observer", "worker")
        for key in KubernetesSettings.model_fields[part].annotation.model_fields  # type: ignore[union-attr]
    }
    env = env_of(of_kind("Deployment", everything()["aws.yaml"])["lora-ops-worker-aws"])
    assert {each for each in env if each.startswith("PREFECT_INTEGRATIONS")} <= known


@pytest.mark.parametrize("process", ["lora-ops-worker-aws", "lora-ops-serve", "lora-ops-control"])
def test_no_secret_is_written_down(process: str) -> None:
    deployments = {
        name: each for file in everything().values() for name, each in of_kind("Deployment", file).items()
    }
    env = container_of(deployments[process])["env"]
    secret = next(each for each in env if each["name"] == "PREFECT_API_AUTH_STRING")
    assert secret["valueFrom"]["secretKeyRef"] == {
        "name": "lora-ops-prefect",
        "key": "auth-string",
        "optional": True,
    }


def test_pods_reach_what_they_need_and_never_the_metadata_service() -> None:
    policies = of_kind("NetworkPolicy", everything()["aws.yaml"])
    assert policies["lora-ops-default-deny"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    egress = policies["lora-ops-egress-aws"]["spec"]
    assert egress["podSelector"]["matchLabels"] == {"lora-ops/cloud": "aws"}
    dns, rest = egress["egress"]
    assert {each["port"] for each in dns["ports"]} == {53}
    assert {each["port"] for each in rest["ports"]} == {443, 4443, 9000}
    assert "169.254.0.0/16" in rest["to"][0]["ipBlock"]["except"]
    narrow = manifests.render(parse_spec(SPEC, "x"), IMAGE, egress=["10.0.0.0/8"])["aws.yaml"]
    (_, rest) = of_kind("NetworkPolicy", narrow)["lora-ops-egress-aws"]["spec"]["egress"]
    assert rest["to"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


def test_an_environment_that_only_looks_like_urls_gives_no_ports() -> None:
    odd = cloud_of().model_copy(
        update={"env": {"A": "http://[", "B": "http://x:99999", "C": "https:", "D": ""}}
    )
    found = manifests.worker_manifests("aws", odd, "app", IMAGE, "http://prefect/api")
    (_, rest) = of_kind("NetworkPolicy", found)["lora-ops-egress-aws"]["spec"]["egress"]
    assert [each["port"] for each in rest["ports"]] == [80, 443]


# --- serve ---


def test_serve_reads_the_very_lora_ops_yaml() -> None:
    found = everything()["serve.yaml"]
    assert of_kind("ConfigMap", found)["lora-ops-spec"]["data"] == {"lora-ops.yaml": SPEC}
    for name, deployment in of_kind("Deployment", found).items():
        mounts = {each["mountPath"]: each["name"] for each in container_of(deployment)["volumeMounts"]}
        assert mounts["/etc/lora-ops"] == "spec", name
        assert env_of(deployment)["LORA_OPS_SPEC"] == "/etc/lora-ops/lora-ops.yaml"
    changed = manifests.serve_manifests(SPEC + "# more\n", IMAGE)
    for name, deployment in of_kind("Deployment", changed).items():
        before = of_kind("Deployment", found)[name]["spec"]["template"]["metadata"]["annotations"]
        assert deployment["spec"]["template"]["metadata"]["annotations"] != before, (
            "another spec is another pod"
        )


def test_serve_is_told_its_token_and_two_of_it_run() -> None:
    serve = of_kind("Deployment", everything()["serve.yaml"])["lora-ops-serve"]
    token = next(each for each in container_of(serve)["env"] if each["name"] == "LORA_OPS_TOKEN")
    assert token["valueFrom"] == {"secretKeyRef": {"name": "lora-ops-serve", "key": "token"}}
    assert serve["spec"]["replicas"] == 2
    assert {"0.0.0.0", "8700"} <= set(container_of(serve)["command"])


def test_kubernetes_1_20_gets_no_disruption_budget() -> None:
    assert of_kind("PodDisruptionBudget", everything()["serve.yaml"])
    assert not of_kind("PodDisruptionBudget", manifests.serve_manifests(SPEC, IMAGE, budgets=False))


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("s3://bucket/lora", "file://store", "store"),
        ("s3://bucket/lora", "store", "store"),
        ("https://prefect.example.com:4443", "http://127.0.0.1:4200", "prefect.api_url"),
        ("http://prometheus.example.com", "http://localhost", "providers.prod.url"),
        ("clouds:", "rollout: {probes: {config: probe.yaml}}\nclouds:", "probe.yaml"),
    ],
)
def test_what_no_pod_can_reach_is_refused(old: str, new: str, names: str) -> None:
    assert old in SPEC
    with pytest.raises(ConfigError, match=names):
        manifests.serve_manifests(SPEC.replace(old, new), IMAGE)


# --- the platform ---


def test_each_cloud_pulls_the_same_digest_from_its_own_registry() -> None:
    spec = parse_spec(SPEC, "x")
    images = {
        file: container_of(next(iter(of_kind("Deployment", found).values())))["image"]
        for file, found in manifests.render(spec, IMAGE).items()
    }
    assert images == {
        "aws.yaml": f"123.dkr.ecr.eu-central-1.amazonaws.com/team/lora-scripts@{DIGEST}",
        "gcp.yaml": IMAGE,
    }
    other = manifests.render(spec, f"docker.io/ours/worker@{DIGEST}", only="aws")
    assert list(other) == ["aws.yaml"]
    assert container_of(of_kind("Deployment", other["aws.yaml"])["lora-ops-worker-aws"])["image"] == (
        f"docker.io/ours/worker@{DIGEST}"
    )


def test_without_an_image_everything_but_the_worker_is_there() -> None:
    found = manifests.render(parse_spec(SPEC, "x"), None)["aws.yaml"]
    assert not of_kind("Deployment", found)
    assert {each["kind"] for each in found} == {
        "Namespace",
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "NetworkPolicy",
    }


def test_two_clouds_may_share_a_namespace() -> None:
    """What they have in common is the same to the letter, so that either file may be applied last."""
    spec = parse_spec(SPEC.replace("namespace: team-b, ", ""), "x")
    files = manifests.render(spec, IMAGE)
    keys: dict[tuple[str, str], Manifest] = {}
    for found in files.values():
        for each in found:
            same = keys.setdefault((each["kind"], each["metadata"]["name"]), each)
            assert same == each


def test_the_same_spec_gives_the_same_text() -> None:
    texts = {
        "".join(manifests.dump(each) for each in manifests.render(parse_spec(SPEC, "x"), IMAGE).values())
        for _ in range(2)
    }
    assert len(texts) == 1
    assert list(yaml.safe_load_all(texts.pop())) == [
        each for found in manifests.render(parse_spec(SPEC, "x"), IMAGE).values() for each in found
    ]


def test_bad_input_names_what_is_wrong() -> None:
    spec = parse_spec(SPEC, "x")
    with pytest.raises(NotFoundError, match="awz") as unknown:
        manifests.render(spec, IMAGE, only="awz")
    assert "aws" in unknown.value.hint
    for reference in (
        "ghcr.io/team/lora-scripts:latest",
        "ghcr.io/team/lora-scripts",
        f"@{DIGEST}",
        "x@sha256:1",
    ):
        with pytest.raises(UsageError, match="digest"):
            manifests.render(spec, reference)
    loopback = SPEC.replace(
        "kind: kubernetes, context: gcp",
        'kind: kubernetes, context: gcp, prefect_api_url: "http://localhost/api"',
    )
    with pytest.raises(ConfigError, match=r"clouds\.gcp\.prefect_api_url"):
        manifests.render(parse_spec(loopback, "x"), IMAGE)
    with pytest.raises(ConfigError, match="no manifests"):
        manifests.render(parse_spec("clouds: {east: {}}\n", "x"), IMAGE)


def test_the_image_of_serve_has_one_checkout_s_code_whole() -> None:
    """A folder that is left out would be the trainer image's: another revision's, or none."""
    root = FOLDER.parents[1]
    packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    lines = (FOLDER / "Dockerfile.serve").read_text().splitlines()
    copied = {line.split()[1] for line in lines if line.startswith("COPY ")}
    assert copied == {*packages["packages"], "deployments/kubernetes"}
    admitted = (FOLDER / "Dockerfile.serve.dockerignore").read_text().split()
    assert {line[1:] for line in admitted if line.startswith("!")} == copied
