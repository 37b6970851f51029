"""Rows of a language model in every shape that is in use, and each bad one with its line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.language import Make
from trainer.config import config_from
from trainer.data import check_dataset, dataset_files
from trainer.data.chat_rows import content_of, read_chats
from trainer.data.holdout import split
from trainer.data.report import ChatItem, TextItem
from trainer.data.row_shapes import RowError, parse_row

ASKED = (("user", "q"), ("assistant", "a"))


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, ASKED),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "q"}]},
                    {"role": "assistant", "content": "a"},
                ]
            },
            ASKED,
        ),
        (
            {
                "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                "system": "s",
            },
            (("system", "s"), *ASKED),
        ),
        ({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, ASKED),
        ({"instruction": "q", "input": "", "output": "a"}, ASKED),
        ({"instruction": "q", "input": "i", "output": "a"}, (("user", "q\n\ni"), ("assistant", "a"))),
        (
            {"instruction": "r", "output": "b", "system": "s", "history": [["q", "a"]]},
            (("system", "s"), *ASKED, ("user", "r"), ("assistant", "b")),
        ),
        ({"prompt": "q", "completion": "a"}, ASKED),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            ASKED,
        ),
        ({"text": "words"}, "words"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_every_shape_is_told_from_its_keys(row: dict[str, Any], wanted: Any) -> None:
    assert parse_row(row, "auto") == wanted


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"messages": [{"role": "tool", "content": "4"}]}, "'tool' is a tool's turn"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "tool_calls"),
        ({"conversations": [{"from": "observation", "value": "4"}]}, "'observation' is a tool's turn"),
        ({"messages": [{"role": "usr", "content": "4"}]}, "role is 'usr'"),
        ({"messages": [{"role": "user", "content": " "}]}, "content is empty"),
        ({"messages": [{"role": "user", "content": "q"}]}, "no assistant message"),
        ({"messages": "q"}, "no list `messages`"),
        ({"messages": [3]}, "message 1: not an object"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference row"),
        ({"instruction": "q"}, "`output` is empty"),
        ({"instruction": "q", "input": 3, "output": "a"}, "`input` is not text"),
        ({"instruction": "q", "output": "a", "history": [["q"]]}, "`history`"),
        ({"text": ""}, "`text` is empty"),
        ({"text": 3}, "`text` is not text"),
        ({"text": "a\ud800b"}, "`text` holds half a character, \\ud800"),
        ([1], "a list, not an object"),
    ],
    ids=str,
)
def test_a_bad_row_says_what_is_wrong(row: Any, what: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(row, "auto")
    assert what in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["messages", "role", "content", "from", "value", "text", "instruction", "output"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(["auto", "messages", "alpaca", "sharegpt", "text"]),
)
def test_whatever_json_there_is_it_is_a_row_or_an_explained_error(row: Any, row_format: str) -> None:
    with contextlib.suppress(RowError):
        parsed = parse_row(row, row_format)
        assert parsed if isinstance(parsed, str) else any(role == "assistant" for role, _ in parsed)


def test_a_row_of_another_shape_than_asked_for_is_a_problem_with_its_line(
    text_config: Make, tmp_path: Path
) -> None:
    rows = [{"instruction": "q", "output": "a"}, {"text": "words"}, {"prompt": "q", "completion": "a"}]
    (tmp_path / "rows.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    mixed = check_dataset(config_from(text_config(train_data_dir=tmp_path)))
    assert mixed.ok
    assert [type(item) for item in mixed.items] == [ChatItem, TextItem, ChatItem]
    asked = check_dataset(config_from(text_config(train_data_dir=tmp_path, row_format="text")))
    assert [(problem.file, problem.line) for problem in asked.problems] == [
        ("rows.jsonl", 1),
        ("rows.jsonl", 3),
    ]


def test_text_files_are_documents_and_part_of_the_dataset(text_config: Make, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfsome\nwords")
    (tmp_path / "a.TXT").write_text("more")
    config = config_from(text_config(train_data_dir=tmp_path))
    items, problems = read_chats(config)
    assert not problems
    assert [(item.name, item.text) for item in items if isinstance(item, TextItem)] == [
        ("a.TXT", "more"),
        ("b.txt", "some\nwords"),
    ]
    assert [name for name, _ in dataset_files(config)] == ["a.TXT", "b.txt"]


def test_files_of_both_kinds_want_a_word_which_are_meant(text_config: Make, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    _, problems = read_chats(config_from(text_config(train_data_dir=tmp_path)))
    assert "row_format: text" in problems[0].hint
    rows, problems = read_chats(config_from(text_config(train_data_dir=tmp_path, row_format="alpaca")))
    assert not problems
    assert [row.name for row in rows] == ["rows.jsonl:1"]


def test_a_json_array_is_told_apart_from_no_file_at_all(text_config: Make, tmp_path: Path) -> None:
    (tmp_path / "alpaca.json").write_text("[]")
    _, problems = read_chats(config_from(text_config(train_data_dir=tmp_path)))
    assert "alpaca.json is JSON" in problems[0].hint


@given(st.lists(st.text(max_size=4), max_size=40), st.floats(0, 0.5))
def test_holding_out_follows_the_content(contents: list[str], share: float) -> None:
    kept, held = split(contents, share)
    assert sorted(kept + held) == list(range(len(contents)))
    assert not {contents[place] for place in kept} & {contents[place] for place in held}
    if share > 0 and len(set(contents)) > 1:
        assert kept
        assert held
    else:
        assert not held


def test_new_rows_move_no_old_one_and_the_share_is_kept() -> None:
    contents = [f"row {number}" for number in range(2000)]
    _, held = split(contents, 0.1)
    assert 150 < len(held) < 250
    _, fewer = split(contents[:1000], 0.1)
    assert fewer == [place for place in held if place < 1000]
    assert content_of(ChatItem("f", 1, ASKED)) == content_of(ChatItem("g", 2, ASKED))
