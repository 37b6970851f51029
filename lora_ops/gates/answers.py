"""Answers of Prometheus' `/api/v1/query` as numbers. What is no number raises ValueError, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_ops.gates.promql import STATES

Labels = Mapping[str, str]
Points = Sequence[tuple[float, float]]
_SHOWN = 4


@dataclass(frozen=True)
class LaneCounts:
    """k bad of n that started and n_pass that finished; of the release and of every other digest."""

    k: float
    n: float
    n_pass: float
    stable_k: float | None
    stable_n: float | None


def vector(document: Any) -> list[tuple[Labels, float]]:
    """The series of an instant vector, each with its value (NaN and Inf included)."""
    return [(_labels(each), _value(each.get("value"))) for each in _result(document, "vector")]


def matrix(document: Any) -> list[tuple[Labels, Points]]:
    """The series of a range vector, each with its (time, value) points in their order."""
    found: list[tuple[Labels, Points]] = []
    for each in _result(document, "matrix"):
        points = [(_time(point), _value(point)) for point in each.get("values") or ()]
        found.append((_labels(each), points))
    return found


def one_number(document: Any) -> float | None:
    """The value of the only series; None for none. Several are refused: replicas would be counted twice."""
    found = vector(document)
    if len(found) > 1:
        shown = "; ".join(_shown_labels(labels) for labels, _ in found[:_SHOWN])
        raise ValueError(f"the query found {len(found)} series ({shown}): aggregate them with sum() or max()")
    return found[0][1] if found else None


def increase_of(document: Any, since: float) -> float | None:
    """By how much the counters of a raw query grew after `since`, summed over its series; None for none.

    Exact where `increase` extrapolates: the sum of the steps between samples, a step down (a restart) counted
    from zero, and so is a series that was born after `since`.
    """
    series = matrix(document)
    return math.fsum(_grown(points, since) for _, points in series) if series else None


def _grown(points: Points, since: float) -> float:
    before = 0.0
    total = 0.0
    for time, value in points:
        if not math.isfinite(value):
            return value if math.isnan(value) else math.inf
        if time > since:
            total += value - before if value >= before else value
        before = value
    return total


def lane_counts(document: Any, release: str) -> LaneCounts | None:
    """The counts of a built-in gate, from the answer to `counts_query`; None without the release."""
    lanes: dict[tuple[str, str], dict[str, float]] = {}
    for labels, value in vector(document):
        lane = lanes.setdefault((labels.get("track", ""), labels.get("release", "")), {})
        lane[labels.get("state", "")] = value
    ours: list[dict[str, float]] = []
    others: list[dict[str, float]] = []
    for (track, digest), states in lanes.items():
        if missing := [state for state in STATES if state not in states]:
            raise ValueError(f"track {track} of {digest} has no series for state {', '.join(missing)}")
        (ours if digest == release else others).append(states)
    if not ours:
        return None
    return LaneCounts(
        k=_sum(ours, "bad"),
        n=_sum(ours, "started") - _sum(ours, "uncounted"),
        n_pass=_sum(ours, "finished"),
        stable_k=_sum(others, "bad") if others else None,
        stable_n=_sum(others, "started") - _sum(others, "uncounted") if others else None,
    )


def told(document: Any) -> str:
    """The answer on one line, for a look: `{a="1"} 3; {a="2"} 5`, or `no series`."""
    try:
        data = document["data"]
        kind, result = data["resultType"], data["result"]
        if kind not in ("vector", "matrix"):
            return f"{kind} {result[1]}"
        if not result:
            return "no series"
        lines = [f"{_shown_labels(_labels(each))} {_shown_value(each)}" for each in result]
        more = len(lines) - 4 * _SHOWN
        return "; ".join(lines[: 4 * _SHOWN]) + (f"; and {more} more" if more > 0 else "")
    except (KeyError, TypeError, IndexError, ValueError):
        return "an answer that is none of Prometheus'"


def _result(document: Any, wanted: str) -> list[Any]:
    if not isinstance(document, dict) or not isinstance(document.get("data"), dict):
        raise ValueError("the answer is not one of Prometheus' query API: look at the provider's url")
    partial = [str(each) for each in document.get("warnings") or () if "PromQL info" not in str(each)]
    if partial:
        raise ValueError(f"the answer may be partial: {'; '.join(partial)}")
    kind, result = document["data"].get("resultType"), document["data"].get("result")
    if kind != wanted or not isinstance(result, list):
        ways = {
            "vector": "it must be an instant vector: wrap a scalar in vector(), count a range with sum(...)",
            "matrix": "a query that ends with [{{window}}] must be a plain selector of counters",
        }
        raise ValueError(f"the query answered a {kind}; {ways[wanted]}")
    return result


def _labels(series: Any) -> Labels:
    labels = series.get("metric") if isinstance(series, dict) else None
    if not isinstance(labels, dict):
        raise ValueError("the answer holds a series without labels: look at the provider's url")
    return labels


def _value(point: Any) -> float:
    try:
        return float(point[1])
    except (TypeError, ValueError, IndexError):
        raise ValueError(f"the query answered {point!r}, which holds no number") from None


def _time(point: Any) -> float:
    try:
        return float(point[0])
    except (TypeError, ValueError, IndexError):
        raise ValueError(f"the query answered {point!r}, which holds no time") from None


def _sum(lanes: Sequence[Mapping[str, float]], state: str) -> float:
    return sum(lane[state] for lane in lanes)


def _shown_labels(labels: Labels) -> str:
    return "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"


def _shown_value(series: Any) -> str:
    if "value" in series:
        return str(series["value"][1])
    values = series.get("values") or []
    return f"{values[0][1]} to {values[-1][1]} in {len(values)} samples" if values else "no samples"
