"""Sights from what a real cluster answered (`pods_seen/`, Kubernetes 1.20) and newer ones would."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.pods import PodSight, Trouble, needs_events, read_job

SEEN = Path(__file__).with_name("pods_seen")


def seen(name: str) -> dict[str, Any]:
    return json.loads((SEEN / f"{name}.json").read_text())


def sight(document: dict[str, Any]) -> PodSight:
    return read_job(document["job"], document["pods"], document["events"])


NONE = "127.0.0.1:5001/none@sha256:abababababab…"


@pytest.mark.parametrize(
    ("name", "phase", "trouble", "code", "message"),
    [
        ("good", "succeeded", None, 0, ""),
        ("running", "running", None, None, ""),
        ("exit-three", "failed", Trouble.EXITED, 3, "It ended with exit code 3."),
        (
            "out-of-memory",
            "failed",
            Trouble.OUT_OF_MEMORY,
            137,
            "It needed more than its memory limit of 64Mi and was killed.",
        ),
        ("unpullable", "pending", Trouble.IMAGE_PULL, None, f"The image {NONE} cannot be pulled: not found."),
        (
            "unschedulable",
            "pending",
            Trouble.UNSCHEDULABLE,
            None,
            "No node can take it: 0/1 nodes are available: 1 Insufficient cpu.",
        ),
        (
            "no-gpu",
            "pending",
            Trouble.UNSCHEDULABLE,
            None,
            "No node can take it: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        ),
        ("deadline", "failed", Trouble.DEADLINE, None, "It was ended at its deadline of 15 s."),
        ("deadline-over", "failed", Trouble.DEADLINE, None, "It was ended at its deadline of 15 s."),
        (
            "no-secret",
            "pending",
            Trouble.CONFIG,
            None,
            'Its container cannot be made: secret "not-there" not found.',
        ),
        ("job-being-deleted", "running", Trouble.DELETED, None, "Its Job was deleted."),
    ],
)
def test_what_a_cluster_answered(name, phase, trouble, code, message):
    found = sight(seen(name))
    assert (found.phase, found.trouble, found.exit_code, found.message) == (phase, trouble, code, message)


@pytest.mark.parametrize(
    ("name", "trouble", "words"),
    [
        ("no-registry", Trouble.IMAGE_PULL, "dial tcp 127.0.0.1:5999: connect: connection refused."),
        ("no-command", Trouble.CONFIG, 'exec: "/not/there": stat /not/there: no such file or directory'),
        ("no-account", Trouble.CONFIG, 'serviceaccount "not-there" not found.'),
        ("no-volume", Trouble.CONFIG, 'secret "not-there" not found.'),
        ("over-quota", Trouble.UNSCHEDULABLE, "exceeded quota: small, requested: requests.cpu=3k"),
        ("evicted", Trouble.EVICTED, 'volume "scratch" exceeds the limit "1Mi".'),
    ],
)
def test_the_cause_is_in_the_sentence(name, trouble, words):
    found = sight(seen(name))
    assert found.trouble is trouble
    assert words in found.message


def test_node_and_image_are_told():
    found = sight(seen("good"))
    assert found.node == "aws-node"
    assert found.image_id.startswith("127.0.0.1:5000/base/python@sha256:")


def test_there_is_no_job():
    assert read_job({}, [], []) == PodSight("none")


def test_the_newest_pod_counts():
    """1.20 makes a new pod for one that was deleted, whatever the Job's `backoffLimit`."""
    document = seen("pod-being-deleted")
    old, new = sorted(document["pods"], key=lambda pod: "deletionTimestamp" not in pod["metadata"])
    assert old["metadata"]["deletionTimestamp"]
    assert sight(document).trouble is None
    alone = read_job(document["job"], [old], [])
    assert (alone.trouble, alone.message) == (Trouble.DELETED, "Its pod was deleted.")
    for name in ("a", "z"):  # times are whole seconds
        new["metadata"].update(name=name, creationTimestamp=old["metadata"]["creationTimestamp"])
        for pods in ([old, new], [new, old]):
            assert read_job(document["job"], pods, []).trouble is None


def test_other_jobs_pods_and_events_are_left_out():
    good, bad = seen("good"), seen("exit-three")
    mixed = read_job(good["job"], bad["pods"] + good["pods"], bad["events"] + good["events"])
    assert mixed == sight(good)
    unowned = copy.deepcopy(bad["pods"])
    for pod in unowned:
        del pod["metadata"]["ownerReferences"]
    assert read_job(good["job"], unowned, []).exit_code is None
    assert read_job(bad["job"], unowned, []).exit_code == 3


def test_the_registrys_words_survive_the_back_off():
    document = seen("unpullable")
    waiting = document["pods"][0]["status"]["containerStatuses"][0]["state"]["waiting"]
    waiting.update(reason="ImagePullBackOff", message='Back-off pulling image "127.0.0.1:5001/none"')
    assert sight(document).message == f"The image {NONE} cannot be pulled: not found."
    document["events"] = []
    assert sight(document).message == f"The image {NONE} cannot be pulled: ImagePullBackOff."


def test_an_exit_before_the_deletion_is_the_trainers():
    document = seen("exit-three")
    pod = document["pods"][0]
    end = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    end["finishedAt"] = "2026-11-23T12:00:10Z"
    pod["metadata"].update(deletionTimestamp="2026-11-23T12:01:00Z", deletionGracePeriodSeconds=30)
    assert sight(document).trouble is Trouble.EXITED
    end["finishedAt"] = "2026-11-23T12:00:30Z"
    assert sight(document).trouble is Trouble.DELETED


