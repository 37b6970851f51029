"""Conditions of a rollback: what they mean, and where they go wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.conditions import Unparsable, parse_condition
from lora_ops.gates.counts import Metric


@pytest.mark.parametrize(
    ("text", "metric", "limit"),
    [
        ("errorRate > 5%", Metric.ERROR_RATE, 0.05),
        ("errorRate>5%", Metric.ERROR_RATE, 0.05),
        ("  errorRate\t>=  0.5 %  ", Metric.ERROR_RATE, 0.005),
        ("error_rate > 0.05", Metric.ERROR_RATE, 0.05),
        ("latency > 2s", Metric.STEP_LATENCY, 2.0),
        ("latency>=2000ms", Metric.STEP_LATENCY, 2.0),
        ("latency > 1.5 m", Metric.STEP_LATENCY, 90.0),
        ("step_latency > 1h", Metric.STEP_LATENCY, 3600.0),
    ],
)
def test_what_conditions_mean(text: str, metric: Metric, limit: float) -> None:
    assert parse_condition(text) == (metric, limit)


@pytest.mark.parametrize(
    ("marked", "told"),
    [
        ("^", "a metric is wanted. Known: errorRate, latency."),
        ("^> 5%", "a metric is wanted"),
        ("^errorrate > 5%", "`errorrate` is not a metric. Did you mean `errorRate`?"),
        ("^memory > 5%", "`memory` is not a metric. Known: errorRate, latency."),
        ("errorRate ^< 5%", "`>` or `>=` is wanted"),
        ("errorRate ^5%", "`>` or `>=` is wanted"),
        ("errorRate ^>> 5%", "`>` or `>=` is wanted"),
        ("errorRate^", "`>` or `>=` is wanted"),
        ("errorRate > ^", "a share such as 5% or 0.05 is wanted"),
        ("errorRate > ^NaN", "a share such as 5% or 0.05 is wanted"),
        ("errorRate > ^-5%", "a share such as 5% or 0.05 is wanted"),
        ("errorRate > 2^s", "a share such as 5% or 0.05 is wanted"),
        ("errorRate > ^5", "is not between 0% and 100%"),
        ("errorRate > ^0%", "must lie strictly between 0 and 1"),
        ("errorRate > ^100%", "must lie strictly between 0 and 1"),
        ("latency > 2^", "a duration with its unit, such as 2s or 500ms, is wanted"),
        ("latency > 5^%", "a duration with its unit"),
        ("latency > 2^S", "a duration with its unit"),
        ("latency > ^0s", "must be seconds above 0"),
        ("latency > ^٣s", "a duration with its unit"),
        ("errorRate > 5% ^&& latency > 2s", "nothing more is wanted here"),
        ("latency > 2s^1", "nothing more is wanted here"),
    ],
)
def test_a_condition_that_goes_wrong_says_where(marked: str, told: str) -> None:
    with pytest.raises(Unparsable) as caught:
        parse_condition(marked.replace("^", ""))
    assert told in str(caught.value)
    assert caught.value.at == marked.index("^")


parts = st.sampled_from(["errorRate", "latency", " ", ">", ">=", "5", "0.05", ".", "%", "s", "ms", "e9", "x"])


@settings(deadline=None)
@given(st.lists(parts, max_size=8).map("".join) | st.text(max_size=20))
def test_any_text_is_a_condition_or_wrong_at_one_of_its_characters(text: str) -> None:
    wrong_at = 0
    try:
        metric, limit = parse_condition(text)
    except Unparsable as error:
        wrong_at = error.at
    else:
        assert metric in (Metric.ERROR_RATE, Metric.STEP_LATENCY)
        assert 0 < limit < 1e9
    assert 0 <= wrong_at <= len(text)


@settings(deadline=None)
@given(
    st.sampled_from(["errorRate", "latency"]),
    st.integers(1, 99),
    st.lists(st.sampled_from(["", " "]), min_size=5),
)
def test_spaces_change_nothing(name: str, number: int, gaps: list[str]) -> None:
    unit = "%" if name == "errorRate" else "s"
    spaced = "".join(
        f"{gap}{part}" for gap, part in zip(gaps, [name, ">", str(number), unit, ""], strict=False)
    )
    assert parse_condition(spaced) == parse_condition(f"{name}>{number}{unit}")
