"""`events.jsonl` in the output folder: what happened, one JSON a line, flushed at once. Others tail it."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any


class Events:
    """Appends to `output_dir/events.jsonl`. Numbers that JSON does not have (NaN, inf) become null."""

    def __init__(self, output_dir: Path) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        self.path = output_dir / "events.jsonl"
        if self._torn():
            self._append("\n")

    def _torn(self) -> bool:
        """Whether a killed writer left half a line."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def _append(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; `time` is epoch seconds."""
        line = {"event": event, "time": round(time.time(), 3), **fields}
        self._append(json.dumps(_finite(line), ensure_ascii=False, default=str) + "\n")


class Silent(Events):
    """For the processes that do not write."""

    def __init__(self) -> None:
        self.path = Path(os.devnull)

    def write(self, event: str, **fields: Any) -> None:
        """Nothing."""


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
