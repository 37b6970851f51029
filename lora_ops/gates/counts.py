"""From starts and samples to the integers of a gate. Order and duplicates make no difference."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import NamedTuple

from lora_ops.gates.samples import Outcome, Sample, Start

TOLERATED_SHARE = 0.05
"""p0 of the latency and ratio gates, and the share of an attempt's steps that may pass a latency limit."""

AttemptKey = tuple[str, int]


class Metric(StrEnum):
    """What a gate measures."""

    ERROR_RATE = "error_rate"
    STEP_LATENCY = "step_latency"
    START_LATENCY = "start_latency"
    STEP_TIME_RATIO = "step_time_ratio"
    LOSS_RATIO = "loss_ratio"
    MEMORY_RATIO = "memory_ratio"
    PROMQL = "promql"


LATENCIES = frozenset({Metric.STEP_LATENCY, Metric.START_LATENCY})
RATIOS = frozenset({Metric.STEP_TIME_RATIO, Metric.LOSS_RATIO, Metric.MEMORY_RATIO})


class Counts(NamedTuple):
    """k bad of n, for `fail` (n: all that started) and for `pass` (n: those with a sample)."""

    k_fail: int = 0
    n_fail: int = 0
    k_pass: int = 0
    n_pass: int = 0


@dataclass(frozen=True)
class Attempt:
    """One attempt: how it ended, and `facts`, its sample when it ran far enough to be measured."""

    key: AttemptKey
    cloud: str
    track: str
    digest: str
    probe: str | None
    outcome: Outcome
    facts: Sample | None


def attempts_of(starts: Iterable[Start], samples: Iterable[Sample]) -> dict[AttemptKey, Attempt]:
    """By key, in its order: what started or left a sample (an image that cannot be pulled has no start)."""
    first: dict[AttemptKey, Start] = {}
    for start in starts:
        first[start.key] = min(first.get(start.key, start), start, key=_text)
    base: dict[AttemptKey, Sample] = {}
    late: dict[AttemptKey, Sample] = {}
    for sample in samples:
        kept = late if sample.late else base
        kept[sample.key] = max(kept.get(sample.key, sample), sample, key=_rank)
    keys = first.keys() | base.keys() | late.keys()
    return {key: _attempt(key, first.get(key), base.get(key), late.get(key)) for key in sorted(keys)}


def count(
    metric: Metric, limit: float, attempts: Mapping[AttemptKey, Attempt], release: str, cloud: str
) -> tuple[Counts, Counts | None]:
    """Counts of the release and of stable (every other digest) on a cloud; stable's are None for a ratio.

    `limit` is in seconds for a latency and canary/stable for a ratio; error_rate does not use it. Raises
    ValueError for `promql`, whose counts come from outside.
    """
    here = [attempt for attempt in attempts.values() if attempt.cloud == cloud]
    ours = [attempt for attempt in here if attempt.digest == release]
    others = [attempt for attempt in here if attempt.digest != release]
    if metric is Metric.ERROR_RATE:
        return _errors(ours), _errors(others)
    if metric in LATENCIES:
        return _slow(metric, limit, ours), _slow(metric, limit, others)
    if metric in RATIOS:
        return _pairs(metric, limit, ours, others), None
    raise ValueError(f"the counts of a {metric} gate come from its query, not from samples")


def fresh_samples(
    starts: Iterable[Start],
    samples: Iterable[Sample],
    release: str,
    cloud: str,
    known: Collection[AttemptKey],
) -> int:
    """How many counted samples of the release on a cloud come from attempts that are not in `known`.

    `known`: the (request, attempt) keys that had started when the step began, see `started_keys`.
    """
    return sum(
        attempt.cloud == cloud
        and attempt.digest == release
        and attempt.outcome in (Outcome.GOOD, Outcome.BAD)
        and attempt.key not in known
        for attempt in attempts_of(starts, samples).values()
    )


def started_keys(starts: Iterable[Start], samples: Iterable[Sample]) -> set[AttemptKey]:
    """The keys to keep at the start of a step, for `fresh_samples`."""
    return {start.key for start in starts} | {sample.key for sample in samples}


