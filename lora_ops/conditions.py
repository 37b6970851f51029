"""The conditions of a pipeline document's rollback: `errorRate > 5%`, `latency >= 2000ms`."""

from __future__ import annotations

import re

from pydantic import ValidationError

from lora_ops.errors import nearest
from lora_ops.gates.counts import Metric
from lora_ops.gates.verdict import GateSpec
from lora_ops.units import fraction, seconds

METRICS = {
    "errorRate": Metric.ERROR_RATE,
    "latency": Metric.STEP_LATENCY,
    Metric.ERROR_RATE.value: Metric.ERROR_RATE,
    Metric.STEP_LATENCY.value: Metric.STEP_LATENCY,
}
_UNITS = {Metric.ERROR_RATE: ("", "%"), Metric.STEP_LATENCY: ("ms", "s", "m", "h")}
_WANTED = {
    Metric.ERROR_RATE: "a share such as 5% or 0.05 is wanted",
    Metric.STEP_LATENCY: "a duration with its unit, such as 2s or 500ms, is wanted",
}
_PARTS = re.compile(r"\s*(\w*)\s*([<>=!]*)\s*([0-9]+(?:\.[0-9]+)?)?\s*([A-Za-z%]*)\s*", re.ASCII)


class Unparsable(ValueError):
    """What is wrong with a condition; `at`: the character, from 0, at which it goes wrong."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


def parse_condition(text: str) -> tuple[Metric, float]:
    """The metric and its limit: a share, or seconds. Raises Unparsable."""
    found = _PARTS.match(text)
    assert found is not None  # every part may be empty
    name, operator, number, unit = found.groups()
    if name not in METRICS:
        told = f"`{name}` is not a metric" if name else "a metric is wanted"
        raise Unparsable(f"{told}. {nearest(name, ('errorRate', 'latency'))}", found.start(1))
    metric = METRICS[name]
    if operator not in (">", ">="):
        raise Unparsable("`>` or `>=` is wanted: a rollback is for too much of it", found.start(2))
    if number is None:
        raise Unparsable(_WANTED[metric], len(text) - len(text[found.end(2) :].lstrip()))
    if unit not in _UNITS[metric]:
        raise Unparsable(_WANTED[metric], found.start(4))
    if found.end() < len(text):
        raise Unparsable("nothing more is wanted here: one condition a text", found.end())
    try:
        if metric is Metric.ERROR_RATE:
            limit = fraction(f"{number}%") if unit else fraction(float(number))
        else:
            limit = seconds(f"{number}{unit}")
        GateSpec(metric=metric, limit=limit)
    except ValidationError as error:
        message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise Unparsable(message, found.start(3)) from None
    except ValueError as error:
        raise Unparsable(str(error), found.start(3)) from None
    return metric, limit
