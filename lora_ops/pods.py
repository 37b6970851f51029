"""What a Job's pod is doing, and what is wrong with it, from the Kubernetes API's own documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

Phase = Literal["none", "pending", "running", "succeeded", "failed"]
Document = Mapping[str, Any]

_PULL = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_CANNOT_START = {"ContainerCannotRun", "StartError"}
_EVICTED = {
    "Evicted",
    "EvictionByEvictionAPI",
    "NodeShutdown",
    "PreemptionByKubeScheduler",
    "PreemptionByScheduler",
    "Preempting",
    "Shutdown",
    "Terminated",
    "TerminationByKubelet",
}
_NODE_LOST = {"NodeLost", "DeletionByTaintManager", "DeletionByPodGC"}
_SIGNALS = {130: "SIGINT", 134: "SIGABRT", 135: "SIGBUS", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}


class Trouble(StrEnum):
    """Why a pod does not run, or did not end well."""

    IMAGE_PULL = "image-pull"
    UNSCHEDULABLE = "unschedulable"
    OUT_OF_MEMORY = "out-of-memory"
    EVICTED = "evicted"
    EXITED = "exited"
    NODE_LOST = "node-lost"
    DEADLINE = "deadline"
    CONFIG = "config"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class PodSight:
    """A Job as its newest pod shows it. `message`: one sentence for people, empty without trouble.

    `phase`: `none` when there is no Job. `image_id`: what the node really runs, as its runtime names it.
    `pod`: its name. `said`: its termination message, which outlives its log: what it wrote there, or the end
    of the log of one that failed.
    """

    phase: Phase
    trouble: Trouble | None = None
    message: str = ""
    exit_code: int | None = None
    image_id: str = ""
    node: str = ""
    pod: str = ""
    said: str = ""

    @property
    def over(self) -> bool:
        """Whether its pod has ended, well or not."""
        return self.phase in ("succeeded", "failed")


def read_job(job: Document, pods: Sequence[Document], events: Sequence[Document]) -> PodSight:
    """The Job's sight from the API's documents; never raises, whatever they lack.

    `pods` and `events` may be those of the whole namespace: other Jobs' are left out.
    """
    if not _text(job, "metadata", "name"):
        return PodSight("none")
    own = [pod for pod in pods if _belongs(pod, job)]
    pod: Document = max(own, key=_age, default={})
    told = sorted((event for event in events if _about(event, job, pod)), key=_event_time, reverse=True)
    container = _container(pod)
    terminated = _mapping(container, "state", "terminated")
    code = terminated.get("exitCode")
    trouble, message = _trouble(job, pod, told)
    return PodSight(
        phase=_phase(job, pod),
        trouble=trouble,
        message=message,
        exit_code=code if isinstance(code, int) else None,
        image_id=_text(container, "imageID").removeprefix("docker-pullable://"),
        node=_text(pod, "spec", "nodeName"),
        pod=_text(pod, "metadata", "name"),
        said=_text(terminated, "message"),
    )


def needs_events(job: Document, pods: Sequence[Document]) -> bool:
    """Whether events could tell more than the Job and its pods: it is neither running well nor done."""
    sight = read_job(job, pods, ())
    if sight.phase == "running":
        own = [pod for pod in pods if _belongs(pod, job)]
        return _unready(max(own, key=_age, default={}))
    return sight.phase in ("pending", "failed")


def _phase(job: Document, pod: Document) -> Phase:
    if _condition(job, "Complete"):
        return "succeeded"
    if _condition(job, "Failed"):
        return "failed"
    seen = _text(pod, "status", "phase")
    if seen == "Succeeded":
        return "succeeded"
    if seen == "Failed":
        return "failed"
    return "running" if seen in ("Running", "Unknown") else "pending"


def _trouble(job: Document, pod: Document, events: Sequence[Document]) -> tuple[Trouble | None, str]:
    """The first that is true: what ended the pod, who ended it, what it waits for."""
    if _phase(job, pod) == "succeeded":
        return None, ""
    for look in (_deadline, _ended_by_cluster, _ended_by_itself, _deleted, _node_away, _waiting, _not_made):
        found = look(job, pod, events)
        if found is not None:
            return found
    return None, ""


Found = tuple[Trouble, str] | None


def _deadline(job: Document, pod: Document, events: Sequence[Document]) -> Found:
    if "DeadlineExceeded" in (_reason(job, "Failed"), _text(pod, "status", "reason")):
        limit = _mapping(job, "spec").get("activeDeadlineSeconds")
        after = f" of {limit} s" if isinstance(limit, int) else ""
        return Trouble.DEADLINE, f"It was ended at its deadline{after}."
    return None


def _ended_by_cluster(job: Document, pod: Document, events: Sequence[Document]) -> Found:
    target = _condition(pod, "DisruptionTarget")
    reasons = {_text(pod, "status", "reason"), _text(target, "reason")} - {""}
    why = _text(pod, "status", "message") or _text(target, "message")
    node = _text(pod, "spec", "nodeName") or "?"
    marked = any(_text(event, "reason") == "TaintManagerEviction" for event in events)
    if reasons & _NODE_LOST or (marked and _deletion(pod) is not None):
        return Trouble.NODE_LOST, _sentence(f"The node {node} was lost", why)
    if reasons & _EVICTED:
        return Trouble.EVICTED, _sentence(f"It was evicted from node {node}", why)
    if _text(pod, "status", "phase") == "Failed" and reasons and not _container(pod):
        return Trouble.EVICTED, _sentence(f"Node {node} refused it ({', '.join(sorted(reasons))})", why)
    return None


def _ended_by_itself(job: Document, pod: Document, events: Sequence[Document]) -> Found:
    container = _container(pod)
    ended = _mapping(container, "state", "terminated")
    if not ended:
        return None
    if ended.get("reason") == "OOMKilled":
        limit = _text(_container_spec(pod, container), "resources", "limits", "memory")
        of = f" of {limit}" if limit else ""
        return Trouble.OUT_OF_MEMORY, f"It needed more than its memory limit{of} and was killed."
    if ended.get("reason") in ("ContainerStatusUnknown", "Unknown"):  # what a kubelet says after a reboot
        return Trouble.NODE_LOST, f"The node {_text(pod, 'spec', 'nodeName') or '?'} lost it."
    if ended.get("reason") in _CANNOT_START:
        return Trouble.CONFIG, _sentence("Its command cannot be started", _text(ended, "message"))
    code = ended.get("exitCode")
    if not isinstance(code, int) or code == 0 or _cut_off(pod, ended):
        return None
    signal = f" ({_SIGNALS[code]})" if code in _SIGNALS else ""
    return Trouble.EXITED, f"It ended with exit code {code}{signal}."


def _deleted(job: Document, pod: Document, events: Sequence[Document]) -> Found:
    if _deletion(job) is not None:
        return Trouble.DELETED, "Its Job was deleted."
    if _deletion(pod) is not None:
        return Trouble.DELETED, "Its pod was deleted."
    if not pod and _condition(job, "Failed"):
        return Trouble.DELETED, _sentence("Its pod is gone", _text(_condition(job, "Failed"), "message"))
    return None


def _node_away(job: Document, pod: Document, events: Sequence[Document]) -> Found:
    node = _text(pod, "spec", "nodeName") or "?"
    silent = any(_text(event, "reason") == "NodeNotReady" for event in events)
    if _text(pod, "status", "phase") == "Unknown" or (silent and _unready(pod)):
        return Trouble.NODE_LOST, f"The node {node} does not answer any more."
    return None


def _waiting(job: Document, pod: Document, events: Sequence[Document]) -> Found:
    if _text(pod, "status", "phase") not in ("Pending", "Running"):
        return None
    for container in _containers(pod):
        waiting = _mapping(container, "state", "waiting")
        reason = _text(waiting, "reason")
        if reason in _PULL:
            image = _text(container, "image") or "?"
            return Trouble.IMAGE_PULL, _pull_message(image, reason, _text(waiting, "message"), events)
        if reason in _CONFIG:
            what = "Its container cannot be made"
            return Trouble.CONFIG, _sentence(what, _text(waiting, "message") or reason)
    scheduled = _condition(pod, "PodScheduled", "False")
    if scheduled.get("reason") == "Unschedulable":
        return Trouble.UNSCHEDULABLE, _sentence("No node can take it", _text(scheduled, "message"))
    for event in events:  # the newest first
        if _text(event, "reason") in ("Pulling", "Pulled", "Created", "Started"):
            break  # its volumes are mounted
        if _text(event, "reason") in ("FailedMount", "FailedAttachVolume") and not _started(pod):
            return Trouble.CONFIG, _sentence("A volume cannot be mounted", _text(event, "message"))
    return None


def _not_made(job: Document, pod: Document, events: Sequence[Document]) -> Found:
    """The Job's controller may not make the pod at all: a quota, a policy, a missing service account."""
    if pod:
        return None
    for event in events:
        if _text(event, "reason") == "FailedCreate":
            why = _text(event, "message").removeprefix("Error creating: ")
            trouble = Trouble.UNSCHEDULABLE if "exceeded quota" in why else Trouble.CONFIG
            return trouble, _sentence("Its pod cannot be made", why)
    return None


