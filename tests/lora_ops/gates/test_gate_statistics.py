"""The two formulas: pinned tables, an exact cross-check, and what holds for every count."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc, betaln

from lora_ops.gates.statistics import (
    SEARCH_LIMIT,
    Verdict,
    check_limits,
    decide,
    fail_boundary,
    finite_exp,
    log_e_fail,
    log_e_pass,
    more_bad_to_fail,
    more_good_to_pass,
    pass_boundary,
)

ROLLBACK_AT = [(2, 2), (3, 3), (3, 5), (4, 8), (5, 10), (6, 20), (8, 30), (10, 50), (15, 100), (24, 200)]
ROLLBACK_AT_ALPHA_5 = [(2, 2), (3, 5), (4, 10), (5, 20), (9, 50), (14, 100)]
ROLLBACK_AT_TWO_TESTS = [(3, 3), (4, 5), (4, 8), (5, 10), (6, 15), (7, 20), (8, 30), (11, 50)]
PASS_AT = {
    0.5: [(0, 7), (1, 11), (2, 14), (3, 17)],
    0.3: [(0, 13), (1, 20), (2, 26), (3, 32)],
    0.2: [(0, 20), (1, 31)],
    0.1: [(0, 43), (1, 66)],
    0.05: [(0, 88), (1, 134)],
}

shares = st.floats(0.005, 0.9)
counts = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def verdict(k: int, n: int, *, alpha: float = 0.01, tests: int = 1, harmful: float = 0.3) -> Verdict:
    return decide(k, n, k, n, limit=0.05, harmful=harmful, alpha=alpha, beta=0.05, tests=tests)


@pytest.mark.parametrize(
    ("table", "alpha", "tests"),
    [(ROLLBACK_AT, 0.01, 1), (ROLLBACK_AT_ALPHA_5, 0.05, 1), (ROLLBACK_AT_TWO_TESTS, 0.01, 2)],
)
def test_fails_at_the_table_and_not_one_failure_earlier(
    table: list[tuple[int, int]], alpha: float, tests: int
) -> None:
    for k, n in table:
        assert verdict(k, n, alpha=alpha, tests=tests) is Verdict.FAIL
        assert verdict(k - 1, n, alpha=alpha, tests=tests) is not Verdict.FAIL
        assert fail_boundary(n, limit=0.05, alpha=alpha, tests=tests) == k


@pytest.mark.parametrize("harmful", PASS_AT)
def test_passes_at_the_table_and_not_one_sample_earlier(harmful: float) -> None:
    for k, n in PASS_AT[harmful]:
        assert verdict(k, n, harmful=harmful) is Verdict.PASS
        assert verdict(k, n - 1, harmful=harmful) is not Verdict.PASS
        assert pass_boundary(n, harmful=harmful) == k
        assert more_good_to_pass(k, k, harmful=harmful) == n - k


def exact_e_fail(k: int, n: int, p0: Fraction) -> Fraction:
    """The integral of the definition, term by term: (1-p)^(n-k) expanded, no binomial tail."""
    integral = sum(
        Fraction(math.comb(n - k, i) * (-1) ** i, k + i + 1) * (1 - p0 ** (k + i + 1))
        for i in range(n - k + 1)
    )
    return integral / (1 - p0) / (p0**k * (1 - p0) ** (n - k))


def test_agrees_with_exact_fractions() -> None:
    for p0 in (Fraction(1, 20), Fraction(3, 10), Fraction(9, 10)):
        for n in range(26):
            for k in range(n + 1):
                exact = exact_e_fail(k, n, p0)
                assert math.exp(log_e_fail(k, n, float(p0))) == pytest.approx(float(exact), rel=1e-12)
                good = exact_e_fail(n - k, n, 1 - p0)
                assert math.exp(log_e_pass(k, n, float(p0))) == pytest.approx(float(good), rel=1e-11)


@given(counts, shares)
def test_agrees_with_the_incomplete_beta_of_scipy(pair: tuple[int, int], p: float) -> None:
    k, n = pair
    null = k * math.log(p) + (n - k) * math.log1p(-p)
    tail = 1.0 - betainc(k + 1, n - k + 1, p)
    if tail > 1e-4:
        expected = betaln(k + 1, n - k + 1) + math.log(tail) - math.log1p(-p) - null
        assert log_e_fail(k, n, p) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    body = betainc(k + 1, n - k + 1, p)
    if body > 1e-4:
        expected = betaln(k + 1, n - k + 1) + math.log(body) - math.log(p) - null
        assert log_e_pass(k, n, p) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("k", [0, 1, 4_000, 5_000, 5_400, 50_000, 99_999, 100_000])
def test_stays_finite_and_exact_at_a_hundred_thousand(k: int) -> None:
    n, p = 100_000, 0.05
    value = log_e_fail(k, n, p)
    assert math.isfinite(value)
    tail = 1.0 - betainc(k + 1, n - k + 1, p)
    if tail > 1e-4:
        null = k * math.log(p) + (n - k) * math.log1p(-p)
        assert value == pytest.approx(
            betaln(k + 1, n - k + 1) + math.log(tail) - math.log1p(-p) - null, abs=1e-6
        )
    assert math.isfinite(log_e_pass(k, n, 0.3))
    assert math.isfinite(finite_exp(value))


@given(counts, shares)
def test_each_bad_sample_adds_evidence_against_and_each_good_one_takes_it(
    pair: tuple[int, int], p: float
) -> None:
    k, n = pair
    here = log_e_fail(k, n, p)
    assert log_e_fail(k + 1, n + 1, p) > here > log_e_fail(k, n + 1, p)
    good = log_e_pass(k, n, p)
    assert log_e_pass(k + 1, n + 1, p) < good < log_e_pass(k, n + 1, p)
    if k < n:
        assert log_e_fail(k + 1, n, p) > here
        assert log_e_pass(k + 1, n, p) < good


@given(counts, shares)
def test_is_a_martingale_at_its_limit(pair: tuple[int, int], p: float) -> None:
    """The mean over the next sample, bad with probability p exactly, is the value now: Ville's premise."""
    k, n = pair
    for log_e in (log_e_fail, log_e_pass):
        here = log_e(k, n, p)
        mean = p * math.exp(log_e(k + 1, n + 1, p) - here) + (1 - p) * math.exp(log_e(k, n + 1, p) - here)
        assert mean == pytest.approx(1.0, rel=1e-9)


