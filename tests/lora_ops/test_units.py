"""Durations and shares as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.units import age, fraction, seconds

anything = st.one_of(
    st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.integers()), st.just(10**400)
)


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h", 3600),
        ("2d", 172_800),
        ("250ms", 0.25),
        ("3ms", 0.003),
        ("1.1m", 66),
        (" 5 m ", 300),
        ("0s", 0),
        (90, 90),
        (0.5, 0.5),
        ("1e3", 1000),
        ("2e-4", 0.0002),
    ],
)
def test_seconds(written: object, wanted: float) -> None:
    assert seconds(written) == wanted


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("5%", 0.05),
        ("99.9%", 0.999),
        ("0.1 %", 0.001),
        ("100%", 1),
        (0, 0),
        (1, 1),
        (0.05, 0.05),
        ("2e-4", 0.0002),
    ],
)
def test_fraction(written: object, wanted: float) -> None:
    assert fraction(written) == wanted


@pytest.mark.parametrize(
    "written", ["", "5", "5 minutes", "-5s", "5s5", "1h30m", "s", "٣s x", True, None, [5], "%"]
)
def test_what_is_no_duration(written: object) -> None:
    with pytest.raises(ValueError, match="90s, 5m or 1h"):
        seconds(written)


@pytest.mark.parametrize("written", [-1, math.nan, math.inf, "99999d", 10**400, "1e300", "1e999", -0.001])
def test_a_duration_is_finite_and_not_negative(written: object) -> None:
    with pytest.raises(ValueError, match="between 0 and 30 years"):
        seconds(written)


@pytest.mark.parametrize("written", ["", "5", "5 percent", "-5%", "5%%", True, None, [5]])
def test_what_is_no_share(written: object) -> None:
    with pytest.raises(ValueError, match=r"write 5% or 0\.05"):
        fraction(written)


@pytest.mark.parametrize("written", [-0.1, 1.1, 5, "101%", math.nan, math.inf, 10**400, "1e3"])
def test_a_share_lies_between_none_and_all(written: object) -> None:
    with pytest.raises(ValueError, match="between 0% and 100%"):
        fraction(written)


@given(anything)
def test_anything_is_read_or_refused_in_a_short_line(written: object) -> None:
    for read, most in ((seconds, 1e9), (fraction, 1.0)):
        try:
            value, words = read(written), ""
        except ValueError as error:
            value, words = 0.0, str(error)
        assert 0 <= value <= most
        assert len(words) < 120


@given(st.integers(0, 100_000))
def test_a_percentage_is_the_nearest_number(thousandths: int) -> None:
    written = f"{thousandths / 1000:.3f}%"
    assert fraction(written) == float(f"{thousandths}e-5")


@pytest.mark.parametrize(
    ("elapsed_s", "shown"),
    [
        (-1, "0s"),
        (0, "0s"),
        (89, "89s"),
        (90, "2m"),
        (5399, "90m"),
        (5400, "2h"),
        (129_599, "36h"),
        (129_600, "2d"),
    ],
)
def test_age(elapsed_s: float, shown: str) -> None:
    assert age(elapsed_s) == shown