def _pull_message(image: str, reason: str, told: str, events: Iterable[Document]) -> str:
    """The registry's own words, which the back-off hides: they are in the state before it, or in an event."""
    for text in (told, *(_text(event, "message") for event in events)):
        if "Failed to pull image" in text or (text == told and text and not text.startswith("Back-off")):
            words = re.split(rf"{re.escape(image)}[\"']?:?\s*", text)[-1]
            words = re.sub(r"^(rpc error: code = \w+ desc = )+", "", words)
            return _sentence(f"The image {image} cannot be pulled", words or reason)
    return _sentence(f"The image {image} cannot be pulled", reason)


def _cut_off(pod: Document, ended: Document) -> bool:
    """Whether the container ended because its pod was being deleted, not before."""
    end, deleted = _moment(ended, "finishedAt"), _deletion(pod)
    return deleted is not None and (end is None or end >= deleted)


def _deletion(thing: Document) -> float | None:
    """When the deletion was asked for: its timestamp is the end of the grace, whole seconds."""
    end = _moment(_mapping(thing, "metadata"), "deletionTimestamp")
    grace = _mapping(thing, "metadata").get("deletionGracePeriodSeconds")
    return None if end is None else end - (grace if isinstance(grace, int) else 0)


def _containers(pod: Document) -> list[Document]:
    """Statuses of the init containers and of the containers, the main one first among these."""
    names = [_text(each, "name") for each in _list(pod, "spec", "containers")]
    order = {name: place for place, name in reversed(list(enumerate(names)))}
    own = sorted(
        _list(pod, "status", "containerStatuses"), key=lambda each: order.get(_text(each, "name"), 99)
    )
    return [*_list(pod, "status", "initContainerStatuses"), *own]


