"""Read a language model's dataset: .jsonl files, a row a line, and .txt files, a document each."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.config import TrainConfig
from trainer.data.imagefolder import read_text
from trainer.data.report import ChatItem, Problem, TextItem
from trainer.data.row_shapes import EXAMPLES, RowError, parse_row

Row = ChatItem | TextItem


def chat_files(config: TrainConfig) -> tuple[list[Path], list[Problem]]:
    """The files of the dataset, by name: the .jsonl ones; .txt ones where there are no others, or where
    row_format is text. A folder of both is a problem unless row_format says which are meant."""
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
    found = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    rows = [path for path in found if path.suffix.lower() == ".jsonl"]
    texts = [path for path in found if path.suffix.lower() == ".txt"]
    if config.row_format == "text":
        rows, texts = sorted(rows + texts), []
    elif config.row_format == "auto" and rows and texts:
        return rows, [
            Problem(
                str(folder),
                None,
                f"holds .jsonl and .txt files ({rows[0].name}, {texts[0].name})",
                "set row_format: text to read both, or to the rows' format to read the .jsonl only",
            )
        ]
    elif config.row_format == "auto" and not rows:
        rows = texts
    if not rows:
        shape = "messages" if config.row_format == "auto" else config.row_format
        hint = f"one row a line: {EXAMPLES[shape]}"
        arrays = [path.name for path in found if path.suffix.lower() == ".json"]
        if arrays:
            hint = f"{arrays[0]} is JSON: write each of its rows on a line of its own, as .jsonl"
        elif texts:
            hint = f"the .txt files are read with row_format: text; {hint}"
        return [], [Problem(str(folder), None, "holds no .jsonl file", hint)]
    return rows, []


def read_chats(config: TrainConfig) -> tuple[list[Row], list[Problem]]:
    """Every row of every file, and every bad row with its line."""
    files, problems = chat_files(config)
    items: list[Row] = []
    for path in files:
        text, problem = read_text(path)
        if problem is not None:
            problems.append(problem)
        elif not text.strip():
            shape = "messages" if config.row_format == "auto" else config.row_format
            problems.append(Problem(path.name, None, "is empty", f"one row a line: {EXAMPLES[shape]}"))
        elif path.suffix.lower() == ".txt":
            items.append(TextItem(path.name, None, text))
        else:
            for line, raw in enumerate(text.split("\n"), 1):
                if raw.strip():
                    row = _row(path.name, line, raw, config.row_format)
                    (problems if isinstance(row, Problem) else items).append(row)  # type: ignore[arg-type]
    return items, problems


def _row(file: str, line: int, raw: str, row_format: str) -> Row | Problem:
    try:
        parsed = parse_row(json.loads(raw), row_format)
    except RowError as error:
        return Problem(file, line, str(error), error.hint)
    except (ValueError, RecursionError) as error:
        return Problem(file, line, f"not JSON: {error}")
    return TextItem(file, line, parsed) if isinstance(parsed, str) else ChatItem(file, line, parsed)


def content_of(item: Row) -> str:
    """What makes a row the same one, for holding out by content."""
    if isinstance(item, TextItem):
        return item.text
    return json.dumps(item.messages, ensure_ascii=False)
