"""The restated rules find what they are for: each breach, made on purpose, is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tasks.manifests import Manifest
from tests import kube_rules
from tests.tasks.made_manifests import everything, of_kind

Change = Callable[[Any], object]


def container(pod: Manifest) -> Manifest:
    found: Manifest = pod["containers"][0]
    return found


RESTRICTED: dict[str, Change] = {
    "hostNetwork": lambda pod: pod.update(hostNetwork=True),
    "hostPID": lambda pod: pod.update(hostPID=True),
    "sysctls": lambda pod: pod["securityContext"].update(sysctls=[{"name": "a", "value": "b"}]),
    "SELinux": lambda pod: pod["securityContext"].update(seLinuxOptions={"user": "root"}),
    "is a hostPath": lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    "is a nfs": lambda pod: pod["volumes"].append({"name": "x", "nfs": {"server": "a", "path": "/"}}),
    "privileged": lambda pod: container(pod)["securityContext"].update(privileged=True),
    "allowPrivilegeEscalation": lambda pod: container(pod)["securityContext"].pop("allowPrivilegeEscalation"),
    "procMount": lambda pod: container(pod)["securityContext"].update(procMount="Unmasked"),
    "not all capabilities": lambda pod: container(pod)["securityContext"].pop("capabilities"),
    "are added": lambda pod: container(pod)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
    "runAsNonRoot": lambda pod: container(pod)["securityContext"].update(runAsNonRoot=False),
    "runAsUser is 0": lambda pod: pod["securityContext"].update(runAsUser=0),
    "seccomp": lambda pod: container(pod)["securityContext"].update(seccompProfile={"type": "Unconfined"}),
    "AppArmor": lambda pod: pod["securityContext"].update(appArmorProfile={"type": "Unconfined"}),
    "process of the host": lambda pod: pod["securityContext"].update(windowsOptions={"hostProcess": True}),
    "host port": lambda pod: container(pod).update(ports=[{"containerPort": 1, "hostPort": 1}]),
    "container other": lambda pod: pod.update(initContainers=[{"name": "other"}]),
}


@pytest.mark.parametrize("named", RESTRICTED)
def test_what_restricted_refuses_is_found(named: str) -> None:
    pod = copy.deepcopy(of_kind("Deployment", everything()["aws.yaml"])["lora-ops-worker-aws"])
    spec = pod["spec"]["template"]["spec"]
    assert kube_rules.restricted(spec) == []
    RESTRICTED[named](spec)
    assert any(named in each for each in kube_rules.restricted(spec))


def test_a_pod_that_says_nothing_is_not_restricted() -> None:
    assert len(kube_rules.restricted({"containers": [{"name": "c", "image": "x"}]})) == 4


def found(kind: str, name: str, manifests: list[Manifest]) -> Any:
    return of_kind(kind, manifests)[name]


def serve(manifests: list[Manifest]) -> Any:
    return found("Deployment", "lora-ops-serve", manifests)["spec"]


def serve_pod(manifests: list[Manifest]) -> Any:
    return serve(manifests)["template"]["spec"]


def rule(manifests: list[Manifest]) -> Any:
    return found("Role", "lora-ops-worker", manifests)["rules"][0]


LINTED: dict[str, tuple[str, Change]] = {
    "latest-tag": ("serve", lambda given: container(serve_pod(given)).update(image="x:latest")),
    "no-read-only-root-fs": (
        "serve",
        lambda given: container(serve_pod(given))["securityContext"].pop("readOnlyRootFilesystem"),
    ),
    "unset limits memory": (
        "serve",
        lambda given: container(serve_pod(given))["resources"]["limits"].pop("memory"),
    ),
    "memory is overcommitted": (
        "serve",
        lambda given: container(serve_pod(given))["resources"]["requests"].update(memory="1Mi"),
    ),
    "no-liveness-probe": ("serve", lambda given: container(serve_pod(given)).pop("livenessProbe")),
    "env-var-secret": (
        "serve",
        lambda given: container(serve_pod(given))["env"].append({"name": "A_TOKEN", "value": "x"}),
    ),
    "duplicate-env-var": (
        "serve",
        lambda given: container(serve_pod(given))["env"].append({"name": "HOME", "value": "x"}),
    ),
    "does not exist": (
        "serve",
        lambda given: container(serve_pod(given))["volumeMounts"].append({"name": "x", "mountPath": "/x"}),
    ),
    "ssh-port": ("serve", lambda given: container(serve_pod(given))["ports"].append({"containerPort": 22})),
    "default-service-account": ("serve", lambda given: serve_pod(given).pop("serviceAccountName")),
    "non-existent-service-account": ("serve", lambda given: serve_pod(given).update(serviceAccountName="x")),
    "left open": ("serve", lambda given: serve_pod(given).pop("automountServiceAccountToken")),
    "no-anti-affinity": ("serve", lambda given: serve_pod(given).pop("affinity")),
    "no-rolling-update": ("serve", lambda given: serve(given).update(strategy={"type": "Recreate"})),
    "mismatching-selector": ("serve", lambda given: serve(given)["selector"]["matchLabels"].update(a="b")),
    "pdb": ("serve", lambda given: serve(given).update(replicas=1)),
    "dangling-service": (
        "serve",
        lambda given: found("Service", "lora-ops-serve", given)["spec"]["selector"].update(a="b"),
    ),
    "exposed-services": (
        "serve",
        lambda given: found("Service", "lora-ops-serve", given)["spec"].update(type="LoadBalancer"),
    ),
    "target port": (
        "serve",
        lambda given: found("Service", "lora-ops-serve", given)["spec"]["ports"][0].update(targetPort="x"),
    ),
    "confidential": (
        "serve",
        lambda given: found("ConfigMap", "lora-ops-spec", given)["data"].update(password="x"),
    ),
    "a secret among": (
        "serve",
        lambda given: given.append({"kind": "Secret", "metadata": {"name": "x", "namespace": "lora-ops"}}),
    ),
    "non-isolated-pod": (
        "serve",
        lambda given: given.remove(found("NetworkPolicy", "lora-ops-default-deny", given)),
    ),
    "activeDeadlineSeconds": (
        "aws",
        lambda given: found("Job", "self-check-aws", given)["spec"].pop("activeDeadlineSeconds"),
    ),
    "restart-policy": (
        "aws",
        lambda given: found("Job", "self-check-aws", given)["spec"]["template"]["spec"].pop("restartPolicy"),
    ),
    "wildcard-in-rules: verbs": ("aws", lambda given: rule(given).update(verbs=["*"])),
    "wildcard-in-rules: resources": ("aws", lambda given: rule(given).update(resources=["*/log"])),
    "access-to-secrets": ("aws", lambda given: rule(given).update(resources=["secrets"])),
    "access-to-create-pods": ("aws", lambda given: rule(given).update(resources=["pods"])),
    "access into pods": ("aws", lambda given: rule(given).update(resources=["pods/exec"])),
    "rights to more rights": ("aws", lambda given: rule(given).update(verbs=["escalate"])),
    "cluster-admin": (
        "aws",
        lambda given: found("RoleBinding", "lora-ops-worker", given)["roleRef"].update(kind="ClusterRole"),
    ),
    "there is no Role": ("aws", lambda given: given.remove(found("Role", "lora-ops-worker", given))),
    "cluster-wide": ("aws", lambda given: found("Role", "lora-ops-worker", given).update(kind="ClusterRole")),
}


@pytest.mark.parametrize("named", LINTED)
def test_what_the_linter_warns_of_is_found(named: str) -> None:
    file, change = LINTED[named]
    manifests = copy.deepcopy(everything()[f"{file}.yaml"])
    change(manifests)
    assert any(named in each for each in kube_rules.lint(manifests)), kube_rules.lint(manifests)
