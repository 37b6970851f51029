"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.adapter_keys import LearningKeys
from trainer.optim.schedule import BY_LENGTH, lr_at, lr_factor

NAMES = ["constant", "linear", "cosine", "cosine_restarts", "polynomial", "inverse_sqrt"]

names = st.sampled_from(NAMES)
steps = st.integers(1, 500)
shares = st.floats(0, 1)


def test_every_schedule_of_the_config_is_here() -> None:
    declared = LearningKeys.model_fields["lr_schedule"].annotation
    assert set(declared.__args__) == set(NAMES)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no schedule 'sine'"):
        lr_factor(0, 1, "sine")


@given(names, steps, st.integers(0, 50), st.integers(1, 5), shares, st.data())
def test_it_lies_between_0_and_1_and_above_its_end(
    name: str, total: int, warmup: int, cycles: int, end: float, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, total - 1))
    value = lr_factor(step, total, name, warmup, cycles, end)
    assert 0 < value <= 1 or (value == 0 and end == 0)
    if step >= warmup:
        assert value >= end - 1e-12
    assert lr_at(step, total, 0.5, name, warmup, cycles, end) == 0.5 * value


@given(names.filter(lambda n: n != "cosine_restarts"), steps, st.integers(0, 50), shares)
def test_after_the_warm_up_it_never_rises(name: str, total: int, warmup: int, end: float) -> None:
    curve = [lr_factor(step, total, name, warmup, 1, end) for step in range(total)]
    assert all(b > a for a, b in pairwise(curve[: warmup + 1]))
    later = curve[warmup:]
    assert all(b <= a + 1e-12 for a, b in pairwise(later))
    assert not later or later[0] == 1.0


@given(st.sampled_from(sorted(BY_LENGTH)), steps, shares)
def test_its_end_is_lr_end(name: str, total: int, end: float) -> None:
    assert math.isclose(lr_factor(total, total, name, 0, 3, end), end, abs_tol=1e-12)


@given(st.sampled_from([n for n in NAMES if n not in BY_LENGTH]), steps, steps, st.integers(0, 99))
def test_the_others_know_nothing_of_the_length(name: str, one: int, two: int, step: int) -> None:
    assert lr_factor(step, one, name, 5) == lr_factor(step, two, name, 5)


def test_restarts_begin_anew_and_values_are_the_formulas() -> None:
    assert lr_factor(50, 100, "cosine_restarts", 0, 2) == 1.0
    assert lr_factor(49, 100, "cosine_restarts", 0, 2) < 0.01
    assert lr_factor(25, 100, "cosine_restarts", 0, 2) == pytest.approx(0.5)
    assert lr_factor(50, 100, "polynomial") == 0.25
    assert lr_factor(50, 100, "linear", end=0.5) == 0.75
    assert lr_factor(40, 100, "inverse_sqrt", 10) == pytest.approx(0.5)
    assert lr_factor(10**6, 100, "inverse_sqrt", 10, end=0.2) == 0.2