def _container(pod: Document) -> Document:
    """The status of the main container: the first of the pod's spec; sidecars are injected behind it."""
    own = _containers({**pod, "status": {**_mapping(pod, "status"), "initContainerStatuses": []}})
    return own[0] if own else {}


def _container_spec(pod: Document, container: Document) -> Document:
    name = _text(container, "name")
    return next((each for each in _list(pod, "spec", "containers") if _text(each, "name") == name), {})


def _started(pod: Document) -> bool:
    return any(_mapping(each, "state", "running") for each in _containers(pod))


def _unready(pod: Document) -> bool:
    return bool(pod) and bool(_condition(pod, "Ready", "False"))


def _belongs(pod: Document, job: Document) -> bool:
    owners = {_text(each, "uid") for each in _list(pod, "metadata", "ownerReferences")} - {""}
    uid = _text(job, "metadata", "uid")
    if uid and owners:
        return uid in owners
    labels = _mapping(pod, "metadata", "labels")
    label = labels.get("batch.kubernetes.io/job-name") or labels.get("job-name")
    return label is not None and label == _text(job, "metadata", "name")


def _about(event: Document, job: Document, pod: Document) -> bool:
    uid = _text(event, "involvedObject", "uid")
    return bool(uid) and uid in (_text(job, "metadata", "uid"), _text(pod, "metadata", "uid"))


def _condition(thing: Document, kind: str, status: str = "True") -> Document:
    for each in _list(thing, "status", "conditions"):
        if each.get("type") == kind and each.get("status") == status:
            return each
    return {}


def _reason(thing: Document, kind: str) -> str:
    return _text(_condition(thing, kind), "reason")


def _age(pod: Document) -> tuple[float, bool, str]:
    """Greater for the newer one. Times are whole seconds: of two, the one that stays is the newer."""
    meta = _mapping(pod, "metadata")
    return _moment(meta, "creationTimestamp") or 0.0, _deletion(pod) is None, _text(meta, "name")


def _event_time(event: Document) -> float:
    times = (_moment(event, "lastTimestamp"), _moment(event, "eventTime"))
    return next((each for each in times if each is not None), 0.0)


def _moment(thing: Document, key: str) -> float | None:
    """An RFC 3339 time as seconds since the epoch."""
    try:
        moment = datetime.fromisoformat(str(thing.get(key)))
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None


def _sentence(what: str, why: str) -> str:
    """`what: why.` on one line, digests as people compare them."""
    words = " ".join(why.split()).rstrip(".:; ")
    whole = f"{what}: {words}." if words else f"{what}."
    return re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}", r"\1…", whole)


def _mapping(thing: Any, *path: str) -> Document:
    for key in path:
        thing = thing.get(key) if isinstance(thing, Mapping) else None
    return thing if isinstance(thing, Mapping) else {}


def _list(thing: Document, *path: str) -> list[Document]:
    found = _mapping(thing, *path[:-1]).get(path[-1])
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def _text(thing: Document, *path: str) -> str:
    found = _mapping(thing, *path[:-1]).get(path[-1])
    return found if isinstance(found, str) else ""
