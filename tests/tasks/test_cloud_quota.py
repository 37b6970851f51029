"""Quotas and limit ranges against what a cloud's attempts ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.cloud_spec import CloudSpec, Resources
from tasks.cluster.quota import outside, quantity, too_small

CLOUD = CloudSpec(
    kind="kubernetes", context="c", size=2, resources=Resources(cpu="4", memory="16Gi", gpu=1, scratch="50Gi")
)


def quota(**hard: str) -> dict:
    return {
        "metadata": {"name": "q"},
        "spec": {"hard": {key.replace("__", "/"): v for key, v in hard.items()}},
    }


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500m", 0.5),
        ("2", 2),
        (2, 2),
        ("16Gi", 16 * 2**30),
        ("1k", 1000),
        ("0.5", 0.5),
        ("1e3", 1000),
        ("5E", 5e18),
    ],
)
def test_quantities(text, number):
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "Gi", "1Gim", "many"])
def test_no_quantities(text):
    with pytest.raises(ValueError):  # noqa: PT011 - whichever
        quantity(text)


@given(st.integers(0, 10**6), st.sampled_from(["m", "k", "Mi", "Gi"]))
def test_a_quantity_grows_with_its_number(number, unit):
    assert quantity(f"{number + 1}{unit}") > quantity(f"{number}{unit}")


def test_room_for_all_slots_of_both_tracks():
    assert not list(too_small(CLOUD, [quota(cpu="16", memory="64Gi"), quota(pods="4")]))


def test_a_quota_that_some_slots_hit():
    found = list(too_small(CLOUD, [quota(**{"limits.cpu": "13"})]))
    assert found == [(False, "quota q: limits.cpu 13 is enough for 3 of 4")]


def test_a_quota_that_admits_no_attempt():
    found = list(too_small(CLOUD, [quota(**{"requests.nvidia.com__gpu": "0"})]))
    assert found == [(True, "quota q: requests.nvidia.com/gpu 0 is less than one attempt takes")]


def test_what_attempts_do_not_take_does_not_matter():
    assert not list(too_small(CLOUD, [quota(services="0", **{"requests.storage": "0"}), {}]))


def test_the_status_is_what_holds():
    both = {**quota(cpu="1"), "status": {"hard": {"cpu": "100"}}}
    assert not list(too_small(CLOUD, [both]))


def test_limit_ranges():
    limits = [
        {"type": "Container", "max": {"cpu": "2", "memory": "32Gi"}, "min": {"ephemeral-storage": "100Gi"}},
        {"type": "PersistentVolumeClaim", "max": {"memory": "1"}},
    ]
    ranges = [{"metadata": {"name": "l"}, "spec": {"limits": limits}}]
    assert list(outside(CLOUD, ranges)) == [
        "limit range l: at most 2 of cpu",
        "limit range l: at least 100Gi of ephemeral-storage",
    ]
    assert not list(outside(CLOUD, [{}, {"spec": {}}]))
