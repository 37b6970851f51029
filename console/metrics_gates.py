"""The counters that gates of another provider than `store` ask for: of the active rollout alone, so that
the number of series does not grow with the number of rollouts."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric

from console.reader import Reader
from lora_ops.gates.counts import RATIOS, attempts_of
from lora_ops.gates.counts import Metric as GateMetric
from lora_ops.gates.exported import counters, lanes_of
from lora_ops.gates.promql import GATE_COUNTER
from lora_ops.state import AppState, Rollout, Track

_JUDGED_BY_STORE_ALONE = RATIOS | {GateMetric.PROMQL}


def gate_counters(reader: Reader, state: AppState) -> Iterator[Metric]:
    """n of the fail test is started - uncounted, n of the pass test finished, k bad."""
    family = CounterMetricFamily(
        GATE_COUNTER.removesuffix("_total"),
        "Attempts of a rollout as its gates count them, from its beginning.",
        labels=["rollout", "cloud", "track", "release", "gate", "state"],
    )
    if state.rollout is not None:
        _add(family, reader, state.rollout)
    yield family


def _add(family: CounterMetricFamily, reader: Reader, rollout: Rollout) -> None:
    """From zero on for every cloud of the rollout: no series means no scrape, not no attempts."""
    if rollout.release is None:
        return
    attempts = attempts_of(*reader.platform.attempts(rollout.id))
    lanes = lanes_of(attempts)
    for cloud, part in rollout.clouds.items():
        lanes |= {(cloud, Track.CANARY.value, rollout.release), (cloud, Track.STABLE.value, part.before)}
    for gate in rollout.policy.gates:
        if gate.metric not in _JUDGED_BY_STORE_ALONE:
            for lane in sorted(each for each in lanes if gate.covers(each[0])):
                for name, value in counters(gate.metric, gate.limit, attempts, lane).items():
                    family.add_metric([rollout.id, *lane, gate.title, name], value)
