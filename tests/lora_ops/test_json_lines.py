"""JSON with the line of every value; what Python's parser lets pass and JSON does not is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops import yaml_lines
from lora_ops.errors import ConfigError
from lora_ops.json_lines import Page, written

words = st.text('abé"\\/\n\t]}:,', max_size=4)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(words, below, max_size=3),
    max_leaves=12,
)


def complaints(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Page(text, "f.json")
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value.details or [caught.value.message]


@given(documents, st.sampled_from([None, 0, 2, 4]))
@settings(max_examples=200, deadline=None)
def test_values_and_lines_are_those_of_other_parsers(document: Any, indent: int | None) -> None:
    text = json.dumps(document, indent=indent)
    page = Page(text, "f.json")
    assert page.root.value == document
    assert page.lines == yaml_lines.load(text, "f.json")[1]


def test_lines_of_a_document_as_people_write_it() -> None:
    page = Page('\ufeff{"a": [1, {"b": []},\r\n  [], {}],\n\t"c": {"d": "x\\"\\n}"}\n}', "f.json")
    assert page.lines == {
        (): 1,
        ("a",): 1,
        ("a", 0): 1,
        ("a", 1): 1,
        ("a", 1, "b"): 1,
        ("a", 2): 2,
        ("a", 3): 2,
        ("c",): 3,
        ("c", "d"): 3,
    }
    assert page.line(("c", "no", 3)) == 3
    assert written(("a", 1, "b")) == "a[1].b"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1,\n\n "a": 2}', "f.json:3: `a`: it stands on line 1 already."),
        ('{"x": [{"a": 1, "\\u0061": 2}]}', "f.json:1: `x[0].a`: it stands on line 1 already."),
        ('{"a":\n NaN}', "f.json:2: `a`: `NaN` is not a number of JSON."),
        ("[-Infinity]", "f.json:1: `[0]`: `-Infinity` is not a number of JSON."),
        ("[1e999]", "f.json:1: `[0]`: `1e999` is not a number of JSON."),
        ('{"a\\u001b[2J": NaN}', "f.json:1: `a\\x1b[2J`: `NaN` is not a number of JSON."),
        ("", "f.json:1: not valid JSON, column 1: Expecting value."),
        ('{"a": 1,\n}', "f.json:2: not valid JSON, column 1: Expecting property name"),
        ("a: 1", "f.json:1: not valid JSON, column 1: Expecting value."),
        (f"[{'1' * 5000}]", "f.json: not valid JSON: Exceeds the limit"),
        ("[" * 100_000, "f.json: it is nested too deep."),
    ],
)
def test_what_is_no_json_is_told_with_its_line(text: str, told: str) -> None:
    (found,) = complaints(text)
    assert found.startswith(told)


def test_complaints_come_in_the_order_of_their_lines() -> None:
    page = Page('{"a": 1,\n"b": 2}', "f.json")
    below = page.root.keys({"a": True, "b": True})
    below["b"].wrong("too much")
    below["a"].wrong("too little")
    with pytest.raises(ConfigError) as caught:
        page.check()
    assert caught.value.message == "f.json has 2 errors."
    assert caught.value.details == ["f.json:1: `a`: too little.", "f.json:2: `b`: too much."]
