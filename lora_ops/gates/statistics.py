"""Mixture e-processes on counts: is the share of bad samples above a limit, or below a harmful share?

With k bad of n samples and a uniform prior over the alternative,

    E_fail = 1/(1-p0) * integral over (p0, 1] of p^k (1-p)^(n-k) dp / (p0^k (1-p0)^(n-k))
    E_pass = 1/p1     * integral over [0, p1) of p^k (1-p)^(n-k) dp / (p1^k (1-p1)^(n-k))

Each has mean at most 1 while its null ("p <= p0", "p >= p1") holds, so by Ville's inequality
P(E ever reaches 1/alpha) <= alpha however often one looks (Robbins 1970; Ramdas et al. 2023, "Game-theoretic
statistics and safe anytime-valid inference"). The integral is a regularised incomplete beta function with
whole parameters, hence a finite sum of positive terms: nothing cancels.
Standard library only, cheap to import.
"""

import math
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache

DEFAULT_ALPHA = 0.01
DEFAULT_BETA = 0.05
DEFAULT_HARMFUL = 0.30
SEARCH_LIMIT = 1_000_000
_NEGLIGIBLE = 1e-17
_RESCALE_ABOVE = 1e250
_LARGEST_LOG = 690.0


class Verdict(StrEnum):
    """What the counts of a gate say."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


def log_e_fail(k: int, n: int, p0: float) -> float:
    """Natural log of the evidence against "at most a share p0 of the samples is bad", k bad of n.

    Raises ValueError when not 0 <= k <= n (whole numbers) or p0 is not between 0 and 1.
    """
    check_counts(k, n)
    check_share("limit", p0)
    return _log_e(k, n, p0 / (1.0 - p0))


def log_e_pass(k: int, n: int, p1: float) -> float:
    """Natural log of the evidence against "at least a share p1 of the samples is bad", k bad of n.

    Raises ValueError when not 0 <= k <= n (whole numbers) or p1 is not between 0 and 1.
    """
    check_counts(k, n)
    check_share("harmful", p1)
    return _log_e(n - k, n, (1.0 - p1) / p1)


@lru_cache(maxsize=1 << 16)
def _log_e(hits: int, n: int, odds: float) -> float:
    """log of sum over j = 0..hits of C(n+1, j) / ((n+1) C(n, hits)) * odds^(j-hits).

    That is E_fail after writing 1 - I_p0(hits+1, n-hits+1) as the binomial tail P(Bin(n+1, p0) <= hits), with
    odds = p0/(1-p0). Summed from j = hits downwards; the falling ratio of neighbours bounds the rest.
    """
    term = total = 1.0 / (n + 1 - hits)
    log_scale = 0.0
    for j in range(hits, 0, -1):
        ratio = j / ((n + 2 - j) * odds)
        term *= ratio
        total += term
        if ratio < 1.0 and term * ratio < (1.0 - ratio) * total * _NEGLIGIBLE:
            break
        if total > _RESCALE_ABOVE:
            log_scale += math.log(total)
            term, total = term / total, 1.0
    return log_scale + math.log(total)


def decide(
    k_fail: int,
    n_fail: int,
    k_pass: int,
    n_pass: int,
    *,
    limit: float,
    harmful: float,
    alpha: float = DEFAULT_ALPHA,
    beta: float = DEFAULT_BETA,
    tests: int = 1,
) -> Verdict:
    """Verdict of one gate on one cloud.

    k_fail of n_fail: bad attempts of all that started. k_pass of n_pass: those that have a sample.
    Fail when the evidence against "p <= limit" reaches tests/alpha, else pass when the evidence against
    "p >= harmful" reaches 1/beta. Raises ValueError on impossible counts, shares or numbers of tests.
    """
    check_limits(limit, harmful)
    if log_e_fail(k_fail, n_fail, limit) >= _log_threshold_fail(alpha, tests):
        return Verdict.FAIL
    if log_e_pass(k_pass, n_pass, harmful) >= _log_threshold_pass(beta):
        return Verdict.PASS
    return Verdict.INCONCLUSIVE


def more_bad_to_fail(
    k: int, n: int, *, limit: float, alpha: float = DEFAULT_ALPHA, tests: int = 1, running: int = 0
) -> int | None:
    """How many more bad samples in a row would fail, 0 when it fails already, None beyond SEARCH_LIMIT.

    `running` of the n have started without a sample yet; they are the first to turn bad, which raises k only.
    """
    check_counts(k, n)
    check_counts(running, n - k, names=("running attempts", "attempts that are not bad"))
    threshold = _log_threshold_fail(alpha, tests)
    return _first(lambda x: log_e_fail(k + x, n + max(0, x - running), limit) >= threshold)


def more_good_to_pass(k: int, n: int, *, harmful: float, beta: float = DEFAULT_BETA) -> int | None:
    """How many more good samples in a row would pass, 0 when it passes already, None beyond SEARCH_LIMIT."""
    check_counts(k, n)
    threshold = _log_threshold_pass(beta)
    return _first(lambda x: log_e_pass(k, n + x, harmful) >= threshold)


def fail_boundary(n: int, *, limit: float, alpha: float = DEFAULT_ALPHA, tests: int = 1) -> int | None:
    """Smallest number of bad samples among n that fails, None when even n of n does not."""
    check_counts(0, n)
    threshold = _log_threshold_fail(alpha, tests)
    return _first(lambda k: log_e_fail(k, n, limit) >= threshold, n)


def pass_boundary(n: int, *, harmful: float, beta: float = DEFAULT_BETA) -> int | None:
    """Largest number of bad samples among n that still passes, None when even 0 of n does not."""
    check_counts(0, n)
    threshold = _log_threshold_pass(beta)
    good = _first(lambda x: log_e_pass(n - x, n, harmful) >= threshold, n)
    return None if good is None else n - good


def check_counts(k: int, n: int, names: tuple[str, str] = ("bad samples", "samples")) -> None:
    """Raises ValueError unless k and n are whole numbers with 0 <= k <= n."""
    for name, value in zip(names, (k, n), strict=True):
        if type(value) is not int:
            raise ValueError(f"the number of {name} must be a whole number, not {value!r}")
        if value < 0:
            raise ValueError(f"the number of {name} must not be negative, but is {value}")
    if k > n:
        raise ValueError(f"{k} {names[0]} of {n} {names[1]}: a part cannot be more than the whole")


def check_share(name: str, value: object) -> None:
    """Raises ValueError unless value is a number strictly between 0 and 1 (5 % is 0.05)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < 1.0:
        raise ValueError(f"{name} must lie strictly between 0 and 1 (5 % is 0.05), but is {value!r}")


