"""A pod of the cloud's own shape, in its stable image: pulled by digest, it tries the store and Prefect."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lora_ops.cloud_spec import CloudSpec, Resources
from lora_ops.errors import LoraOpsError
from lora_ops.pods import Trouble
from tasks.cluster import reach
from tasks.cluster.checks import Check, Subject, failed
from tasks.cluster.client import Cluster
from tasks.cluster.run_job import Ended, run_job
from tasks.manifests import check_job
from tasks.manifests.worker import AUTH_KEY, AUTH_SECRET

LATE_S = 60.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
REMEDIES = {
    Trouble.IMAGE_PULL: "See that the nodes reach the registry; a private one needs `pull_secret`.",
    Trouble.UNSCHEDULABLE: "Look at `node_selector` and `tolerations`, or add nodes.",
    Trouble.OUT_OF_MEMORY: "Raise the cloud's `resources.memory`.",
    Trouble.CONFIG: "Make what is missing, or mend the cloud's entry in lora-ops.yaml.",
    Trouble.DEADLINE: "Look at the pod's log.",
}


def check_pod(subject: Subject, cluster: Cluster, say: Callable[[str], None]) -> Iterator[Check]:
    """Run the probe pod; whether it ran, reached the store, reached Prefect. Nothing of it is left behind."""
    image = subject.image()
    if image is None:
        yield Check("probe pod", "warning", "there is no release yet to run", "Start with `lora-ops up`.")
        return
    mark = f"probe/cloud-check/{secrets.token_hex(8)}"
    try:
        subject.store.create(mark, b"")  # that the pod sees it tells that its store is ours
        ended = run_job(cluster, _job(subject, image, mark), subject.spec.requests.start_deadline, say)
    except LoraOpsError as error:
        yield failed("probe pod", error)
        return
    finally:
        with suppress(LoraOpsError):
            subject.store.delete(mark)
    report = ended.report("store")
    if report is None:
        yield _no_report(ended)
        return
    yield Check("probe pod", "ok", f"ran on {ended.sight.node} in {image}")
    where = {"store": subject.spec.store, "prefect": subject.prefect_api_url}
    for part, url in where.items():
        told = report.get(part) or {}
        found = str(told.get("found", "?"))
        if told.get("ok"):
            yield Check(f"{part} from a pod", "ok", found)
        else:
            remedy = str(told.get("hint") or f"See that pods of this cloud reach {url}.")
            if part == "prefect" and urlsplit(url).hostname in LOOPBACK:
                remedy = "That is the pod itself: set the cloud's `prefect_api_url` to what its pods reach."
            yield Check(f"{part} from a pod", "failed", found, remedy)


def _job(subject: Subject, image: str, mark: str) -> dict[str, Any]:
    command = ["python", "-P", "-c", Path(reach.__file__).read_text(encoding="utf-8")]
    command += [subject.spec.store, subject.prefect_api_url]
    cloud = _small(subject.cloud, subject.spec.requests.start_deadline + LATE_S)
    purpose = f"cloud-check-{secrets.token_hex(3)}"
    job = check_job(subject.name, cloud, subject.spec.app, image, purpose, command, {reach.MARK_ENV: mark})
    del job["metadata"]["labels"]["lora-ops/app"]  # or serve deletes it, as nobody's attempt and no rollout's
    # As attempts get it, from their worker.
    reference = {"name": AUTH_SECRET, "key": AUTH_KEY, "optional": True}
    auth = {"name": "PREFECT_API_AUTH_STRING", "valueFrom": {"secretKeyRef": reference}}
    api = {"name": "PREFECT_API_URL", "value": subject.prefect_api_url}
    job["spec"]["template"]["spec"]["containers"][0]["env"] += [auth, api]
    return job


def _small(cloud: CloudSpec, deadline_s: float) -> CloudSpec:
    """A probe takes no GPU from a training, fits beside it, and ends soon when nobody waits any more."""
    little = Resources(cpu="500m", memory="1Gi", scratch="1Gi", shm="64Mi", gpu=0)
    return cloud.model_copy(update={"resources": little, "deadline": deadline_s})


def _no_report(ended: Ended) -> Check:
    sight = ended.sight
    found = sight.message or "it did not end in time"
    words = ended.logs.strip().splitlines()[-1:]
    remedy = REMEDIES.get(sight.trouble, "Look at the node.") if sight.trouble else "Look at the node."
    return Check("probe pod", "failed", " ".join([found, *words]), remedy)