def test_a_killed_trainer_is_told_by_its_signal():
    document = seen("exit-three")
    document["pods"][0]["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] = 139
    assert sight(document).message == "It ended with exit code 139 (SIGSEGV)."


def test_a_sidecar_does_not_hide_the_trainer():
    document = seen("exit-three")
    pod = document["pods"][0]
    pod["spec"]["containers"].append({"name": "aaa-mesh"})
    mesh = {"name": "aaa-mesh", "state": {"running": {}}}
    pod["status"]["containerStatuses"].insert(0, mesh)
    assert sight(document).exit_code == 3


# Made by hand after the API's reference: a cluster that others use cannot lose its node for a recording.


def test_a_silent_node():
    document = seen("running")
    pod = document["pods"][0]
    for each in pod["status"]["conditions"]:
        if each["type"] == "Ready":
            each["status"] = "False"
    assert needs_events(document["job"], document["pods"])
    assert sight(document).trouble is None
    about = {"involvedObject": {"uid": pod["metadata"]["uid"]}, "lastTimestamp": "2026-11-23T12:00:00Z"}
    document["events"] = [{**about, "reason": "NodeNotReady", "message": "Node is not ready"}]
    assert sight(document) == PodSight(
        "running",
        Trouble.NODE_LOST,
        "The node aws-node does not answer any more.",
        image_id=sight(document).image_id,
        node="aws-node",
        pod=pod["metadata"]["name"],
    )


@pytest.mark.parametrize(
    ("reason", "trouble"),
    [
        ("DeletionByTaintManager", Trouble.NODE_LOST),
        ("DeletionByPodGC", Trouble.NODE_LOST),
        ("EvictionByEvictionAPI", Trouble.EVICTED),
        ("PreemptionByScheduler", Trouble.EVICTED),
        ("TerminationByKubelet", Trouble.EVICTED),
    ],
)
def test_a_disruption_outweighs_the_exit_code(reason, trouble):
    document = seen("exit-three")
    target = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "because"}
    document["pods"][0]["status"]["conditions"].append(target)
    found = sight(document)
    assert (found.phase, found.trouble, found.exit_code) == ("failed", trouble, 3)
    assert "because" in found.message


def test_a_failed_job_without_its_pod():
    document = seen("exit-three")
    assert read_job(document["job"], [], []).trouble is Trouble.DELETED


def test_events_are_asked_for_only_when_they_could_tell_more():
    wants = {
        name: needs_events(seen(name)["job"], seen(name)["pods"]) for name in ("good", "running", "no-gpu")
    }
    assert wants == {"good": False, "running": False, "no-gpu": True}


def _paths(thing: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = thing.items() if isinstance(thing, dict) else enumerate(thing) if isinstance(thing, list) else ()
    return [path, *(deep for key, value in below for deep in _paths(value, (*path, key)))]


JUNK = st.sampled_from([None, "", "x", 7, True, [], {}, [None], {"state": None}, [{"name": []}]])
RECORDED = sorted(path.stem for path in SEEN.glob("*.json"))


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(RECORDED))
def test_half_filled_documents_never_raise(data, name):
    document = seen(name)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, key = data.draw(st.sampled_from([path for path in _paths(document) if len(path) > 1]))
        place = document
        for each in parents:
            place = place[each] if isinstance(place, dict | list) and place else {}
        if isinstance(place, dict) and key in place:
            if data.draw(st.booleans()):
                del place[key]
            else:
                place[key] = data.draw(JUNK)
    pods = document["pods"] if isinstance(document["pods"], list) else []
    whole = [pod for pod in pods if isinstance(pod, dict)]
    found = read_job(document["job"], whole, [each for each in document["events"] if isinstance(each, dict)])
    assert (found.trouble is None) == (found.message == "")
    assert "\n" not in found.message


@settings(deadline=None)
@given(
    st.recursive(JUNK, lambda deep: st.dictionaries(st.sampled_from(["metadata", "status", "name"]), deep))
)
def test_foreign_documents_never_raise(junk):
    thing = junk if isinstance(junk, dict) else {}
    read_job(thing, [thing], [thing])
    needs_events(thing, [thing])


def test_its_termination_message_is_what_it_said():
    document = seen("exit-three")
    ended = document["pods"][0]["status"]["containerStatuses"][0]["state"]["terminated"]
    ended["message"] = "no such module"
    assert sight(document).said == "no such module"


@pytest.mark.parametrize(("reason", "code"), [("ContainerStatusUnknown", 137), ("Unknown", 255)])
def test_a_node_that_was_started_again_is_not_the_trainers_exit(reason, code):
    document = seen("exit-three")
    ended = document["pods"][0]["status"]["containerStatuses"][0]["state"]["terminated"]
    ended |= {"reason": reason, "exitCode": code}
    assert sight(document).trouble is Trouble.NODE_LOST


def test_a_mount_that_failed_once_is_forgotten_when_the_image_is_pulled():
    document = seen("good")
    pod = document["pods"][0]
    pod["status"] = {"phase": "Pending", "containerStatuses": []}
    document["job"]["status"] = {"active": 1}
    about = {"involvedObject": {"uid": pod["metadata"]["uid"]}}
    failed = {**about, "reason": "FailedMount", "message": "no", "lastTimestamp": "2026-11-23T12:00:00Z"}
    document["events"] = [failed]
    assert sight(document).trouble is Trouble.CONFIG
    pulling = {**about, "reason": "Pulling", "message": "x", "lastTimestamp": "2026-11-23T12:00:05Z"}
    document["events"].append(pulling)
    assert sight(document).trouble is None
