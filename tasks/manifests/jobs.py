"""Jobs in the restricted shape: Prefect's base job template for attempts, and plain Jobs for checks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from lora_ops.cloud_spec import CloudSpec
from tasks.manifests.templates import Manifest, render_template

#: Where the image has our code.
CODE = "/opt/lora-ops"
#: The engine in our wrapper; `-P` keeps the folders of the file and of the container off the path.
ENGINE = ["python", "-P", f"{CODE}/tasks/engine.py"]
SCRATCH = "/scratch"
HOME = f"{SCRATCH}/lora-ops"
COMPONENT = "lora-ops/component"
CHECK_DEADLINE_S = 3600
CHECK_TTL_S = 600


def worker_name(name: str) -> str:
    """The Prefect worker of the cloud: one a cluster, and the same one after a restart."""
    return f"{name}-kubernetes"


def job_template(name: str, cloud: CloudSpec, app: str) -> dict[str, Any]:
    """The base job template of the cloud `name`'s Kubernetes work pool.

    A run sets `image`, and may set `env` (merged with the default), `labels` (strings), `name` (a DNS label,
    with which the Job's name begins) and `command` (a list of strings).
    """
    labels = _labels(name, cloud, app, "trainer")
    job = _job(
        cloud, metadata={"generateName": "{{ name }}-", "namespace": cloud.namespace, "labels": labels}
    )
    # Prefect's worker refuses a template without these two here, where they mean nothing.
    job["spec"]["template"]["spec"].update(parallelism=1, completions=1)
    return {
        "job_configuration": {
            "name": "{{ name }}",
            "namespace": cloud.namespace,
            "env": "{{ env }}",
            "labels": "{{ labels }}",
            "job_manifest": job,
        },
        "variables": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "The Job's name begins with it."},
                "image": {"type": "string", "description": "The trainer's image, by digest."},
                "command": {"type": "array", "items": {"type": "string"}, "default": ENGINE},
                "env": {
                    "type": "object",
                    "additionalProperties": {"type": "string"},
                    "default": pod_env(name, cloud, app),
                },
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        },
    }


def check_job(
    name: str,
    cloud: CloudSpec,
    app: str,
    image: str,
    purpose: str,
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Manifest:
    """A Job on the cloud `name` that runs `command` in `image`, in the very shape of an attempt.

    Its name is made of `purpose` (lower case, digits and -) and of `name`: twice the same is one Job.
    """
    job = _job(
        cloud,
        metadata={
            "name": _short(f"{purpose}-{name}"),
            "namespace": cloud.namespace,
            "labels": {**_labels(name, cloud, app, "check"), **(labels or {})},
        },
        container="check",
        image=image,
        command=list(command),
        env=[
            {"name": key, "value": value}
            for key, value in {**pod_env(name, cloud, app), **(env or {})}.items()
        ],
        deadline=min(int(cloud.deadline), CHECK_DEADLINE_S),
        ttl=min(int(cloud.ttl), CHECK_TTL_S),
    )
    return job


def pod_env(name: str, cloud: CloudSpec, app: str) -> dict[str, str]:
    """What every trainer's pod has in its environment; the cloud's own `env` comes last."""
    cache = cloud.volume_path if cloud.volume_claim else HOME
    return {
        **scratch_env(),
        "LORA_OPS_APP": app,
        "LORA_OPS_HOME": HOME,
        "LORA_OPS_CACHE": f"{cache}/cache",
        "LORA_OPS_WORKER": worker_name(name),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "crash",
        **cloud.env,
    }


def scratch_env() -> dict[str, str]:
    """Whatever writes files does so in the scratch volume: the rest of the file system is read-only."""
    return {
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "XDG_CACHE_HOME": f"{SCRATCH}/.cache",
        "PREFECT_HOME": f"{SCRATCH}/prefect",
        "PREFECT_LOGGING_COLORS": "false",
        # Without an API no pod starts a Prefect server of its own.
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PYTHONUNBUFFERED": "1",
        "DO_NOT_TRACK": "1",
        # PyTorch's compiler asks for the user's name, which a bare uid has not.
        "USER": "lora-ops",
    }


def _labels(name: str, cloud: CloudSpec, app: str, component: str) -> dict[str, str]:
    labels = {"lora-ops/app": app, "lora-ops/cloud": name, COMPONENT: component}
    # Azure's webhook hands a workload identity only to pods that ask for it; the others' go by the account.
    return {**labels, "azure.workload.identity/use": "true"} if cloud.provider == "azure" else labels


def _job(cloud: CloudSpec, metadata: Manifest, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "container": "prefect-job",
        "image": "{{ image }}",
        "command": "{{ command }}",
        "env": "{{ env }}",
        "deadline": max(1, int(cloud.deadline)),
        "ttl": int(cloud.ttl),
        "grace": max(1, int(cloud.grace)),
        "tolerations": [each.model_dump(exclude_none=True) for each in cloud.tolerations],
        "resources": _resources(cloud),
    }
    return render_template("job", cloud=cloud, metadata=metadata, **{**values, **changes})[0]


def _resources(cloud: CloudSpec) -> dict[str, str]:
    asked = cloud.resources
    found = {"cpu": asked.cpu, "memory": asked.memory, "ephemeral-storage": asked.scratch}
    if asked.gpu:
        found[asked.gpu_resource] = str(asked.gpu)
    return found


def _short(text: str) -> str:
    """A Job's name becomes a label of its pods: at most 63 characters."""
    return (
        text
        if len(text) <= 63
        else f"{text[:52].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    )
