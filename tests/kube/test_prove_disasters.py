"""Whatever is killed, frozen or cut off, the same end as without. Only `make prove-kube` runs these."""

from __future__ import annotations

import os
import signal
import time

import pytest

from lora_ops.state import Phase
from tests.flows.site import eventually
from tests.kube.site import KubeSite

pytestmark = pytest.mark.prove

AWS, GCP, AZURE = "aws-eu-central-1", "gcp-us-west1", "azure-westeurope"


def promoted(kube: KubeSite, rollout: str, release: str, timeout_s: float = 500) -> None:
    ended = kube.ended(rollout, timeout_s)
    assert (ended.phase, ended.release) == (Phase.PROMOTED, release), ended.reason
    assert {cloud.stable for cloud in kube.platform.state().clouds.values()} == {release}


def test_a_region_that_dies_with_attempts_running(kube: KubeSite) -> None:
    slow = [kube.submit(seed=1003, cloud=AWS, canary="never") for _ in range(2)]
    for each in slow:
        kube.checkpointed(each, 120)
    kube.regions[AWS].do("kill")
    began = time.monotonic()
    try:
        for each in slow:
            eventually(lambda one=each: kube.moved_from(one, AWS), f"{each} runs elsewhere", 240)  # type: ignore[misc]
        print(f"both run elsewhere {time.monotonic() - began:.0f} s after the region died")
    finally:
        kube.regions[AWS].do("start")
    for each in slow:
        kube.result(each, 400)
        assert kube.resumed_from(each) > 0
    kube.all_succeeded(slow)
    eventually(lambda: all(kube.healthy().values()) or None, "every cloud is up again", 240)
    eventually(lambda: not kube.active_jobs() or None, "no zombie is left", 120)


def test_prometheus_killed_in_mid_canary(kube: KubeSite) -> None:
    release = kube.image()
    kube.tag(release, "latest")
    begun = kube.cli("deploy", "--pipeline", "pipeline.json", "--yes", "--json")
    assert begun.returncode == 0, begun.stderr
    rollout = kube.active_id()
    kube.in_phase(rollout, "canarying", timeout_s=300)
    kube.prometheus.kill()
    looks = len(kube.platform.looks(rollout))
    away = eventually(
        lambda: next((x for x in kube.platform.looks(rollout)[looks:] if x.look.providers_away), None),
        "a look says that Prometheus is away",
        60,
    )
    assert not away.look.good_for_lease
    kube.prometheus.again()
    promoted(kube, rollout, release)


def test_prefects_server_killed_and_started_again(kube: KubeSite) -> None:
    release = kube.image()
    rollout = kube.deploy(release)
    kube.in_phase(rollout, "canarying", timeout_s=300)
    kube.daemon("prefect-server").kill()
    eventually(lambda: not kube.prefect.ok() or None, "Prefect is away", 30)
    done = kube.cli("up")
    assert done.returncode == 0, done.stderr
    promoted(kube, rollout, release)


def test_a_worker_killed_in_mid_canary(kube: KubeSite) -> None:
    release = kube.image()
    rollout = kube.deploy(release)
    kube.in_phase(rollout, "canarying", timeout_s=300)
    kube.region(
        GCP, "delete", "pod", "-l", "lora-ops/component=worker", "--grace-period=0", "--force", "--wait=false"
    )
    promoted(kube, rollout, release)


@pytest.mark.parametrize("phase", ["validating", "building", "promoting", "holding"])
def test_the_deploy_flow_killed_in_each_phase(kube: KubeSite, phase: str) -> None:
    release = kube.image()
    rollout = kube.deploy(release, hold=20.0)
    kube.in_phase(rollout, phase, timeout_s=300)
    kube.kill_flow()
    promoted(kube, rollout, release)


def test_serve_killed_in_mid_canary(kube: KubeSite) -> None:
    release = kube.image()
    with kube.traffic(10) as requests:
        rollout = kube.deploy(release)
        kube.in_phase(rollout, "canarying", timeout_s=300)
        kube.daemon("serve").kill()
        done = kube.cli("up")
        assert done.returncode == 0, done.stderr
        promoted(kube, rollout, release)
    kube.all_succeeded(requests)


def test_the_store_cut_off_for_a_minute(kube: KubeSite) -> None:
    """Training goes on, submitting says why it cannot, the canary gets nothing, and nothing is lost."""
    release = kube.image()
    slow = kube.submit(seed=1003, canary="never")
    kube.checkpointed(slow, 120)
    rollout = kube.deploy(release)
    kube.in_phase(rollout, "canarying", timeout_s=300)
    os.kill(kube.store_pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        refused = kube.cli("train", str(kube.config), timeout_s=120)
        assert refused.returncode == 7, (refused.returncode, refused.stderr)
        assert "store" in refused.stderr
        eventually(lambda: time.monotonic() - began > 60 or None, "a minute is over", 70)
    finally:
        os.kill(kube.store_pid, signal.SIGCONT)
    promoted(kube, rollout, release, 700)
    kube.result(slow, 400)
    kube.all_succeeded([slow])


def test_a_drained_cloud_is_emptied_politely(kube: KubeSite) -> None:
    slow = kube.submit(seed=1003, cloud=AZURE, canary="never")
    kube.checkpointed(slow, 120)
    done = kube.cli("cloud", "drain", AZURE, "--yes")
    assert done.returncode == 0, done.stderr
    try:
        moved = eventually(lambda: kube.moved_from(slow, AZURE), "it runs elsewhere", 240)
        assert moved.attempts[0].cause == "evicted"
        eventually(lambda: not kube.active_jobs_of(AZURE) or None, "the cloud is empty", 60)
    finally:
        assert kube.cli("cloud", "undrain", AZURE, "--yes").returncode == 0
    kube.result(slow, 400)
    kube.all_succeeded([slow])
    assert kube.resumed_from(slow) > 0


def test_an_evicted_pod_goes_on_from_its_checkpoint(kube: KubeSite) -> None:
    slow = kube.submit(seed=1003, canary="never")
    state = kube.checkpointed(slow, 120)
    assert state.current is not None
    kube.region(state.current.cloud, "delete", "pod", "-l", f"lora-ops/request={slow}", "--wait=false")
    kube.result(slow, 400)
    kube.all_succeeded([slow])
    assert kube.platform.request(slow).attempts[0].cause == "evicted"
    assert kube.resumed_from(slow) > 0
