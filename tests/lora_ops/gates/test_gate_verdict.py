"""A look: every gate on every cloud, what may never pass, and the words for it."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lora_ops.gates.counts import Metric
from lora_ops.gates.samples import COUNTED, NEVER_COUNTED, Cause, Sample, Start
from lora_ops.gates.statistics import Verdict
from lora_ops.gates.verdict import ExternalCounts, GateSpec, Look, judge

NEW, OLD = "sha256:new", "sha256:old"
ERRORS = GateSpec(metric=Metric.ERROR_RATE, limit=0.05)
QUERY = GateSpec(
    metric=Metric.PROMQL, limit=0.05, provider="prometheus", name="oom", query_bad="bad", query_total="all"
)


def sample(request: str, digest: str = NEW, cloud: str = "east", **more: Any) -> Sample:
    at_horizon = more.pop("at_horizon", more.get("cause") is None)
    return Sample(
        request=request, attempt=1, cloud=cloud, track="t", digest=digest, at_horizon=at_horizon, **more
    )


def start(request: str, digest: str = NEW, cloud: str = "east") -> Start:
    return Start(request=request, attempt=1, cloud=cloud, track="t", digest=digest)


def run(bad: int, total: int, digest: str = NEW, cloud: str = "east") -> list[Sample]:
    return [
        sample(f"{cloud}-{digest}-{i}", digest, cloud, cause=Cause.TRAINER_ERROR if i < bad else None)
        for i in range(total)
    ]


def look(samples: list[Sample], clouds: list[str] | None = None, **more: Any) -> Look:
    gates = more.pop("gates", [ERRORS])
    return judge(gates, clouds or ["east"], more.pop("starts", []), samples, NEW, **more)


def test_fails_passes_and_waits() -> None:
    failed = look(run(3, 5))
    assert (failed.verdict, failed.good_for_lease) == (Verdict.FAIL, False)
    passed = look(run(0, 13))
    assert (passed.verdict, passed.good_for_lease) == (Verdict.PASS, True)
    waiting = look(run(1, 10))
    assert (waiting.verdict, waiting.good_for_lease) == (Verdict.INCONCLUSIVE, True)
    result = waiting.results[0]
    assert (result.more_bad, result.more_good, result.threshold) == (4, 10, 100.0)


def test_fails_if_any_cloud_fails_and_passes_only_if_all_pass() -> None:
    west = run(0, 13, cloud="west")
    assert look(run(4, 5) + west, ["east", "west"]).verdict is Verdict.FAIL
    assert look(run(0, 12) + west, ["east", "west"]).verdict is Verdict.INCONCLUSIVE
    assert look(run(0, 13) + west, ["east", "west"]).verdict is Verdict.PASS


def test_the_threshold_grows_with_gates_times_clouds() -> None:
    gates = [ERRORS, GateSpec(metric=Metric.START_LATENCY, limit=30)]
    both = look(run(3, 5), ["east", "west"], gates=gates)
    assert (both.tests, both.results[0].threshold) == (4, 400.0)
    assert both.verdict is Verdict.INCONCLUSIVE
    assert look(run(3, 5), tests=2).verdict is Verdict.INCONCLUSIVE
    with pytest.raises(ValueError, match=r"tests is 1, but gates x clouds is 4"):
        look([], ["east", "west"], gates=gates, tests=1)


def test_running_attempts_hold_back_a_fail_and_a_pass() -> None:
    starts = [start(f"run{i}") for i in range(8)]
    assert look(run(3, 5), starts=starts).verdict is Verdict.INCONCLUSIVE
    assert look(run(0, 12), starts=starts).verdict is Verdict.INCONCLUSIVE
    result = look(run(3, 5), starts=starts).results[0]
    assert (result.k_fail, result.n_fail, result.k_pass, result.n_pass) == (3, 13, 3, 5)
    assert "3 of 13 attempts of the new release failed (8 still running); undecided" in result.summary


def test_inconclusive_where_stable_fails_the_same_test() -> None:
    for ours in (run(5, 5), run(0, 20)):
        judged = look(ours + run(5, 6, OLD))
        assert judged.verdict is Verdict.INCONCLUSIVE
        assert judged.good_for_lease
        result = judged.results[0]
        assert (result.stable, result.stable_k, result.stable_n) == (Verdict.FAIL, 5, 6)
        assert "stable fails the same test here (5 of 6 bad, release" in result.summary
    elsewhere = look(run(5, 5) + run(5, 6, OLD, "west"))
    assert elsewhere.verdict is Verdict.FAIL


@pytest.mark.parametrize("samples", [[], run(5, 5, OLD), run(5, 5, cloud="west")])
def test_no_data_is_inconclusive(samples: list[Sample]) -> None:
    judged = look(samples, harmful=0.9, beta=0.9, alpha=0.9)
    assert judged.verdict is Verdict.INCONCLUSIVE
    assert judged.results[0].note


def test_no_gate_no_cloud_no_release_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no gate to judge"):
        judge([], ["east"], [], run(0, 50), NEW)
    with pytest.raises(ValueError, match="there is no cloud to judge"):
        judge([ERRORS], [], [], run(0, 50), NEW)
    with pytest.raises(ValueError, match="has no digest"):
        judge([ERRORS], ["east"], [], [], "")
    with pytest.raises(ValueError, match="two gates share a name: error_rate, error_rate"):
        judge([ERRORS, ERRORS], ["east"], [], [], NEW)
    with pytest.raises(ValueError, match="two clouds share a name"):
        judge([ERRORS], ["east", "east"], [], [], NEW)


@pytest.mark.parametrize("samples", [run(5, 5), run(0, 50)])
def test_a_store_that_is_away_decides_nothing_and_renews_no_lease(samples: list[Sample]) -> None:
    judged = look(samples, provider_ok={"store": False})
    assert (judged.verdict, judged.good_for_lease) == (Verdict.INCONCLUSIVE, False)
    assert judged.providers_away == ["store"]
    assert judged.summary == "east: error_rate: store did not answer -> inconclusive"


def external(k: float | None, n: float | None, **more: Any) -> Look:
    counts = {("oom", "east"): ExternalCounts(k=k, n=n, **more)}
    return look([], gates=[QUERY], external_counts=counts)


def test_external_counts_are_judged_alike() -> None:
    assert external(3, 5).verdict is Verdict.FAIL
    assert external(0, 13).verdict is Verdict.PASS
    assert external(0, 14, n_pass=12).verdict is Verdict.INCONCLUSIVE
    assert external(3.0, 5.0, stable_k=4, stable_n=5).verdict is Verdict.INCONCLUSIVE
    assert "3 of 5 samples of oom were bad" in external(3, 5).summary


@pytest.mark.parametrize(
    ("k", "n", "said"),
    [
        (None, None, "found no series"),
        (None, 13, "found no series"),
        (0, None, "found no series"),
        (math.nan, 13, "answered nan"),
        (0, math.inf, "answered inf"),
        (0.5, 13, "not a count"),
        (5, 3, "cannot be"),
        (-1, 13, "cannot be"),
        (0, 0, "no attempt of the new release yet"),
    ],
)
def test_an_answer_without_counts_is_never_a_pass_nor_a_fail(
    k: float | None, n: float | None, said: str
) -> None:
    judged = external(k, n)
    assert judged.verdict is Verdict.INCONCLUSIVE
    assert judged.good_for_lease
    assert said in judged.summary


def test_a_provider_that_is_away_renews_no_lease_and_hides_no_failure() -> None:
    unasked = look(run(0, 50), gates=[ERRORS, QUERY])
    assert (unasked.verdict, unasked.good_for_lease) == (Verdict.INCONCLUSIVE, False)
    assert unasked.providers_away == ["prometheus"]
    counts = {("oom", "east"): ExternalCounts(k=0, n=50)}
    away = look(run(0, 50), gates=[ERRORS, QUERY], external_counts=counts, provider_ok={"prometheus": False})
    assert (away.verdict, away.good_for_lease) == (Verdict.INCONCLUSIVE, False)
    failing = look(run(5, 5), gates=[ERRORS, QUERY], provider_ok={"prometheus": False})
    assert failing.verdict is Verdict.FAIL


def test_sentences_for_newcomers() -> None:
    assert look(run(3, 5)).summary == (
        "east: 3 of 5 attempts of the new release failed; that is more than a 5 % limit explains"
        " (evidence 155 to 1; needed 100) -> fail"
    )
    assert look(run(0, 13)).summary == (
        "east: 0 of 13 attempts of the new release failed; a release with 30 % bad would hardly look so good"
        " (evidence 24.4 to 1; needed 20) -> pass"
    )
    assert look(run(1, 10)).summary == (
        "east: 1 of 10 attempts of the new release failed; undecided: 4 more bad ones in a row would fail it,"
        " 10 more good ones in a row would pass it -> inconclusive"
    )
    only_the_cause = look(run(0, 13) + run(4, 5, cloud="west"), ["east", "west"]).summary
    assert only_the_cause.startswith("west: 4 of 5")
    assert "east" not in only_the_cause


def test_a_look_is_json_and_comes_back() -> None:
    judged = look(run(900, 1000) + run(0, 13, cloud="west"), ["east", "west"])
    body = json.loads(judged.model_dump_json(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert body["verdict"] == "fail"
    assert Look.model_validate(body) == judged
    assert judged.results == look(run(900, 1000) + run(0, 13, cloud="west"), ["east", "west"]).results


def test_ratio_gate_judges_pairs() -> None:
    gate = GateSpec(metric=Metric.LOSS_RATIO, limit=1.2)
    pairs = [
        half
        for i in range(13)
        for half in (
            sample(f"c{i}", probe=f"x/{i}", loss=1.0),
            sample(f"s{i}", OLD, probe=f"x/{i}", loss=0.5 if i < 3 else 1.0),
        )
    ]
    assert look(pairs[:6], gates=[gate]).verdict is Verdict.FAIL
    result = look(pairs, gates=[gate]).results[0]
    assert (result.k_fail, result.n_fail, result.stable, result.limit) == (3, 13, None, 0.05)
    assert "3 of 6" not in result.summary
    assert "3 of 13 probe pairs had the canary's loss over 1.2 times stable's" in result.summary


def test_a_gate_of_a_newer_release_can_be_read() -> None:
    newer = {"metric": "error_rate", "limit": 0.05, "a_key_to_come": 1}
    assert GateSpec.model_validate(newer) == GateSpec(metric=Metric.ERROR_RATE, limit=0.05)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"metric": "error_rate", "limit": 0.0}, "strictly between 0 and 1"),
        ({"metric": "error_rate", "limit": 5}, "strictly between 0 and 1"),
        ({"metric": "start_latency", "limit": 0}, "must be seconds above 0"),
        ({"metric": "loss_ratio", "limit": math.nan}, "a ratio of canary to stable above 0"),
        ({"metric": "error_rate", "limit": 0.05, "harmful": 0.01}, "is below the limit"),
        ({"metric": "promql", "limit": 0.05}, "needs `provider: prometheus`"),
        ({"metric": "promql", "limit": 0.05, "provider": "prometheus"}, "needs query_bad and query_total"),
        ({"metric": "error_rat", "limit": 0.05}, "Input should be"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        GateSpec(**spec)


def test_harmful_of_a_gate_comes_before_the_rollouts() -> None:
    assert (
        look(run(0, 7), gates=[GateSpec(metric=Metric.ERROR_RATE, limit=0.05, harmful=0.5)]).verdict == "pass"
    )
    assert look(run(0, 7), harmful=0.5).verdict is Verdict.PASS
    assert look(run(0, 7)).verdict is Verdict.INCONCLUSIVE
    assert GateSpec(metric=Metric.ERROR_RATE, limit=0.4).p1(0.3) == 0.4


causes = st.none() | st.sampled_from(sorted(COUNTED))


@given(st.lists(causes, max_size=30), st.lists(causes, max_size=10), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_more_bad_never_lowers_the_evidence(
    ours: list[Cause | None], stable: list[Cause | None], random: Any
) -> None:
    samples = [sample(f"n{i}", cause=c) for i, c in enumerate(ours)]
    samples += [sample(f"o{i}", OLD, cause=c) for i, c in enumerate(stable)]
    before = look(samples)
    shuffled = samples + samples[:3]
    random.shuffle(shuffled)
    assert look(shuffled) == before
    worse = look([*samples, sample("one-more", cause=Cause.TRAINER_ERROR)])
    assert worse.results[0].e_value >= before.results[0].e_value
    assert worse.results[0].e_value_good <= before.results[0].e_value_good


@given(
    st.lists(causes, max_size=30),
    st.lists(st.sampled_from(sorted(NEVER_COUNTED)), max_size=10),
    st.sampled_from([NEW, OLD]),
)
def test_never_counted_causes_leave_the_look_as_it_was(
    ours: list[Cause | None], others: list[Cause], digest: str
) -> None:
    samples = [sample(f"n{i}", cause=c) for i, c in enumerate(ours)]
    noise = [sample(f"x{i}", digest, cause=c) for i, c in enumerate(others)]
    noise_starts = [start(f"x{i}", digest) for i in range(0, len(others), 2)]
    assert look(samples + noise, starts=noise_starts) == look(samples)


@given(
    st.sampled_from([metric for metric in Metric if metric is not Metric.PROMQL]),
    st.lists(st.sampled_from(sorted(NEVER_COUNTED)), max_size=20),
    st.integers(0, 20),
    st.floats(0.001, 0.999),
    st.floats(0.001, 0.999),
)
def test_without_a_counted_sample_nothing_ever_passes_or_fails(
    metric: Metric, others: list[Cause], running: int, alpha: float, beta: float
) -> None:
    samples = [sample(f"x{i}", cause=c) for i, c in enumerate(others)]
    starts = [start(f"y{i}") for i in range(running)]
    judged = look(samples, gates=[GateSpec(metric=metric, limit=0.05)], starts=starts, alpha=alpha, beta=beta)
    assert judged.verdict is Verdict.INCONCLUSIVE
