"""YAML as people write it, and as they should not."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, field_validator

from lora_ops.errors import ConfigError
from lora_ops.yaml_lines import Wrong, load, validate


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 1
    colour: str = "red"


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")
    leaves: dict[str, Leaf] = {}
    rows: tuple[Leaf | None, ...] | None = None

    @field_validator("leaves")
    @classmethod
    def _no_thorns(cls, leaves: dict[str, Leaf]) -> dict[str, Leaf]:
        if "thorn" in leaves:
            raise Wrong("it pricks", "thorn", "size")
        return leaves


def parse(text: str) -> Tree:
    document, lines = load(text, "f.yaml")
    return validate(Tree, document, lines, "f.yaml")


def error_of(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value


def test_every_path_has_its_line() -> None:
    document, lines = load("# a comment\na:\n  - 1\n  - b: 2\n    c: [3,\n      4]\n'1': x\n", "f.yaml")
    assert document == {"a": [1, {"b": 2, "c": [3, 4]}], "1": "x"}
    assert lines == {
        (): 2,
        ("a",): 2,
        ("a", 0): 3,
        ("a", 1): 4,
        ("a", 1, "b"): 4,
        ("a", 1, "c"): 5,
        ("a", 1, "c", 0): 5,
        ("a", 1, "c", 1): 6,
        ("1",): 7,
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "- 1\n- 2\n", "a word", "42", "~"])
def test_what_is_not_a_mapping_is_refused(text: str) -> None:
    assert error_of(text).message == "f.yaml: it is empty, or not a mapping of keys."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "leaves:\n\ta: {}\n",
            "f.yaml:2: not valid YAML: found character '\\t' that cannot start any token.",
        ),
        ("a: [1,\nb: 2\n", "f.yaml:"),
        ("a: b: c\n", "f.yaml:1: not valid YAML: mapping values are not allowed here."),
        ("a: 'open\n", "f.yaml:2: not valid YAML: found unexpected end of stream."),
        ("a: *b\n", "f.yaml:1: not valid YAML: found undefined alias 'b'."),
        ("a: 1\n---\nb: 1\n", "f.yaml:2: not valid YAML: but found another document."),
        ("? [1, 2]\n: 3\n", "f.yaml:1: not valid YAML: found unhashable key."),
        ("a: !!python/object:os.system {}\n", "f.yaml:1: not valid YAML: could not determine a constructor"),
        ("a: 2020-13-45\n", "f.yaml: not valid YAML: month must be in 1..12."),
        ("a: \x00\n", "f.yaml: not valid YAML: unacceptable character #x0000"),
        ("[" * 1500, "f.yaml: it is nested too deep."),
    ],
)
def test_what_is_not_yaml_is_told_in_one_line(text: str, message: str) -> None:
    error = error_of(text)
    assert error.message.startswith(message)
    assert "\n" not in error.message
    assert error.hint


def test_keys_that_stand_twice_are_told_with_both_lines_all_at_once() -> None:
    error = error_of("leaves:\n  a: {size: 1}\n  b:\n    size: 1\n    size: 2\n  a: {}\nleaves: {}\n")
    assert error.message == "f.yaml says things twice."
    assert error.details == [
        "f.yaml:5: key `leaves.b.size` stands on line 4 already.",
        "f.yaml:6: key `leaves.a` stands on line 2 already.",
        "f.yaml:7: key `leaves` stands on line 1 already.",
    ]


def test_the_same_key_in_two_places_stands_once_in_each() -> None:
    text = "leaves:\n  a: &one {size: 1}\n  b: {<<: *one, size: 2}\n  c: *one\n"
    assert {name: leaf.size for name, leaf in parse(text).leaves.items()} == {"a": 1, "b": 2, "c": 1}


def test_aliases_cannot_blow_it_up() -> None:
    bombs = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    assert len(error_of("\n".join(bombs)).details) == 60
    assert "unknown key `a`" in error_of("a: &a [*a]\n").details[0]
    assert "unknown key `a`" in error_of("a: &a {b: *a}\n").details[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("leafs: {}\n", "f.yaml:1: unknown key `leafs`. Did you mean `leaves`?"),
        ("leaves:\n  x:\n    sise: 1\n", "f.yaml:3: unknown key `leaves.x.sise`. Did you mean `size`?"),
        (
            "leaves:\n  size:\n    coluor: 1\n",
            "f.yaml:3: unknown key `leaves.size.coluor`. Did you mean `colour`?",
        ),
        ("rows:\n- {}\n- shape: 1\n", "f.yaml:3: unknown key `rows.1.shape`. Known: colour, size."),
        ("leaves:\n  x:\n    size: [1]\n", "f.yaml:3: `leaves.x.size`: Input should be a valid integer."),
        ("leaves:\n  1:\n    colour: 5\n", "f.yaml:2: `leaves.1`: text is wanted; put it in quotes."),
        ("leaves:\n  x:\n    colour: 5\n", "f.yaml:3: `leaves.x.colour`: text is wanted; put it in quotes."),
        ("leaves:\n  x:\n", "f.yaml:2: `leaves.x`: a mapping of keys is wanted."),
        ("leaves:\n  thorn:\n    size: 1\n", "f.yaml:3: `leaves.thorn.size`: it pricks."),
        ("leaves:\n  thorn: {}\n", "f.yaml:2: `leaves.thorn.size`: it pricks."),
    ],
)
def test_complaints_name_line_key_and_the_nearest_key(text: str, told: str) -> None:
    error = error_of(text)
    assert told in error.details
    assert error.message in ("f.yaml has an error.", "f.yaml has 2 errors.")


def test_unicode_stays_what_it_is() -> None:
    assert parse("leaves:\n  grün: {colour: 🍃}\n").leaves["grün"].colour == "🍃"
    assert "leaves.größe.size" in error_of("leaves:\n  größe: {size: x}\n").details[0]


words = st.text(alphabet="ab1é:-# ", max_size=5)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=20,
)


@given(documents)
@settings(max_examples=100, deadline=None)
def test_a_documents_lines_are_its_own(document: object) -> None:
    text = yaml.safe_dump(document, allow_unicode=True)
    read, lines = load(text, "f.yaml")
    assert read == document
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
    found = 0

    def count(value: object) -> None:
        nonlocal found
        found += 1
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            count(each)

    count(document)
    assert len(lines) == found


@given(st.text(alphabet="ab:-[]{}&*!? \n\t\"'|>#%@`\x00é", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_document_or_a_config_error(text: str) -> None:
    try:
        load(text, "f.yaml")
    except ConfigError as error:
        told = error.message
    else:
        told = ""
    assert "\n" not in told