def _attempt(key: AttemptKey, start: Start | None, base: Sample | None, late: Sample | None) -> Attempt:
    last = _last(base, late)
    outcome = Outcome.RUNNING if last is None else last.outcome
    reached = [facts for facts in (base, last) if facts is not None and facts.reached]
    known = [fact for fact in (start, base, late) if fact is not None]
    named = known[0]
    return Attempt(
        key=key,
        cloud=named.cloud,
        track=named.track,
        digest=named.digest,
        probe=next((fact.probe for fact in known if fact.probe is not None), None),
        outcome=outcome,
        facts=reached[0] if reached and outcome is not Outcome.UNCOUNTED else None,
    )


def _last(base: Sample | None, late: Sample | None) -> Sample | None:
    """A late failure takes the place of a good sample, unless it says nothing about the release."""
    if base is None or late is None:
        return base or late
    if base.outcome is Outcome.GOOD:
        return late if late.outcome is Outcome.BAD else base
    return late if base.outcome is Outcome.RUNNING else base


def _text(start: Start) -> str:
    return start.model_dump_json()


def _rank(sample: Sample) -> tuple[int, str]:
    order = (Outcome.RUNNING, Outcome.UNCOUNTED, Outcome.GOOD, Outcome.BAD)
    return order.index(sample.outcome), sample.model_dump_json()


def _errors(attempts: Iterable[Attempt]) -> Counts:
    tally = [attempt.outcome for attempt in attempts]
    bad, good, running = (tally.count(o) for o in (Outcome.BAD, Outcome.GOOD, Outcome.RUNNING))
    return Counts(bad, bad + good + running, bad, bad + good)


def _slow(metric: Metric, limit: float, attempts: Iterable[Attempt]) -> Counts:
    """An attempt that failed before its horizon is no sample of a latency."""
    seen: list[bool] = []
    running = 0
    for attempt in attempts:
        if attempt.facts is not None:
            slow = _passes_limit(metric, limit, attempt.facts)
            seen += [] if slow is None else [slow]
        elif attempt.outcome is Outcome.RUNNING:
            running += 1
    return Counts(sum(seen), len(seen) + running, sum(seen), len(seen))


def _passes_limit(metric: Metric, limit: float, facts: Sample) -> bool | None:
    if metric is Metric.START_LATENCY:
        value = facts.start_latency_s
        return None if value is None or math.isnan(value) else value > limit
    steps = [seconds for seconds in facts.step_seconds if not math.isnan(seconds)]
    return sum(seconds > limit for seconds in steps) > TOLERATED_SHARE * len(steps) if steps else None


def _pairs(metric: Metric, limit: float, ours: Iterable[Attempt], others: Iterable[Attempt]) -> Counts:
    """A pair is one sample, once both halves reached the horizon."""
    stable = _probes(others)
    seen: list[bool] = []
    for probe, facts in _probes(ours).items():
        if probe in stable:
            worse = _ratio_passes(metric, limit, facts, stable[probe])
            seen += [] if worse is None else [worse]
    return Counts(sum(seen), len(seen), sum(seen), len(seen))


def _probes(attempts: Iterable[Attempt]) -> dict[str, Sample]:
    halves: dict[str, Sample] = {}
    for attempt in attempts:
        if attempt.probe is not None and attempt.facts is not None:
            halves.setdefault(attempt.probe, attempt.facts)
    return halves


def _ratio_passes(metric: Metric, limit: float, canary: Sample, stable: Sample) -> bool | None:
    """None when not measured. A canary whose loss diverged where stable's did not is over any limit."""
    above, below = _measure(metric, canary), _measure(metric, stable)
    if above is None or below is None or not math.isfinite(below) or below <= 0.0:
        return None
    if not math.isfinite(above):
        return True if metric is Metric.LOSS_RATIO else None
    return above > limit * below


def _measure(metric: Metric, facts: Sample) -> float | None:
    """Loss, bytes, or the median seconds a step (robust against a slow first step)."""
    if metric is Metric.LOSS_RATIO:
        return facts.loss
    if metric is Metric.MEMORY_RATIO:
        return None if facts.memory_bytes is None else float(facts.memory_bytes)
    return median(facts.step_seconds) if facts.step_seconds else None
