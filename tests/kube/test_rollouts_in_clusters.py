"""Rollouts over real clusters: the five scenarios of every CI run."""

from __future__ import annotations

from lora_ops.request import AttemptState
from lora_ops.state import Phase, Track
from tests.flows.site import eventually
from tests.kube.site import KubeSite
from tests.kube_rules import restricted

AWS, GCP = "aws-eu-central-1", "gcp-us-west1"


def stable(kube: KubeSite) -> set[str]:
    return {cloud.stable for cloud in kube.platform.state().clouds.values()}


def test_a_good_image_is_promoted_everywhere_by_the_pipeline_document(kube: KubeSite) -> None:
    """Canary on one cloud, blue/green on the next, the third by lora-ops.yaml; Prometheus judges two."""
    release = kube.image()
    kube.tag(release, "latest")
    with kube.traffic(10) as requests:
        done = kube.cli("deploy", "--pipeline", "pipeline.json", "--wait", "--yes", timeout_s=600)
        assert done.returncode == 0, done.stderr + done.stdout
    kube.all_succeeded(requests)
    assert stable(kube) == {release}
    ended = kube.platform.state().finished[-1]
    assert (ended.phase, ended.release) == (Phase.PROMOTED, release)
    assert ended.verified == dict.fromkeys(kube.regions, "verified")
    starts, samples = kube.platform.attempts(ended.id)
    canaries = [start for start in starts if start.track == Track.CANARY]
    assert {start.cloud for start in canaries} == set(kube.regions)
    assert {start.digest for start in canaries} == {release}
    assert {sample.cause for sample in samples} <= {None, "superseded"}
    providers = {each.provider for look in kube.platform.looks(ended.id) for each in look.look.asked}
    assert providers <= {"prometheus-prod"}
    assert {cloud.size for cloud in kube.platform.state().clouds.values()} == {3, 2}
    for cloud in kube.regions:
        jobs = kube.jobs(cloud)
        assert jobs
        for job in jobs:
            pod = job["spec"]["template"]["spec"]
            assert restricted(pod) == []
            assert pod["containers"][0]["image"].startswith(kube.regions[cloud].registry)
            assert "@sha256:" in pod["containers"][0]["image"]
            assert job["spec"]["activeDeadlineSeconds"] == 600
            assert job["spec"]["ttlSecondsAfterFinished"] == 3600


def test_an_image_that_fails_half_of_its_attempts_is_rolled_back_and_costs_nobody(kube: KubeSite) -> None:
    before = stable(kube)
    release = kube.image(fail_share=0.5, fail_at=3)
    with kube.traffic(10) as requests:
        rollout = kube.deploy(release, harmful=0.3)
        ended = kube.ended(rollout, 400)
    kube.all_succeeded(requests)
    assert ended.phase is Phase.ROLLED_BACK
    assert kube.failing_gates(rollout) == {"error_rate"}
    assert stable(kube) == before


def test_an_image_that_no_node_can_unpack_never_becomes_a_canary(kube: KubeSite) -> None:
    before = stable(kube)
    rollout = kube.deploy(kube.broken_image())
    ended = kube.ended(rollout, 200)
    assert ended.phase is Phase.FAILED
    assert "self-check" in ended.reason
    assert "cannot be pulled" in ended.reason
    assert stable(kube) == before
    assert not kube.platform.attempts(rollout)[0]
    eventually(lambda: not kube.active_jobs() or None, "no Job is left", 60)


def test_a_region_that_goes_dark_in_mid_canary_loses_nothing(kube: KubeSite) -> None:
    """Its attempts go on elsewhere from their checkpoints, and what wakes up there publishes nothing."""
    release = kube.image()
    rollout = kube.deploy(release, steps=(50, 100), fresh_samples=2)
    kube.in_phase(rollout, "canarying", timeout_s=240)
    slow = [kube.submit(seed=1003, cloud=GCP, canary="never") for _ in range(2)]
    for each in slow:
        state = kube.checkpointed(each, 120)
        assert state.current is not None
        assert state.current.cloud == GCP
    kube.regions[GCP].do("freeze")
    eventually(lambda: kube.healthy()[GCP] is False or None, "the region is seen to be dark", 40)
    later = [kube.submit() for _ in range(3)]
    for each in later:
        state = kube.result(each, 240)
        assert GCP not in {attempt.cloud for attempt in state.attempts}
    for each in slow:
        moved = eventually(lambda one=each: kube.moved_from(one, GCP), f"{each} runs elsewhere", 240)  # type: ignore[misc]
        assert moved.attempts[0].cause == "dead_region"
    kube.regions[GCP].do("thaw")
    for each in slow:
        kube.result(each, 400)
        assert kube.resumed_from(each) > 0
    kube.all_succeeded([*slow, *later])
    for each in slow:
        (first, *_) = kube.platform.request(each).attempts
        assert first.state is AttemptState.LOST
    ended = kube.ended(rollout, 500)
    assert ended.phase is Phase.PROMOTED
    eventually(lambda: not kube.active_jobs() or None, "no zombie is left", 120)


def test_a_deploy_flow_that_is_killed_goes_on(kube: KubeSite) -> None:
    release = kube.image()
    rollout = kube.deploy(release)
    kube.in_phase(rollout, "canarying", timeout_s=240)
    kube.kill_flow()
    ended = kube.ended(rollout, 400)
    assert (ended.phase, ended.release) == (Phase.PROMOTED, release)
    assert "flow-restarted" in kube.kinds(rollout)
    assert stable(kube) == {release}
