"""Tables and short forms for people. Programs use `--json`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lora_ops.units import age

_COLOURS = {
    "promoted": "32", "succeeded": "32", "pass": "32", "ok": "32", "verified": "32",
    "rolled-back": "31", "failed": "31", "fail": "31", "aborted": "31", "lost": "31", "unverified": "31",
    "canarying": "33", "running": "33", "waiting": "33", "awaiting-approval": "35", "inconclusive": "33",
}  # fmt: skip


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> list[str]:
    """Aligned columns; `empty` is said instead of a table without rows."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        return [empty]
    widths = [max(len(head), *(len(row[i]) for row in cells)) for i, head in enumerate(heads)]
    lines = ["  ".join(head.ljust(width) for head, width in zip(heads, widths, strict=True)).rstrip()]
    for row in cells:
        padded = [paint(cell) + " " * (width - len(cell)) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return lines


def pairs(document: Mapping[str, Any], indent: str = "") -> list[str]:
    """`key: value` lines of a document, nested ones indented; nothing is left out but what is empty."""
    shown = {key: value for key, value in document.items() if value not in (None, "", [], {})}
    shown.pop("schema_version", None)
    width = max((len(key) for key in shown), default=0) + 1
    lines = []
    for key, value in shown.items():
        label = f"{key.replace('_', ' ')}:"
        if isinstance(value, Mapping):
            lines += [indent + label, *pairs(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(indent + label)
            lines += [
                f"{indent}  {_cell(item) if not isinstance(item, Mapping) else _inline(item)}"
                for item in value
            ]
        else:
            lines.append(f"{indent}{label.ljust(width + 1)}{paint(_cell(value))}")
    return lines


def ago(time: Any, now: datetime) -> str:
    """How long before `now` an ISO-8601 time was: `3m`; empty when there is none."""
    if not isinstance(time, str):
        return ""
    try:
        then = datetime.fromisoformat(time)
    except ValueError:
        return time
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return age(max(0.0, (now - then).total_seconds()))


def short(digest: Any) -> str:
    """A digest as people compare it: `sha256:` and twelve digits."""
    text = str(digest or "")
    return text[:19] if text.startswith("sha256:") else text


def coloured() -> bool:
    """Whether stdout is a terminal that wants colour (NO_COLOR, TERM=dumb)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(word: str) -> str:
    """A state's word in its colour, when stdout wants colour."""
    code = _COLOURS.get(word)
    return f"\x1b[{code}m{word}\x1b[0m" if code and coloured() else word


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("\n", " ") or "-"


def _inline(document: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {_cell(value)}" for key, value in document.items() if value not in (None, "", [], {})
    )
