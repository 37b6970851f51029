"""What the trainers themselves tell in their heartbeats, by cloud, track and release.

Not by request: a series for each would grow for ever in Prometheus. One training's curve is its own files',
or wandb's.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from console.reader import Reader
from console.request_index import RequestFacts
from lora_ops import keys
from lora_ops.errors import ObjectMissing

Lane = tuple[str, str, str]
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class _Beat:
    """`age_s`: since the heartbeat was written, on the store's clock."""

    age_s: float
    facts: dict[str, Any]

    def number(self, name: str) -> float | None:
        value = self.facts.get(name)
        usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if usable and value is not None else None


def training(reader: Reader, requests: list[RequestFacts]) -> Iterator[Metric]:
    """Gauges over the attempts that run now; lanes without any have no series."""
    running = [
        (facts.id, n, (attempt.cloud, attempt.track.value, attempt.digest))
        for facts in requests
        if not facts.final
        for n, attempt in enumerate(facts.attempts, start=1)
        if attempt.open and attempt.started
    ]
    lanes: dict[Lane, list[_Beat]] = defaultdict(list)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        beats = pool.map(lambda each: _beat(reader, each[0], each[1]), running)
        for (_, _, lane), beat in zip(running, beats, strict=True):
            if beat is not None:
                lanes[lane].append(beat)
    for name, told, found in _FAMILIES:
        family = GaugeMetricFamily(name, told, labels=["cloud", "track", "release"])
        for lane, beats_of in sorted(lanes.items()):
            value = found(beats_of)
            if value is not None:
                family.add_metric(lane, value)
        yield family


def _beat(reader: Reader, request_id: str, n: int) -> _Beat | None:
    try:
        found = reader.store.get(keys.heartbeat(request_id, n))
        facts = json.loads(found.data)
    except (ObjectMissing, ValueError):
        return None
    age = max(0.0, reader.platform.clock.now().earliest - found.last_modified)
    return _Beat(age, facts) if isinstance(facts, dict) else None


def _of(name: str, combine: Callable[[list[float]], float]) -> Callable[[list[_Beat]], float | None]:
    """`combine` over the attempts that tell it; None when none does."""

    def found(beats: list[_Beat]) -> float | None:
        values = [value for beat in beats if (value := beat.number(name)) is not None]
        return combine(values) if values else None

    return found


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


_FAMILIES: tuple[tuple[str, str, Callable[[list[_Beat]], float | None]], ...] = (
    ("lora_ops_training_attempts", "Attempts that train now and have a heartbeat.", len),
    ("lora_ops_training_steps_done", "Steps that the running attempts have done.", _of("step", math.fsum)),
    ("lora_ops_training_steps_wanted", "Steps that they are to do.", _of("steps", math.fsum)),
    ("lora_ops_training_loss", "Their newest loss, as a mean.", _of("loss", _mean)),
    (
        "lora_ops_training_step_duration_seconds",
        "Seconds a step of their newest ten, as a mean.",
        _of("step_s", _mean),
    ),
    (
        "lora_ops_training_samples_per_second",
        "Samples a second, all together.",
        _of("samples_per_s", math.fsum),
    ),
    ("lora_ops_training_memory_bytes", "The greatest peak of memory.", _of("memory_bytes", max)),
    (
        "lora_ops_training_heartbeat_age_seconds",
        "Age of their oldest heartbeat.",
        lambda beats: max(beat.age_s for beat in beats),
    ),
)
