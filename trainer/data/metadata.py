"""Pictures and captions listed in a metadata.csv or metadata.jsonl."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

from trainer.config import TrainConfig
from trainer.data.folders import CAPTIONS, CONCEPT
from trainer.data.listing import Listing, counted, pictures_in, unread_in
from trainer.data.report import ImageItem, Problem
from trainer.data.text_files import read_text

FILE_COLUMNS = ("file_name", "image", "path")
CAPTION_COLUMNS = ("text", "caption", "prompt")
FOUND_BY_NAME = ("metadata.csv", "metadata.jsonl")

Rows = Iterator[tuple[int, Mapping[str, Any]]]


def metadata_in(folder: Path) -> Path | None:
    """The metadata file of `folder` that is found by its name."""
    return next((path for name in FOUND_BY_NAME if (path := folder / name).is_file()), None)


def read_metadata(folder: Path, metadata: Path, config: TrainConfig) -> Listing:
    """The pictures that `metadata` names, by paths relative to `folder` or to itself, in its order."""
    if not metadata.is_file():
        hint = "correct metadata_path, or leave it out to use captions beside the images"
        return Listing(faults=[Problem(str(metadata), None, "no such metadata file", hint)])
    text, problem = read_text(metadata)
    if problem is not None:
        return Listing(faults=[problem])
    found = Listing(files=[metadata], warnings=unread_in(folder))
    is_json = metadata.suffix.lower() in (".jsonl", ".json", ".ndjson")
    rows = (
        _jsonl_rows(text, metadata.name, found) if is_json else _csv_rows(text, metadata.name, config, found)
    )
    for line, row in rows:
        _read_row(folder, metadata, line, row, config, found)
    if not found.items and not found.problems and not found.faults:
        found.faults.append(Problem(metadata.name, None, "has no rows", "one row an image: file_name,text"))
    _compare(folder, metadata, found)
    return found


def _read_row(
    folder: Path, metadata: Path, line: int, row: Mapping[str, Any], config: TrainConfig, found: Listing
) -> None:
    here = (metadata.name, line)
    named = _pick(row, FILE_COLUMNS)
    if named is None:
        keys = ", ".join(str(key) for key in row if key is not None) or "none"
        hint = f"one of the columns {', '.join(FILE_COLUMNS)}; found: {keys}"
        found.problems.append(Problem(*here, "names no image", hint))
        return
    columns = _caption_columns(config)
    caption = _pick(row, columns)
    path = _find(folder, metadata, named)
    if path is None:
        inner = (folder / named.replace("\\", "/")).parent
        names = [each.name for each in (inner if inner.is_dir() else folder).iterdir()]
        near = difflib.get_close_matches(Path(named).name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "paths are relative to the metadata file"
        found.problems.append(Problem(*here, f"{named}: no such file in {folder}", hint))
    fallback = config.caption_fallback
    if caption is None and (fallback is None or CONCEPT in fallback):
        hint = f"fill the column {' or '.join(columns)}, or set caption_fallback"
        if fallback is not None:
            hint += f" without {CONCEPT}, which is for kohya's folders"
        found.problems.append(Problem(*here, f"{named}: has no caption", hint))
    elif path is not None:
        words = " ".join(caption.split()) if caption is not None else fallback or ""
        source = metadata.name if caption is not None else ""
        found.items.append(ImageItem(path, named, words, source, line, repeats=config.repeats))


def _find(folder: Path, metadata: Path, named: str) -> Path | None:
    """The picture, with a path as Windows writes it, and with accents as macOS does, too."""
    plain = named.replace("\\", "/")
    for name in (named, plain, normalize("NFC", plain), normalize("NFD", plain)):
        for base in (folder, metadata.parent):
            if (base / name).is_file():
                return base / name
    return None


def _compare(folder: Path, metadata: Path, found: Listing) -> None:
    """Say what is in the folder and is not read: captions in other files, pictures without a row."""
    named = {Path(os.path.abspath(item.path)) for item in found.items}
    found.notes.append(f"{metadata.name}: {counted(len(found.items), 'picture')}")
    other = [name for name in FOUND_BY_NAME if name != metadata.name and (folder / name).is_file()]
    if other and metadata.parent.absolute() == folder.absolute():
        found.warnings.append(
            f"{metadata.name} is read and {other[0]} is not; delete one, or name one in metadata_path."
        )
    folders = sorted({Path(os.path.abspath(folder)), *(path.parent for path in named)})
    unnamed = [path.name for each in folders for path in pictures_in(each) if path not in named]
    if unnamed and not found.problems:
        found.warnings.append(
            f"{counted(len(unnamed), 'picture')} in the folder without a row in {metadata.name} (the first: "
            f"{unnamed[0]}): not read; add a row for each."
        )
    beside = [p.name for p in sorted(named) if any(p.with_suffix(end).is_file() for end in CAPTIONS)]
    if beside:
        found.warnings.append(
            f"captions come from {metadata.name}; the .txt or .caption files beside "
            f"{counted(len(beside), 'picture')} (the first: {beside[0]}) are not read. To use them, rename "
            f"{metadata.name}."
        )


def _caption_columns(config: TrainConfig) -> tuple[str, ...]:
    return (config.caption_column,) if config.caption_column else CAPTION_COLUMNS


def _pick(row: Mapping[str, Any], columns: tuple[str, ...]) -> str | None:
    lowered = {str(key).strip().lower(): value for key, value in row.items() if key is not None}
    for column in columns:
        value = lowered.get(column.lower())
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def _csv_rows(text: str, name: str, config: TrainConfig, found: Listing) -> Rows:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    try:
        header = [column.strip().lower() for column in reader.fieldnames or ()]
        if not set(header) & set(FILE_COLUMNS):
            what = f"no column for the image in the header ({', '.join(header) or 'empty'})"
            found.faults.append(Problem(name, 1, what, f"name one {' or '.join(FILE_COLUMNS)}"))
            return
        columns = [column.lower() for column in _caption_columns(config)]
        if not set(header) & set(columns) and config.caption_fallback is None:
            what = f"no column {' or '.join(columns)} for the caption in the header ({', '.join(header)})"
            found.faults.append(Problem(name, 1, what, "name the one that is meant in caption_column"))
            return
        for row in reader:
            if None in row:
                what, hint = "more fields than the header has", "put captions with commas in double quotes"
                found.problems.append(Problem(name, reader.line_num, what, hint))
                continue
            yield reader.line_num, row
    except csv.Error as error:
        found.problems.append(Problem(name, reader.line_num, f"not CSV: {error}"))


def _delimiter(text: str) -> str:
    """What parts the columns: a comma, unless the header names an image's column only with what spreadsheets
    write elsewhere (`;` in Europe, or a tab)."""
    header = text.lstrip().partition("\n")[0].lower()
    for mark in (",", ";", "\t"):
        if {column.strip(' "\r') for column in header.split(mark)} & set(FILE_COLUMNS):
            return mark
    return ","


def _jsonl_rows(text: str, name: str, found: Listing) -> Rows:
    for line, raw in enumerate(text.split("\n"), 1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError) as error:
            found.problems.append(Problem(name, line, f"not JSON: {error}"))
            continue
        if not isinstance(row, dict):
            hint = '{"file_name": ..., "text": ...}'
            found.problems.append(Problem(name, line, "not a JSON object", hint))
            continue
        yield line, row
