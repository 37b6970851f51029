"""The counts of the built-in gates as counters that only grow, for `/metrics`: see `promql.STATES`."""

from __future__ import annotations

from collections.abc import Mapping

from lora_ops.gates.counts import Attempt, AttemptKey, Metric, count

Lane = tuple[str, str, str]
"""cloud, track, release"""


def lanes_of(attempts: Mapping[AttemptKey, Attempt]) -> set[Lane]:
    """The lanes that have attempts."""
    return {(each.cloud, each.track, each.digest) for each in attempts.values()}


def counters(
    metric: Metric, limit: float, attempts: Mapping[AttemptKey, Attempt], lane: Lane
) -> dict[str, int]:
    """By state, for error_rate and the latencies. None of them ever goes back while evidence is added.

    `uncounted` are attempts that were taken out of n again: a counter cannot count them down.
    """
    here = {key: each for key, each in attempts.items() if (each.cloud, each.track, each.digest) == lane}
    ours = count(metric, limit, here, lane[2], lane[0])[0]
    return {
        "started": len(here),
        "uncounted": len(here) - ours.n_fail,
        "finished": ours.n_pass,
        "bad": ours.k_fail,
    }
