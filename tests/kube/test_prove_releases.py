"""Releases that are bad in every way that the gates know. Only `make prove-kube` runs these."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from lora_ops.spec import GateEntry
from lora_ops.state import Phase
from tests.flows.site import eventually
from tests.kube.site import KubeSite

pytestmark = pytest.mark.prove

AWS, GCP, AZURE = "aws-eu-central-1", "gcp-us-west1", "azure-westeurope"


@pytest.fixture
def before(kube: KubeSite) -> Iterator[set[str]]:
    """The stable releases, which must be the same afterwards, with no Job left."""
    found = {cloud.stable for cloud in kube.platform.state().clouds.values()}
    yield found
    assert {cloud.stable for cloud in kube.platform.state().clouds.values()} == found
    eventually(lambda: not kube.active_jobs() or None, "no Job is left", 120)


def test_an_image_that_fails_every_attempt(kube: KubeSite, before: set[str]) -> None:
    """Rolled back everywhere it went, within 90 s of its first failure; every user's request succeeds."""
    with kube.traffic(10) as requests:
        rollout = kube.deploy(kube.image(fail_share=1.0, fail_at=3))
        ended = kube.ended(rollout, 300)
    kube.all_succeeded(requests)
    assert ended.phase is Phase.ROLLED_BACK
    kube.platform.attempts(rollout)
    failed = [at for at, sample in kube.platform.sample_times(rollout) if sample.cause is not None]
    seconds = kube.platform.time_of(ended.ended_seq) - min(failed)
    print(f"rolled back {seconds:.0f} s after the first failure")
    assert seconds < 90


def test_an_image_whose_self_check_fails(kube: KubeSite, before: set[str]) -> None:
    rollout = kube.deploy(kube.image(selfcheck_fails=True))
    ended = kube.ended(rollout, 200)
    assert ended.phase is Phase.FAILED
    assert "torch: expected 2.13.0, found 2.1.0" in ended.reason
    assert not kube.platform.attempts(rollout)[0]


def test_a_canary_that_no_node_takes(kube: KubeSite, before: set[str]) -> None:
    """Undecided to its deadline, then rolled back, and its Jobs deleted."""
    rollout = kube.deploy(kube.image(), deadline=100.0, waves=((AWS,), (GCP, AZURE)))
    node = kube.region(AWS, "get", "nodes", "-o", "name").split()[0]
    kube.in_phase(rollout, "building", timeout_s=60)
    try:
        kube.in_phase(rollout, "canarying", timeout_s=240)
        kube.region(AWS, "cordon", node)
        told = eventually(lambda: kube.told("No node can take it"), "somebody says why", 120)
        assert "unschedulable" in told
        ended = kube.ended(rollout, 300)
    finally:
        kube.region(AWS, "uncordon", node)
    assert ended.phase is Phase.ROLLED_BACK
    assert "undecided" in ended.reason


def test_an_image_that_hangs(kube: KubeSite, before: set[str]) -> None:
    with kube.traffic(15) as requests:
        rollout = kube.deploy(kube.image(step_s=3600.0))
        ended = kube.ended(rollout, 400)
    kube.all_succeeded(requests)
    assert ended.phase is Phase.ROLLED_BACK
    assert kube.failing_gates(rollout) == {"error_rate"}
    kube.platform.attempts(rollout)
    causes = {sample.cause for _, sample in kube.platform.sample_times(rollout)}
    assert "no_heartbeat" in causes


@pytest.mark.parametrize(
    ("metric", "behaviour"),
    [
        ("step_time_ratio", {"step_s": 0.6}),
        ("loss_ratio", {"loss": 3.0}),
        ("memory_ratio", {"memory_bytes": 4 * 10**8}),
    ],
)
def test_an_image_that_is_worse_is_rolled_back_by_the_right_gate(
    kube: KubeSite, before: set[str], metric: Any, behaviour: dict[str, Any]
) -> None:
    gates = (GateEntry(metric="error_rate", limit=0.05), GateEntry(metric=metric, limit=1.5))
    rollout = kube.deploy(kube.image(**behaviour), gates=gates, waves=((AWS,), (GCP, AZURE)))
    ended = kube.ended(rollout, 400)
    assert ended.phase is Phase.ROLLED_BACK
    assert kube.failing_gates(rollout) == {metric}


def test_two_deploys_at_once(kube: KubeSite, before: set[str]) -> None:
    first = kube.deploy(kube.image())
    other = kube.cli("deploy", "--image", kube.reference(kube.image()), "--wait", "--yes")
    assert other.returncode == 6, other.stderr
    assert first in other.stderr
    kube.decide(first, "abort")
    ended = kube.ended(first, 60)
    assert ended.phase is Phase.ABORTED


@pytest.mark.parametrize("phase", ["validating", "building", "canarying", "promoting", "holding"])
def test_an_abort_in_each_phase(kube: KubeSite, before: set[str], phase: str) -> None:
    """No Job, no queue, no image of it is left in the way."""
    rollout = kube.deploy(kube.image(), hold=60.0)
    kube.in_phase(rollout, phase, timeout_s=300)
    kube.decide(rollout, "abort")
    assert kube.ended(rollout, 60).phase is Phase.ABORTED
    began = time.monotonic()
    eventually(lambda: not kube.active_jobs() or None, "no Job is left", 120)
    print(f"aborted in {phase}: no Job left after {time.monotonic() - began:.0f} s")


def test_a_deploy_during_a_rollback(kube: KubeSite, before: set[str]) -> None:
    bad = kube.deploy(kube.image(fail_share=1.0))
    queued = kube.cli(
        "deploy", "--image", kube.reference(kube.image(selfcheck_fails=True)), "--queue", "--yes"
    )
    assert queued.returncode == 0, queued.stderr
    assert kube.ended(bad, 300).phase is Phase.ROLLED_BACK
    (name,) = [word.rstrip(":") for word in queued.stdout.split() if word.startswith("roll-")][:1]
    assert kube.ended(name, 300).phase is Phase.FAILED
