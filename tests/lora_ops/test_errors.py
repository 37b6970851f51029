"""The error tree: one stable kind a class, and a way over HTTP and back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops import errors
from lora_ops.errors import LoraOpsError, NotFoundError, StoreUnavailable, nearest

CLASSES = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, LoraOpsError)
]
TABLE = re.findall(r"^ *[*x-] (\w+) *(\d)?", errors.__doc__ or "", re.MULTILINE)


def test_the_table_names_every_error_with_its_exit_code() -> None:
    codes = {each.__name__: each.exit_code for each in CLASSES}
    assert {name for name, _ in TABLE} == set(codes)
    assert {name: int(code) for name, code in TABLE if code} == {
        name: codes[name] for name, code in TABLE if code
    }


def test_every_error_has_a_kind_of_its_own() -> None:
    kinds = [each.kind for each in CLASSES]
    assert len(set(kinds)) == len(kinds)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", kind) for kind in kinds)
    assert all(400 <= each.http_status < 600 and 0 < each.exit_code < 10 for each in CLASSES)


@given(st.sampled_from(CLASSES), st.text(), st.text(), st.lists(st.text(), max_size=3))
def test_an_error_survives_its_way_over_http(
    cls: type[LoraOpsError], message: str, hint: str, details: list[str]
) -> None:
    error = cls(message, hint, details)
    again = LoraOpsError.from_dict(error.to_dict())
    assert type(again) is cls
    assert again.to_dict() == error.to_dict()
    assert str(again) == message


@pytest.mark.parametrize("body", [{}, {"kind": "of-tomorrow"}, {"detail": "Not Found"}, {"details": None}])
def test_a_foreign_answer_becomes_a_plain_error(body: dict[str, object]) -> None:
    again = LoraOpsError.from_dict(body)
    assert (type(again), again.message, again.details) == (LoraOpsError, "unknown error", [])


def test_an_error_of_a_parent_catches_its_children() -> None:
    with pytest.raises(errors.StoreError):
        raise StoreUnavailable("the store is away")
    with pytest.raises(errors.ConflictError):
        raise errors.Refused("no")


def test_nearest() -> None:
    assert nearest("stepps", ["steps", "lease"]) == "Did you mean `steps`?"
    assert nearest("x", ["steps", "lease"]) == "Known: lease, steps."
    assert nearest("x", []) == "There is none yet."
    assert nearest("roll-1", (NotFoundError.kind, "roll-1")) == "Did you mean `roll-1`?"


@given(st.text(), st.sets(st.text()))
def test_nearest_always_answers(name: str, known: set[str]) -> None:
    assert nearest(name, known).endswith((".", "?"))
