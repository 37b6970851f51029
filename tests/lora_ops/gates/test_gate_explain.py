"""`gate explain` on bare numbers: the verdicts of the table, valid JSON, words, and a cheap import."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.gates.explain import explain_counts, explain_text

ROLLBACK_AT = [(2, 2), (3, 5), (4, 8), (5, 10), (6, 20), (8, 30), (10, 50), (15, 100)]


@pytest.mark.parametrize(("k", "n"), ROLLBACK_AT)
def test_rolls_back_at_the_table_and_not_one_failure_earlier(k: int, n: int) -> None:
    assert explain_counts(k, n, 0.05, 0.99)["verdict"] == "fail"
    before = explain_counts(k - 1, n, 0.05, 0.99)
    assert before["verdict"] != "fail"
    if before["verdict"] == "inconclusive":
        assert before["more_bad_to_fail"]


@pytest.mark.parametrize(
    ("k", "n", "harmful"), [(0, 7, 0.5), (1, 11, 0.5), (0, 13, None), (1, 20, 0.3), (0, 88, 0.05)]
)
def test_passes_at_the_table_and_not_one_sample_earlier(k: int, n: int, harmful: float | None) -> None:
    assert explain_counts(k, n, 0.05, 0.99, harmful)["verdict"] == "pass"
    before = explain_counts(k, n - 1, 0.05, 0.99, harmful)
    assert before["verdict"] == "inconclusive"
    assert before["more_good_to_pass"] == 1


def test_says_all_that_decides() -> None:
    told = explain_counts(3, 5, 0.05, 0.99)
    assert told["e_value"] == pytest.approx(155.5)
    assert told["threshold_fail"] == 100.0
    assert told["threshold_pass"] == pytest.approx(20.0)
    assert (told["failures"], told["samples"], told["limit"], told["harmful"]) == (3, 5, 0.05, 0.3)
    assert (told["confidence"], told["more_bad_to_fail"], told["more_good_to_pass"]) == (0.99, 0, 27)
    assert explain_counts(3, 5, 0.05, 0.99, tests=2)["verdict"] == "inconclusive"


def test_default_harmful_gives_way_to_a_higher_limit() -> None:
    assert explain_counts(1, 5, 0.4, 0.99)["harmful"] == 0.4


@pytest.mark.parametrize(("k", "n"), [(0, 0), (0, 100_000), (100_000, 100_000), (30_000, 100_000)])
def test_is_always_valid_json(k: int, n: int) -> None:
    told = explain_counts(k, n, 0.05, 0.99)
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((-1, 5, 0.05, 0.99), "number of failures must not be negative"),
        ((6, 5, 0.05, 0.99), "6 failures of 5 samples"),
        ((1, 5, 0.0, 0.99), "limit must lie strictly between 0 and 1"),
        ((1, 5, 5.0, 0.99), r"limit must .* \(5 % is 0.05\), but is 5.0"),
        ((1, 5, 0.05, 99.0), "confidence must lie strictly"),
        ((1, 5, 0.05, 0.99, 0.01), "harmful .* is below the limit"),
        ((1, 5, 0.05, 0.99, None, 0), "tests .* must be 1 or more"),
        ((1, 5, 0.05, 0.99, None, 1, 1.0), "pass_confidence must lie strictly"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[float, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        explain_counts(*arguments)  # type: ignore[arg-type]


def test_text_names_the_verdict_and_what_would_change_it() -> None:
    failed = explain_text(explain_counts(3, 5, 0.05, 0.99)).splitlines()
    assert failed[0] == (
        "3 of 5 samples bad: that is more than a 5 % limit explains (evidence 155 to 1; needed 100) -> fail"
    )
    assert failed[1].endswith("155 to 1, fails from 100")
    passed = explain_text(explain_counts(0, 13, 0.05, 0.99))
    assert "(evidence 24.4 to 1; needed 20) -> pass" in passed
    waiting = explain_text(explain_counts(1, 10, 0.05, 0.99))
    assert "4 more bad ones in a row would fail it, 10 more good ones in a row would pass it" in waiting
    assert "1 more good one would pass it" in explain_text(explain_counts(0, 12, 0.05, 0.99))
    assert "evidence more than a million to 1" in explain_text(explain_counts(50, 50, 0.05, 0.99))


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.01, 0.99), st.floats(0.5, 0.999))
def test_never_decides_without_samples_and_always_has_words(
    k: int, n: int, limit: float, confidence: float
) -> None:
    told = explain_counts(min(k, n), n, limit, confidence)
    assert n > 0 or told["verdict"] == "inconclusive"
    assert explain_text(told).splitlines()[0].endswith(f"-> {told['verdict']}")


def test_needs_neither_pydantic_nor_numbers_libraries() -> None:
    code = (
        "import sys, lora_ops.gates.explain;"
        "print([m for m in ('pydantic', 'numpy', 'scipy', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
