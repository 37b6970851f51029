"""Read conversations: JSONL, one `{"messages": [{"role", "content"}, ...]}` a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig
from trainer.data.imagefolder import read_text
from trainer.data.report import ChatItem, Problem

ROLES = ("system", "user", "assistant")
_SHAPE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'


def chat_files(config: TrainConfig) -> tuple[list[Path], list[Problem]]:
    """The JSONL files of the dataset, by name."""
    if config.metadata_path is not None:
        if config.metadata_path.is_file():
            return [config.metadata_path], []
        return [], [Problem(str(config.metadata_path), None, "no such file", "correct metadata_path")]
    folder = config.train_data_dir
    if not folder.is_dir():
        if folder.is_file():
            return [], [
                Problem(str(folder), None, "is a file, not a folder", "name the file in metadata_path")
            ]
        return [], [Problem(str(folder), None, "no such folder", "correct train_data_dir")]
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        return [], [Problem(str(folder), None, "holds no .jsonl file", f"one row a line: {_SHAPE}")]
    return files, []


def read_chats(config: TrainConfig) -> tuple[list[ChatItem], list[Problem]]:
    """Every row of every file, and every bad row with its line."""
    files, problems = chat_files(config)
    items: list[ChatItem] = []
    for path in files:
        text, problem = read_text(path)
        if problem is not None:
            problems.append(problem)
            continue
        rows = 0
        for line, raw in enumerate(text.split("\n"), 1):
            if not raw.strip():
                continue
            rows += 1
            what, messages = _parse(raw)
            if what is not None:
                problems.append(Problem(path.name, line, *what))
            else:
                items.append(ChatItem(path.name, line, messages))
        if not rows:
            problems.append(Problem(path.name, None, "is empty", f"one row a line: {_SHAPE}"))
    return items, problems


def _parse(raw: str) -> tuple[tuple[str, str] | None, tuple[tuple[str, str], ...]]:
    try:
        row: Any = json.loads(raw)
    except ValueError as error:
        return (f"not JSON: {error}", ""), ()
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        keys = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
        return (f"no list `messages` (found: {keys or 'nothing'})", _SHAPE), ()
    messages: list[tuple[str, str]] = []
    for number, message in enumerate(row["messages"], 1):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ROLES:
            return (f"message {number}: role is {role!r}", f"one of {', '.join(ROLES)}"), ()
        if not isinstance(content, str) or not content.strip():
            return (
                f"message {number}: content is {'empty' if content in ('', None) else 'not text'}",
                "",
            ), ()
        messages.append((role, content))
    if not any(role == "assistant" for role, _ in messages):
        return ("no assistant message: nothing to learn", "add the answer as the last message"), ()
    return None, tuple(messages)
