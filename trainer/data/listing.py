"""What the readers of pictures find in one folder, not decoded yet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer.data.images import SUFFIXES
from trainer.data.report import ImageItem, Problem

UNREAD = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".raw", ".dng", ".ico"})
"""Pictures of kinds that cannot be read everywhere."""


@dataclass
class Listing:
    """`faults` are of the folder: nothing can be read. `problems` are of one picture or row: the others can.
    `files` are those read besides the pictures and their masks. An item with caption_fallback has no
    `source`."""

    items: list[ImageItem] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    faults: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def add(self, other: Listing) -> None:
        """Append all of `other`."""
        self.items += other.items
        self.problems += other.problems
        self.faults += other.faults
        self.warnings += other.warnings
        self.notes += other.notes
        self.files += other.files

    def below(self, label: str) -> None:
        """Put `label` before all names: which of several folders they are of."""
        self.items = [replace(item, name=f"{label}/{item.name}") for item in self.items]
        self.problems = [replace(problem, file=f"{label}/{problem.file}") for problem in self.problems]
        self.warnings = [f"{label}: {text}" for text in self.warnings]
        self.notes = [f"{label}: {text}" for text in self.notes]


def pictures_in(folder: Path) -> list[Path]:
    """The pictures directly in `folder`, by name; none of a hidden name (macOS writes ._name.jpg)."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in `folder`, by name, but for hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def unread_in(folder: Path) -> list[str]:
    """A warning when `folder` holds pictures of kinds that are not read."""
    other = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in UNREAD)
    if not other:
        return []
    text = (
        f"{counted(len(other), 'file')} of a kind that is not read (the first: {other[0]}); "
        "save them as PNG, JPEG or WebP."
    )
    return [text]


def counted(number: int, what: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
