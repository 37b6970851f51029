"""Read a text file that people wrote with any editor."""

from __future__ import annotations

from pathlib import Path

from trainer.data.report import Problem


def read_text(path: Path, name: str | None = None) -> tuple[str, Problem | None]:
    """The UTF-8 text of `path` without a byte order mark, or the problem, which calls the file `name`."""
    name = path.name if name is None else name
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return "", Problem(name, line, "not UTF-8", "save the file as UTF-8")
    except OSError as error:
        return "", Problem(name, None, f"cannot be read: {error.strerror}")
