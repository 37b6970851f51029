"""A gate judges the clouds of its scope and no others; the thresholds count only the pairs that exist."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.errors import ConfigError
from lora_ops.gates.counts import Metric
from lora_ops.gates.external import ExternalCounts
from lora_ops.gates.samples import Cause, Sample
from lora_ops.gates.statistics import Verdict
from lora_ops.gates.verdict import GateSpec, Look, judge, number_of_tests
from lora_ops.spec import parse_spec

CLOUDS = ("aws", "azure", "gcp")
NEW = "sha256:new"


def gate(n: int, clouds: Sequence[str], limit: float = 0.05) -> GateSpec:
    return GateSpec(metric=Metric.ERROR_RATE, limit=limit, name=f"g{n}", clouds=tuple(clouds))


def run(cloud: str, bad: int, total: int) -> list[Sample]:
    return [
        Sample(
            request=f"{cloud}-{n}",
            attempt=1,
            cloud=cloud,
            track="canary",
            digest=NEW,
            cause=Cause.TRAINER_ERROR if n < bad else None,
            at_horizon=n >= bad,
        )
        for n in range(total)
    ]


def look(
    gates: Sequence[GateSpec], samples: list[Sample], clouds: Sequence[str] = CLOUDS, **more: int
) -> Look:
    return judge(gates, clouds, [], samples, NEW, **more)


scopes = st.lists(
    st.lists(st.sampled_from(CLOUDS), unique=True), min_size=1, max_size=4
)  # an empty scope: all clouds
counts = st.dictionaries(
    st.sampled_from(CLOUDS), st.tuples(st.integers(0, 8), st.integers(0, 20)), max_size=3
)


@given(scopes, counts)
def test_each_pair_is_judged_as_alone_with_the_pairs_that_exist_as_tests(
    scoped: list[list[str]], found: dict[str, tuple[int, int]]
) -> None:
    gates = [gate(n, clouds, 0.05 + n / 50) for n, clouds in enumerate(scoped)]
    clouds = [cloud for cloud in CLOUDS if any(each.covers(cloud) for each in gates)]
    samples = [each for cloud, (bad, good) in found.items() for each in run(cloud, bad, bad + good)]
    judged = look(gates, samples, clouds)
    pairs = {(each.title, cloud) for each in gates for cloud in each.clouds or clouds}
    assert {(result.gate, result.cloud) for result in judged.results} == pairs
    assert judged.tests == len(pairs) == number_of_tests(gates, clouds)
    for result in judged.results:
        (own,) = (each for each in gates if each.title == result.gate)
        alone = look([own], samples, [result.cloud], tests=len(pairs))
        assert [result] == alone.results
    verdicts = {result.verdict for result in judged.results}
    if Verdict.FAIL in verdicts:
        assert judged.verdict is Verdict.FAIL
    else:
        assert (judged.verdict is Verdict.PASS) == (verdicts == {Verdict.PASS})


@given(counts)
def test_a_scope_of_all_clouds_is_no_scope(found: dict[str, tuple[int, int]]) -> None:
    samples = [each for cloud, (bad, good) in found.items() for each in run(cloud, bad, bad + good)]
    assert look([gate(0, CLOUDS)], samples) == look([gate(0, ())], samples)


def test_what_fails_outside_of_the_scope_fails_nothing() -> None:
    gates = [gate(0, ["aws"]), gate(1, ["azure", "gcp"], 0.9)]
    samples = run("aws", 0, 13) + run("azure", 15, 40) + run("gcp", 15, 40)
    assert all(result.gate == "g1" for result in look(gates, samples).results if result.cloud != "aws")
    assert look(gates, samples).verdict is Verdict.PASS
    assert look([gate(0, ()), gates[1]], samples).verdict is Verdict.FAIL


def test_a_cloud_that_no_gate_judges_is_refused() -> None:
    with pytest.raises(ValueError, match="no gate judges azure, gcp"):
        look([gate(0, ["aws"])], [])
    with pytest.raises(ValueError, match="tests is 2, but gates x clouds is 3"):
        look([gate(0, ())], [], tests=2)


def test_a_provider_that_is_asked_nothing_is_not_away() -> None:
    remote = GateSpec(metric=Metric.ERROR_RATE, limit=0.05, name="remote", provider="prom", clouds=("aws",))
    local = gate(0, ["gcp"])
    assert look([remote, local], run("gcp", 0, 13), ["gcp"]).good_for_lease
    assert not look([remote, local], [], ["gcp", "aws"]).good_for_lease
    answered = {("remote", "aws"): ExternalCounts(k=0, n=13)}
    judged = judge([remote, local], ["gcp", "aws"], [], run("gcp", 0, 13), NEW, external_counts=answered)
    assert judged.verdict is Verdict.PASS


def test_the_key_is_written_only_where_it_says_something() -> None:
    assert "clouds" not in gate(0, ()).model_dump()
    scoped = gate(0, ["aws"])
    assert GateSpec.model_validate_json(scoped.model_dump_json()) == scoped
    assert json.loads(scoped.model_dump_json())["clouds"] == ["aws"]


# --- lora-ops.yaml --------------------------------------------------------------------------------


def complaint(gates: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_spec(f"clouds: {{aws: {{}}, gcp: {{}}}}\nrollout:\n  gates: {gates}\n", "f.yaml")
    (detail,) = caught.value.details
    return detail


def test_a_gate_names_its_clouds() -> None:
    text = "clouds: {aws: {}, gcp: {}}\nrollout:\n  gates:\n"
    text += "  - {metric: error_rate, limit: 5%}\n  - {metric: step_latency, limit: 2s, clouds: [gcp]}\n"
    policy = parse_spec(text, "f.yaml").policy()
    assert [each.clouds for each in policy.gates] == [(), ("gcp",)]
    assert number_of_tests(policy.gates, ["aws", "gcp"]) == 3


@pytest.mark.parametrize(
    ("gates", "told"),
    [
        (
            "[{metric: error_rate, limit: 5%, clouds: [aws, gpc]}]",
            "f.yaml:3: `rollout.gates.0.clouds.1`: cloud `gpc` is unknown. Did you mean `gcp`?",
        ),
        (
            "[{metric: error_rate, limit: 5%, clouds: [aws]}]",
            "f.yaml:3: `rollout.gates`: no gate judges cloud `gcp`, so nothing could ever pass there.",
        ),
        ("[{metric: error_rate, limit: 5%, clouds: []}]", "f.yaml:3: `rollout.gates.0.clouds`: "),
        ("[{metric: error_rate, limit: 5%, clouds: gcp}]", "`rollout.gates.0.clouds`: a list is wanted."),
    ],
)
def test_a_scope_that_makes_no_sense_is_refused(gates: str, told: str) -> None:
    assert told in complaint(gates)