def check_limits(limit: float, harmful: float) -> None:
    """Raises ValueError unless both are shares and harmful is at least the limit."""
    check_share("limit", limit)
    check_share("harmful", harmful)
    if harmful < limit:
        raise ValueError(
            f"harmful ({harmful:g}) is below the limit ({limit:g}): a release between them could neither pass"
            " nor fail; raise harmful to the limit or above"
        )


def threshold_fail(alpha: float, tests: int) -> float:
    """The evidence that fails: tests/alpha. Raises ValueError unless alpha is a share and tests from 1."""
    check_share("alpha", alpha)
    check_counts(0, tests, names=("", "tests (gates x clouds)"))
    if tests == 0:
        raise ValueError("the number of tests (gates x clouds) must be 1 or more, but is 0")
    return tests / alpha


def threshold_pass(beta: float) -> float:
    """The evidence that passes: 1/beta. Raises ValueError unless beta is a share."""
    check_share("beta", beta)
    return 1.0 / beta


def finite_exp(log_value: float) -> float:
    """exp, but at most about 1e299, so that evidence beyond all doubt is still valid JSON."""
    return math.exp(min(log_value, _LARGEST_LOG))


def _log_threshold_fail(alpha: float, tests: int) -> float:
    return math.log(threshold_fail(alpha, tests))


def _log_threshold_pass(beta: float) -> float:
    return math.log(threshold_pass(beta))


def _first(holds: Callable[[int], bool], largest: int = SEARCH_LIMIT) -> int | None:
    """Smallest x in 0..largest where `holds`, which once true stays true; None when it holds nowhere."""
    if holds(0):
        return 0
    low, high = 0, 1
    while high < largest and not holds(high):
        low, high = high, high * 2
    if high >= largest:
        high = largest
        if high <= low or not holds(high):
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
