"""Numbers of a gate in words that need no statistics. Pure text, no pydantic."""

from lora_ops.gates.statistics import Verdict


def percent(share: float) -> str:
    """`5 %`, `2.5 %`."""
    return f"{share * 100:.4g} %"


def evidence(value: float) -> str:
    """`155`, `4,100`, `more than a million`: three figures say enough about evidence."""
    if value >= 1e6:
        return "more than a million"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def bad_of(metric: str, k: int, n: int, limit: float) -> str:
    """`3 of 5 attempts of the new release failed`, or what bad means for another metric.

    The counts go on after the promotion, when they are no canary's any more. `limit`: in the metric's unit.
    """
    ours = "attempts of the new release"
    said = {
        "error_rate": f"{ours} failed",
        "step_latency": f"{ours} had over 5 % of their steps slower than {limit:g} s",
        "start_latency": f"{ours} took more than {limit:g} s to start",
        "step_time_ratio": f"probe pairs had the canary's step take over {limit:g} times stable's",
        "loss_ratio": f"probe pairs had the canary's loss over {limit:g} times stable's",
        "memory_ratio": f"probe pairs had the canary use over {limit:g} times stable's memory",
    }
    return f"{k} of {n} {said.get(metric, f'samples of {metric} were bad')}"


def why(
    verdict: Verdict,
    *,
    p0: float,
    p1: float,
    e_value: float,
    e_value_good: float,
    threshold: float,
    threshold_pass: float,
    more_bad: int | None,
    more_good: int | None,
) -> str:
    """Why the counts lead to the verdict, ending in `-> verdict`."""
    if verdict is Verdict.FAIL:
        found = f"that is more than a {percent(p0)} limit explains"
        odds = f"evidence {evidence(e_value)} to 1; needed {evidence(threshold)}"
        return f"{found} ({odds}) -> {verdict}"
    if verdict is Verdict.PASS:
        found = f"a release with {percent(p1)} bad would hardly look so good"
        odds = f"evidence {evidence(e_value_good)} to 1; needed {evidence(threshold_pass)}"
        return f"{found} ({odds}) -> {verdict}"
    ahead = f"{_more(more_bad, 'bad', 'fail it')}, {_more(more_good, 'good', 'pass it')}"
    return f"undecided: {ahead} -> {verdict}"


def _more(count: int | None, kind: str, end: str) -> str:
    if count is None:
        return f"more than a million more {kind} ones would be needed to {end}"
    return f"{count:,} more {kind} {'one' if count == 1 else 'ones in a row'} would {end}"
