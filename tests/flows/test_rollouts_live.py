"""Rollouts on a running platform, from `lora-ops deploy` to the pointer, while requests come in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from PIL import Image
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)

from lora_ops import keys
from lora_ops.request import RequestState, ResultState
from lora_ops.spec import GateEntry, ProbeSpec
from lora_ops.state import Phase, Track
from tasks.source_tree import tree_digest
from tests.flows.site import Site, eventually
from tests.stub.make import make_stub_config

pytestmark = pytest.mark.server

EAST = {"waves": (("east",),)}  # half of the probes


def _rollout_of(told: str) -> str:
    return next(word for word in told.split() if word.startswith("roll-"))


def _stable(site: Site) -> dict[str, str]:
    return {name: cloud.stable for name, cloud in site.platform.state().clouds.items()}


def test_a_good_release_is_promoted_under_traffic(site: Site) -> None:
    source = site.source()
    release = tree_digest(source)
    with site.traffic() as requests:
        done = site.cli("deploy", "--canary", "--source", str(source), "--dirty", "--wait", "--yes")
    assert done.returncode == 0, done.stderr
    rollout = _rollout_of(done.stderr)
    site.all_succeeded(requests)
    ended = site.finished(rollout)
    assert ended is not None
    assert (ended.phase, ended.release) == (Phase.PROMOTED, release)
    assert ended.verified == {"east": "verified", "west": "verified"}
    assert _stable(site) == {"east": release, "west": release}
    starts, samples = site.platform.attempts(rollout)
    canaries = [start for start in starts if start.track == Track.CANARY]
    assert {start.digest for start in canaries} == {release}
    assert {start.cloud for start in canaries} == {"east", "west"}
    assert all(sample.cause is None for sample in samples)
    wrote = site.platform.looks(rollout)
    with SyncPrefectClient(site.spec.prefect.api_url) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[f"look-{rollout}"]))
        shown = client.read_artifacts(artifact_filter=wanted)
        run = client.read_flow_run(shown[0].flow_run_id)
        its = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        names = {task.name for task in client.read_task_runs(flow_run_filter=its)}
    assert {f"Look {seen.n} of {rollout}" for seen in wrote} == {each.description for each in shown}
    assert run.name == f"{rollout}-0"
    assert {"validate", "build working tree", "self-check", "bring to east, west"} <= names
    assert {"canary 50% on east, west", "promote east, west", "verify", "hold"} <= names


def test_a_broken_release_is_rolled_back_and_costs_nobody_anything(site: Site) -> None:
    """Its canary fails each attempt after a checkpoint, from which stable goes on."""
    before = _stable(site)
    source = site.source(fail_share=1.0, fail_at=3)
    with site.traffic() as requests:
        asked = ["--plan", "100", "--wait", "--yes"]
        done = site.cli("deploy", "--canary", "--source", str(source), "--dirty", *asked)
    assert done.returncode == 9, done.stderr
    rollout = _rollout_of(done.stderr)
    assert _stable(site) == before
    site.all_succeeded(requests)
    moved: list[RequestState] = [site.platform.request(each) for each in requests]
    failed = [state for state in moved if state.attempts[0].cause == "trainer_error"]
    assert failed, "no request reached the canary"
    for state in failed:
        assert [each.track for each in state.attempts] == [Track.CANARY, Track.STABLE]
        assert site.trainer_events(state.id, 2)[0]["resumed_from_step"] == 2
    _, samples = site.platform.attempts(rollout)
    assert all(sample.track == Track.CANARY for sample in samples if sample.cause == "trainer_error")
    ended = eventually(lambda: (e := site.finished(rollout)) and len(e.verified) == 2 and e, "it is verified")
    assert set(ended.verified.values()) == {"verified"}  # type: ignore[union-attr]


def test_a_failing_self_check_never_reaches_a_canary(site: Site) -> None:
    source = site.source(selfcheck_fails=True)
    done = site.cli("deploy", "--canary", "--source", str(source), "--dirty", "--wait", "--yes")
    assert done.returncode == 1, done.stderr
    rollout = _rollout_of(done.stderr)
    ended = site.finished(rollout)
    assert ended is not None
    assert ended.phase is Phase.FAILED
    assert "torch: the lock wants 2.13.0, found 2.1.0" in ended.reason
    assert site.kinds(rollout) == ["rollout-started", "validated", "built", "failed"]
    assert site.platform.attempts(rollout) == ([], [])


def test_a_bad_probe_dataset_ends_the_rollout_before_anything_is_built(site: Site) -> None:
    config = make_stub_config(site.folder / "bad")
    (site.folder / "bad" / "pictures" / "0.png").write_bytes(b"not a picture")
    Image.new("RGB", (64, 64)).save(site.folder / "bad" / "pictures" / "2.png")
    rollout = site.begin(site.source(), probes=ProbeSpec(config=str(config)))
    ended = site.ended(rollout, 60)
    assert ended.phase is Phase.FAILED
    assert "0.png" in ended.reason
    assert site.kinds(rollout) == ["rollout-started", "failed"]


def test_steering_and_the_queue(site: Site) -> None:
    """Paused before its canary; a second one refused, two queued; resumed, approved; the queue goes on."""
    first = site.begin(site.source(), approval=True, **EAST)
    site.decide(first, "pause")
    eventually(lambda: (r := site.active(first)) and r.distributed, "it is built")
    assert site.kinds(first)[-1] == "distributed"

    refused = site.cli("deploy", "--canary", "--source", str(site.source()), "--dirty", "--yes")
    assert refused.returncode == 6
    assert first in refused.stderr
    source = site.source()
    queue = ["deploy", "--canary", "--source", str(source), "--dirty", "--queue", "--yes"]
    assert site.cli(*queue).returncode == 0
    older = site.platform.state().queue[0].id
    assert site.cli(*queue).returncode == 0
    (entry,) = site.platform.state().queue
    assert site.kinds(older) == ["rollout-queued", "rollout-overtaken"]

    assert site.active(first).phase is Phase.BUILDING  # type: ignore[union-attr]
    site.decide(first, "resume")
    site.in_phase(first, "awaiting-approval")
    form = _form(site, first, 0)
    _answer(site, form, approve=True, name="Ann")  # the spec does not accept it
    eventually(lambda: site.prefect.runs([form])[form].name == "Failed", "the form was refused")
    assert site.active(first).phase is Phase.AWAITING_APPROVAL  # type: ignore[union-attr]
    site.decide(first, "approve", actor="Bob")
    assert site.ended(first).phase is Phase.PROMOTED
    approved = next(e.document for e in site.platform.history() if e.document["kind"] == "approved")
    assert approved["data"]["by"] == approved["actor"] == "Bob"

    eventually(lambda: site.active(entry.id), "the queued one has started", 30)
    site.decide(entry.id, "abort", reason="enough")
    before = _stable(site)
    assert site.ended(entry.id, 20).phase is Phase.ABORTED
    assert _stable(site) == before


def test_blue_green_in_two_waves_approved_through_prefects_form(site: Site) -> None:
    waves = (("west",), ("east",))
    rollout = site.begin(
        site.source(),
        steps=(0, 100),
        waves=waves,
        approval=True,
        accept_unverified_approval=True,
    )
    users = site.submit()  # in no step before the last does it reach the canary
    first = site.in_phase(rollout, "awaiting-approval")
    assert (first.wave, first.step) == (0, 1)
    assert first.clouds["east"].weight == 0
    state = site.result(users)
    assert state.attempts[0].track is Track.STABLE
    form = _form(site, rollout, 0)
    _answer(site, form, approve=True, name="Cid", note="looks well")
    second = eventually(
        lambda: (r := site.active(rollout)) and r.wave == 1 and r, "the second wave began", 90
    )
    assert second
    assert second.clouds["west"].promoted
    approved = [e.document for e in site.platform.history() if e.document["kind"] == "approved"][-1]
    assert approved["reason"] == "prefect-ui, unverified: Cid: looks well"
    assert approved["data"]["wave"] == 0
    site.in_phase(rollout, "awaiting-approval")
    form = _form(site, rollout, 1)
    site.decide(rollout, "promote", reason="by hand")
    assert site.ended(rollout).phase is Phase.PROMOTED
    eventually(lambda: site.prefect.runs([form])[form].name == "Decided", "the form is withdrawn", 30)
    steps = [
        (e.document["data"]["wave"], e.document["data"]["step"])
        for e in site.platform.history()
        if e.document["kind"] == "step-started" and e.document["data"]["rollout"] == rollout
    ]
    assert steps == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_ratio_gate_compares_probe_pairs(site: Site) -> None:
    gates = (GateEntry(metric="memory_ratio", limit=1.5),)
    rollout = site.begin(site.source(memory_bytes=10**9), gates=gates, steps=(0, 100), **EAST)
    ended = site.ended(rollout)
    assert ended.phase is Phase.ROLLED_BACK
    assert "1.5 times stable's memory" in ended.reason
    _, samples = site.platform.attempts(rollout)
    pairs = {sample.probe: set[str]() for sample in samples if sample.probe}
    for sample in samples:
        if sample.probe:
            pairs[sample.probe].add(sample.track)
    assert sum(tracks == {"canary", "stable"} for tracks in pairs.values()) >= 2
    probes = [site.platform.request(sample.request) for sample in samples if sample.probe]
    assert all(len(state.attempts) == 1 for state in probes)
    assert {state.result.state for state in probes if state.result} <= {
        ResultState.SUCCEEDED,
        ResultState.CANCELLED,
    }


def test_a_deploy_run_started_by_hand_journals_its_rollout(site: Site) -> None:
    source = _committed(site.source())
    before = {each.id for each in site.platform.state().finished}
    with SyncPrefectClient(site.spec.prefect.api_url) as client:
        deployment = client.read_deployment_by_name("deploy/control").id

        def by_hand(path: Path) -> str:
            run = client.create_flow_run_from_deployment(deployment, parameters={"source": str(path)}).id
            ended = eventually(
                lambda: (s := client.read_flow_run(run).state) and s.is_final() and s, "the run ended", 60
            )
            assert ended
            return f"{ended.type.value}: {ended.message}"

        told = by_hand(source)
        rollout = _rollout_of(told)
        assert told.startswith("COMPLETED")
        assert rollout not in before
        eventually(lambda: site.exists(keys.flow(rollout)), "the reconciler started its flow", 60)
        site.decide(rollout, "pause")
        told = by_hand(_committed(site.source()))
        assert told.startswith("FAILED")
        assert rollout in told
    site.decide(rollout, "abort")
    site.ended(rollout, 20)


def _form(site: Site, rollout: str, wave: int) -> str:
    """The flow run that waits with the form in Prefect's UI."""
    key = f"{rollout}-approve-{wave}"
    run = eventually(lambda: site.prefect.find_run(key), "the form is offered", 30)
    eventually(lambda: site.prefect.runs([run])[run].name == "Paused", "the form waits", 60)
    return run


def _answer(site: Site, run: str, **answer: object) -> None:
    with SyncPrefectClient(site.spec.prefect.api_url) as client:
        client.resume_flow_run(run, run_input=answer)  # type: ignore[arg-type]


def _committed(source: Path) -> Path:
    """The folder as a git checkout: without `dirty` a revision is built."""
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "a release"]):
        subprocess.run(["git", *words], cwd=source, check=True)
    return source
