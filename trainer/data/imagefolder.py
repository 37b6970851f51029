"""Which pictures and captions a dataset names: metadata.csv, metadata.jsonl, or a folder with sidecars."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig
from trainer.data.images import SUFFIXES
from trainer.data.report import ImageItem, Problem

FILE_COLUMNS = ("file_name", "image", "path")
CAPTION_COLUMNS = ("text", "caption", "prompt")
_FOUND_BY_NAME = ("metadata.csv", "metadata.jsonl")


def read_images(config: TrainConfig) -> tuple[list[ImageItem], list[Problem]]:
    """Items in the order of the metadata (or by name), not decoded yet, and what is wrong with the list."""
    folder = config.train_data_dir
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        return [], [
            Problem(str(folder), None, what, "set train_data_dir to the folder that holds the images")
        ]
    metadata = config.metadata_path or next(
        (folder / n for n in _FOUND_BY_NAME if (folder / n).is_file()), None
    )
    if metadata is None:
        return _flat(folder)
    if not metadata.is_file():
        return [], [
            Problem(
                str(metadata),
                None,
                "no such metadata file",
                "correct metadata_path, or leave it out to use captions beside the images",
            )
        ]
    return _from_metadata(folder, metadata, config.caption_column)


def read_text(path: Path) -> tuple[str, Problem | None]:
    """The UTF-8 text of `path` without a byte order mark, or the problem."""
    try:
        return path.read_bytes().decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        return "", Problem(path.name, line, "not UTF-8", "save the file as UTF-8")
    except OSError as error:
        return "", Problem(path.name, None, f"cannot be read: {error.strerror}")


def _flat(folder: Path) -> tuple[list[ImageItem], list[Problem]]:
    images = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not images:
        inner = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        hint = (
            f"it holds folders ({', '.join(inner[:3])}): did you mean one of them?"
            if inner
            else f"images end with {', '.join(sorted(SUFFIXES))}"
        )
        return [], [Problem(str(folder), None, "holds no images", hint)]
    items, problems = [], []
    for image in images:
        sidecar = next((s for s in map(image.with_suffix, (".txt", ".caption")) if s.is_file()), None)
        if sidecar is None:
            problems.append(Problem(image.name, None, "has no caption", f"write one to {image.stem}.txt"))
            continue
        text, problem = read_text(sidecar)
        if problem is None and not text.strip():
            problem = Problem(sidecar.name, None, "the caption is empty", "write what the picture shows")
        if problem is not None:
            problems.append(problem)
            continue
        items.append(ImageItem(image, image.name, " ".join(text.split()), sidecar.name))
    return items, problems


def _from_metadata(
    folder: Path, metadata: Path, caption_column: str | None
) -> tuple[list[ImageItem], list[Problem]]:
    text, problem = read_text(metadata)
    if problem is not None:
        return [], [problem]
    items: list[ImageItem] = []
    problems: list[Problem] = []
    rows = (
        _jsonl_rows(text, metadata.name, problems)
        if metadata.suffix.lower() in (".jsonl", ".json", ".ndjson")
        else _csv_rows(text, metadata.name, problems)
    )
    names: list[str] | None = None
    for line, row in rows:
        here = (metadata.name, line)
        named = _pick(row, FILE_COLUMNS)
        caption = _pick(row, (caption_column,) if caption_column else CAPTION_COLUMNS)
        if named is None:
            problems.append(Problem(*here, "names no image", f"one of the columns {', '.join(FILE_COLUMNS)}"))
            continue
        path = next((p for p in (folder / named, metadata.parent / named) if p.is_file()), None)
        if path is None:
            if names is None:
                names = [p.name for p in folder.iterdir()]
            near = difflib.get_close_matches(Path(named).name, names, n=1)
            problems.append(
                Problem(
                    *here, f"{named}: no such file in {folder}", f"did you mean {near[0]}?" if near else ""
                )
            )
        if caption is None:
            wanted = caption_column or " or ".join(CAPTION_COLUMNS)
            problems.append(Problem(*here, f"{named}: has no caption", f"fill the column {wanted}"))
        if path is not None and caption is not None:
            items.append(ImageItem(path, named, " ".join(caption.split()), *here))
    if not items and not problems:
        problems.append(Problem(metadata.name, None, "has no rows", "one row an image: file_name,text"))
    return items, problems


def _pick(row: Mapping[str, Any], columns: tuple[str, ...]) -> str | None:
    lowered = {str(key).strip().lower(): value for key, value in row.items() if key is not None}
    for column in columns:
        value = lowered.get(column.lower())
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def _csv_rows(text: str, name: str, problems: list[Problem]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        header = [column.strip().lower() for column in reader.fieldnames or ()]
        if not set(header) & set(FILE_COLUMNS):
            problems.append(
                Problem(
                    name,
                    1,
                    f"no column for the image in the header ({', '.join(header) or 'empty'})",
                    f"name one {' or '.join(FILE_COLUMNS)}",
                )
            )
            return
        for row in reader:
            if None in row:
                problems.append(
                    Problem(
                        name,
                        reader.line_num,
                        "more fields than the header has",
                        "put captions with commas in double quotes",
                    )
                )
                continue
            yield reader.line_num, row
    except csv.Error as error:
        problems.append(Problem(name, reader.line_num, f"not CSV: {error}"))


def _jsonl_rows(text: str, name: str, problems: list[Problem]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, raw in enumerate(text.split("\n"), 1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except ValueError as error:
            problems.append(Problem(name, line, f"not JSON: {error}"))
            continue
        if not isinstance(row, dict):
            problems.append(Problem(name, line, "not a JSON object", '{"file_name": ..., "text": ...}'))
            continue
        yield line, row
