"""Pod Security "restricted" and kube-linter's checks, restated as functions on plain API dicts.

Sources: kubernetes.io/docs/concepts/security/pod-security-standards (restricted, with all of baseline) and
docs.kubelinter.io/#/generated/checks (the defaults, and the optional ones named in `lint`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Dict = Mapping[str, Any]

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SECRET_NAME = re.compile(r"(?i)(secret|passw(or)?d|token|api_?key|auth_string)")
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")


def restricted(pod_spec: Dict) -> list[str]:
    """What Pod Security "restricted" would refuse in this pod's spec."""
    pod = pod_spec.get("securityContext") or {}
    problems = [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if pod_spec.get(key)]
    if pod.get("sysctls"):
        problems.append("sysctls are set")
    if any((pod.get("seLinuxOptions") or {}).get(key) for key in ("user", "role")):
        problems.append("an SELinux user or role is set")
    for volume in pod_spec.get("volumes") or []:
        kinds = set(volume) - {"name"}
        problems += [f"volume {volume.get('name')} is a {kind}" for kind in sorted(kinds - VOLUMES)]
    for container in containers(pod_spec):
        problems += [f"container {container['name']}: {each}" for each in _container(container, pod)]
    return problems


def _container(container: Dict, pod: Dict) -> Iterator[str]:
    own = container.get("securityContext") or {}
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("procMount", "Default") != "Default":
        yield "procMount is set"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield "not all capabilities are dropped"
    if added := set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        yield f"capabilities {sorted(added)} are added"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if own.get("runAsUser", pod.get("runAsUser")) == 0:
        yield "runAsUser is 0"
    if (own.get("appArmorProfile") or pod.get("appArmorProfile") or {}).get("type") == "Unconfined":
        yield "AppArmor is off"
    if (own.get("windowsOptions") or pod.get("windowsOptions") or {}).get("hostProcess"):
        yield "a process of the host"
    profile = own.get("seccompProfile") or pod.get("seccompProfile") or {}
    if profile.get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    yield from (
        f"host port {port['hostPort']}" for port in container.get("ports") or [] if port.get("hostPort")
    )


def lint(manifests: Sequence[Dict]) -> list[str]:
    """kube-linter's complaints about these manifests, which refer to each other."""
    problems: list[str] = []
    for manifest in manifests:
        kind, name = manifest["kind"], _name(manifest)
        found: list[str] = []
        pod = pod_spec(manifest)
        if pod is not None:
            found += _pod(pod, manifests, _namespace(manifest))
            found += _controller(manifest, manifests)
        if kind in ("Role", "ClusterRole"):
            found += _role(manifest)
        if kind in ("RoleBinding", "ClusterRoleBinding"):
            found += _binding(manifest, manifests)
        if kind == "Service":
            found += _service(manifest, manifests)
        if kind == "PodDisruptionBudget":
            found += _budget(manifest, manifests)
        if kind == "ConfigMap":
            found += [
                f"{key} is confidential" for key in manifest.get("data") or {} if SECRET_NAME.search(key)
            ]
        if kind == "Secret":
            found.append("a secret among manifests")
        problems += [f"{kind} {name}: {each}" for each in found]
    return problems


def pod_spec(manifest: Dict) -> Dict | None:
    """The pod's spec of a pod, Job, CronJob, Deployment, StatefulSet or DaemonSet; else None."""
    kind, spec = manifest["kind"], manifest.get("spec") or {}
    if kind == "Pod":
        return spec  # type: ignore[no-any-return]
    if kind == "CronJob":
        return pod_spec({"kind": "Job", "spec": spec["jobTemplate"]["spec"]})
    if kind in ("Job", "Deployment", "StatefulSet", "DaemonSet"):
        return spec["template"]["spec"]  # type: ignore[no-any-return]
    return None


def containers(pod: Dict) -> list[Dict]:
    """All containers of a pod's spec."""
    kinds = ("initContainers", "containers", "ephemeralContainers")
    return [each for kind in kinds for each in pod.get(kind) or []]


def _pod(pod: Dict, manifests: Sequence[Dict], namespace: str) -> Iterator[str]:
    account = pod.get("serviceAccountName", "default")
    if account == "default":
        yield "default-service-account"
    elif not any(
        each["kind"] == "ServiceAccount" and (_namespace(each), _name(each)) == (namespace, account)
        for each in manifests
    ):
        yield f"non-existent-service-account {account}"
    if pod.get("automountServiceAccountToken") is None:
        yield "automountServiceAccountToken is left open"
    isolating = [
        each
        for each in manifests
        if each["kind"] == "NetworkPolicy"
        and _namespace(each) == namespace
        and each["spec"]["podSelector"] == {}
    ]
    if not isolating:
        yield "non-isolated-pod"
    names = {volume["name"] for volume in pod.get("volumes") or []}
    for container in containers(pod):
        for problem in _linted(container, names):
            yield f"container {container['name']}: {problem}"


