"""What counts as a sample of which gate, and that order, duplicates and restarts make no difference."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.gates.counts import Counts, Metric, attempts_of, count, fresh_samples, started_keys
from lora_ops.gates.samples import COUNTED, NEVER_COUNTED, Cause, Sample, Start

NEW, OLD = "sha256:new", "sha256:old"


def facts(request: str, digest: str = NEW, cloud: str = "east", **more: Any) -> dict[str, Any]:
    track = "canary" if digest == NEW else "stable"
    return {"request": request, "attempt": 1, "cloud": cloud, "track": track, "digest": digest, **more}


def start(request: str, **more: Any) -> Start:
    return Start(**facts(request, **more))


def good(request: str, **more: Any) -> Sample:
    return Sample(**facts(request, **{"at_horizon": True, **more}))


def bad(request: str, cause: Cause = Cause.TRAINER_ERROR, **more: Any) -> Sample:
    return Sample(**facts(request, cause=cause, **more))


def counts(
    starts: list[Start], samples: list[Sample], metric: Metric = Metric.ERROR_RATE, limit: float = 1.0
) -> Counts:
    return count(metric, limit, attempts_of(starts, samples), NEW, "east")[0]


def test_fail_counts_all_that_started_and_pass_only_samples() -> None:
    starts = [start(f"r{i}") for i in range(5)]
    assert counts(starts, [bad("r0"), good("r1")]) == Counts(1, 5, 1, 2)


def test_an_attempt_that_never_started_counts_by_its_sample() -> None:
    assert counts([start("r0")], [bad("r1", Cause.IMAGE_PULL)]) == Counts(1, 2, 1, 1)


def test_only_this_cloud_and_by_digest() -> None:
    starts = [start("a"), start("b", cloud="west"), start("c", digest=OLD)]
    samples = [good("a"), bad("b", cloud="west"), bad("c", digest=OLD)]
    ours, stable = count(Metric.ERROR_RATE, 0.05, attempts_of(starts, samples), NEW, "east")
    assert ours == Counts(0, 1, 0, 1)
    assert stable == Counts(1, 1, 1, 1)


def test_a_promoted_release_goes_on_counting_on_the_stable_track() -> None:
    assert counts([], [good("a", track="stable"), bad("b")]) == Counts(1, 2, 1, 2)


@pytest.mark.parametrize("cause", sorted(NEVER_COUNTED))
def test_never_counted_causes_leave_no_trace(cause: Cause) -> None:
    assert counts([start("a"), start("b")], [good("a"), bad("b", cause)]) == Counts(0, 1, 0, 1)


@pytest.mark.parametrize("cause", sorted(COUNTED))
def test_counted_causes_are_bad(cause: Cause) -> None:
    assert counts([start("a")], [bad("a", cause)]) == Counts(1, 1, 1, 1)


def test_a_late_failure_takes_the_place_of_the_good_sample() -> None:
    late = bad("a", at_horizon=True, late=True)
    assert counts([start("a")], [good("a"), late]) == Counts(1, 1, 1, 1)
    assert counts([start("a")], [late]) == Counts(1, 1, 1, 1)
    evicted = bad("a", Cause.EVICTED, at_horizon=True, late=True)
    assert counts([start("a")], [good("a"), evicted]) == Counts(0, 1, 0, 1)
    given_up = bad("a", Cause.LOST_WORKER)
    assert counts([start("a")], [given_up, late]) == Counts(0, 0, 0, 0)


def test_a_sample_without_end_or_horizon_is_still_running() -> None:
    assert counts([start("a")], [Sample(**facts("a", step=3))]) == Counts(0, 1, 0, 0)


def test_step_latency_is_bad_past_five_percent_of_the_steps() -> None:
    def run(slow: int, steps: int) -> Counts:
        seconds = [2.5] * slow + [1.0] * (steps - slow)
        return counts([], [good("a", step_seconds=seconds)], Metric.STEP_LATENCY, 2.0)

    assert run(1, 20) == Counts(0, 1, 0, 1)
    assert run(2, 20) == Counts(1, 1, 1, 1)
    assert run(5, 100) == Counts(0, 1, 0, 1)
    assert run(6, 100) == Counts(1, 1, 1, 1)
    assert run(0, 0) == Counts()


def test_latencies_skip_failures_before_the_horizon_and_keep_running_attempts() -> None:
    starts = [start("a"), start("b"), start("c")]
    samples = [bad("a", start_latency_s=99.0, step_seconds=[99.0]), good("b", start_latency_s=4.0)]
    assert counts(starts, samples, Metric.START_LATENCY, 3.0) == Counts(1, 2, 1, 1)
    assert counts(starts, samples, Metric.START_LATENCY, 4.0) == Counts(0, 2, 0, 1)


def test_a_late_failure_leaves_its_latency_sample() -> None:
    samples = [good("a", start_latency_s=9.0), bad("a", at_horizon=True, late=True)]
    assert counts([start("a")], samples, Metric.START_LATENCY, 3.0) == Counts(1, 1, 1, 1)


def test_a_latency_that_was_not_measured_is_no_sample() -> None:
    samples = [good("a", start_latency_s=math.nan), good("b"), good("c", step_seconds=[math.nan])]
    assert counts([], samples, Metric.START_LATENCY, 3.0) == Counts()
    assert counts([], samples, Metric.STEP_LATENCY, 3.0) == Counts()


PAIRS = [
    (Metric.STEP_TIME_RATIO, {"step_seconds": [9.0, 1.3, 1.3]}, {"step_seconds": [9.0, 1.0, 1.0]}),
    (Metric.LOSS_RATIO, {"loss": 0.13}, {"loss": 0.10}),
    (Metric.MEMORY_RATIO, {"memory_bytes": 1300}, {"memory_bytes": 1000}),
]


@pytest.mark.parametrize(("metric", "canary", "stable"), PAIRS)
def test_a_pair_is_one_sample(metric: Metric, canary: dict[str, Any], stable: dict[str, Any]) -> None:
    pair = [good("a", probe="x/1", **canary), good("b", digest=OLD, probe="x/1", **stable)]
    assert counts([], pair, metric, 1.2) == Counts(1, 1, 1, 1)
    assert counts([], pair, metric, 1.4) == Counts(0, 1, 0, 1)
    assert counts([], pair[:1], metric, 1.2) == Counts()
    assert counts([], [pair[0], good("b", digest=OLD, probe="x/2", **stable)], metric, 1.2) == Counts()
    assert counts([], [pair[0], good("b", digest=OLD, **stable)], metric, 1.2) == Counts()
    elsewhere = good("b", digest=OLD, cloud="west", probe="x/1", **stable)
    assert counts([], [pair[0], elsewhere], metric, 1.2) == Counts()
    failed = bad("b", digest=OLD, probe="x/1", **stable)
    assert counts([], [pair[0], failed], metric, 1.2) == Counts()
    assert counts([], [pair[0], good("b", digest=OLD, probe="x/1")], metric, 1.2) == Counts()
    assert count(metric, 1.2, attempts_of([], pair), NEW, "east")[1] is None


def test_a_start_or_sample_without_its_marker_still_makes_a_pair() -> None:
    pair = [good("a", probe="x/1", loss=2.0), good("b", digest=OLD, loss=1.0)]
    starts = [start("a"), start("b", digest=OLD, probe="x/1")]
    assert counts(starts, pair, Metric.LOSS_RATIO, 1.2) == Counts(1, 1, 1, 1)


def test_both_halves_of_a_pair_count_for_error_rate() -> None:
    pair = [good("a", probe="x/1"), bad("b", digest=OLD, probe="x/1")]
    assert count(Metric.ERROR_RATE, 0.05, attempts_of([], pair), NEW, "east") == (
        Counts(0, 1, 0, 1),
        Counts(1, 1, 1, 1),
    )


def test_a_loss_that_diverged_on_the_canary_only_is_bad() -> None:
    def run(canary: float, stable: float) -> Counts:
        pair = [good("a", probe="x/1", loss=canary), good("b", digest=OLD, probe="x/1", loss=stable)]
        return counts([], pair, Metric.LOSS_RATIO, 1.1)

    assert run(math.nan, 0.1) == Counts(1, 1, 1, 1)
    assert run(math.inf, 0.1) == Counts(1, 1, 1, 1)
    assert run(math.nan, math.nan) == run(0.1, math.nan) == run(0.1, 0.0) == Counts()


def test_promql_has_no_counts_here() -> None:
    with pytest.raises(ValueError, match="come from its query"):
        count(Metric.PROMQL, 0.05, {}, NEW, "east")


def test_fresh_samples_are_those_of_attempts_started_later() -> None:
    starts, samples = [start("a"), start("b")], [good("a")]
    known = started_keys(starts, samples)
    assert known == {("a", 1), ("b", 1)}
    starts += [start("c"), start("d"), start("e"), start("f", cloud="west"), start("g", digest=OLD)]
    samples += [good("b"), bad("c"), bad("d", Cause.EVICTED), good("f", cloud="west"), good("g", digest=OLD)]
    assert fresh_samples(starts, samples, NEW, "east", known) == 1
    assert fresh_samples(starts, samples, NEW, "east", set()) == 3
    assert fresh_samples(starts, samples, NEW, "west", known) == 1


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Start], list[Sample]]:
    """Starts and samples as a store may hold them: attempts at any point of their life."""
    starts, samples = [], []
    for i in range(draw(st.integers(0, 12))):
        where: dict[str, Any] = {
            "digest": draw(st.sampled_from([NEW, OLD])),
            "cloud": draw(st.sampled_from(["east", "west"])),
            "probe": draw(st.sampled_from([None, "x/1", "x/2", "x/3"])),
        }
        measured: dict[str, Any] = {
            "step_seconds": draw(st.lists(st.floats(0.1, 5), max_size=5)),
            "start_latency_s": draw(st.none() | st.floats(0, 10)),
            "loss": draw(st.none() | st.floats(0, 2) | st.just(math.nan)),
            "memory_bytes": draw(st.none() | st.integers(0, 3000)),
        }
        if draw(st.integers(0, 4)):
            starts.append(start(f"r{i}", **where))
        cause = draw(st.none() | st.sampled_from(Cause))
        if draw(st.booleans()):
            samples.append(
                Sample(**facts(f"r{i}", cause=cause, at_horizon=cause is None, **where, **measured))
            )
            if cause is None and draw(st.booleans()):
                late = draw(st.sampled_from(Cause))
                samples.append(bad(f"r{i}", late, at_horizon=True, late=True, **where))
    return starts, samples


def everything(starts: list[Start], samples: list[Sample]) -> list[object]:
    attempts = attempts_of(starts, samples)
    metrics = [metric for metric in Metric if metric is not Metric.PROMQL]
    return [
        count(m, 1.2, attempts, release, c)
        for m in metrics
        for release in (NEW, OLD)
        for c in ("east", "west")
    ]


@given(histories(), st.randoms(use_true_random=False), st.data())
def test_order_and_duplicates_make_no_difference(
    history: tuple[list[Start], list[Sample]], random: Any, data: st.DataObject
) -> None:
    starts, samples = history
    again_starts = starts + data.draw(st.lists(st.sampled_from(starts)) if starts else st.just([]))
    again_samples = samples + data.draw(st.lists(st.sampled_from(samples)) if samples else st.just([]))
    random.shuffle(again_starts)
    random.shuffle(again_samples)
    assert everything(again_starts, again_samples) == everything(starts, samples)


@given(histories(), st.randoms(use_true_random=False))
def test_conflicting_documents_of_one_attempt_are_resolved_alike_in_any_order(
    history: tuple[list[Start], list[Sample]], random: Any
) -> None:
    starts = [fact.model_copy(update={"request": "r"}) for fact in history[0]]
    samples = [fact.model_copy(update={"request": "r"}) for fact in history[1]]
    before = everything(starts, samples)
    random.shuffle(starts)
    random.shuffle(samples)
    assert everything(starts, samples) == before


@given(histories())
def test_a_reader_that_starts_anew_from_the_stored_documents_sees_the_same(
    history: tuple[list[Start], list[Sample]],
) -> None:
    starts = [Start.model_validate_json(fact.model_dump_json()) for fact in history[0]]
    samples = [Sample.model_validate_json(fact.model_dump_json()) for fact in history[1]]
    assert everything(starts, samples) == everything(*history)


@given(histories())
def test_counts_are_possible_counts(history: tuple[list[Start], list[Sample]]) -> None:
    for pair in everything(*history):
        assert isinstance(pair, tuple)
        for k_fail, n_fail, k_pass, n_pass in (c for c in pair if c is not None):
            assert 0 <= k_pass == k_fail <= n_pass <= n_fail


@given(histories(), st.sampled_from(sorted(NEVER_COUNTED)), st.sampled_from([NEW, OLD]), st.booleans())
def test_attempts_with_a_never_counted_cause_change_no_count(
    history: tuple[list[Start], list[Sample]], cause: Cause, digest: str, started: bool
) -> None:
    starts, samples = history
    more_starts = [start("other", digest=digest, probe="x/1")] if started else []
    more = bad("other", cause, digest=digest, probe="x/1", at_horizon=True, loss=1.0, start_latency_s=99.0)
    assert everything(starts + more_starts, [*samples, more]) == everything(starts, samples)
