"""What bare counts mean, for `lora-ops gate explain --failures K --samples N`. Standard library only."""

from typing import TypedDict

from lora_ops.gates.sentences import evidence, percent, why
from lora_ops.gates.statistics import (
    DEFAULT_HARMFUL,
    Verdict,
    check_counts,
    check_limits,
    check_share,
    decide,
    finite_exp,
    log_e_fail,
    log_e_pass,
    more_bad_to_fail,
    more_good_to_pass,
    threshold_fail,
    threshold_pass,
)


class Explanation(TypedDict):
    """What `gate explain --json` prints."""

    verdict: str
    e_value: float
    e_value_good: float
    threshold_fail: float
    threshold_pass: float
    failures: int
    samples: int
    limit: float
    harmful: float
    confidence: float
    pass_confidence: float
    tests: int
    more_bad_to_fail: int | None
    more_good_to_pass: int | None


def explain_counts(
    failures: int,
    samples: int,
    limit: float,
    confidence: float,
    harmful: float | None = None,
    tests: int = 1,
    pass_confidence: float = 0.95,
) -> Explanation:
    """Verdict and evidence for `failures` of `samples`, all of them finished.

    Shares are between 0 and 1; `harmful` defaults to 0.30, or to the limit where that is higher. The result
    is valid JSON: evidence is cut at about 1e299, `more_...` is null beyond a million. Raises ValueError.
    """
    check_counts(failures, samples, names=("failures", "samples"))
    check_share("limit", limit)
    check_share("confidence", confidence)
    check_share("pass_confidence", pass_confidence)
    p1 = max(DEFAULT_HARMFUL, limit) if harmful is None else harmful
    check_limits(limit, p1)
    alpha, beta = _error(confidence), _error(pass_confidence)
    verdict = decide(
        failures, samples, failures, samples, limit=limit, harmful=p1, alpha=alpha, beta=beta, tests=tests
    )
    return {
        "verdict": verdict.value,
        "e_value": finite_exp(log_e_fail(failures, samples, limit)),
        "e_value_good": finite_exp(log_e_pass(failures, samples, p1)),
        "threshold_fail": threshold_fail(alpha, tests),
        "threshold_pass": threshold_pass(beta),
        "failures": failures,
        "samples": samples,
        "limit": limit,
        "harmful": p1,
        "confidence": confidence,
        "pass_confidence": pass_confidence,
        "tests": tests,
        "more_bad_to_fail": more_bad_to_fail(failures, samples, limit=limit, alpha=alpha, tests=tests),
        "more_good_to_pass": more_good_to_pass(failures, samples, harmful=p1, beta=beta),
    }


def explain_text(explanation: Explanation) -> str:
    """The same for a person, in three lines."""
    e = explanation
    reason = why(
        Verdict(e["verdict"]),
        p0=e["limit"],
        p1=e["harmful"],
        e_value=e["e_value"],
        e_value_good=e["e_value_good"],
        threshold=e["threshold_fail"],
        threshold_pass=e["threshold_pass"],
        more_bad=e["more_bad_to_fail"],
        more_good=e["more_good_to_pass"],
    )
    against_good = f"{evidence(e['e_value'])} to 1, fails from {evidence(e['threshold_fail'])}"
    against_bad = f"{evidence(e['e_value_good'])} to 1, passes from {evidence(e['threshold_pass'])}"
    rows = [
        f"{e['failures']} of {e['samples']} samples bad: {reason}",
        f"  evidence against 'at most {percent(e['limit'])} are bad': {against_good}",
        f"  evidence against 'at least {percent(e['harmful'])} are bad': {against_bad}",
    ]
    return "\n".join(rows)


def _error(confidence: float) -> float:
    """1 - confidence without the dust of binary fractions: 0.01 for 0.99, not 0.010000000000000009."""
    return round(1.0 - confidence, 12) or 1.0 - confidence