@given(counts, st.integers(1, 8), st.integers(0, 50))
def test_more_bad_is_exactly_what_fails(pair: tuple[int, int], tests: int, running: int) -> None:
    k, n = pair
    running = min(running, n - k)
    more = more_bad_to_fail(k, n, limit=0.05, tests=tests, running=running)
    assert more is not None

    def fails(x: int) -> bool:
        started = n + max(0, x - running)
        at = decide(k + x, started, k + x, started, limit=0.05, harmful=0.99, tests=tests)
        return at is Verdict.FAIL

    assert fails(more)
    assert more == 0 or not fails(more - 1)


@given(counts, st.sampled_from([0.1, 0.3, 0.5]))
def test_more_good_is_exactly_what_passes(pair: tuple[int, int], harmful: float) -> None:
    k, n = pair
    more = more_good_to_pass(k, n, harmful=harmful)
    assert more is not None
    assert log_e_pass(k, n + more, harmful) >= math.log(20)
    assert more == 0 or log_e_pass(k, n + more - 1, harmful) < math.log(20)


def test_running_attempts_are_the_first_to_turn_bad() -> None:
    assert more_bad_to_fail(2, 5, limit=0.05, running=3) == 1
    assert more_bad_to_fail(0, 2, limit=0.05, running=0) == 3
    assert more_bad_to_fail(0, 2, limit=0.05, running=2) == 2


def test_undecidable_within_a_million_is_said_as_none() -> None:
    assert more_bad_to_fail(0, SEARCH_LIMIT * 50, limit=0.9) is None
    assert more_good_to_pass(2 * SEARCH_LIMIT, 2 * SEARCH_LIMIT, harmful=0.05) is None


def test_no_samples_decide_nothing() -> None:
    assert verdict(0, 0) is Verdict.INCONCLUSIVE
    assert fail_boundary(0, limit=0.05) is None
    assert fail_boundary(1, limit=0.05) is None
    assert fail_boundary(1, limit=0.001) == 1
    assert pass_boundary(0, harmful=0.3) is None


def test_fail_comes_before_pass() -> None:
    assert verdict(1_000, 10_000) is Verdict.FAIL
    assert decide(0, 100, 0, 100, limit=0.05, harmful=0.05) is Verdict.PASS


def test_running_attempts_count_for_fail_but_not_for_pass() -> None:
    assert decide(2, 2, 2, 2, limit=0.05, harmful=0.3) is Verdict.FAIL
    assert decide(2, 4, 2, 2, limit=0.05, harmful=0.3) is Verdict.INCONCLUSIVE
    assert decide(0, 13, 0, 12, limit=0.05, harmful=0.3) is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"k_fail": -1}, "must not be negative, but is -1"),
        ({"k_fail": 6}, "6 bad samples of 5 samples"),
        ({"n_pass": -2}, "must not be negative, but is -2"),
        ({"k_fail": 1.0}, "whole number, not 1.0"),
        ({"k_fail": True}, "whole number, not True"),
        ({"limit": 0.0}, "limit must lie strictly between 0 and 1"),
        ({"limit": 5}, "limit must lie strictly between 0 and 1"),
        ({"limit": float("nan")}, "limit must lie strictly between 0 and 1"),
        ({"harmful": 1.0}, "harmful must lie strictly between 0 and 1"),
        ({"harmful": 0.01}, r"harmful \(0.01\) is below the limit \(0.05\)"),
        ({"alpha": 0.0}, "alpha must lie strictly between 0 and 1"),
        ({"beta": 2.0}, "beta must lie strictly between 0 and 1"),
        ({"tests": 0}, "must be 1 or more"),
        ({"tests": 1.5}, "whole number, not 1.5"),
    ],
)
def test_impossible_input_is_refused(arguments: dict[str, object], said: str) -> None:
    given_ = {"k_fail": 1, "n_fail": 5, "k_pass": 1, "n_pass": 5, "limit": 0.05, "harmful": 0.3, **arguments}
    with pytest.raises(ValueError, match=said):
        decide(**given_)  # type: ignore[arg-type]


def test_harmful_may_equal_the_limit() -> None:
    check_limits(0.05, 0.05)
