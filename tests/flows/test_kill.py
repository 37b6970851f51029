"""SIGKILL in mid-canary of each part of the platform and of pairs, then `lora-ops up` again.

All pairs run with LORA_OPS_ALL_KILLS=1; else those of which neither part could heal the other.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import psutil
import pytest

from lora_ops.gates.samples import Cause, Outcome
from lora_ops.request import RequestState
from lora_ops.state import Phase, Track
from tests.flows.site import Site, eventually

pytestmark = pytest.mark.server

PARTS = ("deploy flow", "serve", "worker", "prefect")
ALWAYS = {("deploy flow", "serve"), ("worker", "prefect")}
CASES = [
    *[(part,) for part in PARTS],
    *[
        pytest.param(
            pair,
            marks=pytest.mark.skipif(
                pair not in ALWAYS and not os.environ.get("LORA_OPS_ALL_KILLS"),
                reason="with LORA_OPS_ALL_KILLS=1",
            ),
        )
        for pair in itertools.combinations(PARTS, 2)
    ],
]


@pytest.mark.parametrize("victims", CASES, ids=" and ".join)
def test_killed_in_mid_canary(site: Site, victims: tuple[str, ...]) -> None:
    before = {name: cloud.stable for name, cloud in site.platform.state().clouds.items()}
    rollout = site.begin(site.source(), min_time=4.0)
    with site.traffic() as requests:
        site.in_phase(rollout, "canarying")
        eventually(lambda: _canaries(site, rollout), "a canary attempt has started")
        doomed = [process for part in victims for process in _processes(site, rollout, part)]
        for process in doomed:
            process.kill()
        psutil.wait_procs(doomed, timeout=10)
        site.up()
        ended = site.ended(rollout, 240)
    assert ended.phase is Phase.PROMOTED, ended.reason
    state = site.platform.state()
    assert {name: cloud.stable for name, cloud in state.clouds.items()} == dict.fromkeys(
        before, ended.release
    )
    restarts = site.kinds(rollout).count("flow-restarted")
    assert restarts <= 2
    assert restarts == 1 or victims != ("deploy flow",)

    site.all_succeeded(requests)
    for request in requests:
        _done_twice_only_after_a_loss(site.platform.request(request))
    _no_canary_started_after_its_lease(site, rollout)
    _, samples = site.platform.attempts(rollout)
    assert [sample for sample in samples if sample.outcome is Outcome.BAD] == []
    eventually(lambda: not site.open_requests(), "probes have their results, too")


def _canaries(site: Site, rollout: str) -> bool:
    starts, _ = site.platform.attempts(rollout)
    return any(start.track == Track.CANARY for start in starts)


def _processes(site: Site, rollout: str, part: str) -> list[psutil.Process]:
    """The process of a part; the server's with its children, which would serve on without it."""
    if part == "deploy flow":
        active = site.active(rollout)
        assert active is not None
        run = site.prefect.find_run(f"{rollout}-{active.epoch}")
        found = [each for each in site.processes() if _environ(each).get("PREFECT__FLOW_RUN_ID") == run]
        assert found, "the deploy flow does not run"
        return found
    name = {"serve": "serve", "worker": "worker-east", "prefect": "prefect-server"}[part]
    daemon = site.daemon(name)
    return [*daemon.children(recursive=True), daemon] if part == "prefect" else [daemon]


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except psutil.Error:
        return {}


def _no_canary_started_after_its_lease(site: Site, rollout_id: str) -> None:
    """Each start lies before the end of the lease that the looks until then gave; or it was superseded."""
    starts, samples = site.platform.attempts(rollout_id)
    superseded = {each.key for each in samples if each.cause is Cause.SUPERSEDED}
    began = _times(site, rollout_id, lambda kind: kind == "step-started")[0]
    lease_s = site.spec.rollout.lease
    times = site.platform._of(rollout_id).times
    keys = {start.key: key for key, start in site.platform._of(rollout_id).starts.items()}
    good = [seen.time for seen in site.platform.looks(rollout_id) if seen.look.good_for_lease]
    for start in starts:
        if start.track != Track.CANARY or start.key in superseded:
            continue
        at = times[keys[start.key]]
        assert at <= max([began, *[each for each in good if each <= at]]) + lease_s


def _times(site: Site, rollout_id: str, wanted: Callable[[str], bool]) -> list[float]:
    return [
        entry.last_modified
        for entry in site.platform.history()
        if entry.document["data"].get("rollout") == rollout_id and wanted(entry.document["kind"])
    ]


def _done_twice_only_after_a_loss(state: RequestState) -> None:
    """Another attempt follows one that was lost or superseded, never one that failed: the release is good."""
    *before, last = state.attempts
    assert last.state.value == "succeeded"
    assert {each.state.value for each in before} <= {"lost", "superseded"}
