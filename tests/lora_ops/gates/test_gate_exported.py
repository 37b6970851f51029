"""The exported counters only grow, and give back the counts that the gates judge."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.gates.counts import Metric, attempts_of, count
from lora_ops.gates.exported import counters, lanes_of
from lora_ops.gates.samples import Cause, Sample, Start

CAUSES = [None, Cause.TRAINER_ERROR, Cause.EVICTED, Cause.NO_HEARTBEAT]
LIMITS = {Metric.ERROR_RATE: 0.05, Metric.STEP_LATENCY: 1.0, Metric.START_LATENCY: 1.0}


@st.composite
def facts(draw: st.DrawFn) -> Any:
    """A start or a sample, as an attempt may write them: a late one only after a good one."""
    key = {
        "request": f"req-{draw(st.integers(0, 4))}",
        "attempt": 1,
        "cloud": "east",
        "track": "canary",
        "digest": "sha256:new",
    }
    if draw(st.booleans()):
        return Start(**key)
    late = draw(st.booleans())
    cause = draw(st.sampled_from(CAUSES))
    seconds = draw(st.lists(st.sampled_from([0.5, 2.0]), max_size=3))
    return Sample(
        **key,
        cause=cause,
        late=late,
        at_horizon=cause is None or late,
        step_seconds=seconds,
        start_latency_s=draw(st.sampled_from([None, 0.5, 2.0])),
    )


def split(written: list[Any]) -> tuple[list[Start], list[Sample]]:
    """Create-only: the first start, sample and late sample of an attempt are the only ones, and a late one
    comes after the sample of its horizon."""
    kept: dict[Any, Any] = {}
    for each in written:
        late = getattr(each, "late", False)
        if not late or (each.key, "Sample", False) in kept:
            kept.setdefault((each.key, type(each).__name__, late), each)
    found = list(kept.values())
    return [e for e in found if isinstance(e, Start)], [e for e in found if isinstance(e, Sample)]


@pytest.mark.parametrize("metric", list(LIMITS))
@given(written=st.lists(facts(), max_size=12))
def test_counters_give_the_counts_and_never_go_back(metric: Metric, written: list[Any]) -> None:
    before = dict.fromkeys(("started", "uncounted", "finished", "bad"), 0)
    for n in range(len(written) + 1):
        attempts = attempts_of(*split(written[:n]))
        lane = ("east", "canary", "sha256:new")
        assert lanes_of(attempts) <= {lane}
        now = counters(metric, LIMITS[metric], attempts, lane)
        ours = count(metric, LIMITS[metric], attempts, "sha256:new", "east")[0]
        assert (now["bad"], now["started"] - now["uncounted"], now["finished"]) == (
            ours.k_fail,
            ours.n_fail,
            ours.n_pass,
        )
        for name, value in now.items():
            assert value >= before[name], (name, before, now, written[:n])
        before = now
