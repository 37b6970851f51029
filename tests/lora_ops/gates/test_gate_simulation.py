"""Both errors of the gates, by simulation: 10,000 releases each, a look after every sample."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_ops.gates.counts import Metric
from lora_ops.gates.samples import Cause, Sample, Start
from lora_ops.gates.statistics import Verdict, fail_boundary, pass_boundary
from lora_ops.gates.verdict import GateSpec, judge

RELEASES = 10_000
SAMPLES = 400
AN_HOUR = 60
LIMIT, ALPHA, BETA = 0.05, 0.01, 0.05

Ints = NDArray[np.int16]
Bools = NDArray[np.bool_]


def fails_from(tests: int) -> Ints:
    """[n] -> the smallest number of bad samples that fails; n + 1 where none does."""
    found = (fail_boundary(n, limit=LIMIT, alpha=ALPHA, tests=tests) for n in range(SAMPLES + 1))
    return np.array([n + 1 if k is None else k for n, k in enumerate(found)], np.int16)


def passes_up_to(harmful: float) -> Ints:
    """[n] -> the largest number of bad samples that passes; -1 where none does."""
    found = (pass_boundary(n, harmful=harmful, beta=BETA) for n in range(SAMPLES + 1))
    return np.array([-1 if k is None else k for k in found], np.int16)


def bad_after(p: float, seed: int, releases: int = RELEASES) -> Ints:
    """(releases, SAMPLES): how many of the first 1, 2, ... attempts in the order of their start are bad."""
    draws = np.random.default_rng(seed).random((releases, SAMPLES), dtype=np.float32)
    return np.cumsum(draws < p, axis=1, dtype=np.int16)


def finished_good(bad: Ints, delay: int) -> Ints:
    """Good samples that are in after each start, when a success takes `delay` starts longer."""
    good = np.arange(1, SAMPLES + 1, dtype=np.int16) - bad
    late = np.zeros_like(good)
    late[:, delay:] = good[:, : SAMPLES - delay]
    return late


def failing(bad: Ints, tests: int = 1) -> Bools:
    verdicts: Bools = bad >= fails_from(tests)[1:]
    return verdicts


def passing(bad: Ints, harmful: float, delay: int = 0) -> Bools:
    verdicts: Bools = bad <= passes_up_to(harmful)[bad + finished_good(bad, delay)]
    return verdicts


def first(happens: Bools) -> NDArray[np.int64]:
    """The look at which it first happens, SAMPLES where it never does."""
    return np.where(happens.any(axis=1), happens.argmax(axis=1), SAMPLES)


@pytest.mark.parametrize("p", [0.02, 0.05])
@pytest.mark.parametrize("tests", [1, 2, 4])
def test_healthy_releases_are_rolled_back_at_most_once_in_a_hundred(p: float, tests: int) -> None:
    """Nothing stops a release here: it is looked at to the end, on each of its clouds."""
    share = np.zeros(RELEASES, bool)
    for cloud in range(tests):
        share |= failing(bad_after(p, seed=10 * tests + cloud), tests).any(axis=1)
    assert share.mean() <= ALPHA


@pytest.mark.parametrize("harmful", [0.3, 0.5])
@pytest.mark.parametrize("delay", [0, AN_HOUR])
def test_harmful_releases_pass_at_most_once_in_twenty(harmful: float, delay: int) -> None:
    """Nothing stops a release here either: not even its own failure keeps it from passing later."""
    assert passing(bad_after(harmful, seed=3), harmful, delay).any(axis=1).mean() <= BETA


@pytest.mark.parametrize("tests", [2, 4])
@pytest.mark.parametrize("delay", [0, AN_HOUR])
def test_a_release_that_is_harmful_on_one_cloud_only_passes_at_most_once_in_twenty(
    tests: int, delay: int
) -> None:
    passes = np.ones((RELEASES, SAMPLES), bool)
    for cloud in range(tests):
        passes &= passing(bad_after(0.3 if cloud == 0 else 0.02, seed=20 * tests + cloud), 0.3, delay)
    assert passes.any(axis=1).mean() <= BETA


@pytest.mark.parametrize("p", [0.02, 0.05])
def test_failures_that_finish_first_do_not_condemn_a_healthy_release(p: float) -> None:
    """Every start counts for `fail`, so the delay of successes changes nothing; finished ones alone would."""
    bad = bad_after(p, seed=4)
    finished = bad + finished_good(bad, AN_HOUR)
    naive = bad >= fails_from(1)[finished]
    assert naive.any(axis=1).mean() > 0.25
    assert failing(bad).any(axis=1).mean() <= ALPHA


def test_harmful_releases_are_mostly_rolled_back_and_healthy_ones_mostly_promoted() -> None:
    """The gates are not safe by never deciding (m = 2)."""
    for p, passed, tolerance in (
        (0.0, 1.0, 0.0),
        (0.02, 1.0, 0.002),
        (0.05, 0.998, 0.004),
        (0.3, 0.026, 0.01),
    ):
        bad = bad_after(p, seed=5)
        fail_at, pass_at = first(failing(bad, tests=2)), first(passing(bad, 0.3))
        assert abs((pass_at < fail_at).mean() - passed) <= tolerance
        assert (np.minimum(fail_at, pass_at) == SAMPLES).mean() <= 0.002


@pytest.mark.parametrize(
    ("p", "median", "p90"), [(1.0, 2, 2), (0.8, 2, 5), (0.5, 5, 13), (0.3, 15, 36), (0.2, 36, 87)]
)
def test_samples_to_a_rollback_are_those_of_the_table(p: float, median: float, p90: float) -> None:
    """alpha 1 %; within a tenth or one sample of the medians and 90th percentiles of the design."""
    samples = first(failing(bad_after(p, seed=6))) + 1
    assert np.median(samples) == pytest.approx(median, rel=0.1, abs=1)
    assert np.quantile(samples, 0.9) == pytest.approx(p90, rel=0.1, abs=1)


def test_judge_follows_the_tables_look_by_look() -> None:
    """The simulations speak for `judge`: the same verdicts from documents, with late successes."""
    gate, delay, fails, passes = (
        GateSpec(metric=Metric.ERROR_RATE, limit=LIMIT),
        4,
        fails_from(1),
        passes_up_to(0.3),
    )
    seen: set[Verdict] = set()
    for release in range(24):
        p = (0.02, 0.2, 0.5)[release % 3]
        bad_at = np.random.default_rng(release).random(30) < p
        starts: list[Start] = []
        samples: list[Sample] = []
        for t in range(len(bad_at)):
            starts.append(Start(request=f"r{t}", attempt=1, cloud="east", track="canary", digest="d"))
            for i, in_by in ((t, bad_at[t]), (t - delay, t >= delay and not bad_at[t - delay])):
                if in_by:
                    cause = Cause.TRAINER_ERROR if bad_at[i] else None
                    facts = starts[i].model_dump(exclude={"executor"})
                    samples.append(Sample(**facts, cause=cause, at_horizon=cause is None))
            k, n = int(bad_at[: t + 1].sum()), len(samples)
            expected = (
                Verdict.FAIL
                if k >= fails[t + 1]
                else Verdict.PASS
                if k <= passes[n]
                else Verdict.INCONCLUSIVE
            )
            look = judge([gate], ["east"], starts, samples, "d", alpha=ALPHA, beta=BETA, harmful=0.3)
            assert look.verdict is expected
            seen.add(expected)
    assert seen == set(Verdict)
