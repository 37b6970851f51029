"""`/metrics`: Prometheus text, computed at each scrape from what the store holds.

The counters count documents of the store, so they go on where they were after a restart, and any replica
shows the same: aggregate over replicas with max, never with sum. Every series has the label `app`. A sample
that failed after its horizon has two documents: one good, one bad.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from fastapi import APIRouter, FastAPI
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response

from console.metrics_gates import gate_counters
from console.metrics_training import training
from console.reader import Reader, ReaderDep
from console.request_index import FINAL_STATES, OPEN_STATES, RequestFacts
from console.shared import Shared
from console.tally import Tally
from lora_ops import __version__
from lora_ops.lease import needs_lease
from lora_ops.state import AppState, Phase

router = APIRouter()

LANE = ["cloud", "track", "release"]


@router.get("/metrics")
def metrics(reader: ReaderDep, request: Request) -> Response:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_shared(request.app, reader).get())
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), media_type=content_type)


def _shared(app: FastAPI, reader: Reader) -> Shared[Snapshot]:
    """The app's scrapes share one reading of the store."""
    if not hasattr(app.state, "scrapes"):
        app.state.scrapes = Shared(lambda: Snapshot(reader))
    found: Shared[Snapshot] = app.state.scrapes
    return found


class Snapshot(Collector):
    """One scrape, read whole: with the store away there are no metrics rather than half of them."""

    def __init__(self, reader: Reader) -> None:
        requests = reader.requests.refresh()
        state = reader.state()
        tally = reader.tallies.total(requests)
        self._families = [
            *_build(),
            *_requests(requests),
            *_samples(tally),
            *_clouds(reader, state),
            *_rollouts(reader, state),
            *gate_counters(reader, state),
            *training(reader, requests),
        ]
        for family in self._families:
            family.samples = [
                each._replace(labels={"app": reader.platform.app, **each.labels}) for each in family.samples
            ]

    def collect(self) -> Iterable[Metric]:
        return self._families


def _build() -> Iterator[Metric]:
    info = GaugeMetricFamily("lora_ops_build_info", "Always 1; the version is the label.", labels=["version"])
    info.add_metric([__version__], 1)
    yield info


def _requests(requests: list[RequestFacts]) -> Iterator[Metric]:
    """Attempts of all requests; requests themselves without the rollouts' own."""
    started = Counter(
        (attempt.cloud, attempt.track.value, attempt.digest)
        for facts in requests
        for attempt in facts.attempts
        if attempt.started
    )
    attempts = CounterMetricFamily(
        "lora_ops_attempts_started", "Attempts that made contact with the store.", labels=LANE
    )
    for lane, count in sorted(started.items()):
        attempts.add_metric(lane, count)
    yield attempts
    ended = CounterMetricFamily(
        "lora_ops_requests", "Requests of users that have their result, by its state.", labels=["state"]
    )
    states = Counter(facts.state for facts in requests if facts.own)
    for name in FINAL_STATES:
        ended.add_metric([name], states[name])
    yield ended
    waiting = GaugeMetricFamily(
        "lora_ops_requests_open",
        "Requests of users that have no result yet: submitted (no attempt yet), waiting for a slot, running.",
        labels=["state"],
    )
    for name in OPEN_STATES:
        waiting.add_metric([name], states[name])
    yield waiting


def _samples(tally: Tally) -> Iterator[Metric]:
    samples = CounterMetricFamily(
        "lora_ops_samples",
        "Samples of rollouts. A failure after the horizon adds a bad one to its good one.",
        labels=[*LANE, "result", "cause"],
    )
    for (lane, result, cause), count in sorted(tally.samples.items()):
        samples.add_metric([*lane, result, cause], count)
    yield samples
    for name, help_text, found in (
        ("lora_ops_step_seconds", "Seconds a training step, of the steps up to the horizon.", tally.steps),
        ("lora_ops_start_latency_seconds", "Seconds from start to the first step.", tally.starts),
    ):
        family = HistogramMetricFamily(name, help_text, labels=LANE)
        for lane, histogram in sorted(found.items(), key=lambda pair: pair[0]):
            family.add_metric(lane, histogram.buckets(), histogram.sum)
        yield family


def _clouds(reader: Reader, state: AppState) -> Iterator[Metric]:
    up = GaugeMetricFamily("lora_ops_cloud_up", "Whether the cloud has a live worker.", labels=["cloud"])
    for name, healthy in sorted(reader.context.health().items()):
        up.add_metric([name], healthy)
    yield up
    weight = GaugeMetricFamily(
        "lora_ops_canary_weight", "Percent of the cloud's requests that go to the canary.", labels=["cloud"]
    )
    active = state.rollout
    for name in sorted(state.clouds):
        part = active.clouds.get(name) if active is not None and active.phase.exposes else None
        weight.add_metric([name], part.weight if part else 0)
    yield weight


def _rollouts(reader: Reader, state: AppState) -> Iterator[Metric]:
    """The active rollout, and the newest one that ended, so that its end can be seen."""
    active = state.rollout
    lease = GaugeMetricFamily("lora_ops_lease_seconds", "Seconds until the canary's lease runs out.")
    if active is not None and needs_lease(active.phase):
        until = reader.platform.lease_until(active)
        if until is not None:
            lease.add_metric([], max(0.0, until - reader.platform.clock.now().latest))
    yield lease
    shown: dict[str, Phase] = {each.id: each.phase for each in state.finished[-1:]}
    if active is not None:
        shown[active.id] = active.phase
    phases = GaugeMetricFamily(
        "lora_ops_rollout_phase", "1 for the phase that the rollout is in.", labels=["rollout", "phase"]
    )
    evidence = GaugeMetricFamily(
        "lora_ops_gate_e_value",
        "Evidence in the newest look that the release exceeds the gate's limit.",
        labels=["rollout", "cloud", "gate"],
    )
    for rollout_id, phase in shown.items():
        for each in Phase:
            phases.add_metric([rollout_id, each.value], each is phase)
        for seen in reader.platform.looks(rollout_id)[-1:]:
            for result in seen.look.results:
                evidence.add_metric([rollout_id, result.cloud, result.gate], result.e_value)
    yield phases
    yield evidence
