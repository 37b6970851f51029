"""What a JSONL row says: a conversation in one of three shapes that are in use, or a document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

ROLES = ("system", "user", "assistant")
_SPEAKERS = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TOOLS = frozenset(
    {"tool", "tools", "tool_call", "tool_calls", "tool_response", "function", "function_call", "observation"}
)

Messages = tuple[tuple[str, str], ...]

EXAMPLES = {
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "alpaca": '{"instruction": "...", "input": "", "output": "..."} or {"prompt": "...", "completion": "."}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    "text": '{"text": "..."}',
}
"""One row of each shape."""


class RowError(ValueError):
    """A row that cannot be trained on; `hint` says what to do."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


def shape_of(row: Mapping[str, Any]) -> str:
    """The shape that the row's keys tell. Raises RowError for keys of none."""
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "chosen" in row or "rejected" in row:
        raise RowError(
            "a preference row (chosen, rejected)", "this trainer learns from answers, not from choices"
        )
    if "instruction" in row or ("prompt" in row and ("completion" in row or "response" in row)):
        return "alpaca"
    if "text" in row:
        return "text"
    found = ", ".join(sorted(map(str, row))) or "nothing"
    raise RowError(
        f"no list `messages` and no other known keys (found: {found})",
        f"one row a line: {EXAMPLES['messages']}",
    )


def parse_row(row: Any, row_format: str) -> Messages | str:
    """The conversation, or the document, that a row of `row_format` (or `auto`) holds. Raises RowError."""
    if not isinstance(row, dict):
        raise RowError(
            f"a {type(row).__name__}, not an object (found: {str(row)[:40]})",
            f"one row a line: {EXAMPLES['messages']}",
        )
    shape = shape_of(row) if row_format == "auto" else row_format
    if shape == "text":
        return _words(row.get("text"), "`text`")
    messages = _PARSERS[shape](row)
    if not any(role == "assistant" for role, _ in messages):
        raise RowError("no assistant message: nothing to learn", "add the answer as the last message")
    return messages


def _messages(row: Mapping[str, Any]) -> Messages:
    return _turns(row.get("messages"), "messages", "role", "content")


def _sharegpt(row: Mapping[str, Any]) -> Messages:
    turns = _turns(row.get("conversations"), "conversations", "from", "value")
    system = row.get("system")
    if isinstance(system, str) and system.strip() and turns[:1] and turns[0][0] != "system":
        return (("system", system), *turns)
    return turns


def _alpaca(row: Mapping[str, Any]) -> Messages:
    """Instruction and input are one user message; `system` and `history` (questions with answers)
    come before."""
    if "instruction" not in row:
        return _prompt_completion(row)
    answer_key = next((key for key in ("output", "response", "completion") if key in row), "output")
    question = _words(row["instruction"], "`instruction`")
    given = row.get("input")
    if given is not None and not isinstance(given, str):
        raise RowError("`input` is not text")
    turns: list[tuple[str, str]] = []
    if isinstance(row.get("system"), str) and row["system"].strip():
        turns.append(("system", row["system"]))
    history = row.get("history") or []
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise RowError("`history` is no list of [question, answer]")
    for number, (asked, said) in enumerate(history, 1):
        turns += [
            ("user", _words(asked, f"question {number} of `history`")),
            ("assistant", _words(said, f"answer {number} of `history`")),
        ]
    turns.append(("user", f"{question}\n\n{given}" if given and given.strip() else question))
    return (*turns, ("assistant", _words(row.get(answer_key), f"`{answer_key}`")))


def _prompt_completion(row: Mapping[str, Any]) -> Messages:
    """Both are text, or both are lists of messages."""
    prompt, key = row.get("prompt"), "completion" if "completion" in row else "response"
    if isinstance(prompt, list):
        answer = row.get(key)
        if isinstance(answer, str):
            return (*_turns(prompt, "prompt", "role", "content"), ("assistant", _words(answer, f"`{key}`")))
        return (*_turns(prompt, "prompt", "role", "content"), *_turns(answer, key, "role", "content"))
    return ("user", _words(prompt, "`prompt`")), ("assistant", _words(row.get(key), f"`{key}`"))


_PARSERS: dict[str, Callable[[Mapping[str, Any]], Messages]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
}


def _turns(value: Any, name: str, role_key: str, content_key: str) -> Messages:
    if not isinstance(value, list):
        shape = "sharegpt" if name == "conversations" else "messages"
        raise RowError(f"no list `{name}`", f"one row a line: {EXAMPLES[shape]}")
    turns: list[tuple[str, str]] = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            raise RowError(f"message {number}: not an object")
        said = turn.get(role_key, turn.get("role" if role_key == "from" else "from"))
        role = _SPEAKERS.get(said) if isinstance(said, str) else None
        if said in _TOOLS or turn.get("tool_calls"):
            raise RowError(
                f"message {number}: {said if said in _TOOLS else 'tool_calls'!r} is a tool's turn",
                "tools cannot be trained yet: leave the row out, or write the call and its answer as text",
            )
        if role is None:
            raise RowError(
                f"message {number}: {role_key} is {said!r}", f"one of {', '.join(_known(role_key))}"
            )
        content = turn.get(content_key, turn.get("content" if content_key == "value" else "value"))
        turns.append((role, _words(content, f"message {number}: {content_key}")))
    return tuple(turns)


def _known(role_key: str) -> tuple[str, ...]:
    return ROLES if role_key == "role" else ("system", "human", "gpt")


def _words(value: Any, what: str) -> str:
    """Text that is not empty; a list of OpenAI's text parts is joined."""
    if isinstance(value, list) and value and all(_is_part(part) for part in value):
        value = "".join(part["text"] for part in value)
    if isinstance(value, str) and value.strip():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            raise RowError(f"{what} holds half a character, {half}", "take it out") from None
        return value
    raise RowError(
        f"{what} is {'empty' if value is None or value == '' or isinstance(value, str) else 'not text'}"
    )


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
