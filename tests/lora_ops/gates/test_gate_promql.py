"""The PromQL of gates, and what its answers mean."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.gates import answers, promql
from lora_ops.gates.promql import Scope

NEW, OLD = "sha256:new", "sha256:old"
SCOPE = Scope("loras", "roll-1", "east", NEW, OLD, since=1000.0, now=1060.5, labels={"cluster": "prod"})


def vector(*series: tuple[dict[str, str], str], **more: Any) -> Any:
    result = [{"metric": labels, "value": [1060.5, value]} for labels, value in series]
    return {"status": "success", "data": {"resultType": "vector", "result": result}, **more}


def matrix(*series: list[tuple[float, float]]) -> Any:
    result = [
        {"metric": {"pod": str(n)}, "values": [[t, str(v)] for t, v in each]} for n, each in enumerate(series)
    ]
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


# --- queries ---


def test_placeholders_are_filled_for_the_release_and_for_stable() -> None:
    query = 'sum(oom{c="{{cloud}}",t="{{ track }}",r="{{release}}",a="{{app}}",x="{{rollout}}"}[{{window}}])'
    assert promql.fill(query, SCOPE) == (
        f'sum(oom{{c="east",t="canary",r="{NEW}",a="loras",x="roll-1"}}[61s])'
    )
    assert f't="stable",r="{OLD}"' in promql.fill(query, SCOPE, stable=True)
    assert promql.placeholders(query) == {"cloud", "track", "release", "app", "rollout", "window"}


def test_a_raw_query_reaches_back_to_before_the_rollout() -> None:
    assert promql.fill('oom{r="{{release}}"}[{{window}}]', SCOPE).endswith("[361s]")
    assert not promql.is_raw("sum(oom[{{window}}])")
    assert promql.is_raw("oom[ {{window}} ] ")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("oom{{{clod}}}", "unknown placeholder {{clod}}"),
        ("oom{{cloud}", "a brace is missing"),
        ("oom{{}}", "unknown placeholder {{}}"),
        ("cloud}}", "a brace is missing"),
    ],
)
def test_a_wrong_placeholder_is_refused(query: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("{", r"\{")):
        promql.check_query(query)


def test_values_cannot_leave_their_quotes() -> None:
    nasty = Scope("a", "r", 'e"} or vector(0) #', NEW, OLD, 0.0, 1.0)
    assert promql.fill('oom{c="{{cloud}}"}', nasty) == 'oom{c="e\\"} or vector(0) #"}'
    assert promql.selector("up", {"a": 'x"\\\n'}) == 'up{a="x\\"\\\\\\n"}'
    with pytest.raises(ValueError, match="not a label's name"):
        promql.selector("up", {"a-b": "1"})


def test_ready_made_queries_keep_to_their_scope() -> None:
    labels = 'app="loras",cloud="east",cluster="prod",gate="error_rate",rollout="roll-1"'
    inside = f"lora_ops_gate_attempts_total{{{labels}}}"
    assert promql.counts_query("error_rate", SCOPE) == f"max by (track, release, state) ({inside})"
    assert promql.resets_query("error_rate", SCOPE) == f"max(resets({inside}[361s]))"
    wider = Scope("a", "r", "c", NEW, OLD, 5.0, 5.0, {"app": "mine"})
    assert 'app="a"' in promql.counts_query("g", wider)
    assert wider.window_s == 1


# --- answers ---


def lane(track: str, release: str, started: int, uncounted: int, finished: int, bad: int) -> list[Any]:
    values = dict(zip(promql.STATES, (started, uncounted, finished, bad), strict=True))
    return [
        ({"track": track, "release": release, "state": name}, str(value)) for name, value in values.items()
    ]


def test_the_counts_of_a_release_follow_it_over_its_tracks() -> None:
    found = answers.lane_counts(
        vector(
            *lane("canary", NEW, 10, 2, 6, 1),
            *lane("stable", NEW, 3, 0, 3, 1),
            *lane("stable", OLD, 5, 0, 5, 4),
        ),
        NEW,
    )
    assert found == answers.LaneCounts(k=2, n=11, n_pass=9, stable_k=4, stable_n=5)
    alone = answers.lane_counts(vector(*lane("canary", NEW, 1, 0, 0, 0)), NEW)
    assert alone == answers.LaneCounts(k=0, n=1, n_pass=0, stable_k=None, stable_n=None)
    assert answers.lane_counts(vector(*lane("stable", OLD, 5, 0, 5, 4)), NEW) is None
    assert answers.lane_counts(vector(), NEW) is None
    with pytest.raises(ValueError, match="no series for state started"):
        answers.lane_counts(vector(*lane("canary", NEW, 1, 0, 0, 0)[1:]), NEW)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, "not one of Prometheus"),
        ({"status": "success"}, "not one of Prometheus"),
        ({"data": {"resultType": "scalar", "result": [1, "2"]}}, "answered a scalar; .* wrap a scalar"),
        ({"data": {"resultType": "string", "result": [1, "2"]}}, "answered a string"),
        (matrix([(1.0, 2.0)]), "answered a matrix"),
        (vector(({"a": "1"}, "1"), ({"a": "2"}, "2")), 'found 2 series .*a="1".*aggregate'),
        (vector(({}, "1"), warnings=["PromQL warning: store west did not answer"]), "may be partial: .*west"),
        ({"data": {"resultType": "vector", "result": [{"metric": {}}]}}, "holds no number"),
        ({"data": {"resultType": "vector", "result": [7]}}, "without labels"),
    ],
)
def test_what_is_not_one_number_is_told(document: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        answers.one_number(document)
    assert answers.told(document)


def test_one_number() -> None:
    assert answers.one_number(vector()) is None
    assert answers.one_number(vector(({}, "3"), warnings=["PromQL info: might not be a counter"])) == 3
    assert math.isnan(answers.one_number(vector(({}, "NaN"))) or 0.0)
    assert answers.one_number(vector(({}, "+Inf"))) == math.inf


def test_told_fits_on_a_line() -> None:
    assert answers.told(vector()) == "no series"
    assert answers.told(vector(({"a": "1"}, "3"))) == '{a="1"} 3'
    assert answers.told(matrix([(1.0, 2.0), (2.0, 5.0)])) == '{pod="0"} 2.0 to 5.0 in 2 samples'
    assert "and 84 more" in answers.told(vector(*[({"a": str(n)}, "1") for n in range(100)]))
    assert answers.told({"data": {"resultType": "scalar", "result": [1, "2"]}}) == "scalar 2"


# --- raw counters ---


def test_a_raw_counter_is_counted_exactly() -> None:
    """Born in the rollout: from zero. Older: from its value at the beginning. Restarted: on from zero."""
    assert answers.increase_of(matrix([(1010.0, 2.0), (1020.0, 3.0)]), 1000.0) == 3
    assert answers.increase_of(matrix([(900.0, 1.0), (999.0, 7.0), (1010.0, 9.0)]), 1000.0) == 2
    assert (
        answers.increase_of(matrix([(999.0, 7.0), (1010.0, 9.0), (1020.0, 1.0), (1030.0, 4.0)]), 1000.0) == 6
    )
    assert answers.increase_of(matrix([(999.0, 7.0)], [(1001.0, 2.0)]), 1000.0) == 2
    assert answers.increase_of(matrix(), 1000.0) is None
    assert math.isnan(answers.increase_of(matrix([(1001.0, math.nan)]), 1000.0) or 0.0)


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=5),
    st.integers(0, 10),
)
def test_restarts_lose_nothing_that_was_scraped(lives: list[list[int]], before: int) -> None:
    """Each life of the exporter counts from zero; every event was scraped before the next restart.

    A first life that begins where the last ended cannot be told from one process: none of these does.
    """
    points = [(1000.0, float(before))]
    total, at, last = 0, 1000.0, before
    for number, life in enumerate(lives):
        value = before if number == 0 else 0
        for grew in life:
            value += grew
            at += 5.0
            if number and value >= last and points[-1][1] == last and value - grew == 0:
                return
            points.append((at, float(value)))
            total += grew
        last = value
    assert answers.increase_of(matrix(points), 1000.0) == total
