"""What the samples of all rollouts add up to; old rollouts are remembered instead of listed again."""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from console.events import Events
from console.request_index import RequestFacts
from lora_ops.gates.samples import Outcome, Sample
from tasks.platform import Platform

STEP_EDGES_S = (0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
START_EDGES_S = (1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
SETTLED_S = 600.0  # after so long, with nothing of it open, a rollout's evidence is complete

Lane = tuple[str, str, str]  # cloud, track, release


@dataclass(slots=True)
class Histogram:
    """Counts at and below each edge of `edges`, the last one infinite; sum in seconds."""

    edges: Sequence[float]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.edges) + 1)

    def observe(self, value: float) -> None:
        if math.isfinite(value):
            self.counts[bisect_left(self.edges, value)] += 1
            self.sum += value

    def add(self, other: Histogram) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def buckets(self) -> list[tuple[str, float]]:
        total, found = 0, []
        for edge, count in zip([*map(str, self.edges), "+Inf"], self.counts, strict=True):
            total += count
            found.append((edge, float(total)))
        return found


@dataclass(slots=True)
class Tally:
    """What the samples of rollouts add up to."""

    samples: Counter[tuple[Lane, str, str]] = field(default_factory=Counter)
    steps: dict[Lane, Histogram] = field(default_factory=dict)
    starts: dict[Lane, Histogram] = field(default_factory=dict)

    def take(self, sample: Sample) -> None:
        """Documents only ever add up: that is what keeps the counters from going back."""
        outcome = sample.outcome
        if outcome is Outcome.RUNNING or (sample.late and outcome is not Outcome.BAD):
            return
        lane = (sample.cloud, sample.track, sample.digest)
        cause = sample.cause.value if sample.cause is not None else ""
        self.samples[lane, outcome.value, cause] += 1
        if sample.late:
            return
        steps = self.steps.setdefault(lane, Histogram(STEP_EDGES_S))
        for seconds in sample.step_seconds:
            steps.observe(seconds)
        if sample.start_latency_s is not None:
            self.starts.setdefault(lane, Histogram(START_EDGES_S)).observe(sample.start_latency_s)

    def add(self, other: Tally) -> None:
        self.samples.update(other.samples)
        for mine, theirs in ((self.steps, other.steps), (self.starts, other.starts)):
            for lane, histogram in theirs.items():
                mine.setdefault(lane, Histogram(histogram.edges)).add(histogram)


class Tallies:
    """The tallies of rollouts whose evidence is complete are remembered. Thread-safe."""

    def __init__(self, platform: Platform, events: Events) -> None:
        self._platform = platform
        self._events = events
        self._settled: dict[str, Tally] = {}
        self._lock = threading.Lock()

    def total(self, requests: list[RequestFacts]) -> Tally:
        """Of all rollouts that the events know; `requests` as they were read just before."""
        total = Tally()
        with self._lock:
            for rollout_id in self._events.rollouts():
                total.add(self._settled.get(rollout_id) or self._read(rollout_id, requests))
        return total

    def _read(self, rollout_id: str, requests: list[RequestFacts]) -> Tally:
        complete = self._complete(rollout_id, requests)
        tally = Tally()
        for sample in self._platform.attempts(rollout_id)[1]:
            tally.take(sample)
        if complete:
            self._settled[rollout_id] = tally
        return tally

    def _complete(self, rollout_id: str, requests: list[RequestFacts]) -> bool:
        """Whether no sample of the rollout can come any more."""
        ended = self._events.ended(rollout_id)
        if ended is None or self._platform.clock.now().earliest - ended.event.time < SETTLED_S:
            return False
        under_way = (attempt for facts in requests if not facts.final for attempt in facts.attempts)
        return all(attempt.rollout != rollout_id for attempt in under_way)
