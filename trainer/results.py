"""Describe the files that a training leaves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer.files import sha256_file


def describe_files(root: Path, files: Iterable[Path]) -> list[dict[str, Any]]:
    """[{path relative to root, hex sha256, size in bytes}], by path."""
    return [
        {"path": file.relative_to(root).as_posix(), "sha256": sha256_file(file), "size": file.stat().st_size}
        for file in sorted(files)
    ]
