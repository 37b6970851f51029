"""Ids: they sort by time, carry it, and nothing else passes for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.errors import UsageError
from lora_ops.ids import ALPHABET, REQUEST, ROLLOUT, check_id, created_at, new_id

times = st.floats(0, 32**9 / 1000 - 1)
bits = st.integers(0, 2**64)


@given(times, times, bits, bits)
def test_ids_sort_by_time(one: float, other: float, first: int, second: int) -> None:
    early, late = sorted((one, other))
    a, b = new_id(REQUEST, early, first), new_id(REQUEST, late, second)
    assert a < b or int(early * 1000) == int(late * 1000)


@given(st.sampled_from([REQUEST, ROLLOUT]), times, bits)
def test_an_id_is_one_and_carries_its_time(prefix: str, epoch_s: float, random_bits: int) -> None:
    made = new_id(prefix, epoch_s, random_bits)
    assert check_id(made) == made
    assert made.startswith(f"{prefix}-")
    assert 0 <= epoch_s - created_at(made) < 0.0011


@given(times, st.integers(0, 2**30 - 1), st.integers(0, 2**30 - 1))
def test_thirty_random_bits_tell_ids_of_one_millisecond_apart(epoch_s: float, one: int, other: int) -> None:
    assert (new_id(REQUEST, epoch_s, one) == new_id(REQUEST, epoch_s, other)) == (one == other)


def test_the_alphabet_sorts_and_has_no_look_alikes() -> None:
    assert list(ALPHABET) == sorted(set(ALPHABET))
    assert len(ALPHABET) == 32
    assert not set("ilou") & set(ALPHABET)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "req-",
        "req-06dk3v9z1q7a4b",
        "req-06dk3v9z1q7a4bcd",
        "req-06dk3v9z1q7a4bi",
        "REQ-06dk3v9z1q7a4bc",
        "req-06dk3v9z1q7a4bc\n",
        "req-06dk3v9z1q7a4bc/..",
        "../req-06dk3v9z1q7a4bc",
        "req_06dk3v9z1q7a4bc",
    ],
)
def test_what_is_no_id_never_becomes_a_key(text: str) -> None:
    with pytest.raises(UsageError, match="is not a request"):
        check_id(text, "request")


def test_the_id_of_the_hint_is_one() -> None:
    assert check_id("req-06dk3v9z1q7a4bc") == "req-06dk3v9z1q7a4bc"