def _linted(container: Dict, volumes: set[str]) -> Iterator[str]:
    if not DIGEST.fullmatch(container.get("image", "")):
        yield f"latest-tag: {container.get('image')} is no digest"
    security = container.get("securityContext") or {}
    if security.get("readOnlyRootFilesystem") is not True:
        yield "no-read-only-root-fs"
    resources = container.get("resources") or {}
    for kind in ("requests", "limits"):
        asked = resources.get(kind) or {}
        yield from (
            f"unset {kind} {each}" for each in ("cpu", "memory", "ephemeral-storage") if not asked.get(each)
        )
    if (resources.get("requests") or {}).get("memory") != (resources.get("limits") or {}).get("memory"):
        yield "memory is overcommitted"
    names = [each["name"] for each in container.get("env") or []]
    yield from (
        f"duplicate-env-var {each}" for each in sorted({each for each in names if names.count(each) > 1})
    )
    for each in container.get("env") or []:
        if (
            each.get("value")
            and SECRET_NAME.search(each["name"])
            and not each["name"].endswith(("_NAME", "_KEY"))
        ):
            yield f"env-var-secret {each['name']}"
    for mount in container.get("volumeMounts") or []:
        if mount["name"] not in volumes:
            yield f"volume {mount['name']} does not exist"
    if any(each.get("containerPort") == 22 for each in container.get("ports") or []):
        yield "ssh-port"


def _controller(manifest: Dict, manifests: Sequence[Dict]) -> Iterator[str]:
    spec = manifest["spec"]
    if manifest["kind"] == "Job":
        yield from (
            f"{key} is not set"
            for key in ("activeDeadlineSeconds", "ttlSecondsAfterFinished")
            if spec.get(key) is None
        )
        if spec["template"]["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
            yield "job restart-policy"
    if manifest["kind"] != "Deployment":
        return
    labels = spec["template"]["metadata"]["labels"]
    if not _matches(spec["selector"], labels):
        yield "mismatching-selector"
    for container in spec["template"]["spec"]["containers"]:
        if not container.get("livenessProbe"):
            yield f"container {container['name']}: no-liveness-probe"
    if spec.get("replicas", 1) > 1:
        pod = spec["template"]["spec"]
        if not (pod.get("topologySpreadConstraints") or (pod.get("affinity") or {}).get("podAntiAffinity")):
            yield "no-anti-affinity"
        if (spec.get("strategy") or {}).get("type", "RollingUpdate") != "RollingUpdate":
            yield "no-rolling-update-strategy"


def _role(manifest: Dict) -> Iterator[str]:
    if manifest["kind"] == "ClusterRole":
        yield "it is cluster-wide"
    for rule in manifest["rules"]:
        for key in ("apiGroups", "resources", "verbs"):
            if any("*" in each for each in rule.get(key) or []):
                yield f"wildcard-in-rules: {key}"
        resources = {each.partition("/")[0] for each in rule["resources"]}
        if "secrets" in resources:
            yield "access-to-secrets"
        if "pods" in rule["resources"] and {"create", "update", "patch"} & set(rule["verbs"]):
            yield "access-to-create-pods"
        if {"pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers"} & set(
            rule["resources"]
        ):
            yield "access into pods"
        if {"escalate", "bind", "impersonate"} & set(rule["verbs"]):
            yield "rights to more rights"


def _binding(manifest: Dict, manifests: Sequence[Dict]) -> Iterator[str]:
    if manifest["kind"] == "ClusterRoleBinding" or manifest["roleRef"]["kind"] == "ClusterRole":
        yield "cluster-admin-role-binding"
    role = (manifest["roleRef"]["kind"], _namespace(manifest), manifest["roleRef"]["name"])
    if role not in {(each["kind"], _namespace(each), _name(each)) for each in manifests}:
        yield f"there is no {role[0]} {role[2]}"
    for subject in manifest["subjects"]:
        account = ("ServiceAccount", subject.get("namespace"), subject["name"])
        known = {(each["kind"], _namespace(each), _name(each)) for each in manifests}
        if subject["kind"] == "ServiceAccount" and account not in known:
            yield f"non-existent-service-account {subject['name']}"


def _service(manifest: Dict, manifests: Sequence[Dict]) -> Iterator[str]:
    found = list(_selected({"matchLabels": manifest["spec"]["selector"]}, manifests, _namespace(manifest)))
    if not found:
        yield "dangling-service"
    if manifest["spec"].get("type", "ClusterIP") != "ClusterIP":
        yield "exposed-services"
    ports = {
        key
        for each in found
        for container in containers(each["spec"]["template"]["spec"])
        for port in container.get("ports") or []
        for key in (port.get("name"), port["containerPort"])
    }
    yield from (
        f"target port {each.get('targetPort')} does not exist"
        for each in manifest["spec"]["ports"]
        if each.get("targetPort", each["port"]) not in ports
    )


def _budget(manifest: Dict, manifests: Sequence[Dict]) -> Iterator[str]:
    spec = manifest["spec"]
    found = list(_selected(spec["selector"], manifests, _namespace(manifest)))
    if not found:
        yield "dangling pod disruption budget"
    for each in found:
        if spec.get("maxUnavailable") in (0, "0%") or spec.get("minAvailable", 0) >= each["spec"].get(
            "replicas", 1
        ):
            yield "pdb: no pod of it could ever be moved"


def _selected(selector: Dict, manifests: Iterable[Dict], namespace: str) -> Iterator[Dict]:
    for each in manifests:
        near = each["kind"] in ("Deployment", "StatefulSet") and _namespace(each) == namespace
        if near and _matches(selector, each["spec"]["template"]["metadata"]["labels"]):
            yield each


def _matches(selector: Dict, labels: Dict) -> bool:
    wanted = selector.get("matchLabels") or {}
    return bool(wanted) and all(labels.get(key) == value for key, value in wanted.items())


def _name(manifest: Dict) -> str:
    metadata = manifest["metadata"]
    return str(metadata.get("name") or metadata.get("generateName"))


def _namespace(manifest: Dict) -> str:
    return str(manifest["metadata"].get("namespace", ""))
