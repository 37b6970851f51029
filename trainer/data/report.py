"""What a check of a dataset found: the items to train on, and everything that is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.errors import DataError

Kind = Literal["images", "text"]


@dataclass(frozen=True)
class Problem:
    """One fault: the file (relative to the dataset where it can be), its 1-based line if it has lines."""

    file: str
    line: int | None
    what: str
    hint: str = ""

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.what}" + (f" ({self.hint})" if self.hint else "")

    def as_dict(self) -> dict[str, Any]:
        return {"file": self.file, "line": self.line, "what": self.what, "hint": self.hint}


@dataclass(frozen=True)
class ImageItem:
    """A picture with its caption. `width` and `height` in pixels as shown (EXIF applied); 0 until checked.

    `repeats`: how often it comes in one epoch. `regularisation`: it is of reg_data_dir. `mask`: its mask's
    file, with masked_loss: folder. `opaque`: masked_loss: alpha was found to hide nothing of it."""

    path: Path
    name: str
    caption: str
    source: str
    line: int | None = None
    sha256: str = ""
    width: int = 0
    height: int = 0
    repeats: int = 1
    regularisation: bool = False
    mask: Path | None = None
    opaque: bool = False


@dataclass(frozen=True)
class ChatItem:
    """A conversation: ((role, content), ...) with at least one assistant turn."""

    file: str
    line: int
    messages: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class TextItem:
    """A document to be learnt whole. `line` is None for a file of its own."""

    file: str
    line: int | None
    text: str

    @property
    def name(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


Item = ImageItem | ChatItem | TextItem


@dataclass
class DatasetReport:
    """`items` are trained on (regularisation pictures among them), `validation` is held out.

    `problems` stop a training; `warnings` do not; `notes` only say what was found. `buckets`: how many
    pictures each size ("width x height" in pixels, as `768x512`) gets, repeats not counted. `skippable`: the
    problems are of single pictures, which on_bad_image: skip would leave out."""

    kind: Kind
    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    validation: list[Item] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    buckets: dict[str, int] = field(default_factory=dict)
    skippable: bool = False

    @property
    def ok(self) -> bool:
        return not self.problems

    def raise_if_bad(self) -> None:
        """Raise DataError that lists every problem, if there is one."""
        if self.problems:
            count = len(self.problems)
            lines = "\n  ".join(str(problem) for problem in self.problems)
            raise DataError(
                f"The dataset has {count} problem{'s' if count > 1 else ''}:\n  {lines}\n",
                "Nothing was trained. Mend or remove them"
                + (", or set on_bad_image: skip." if self.skippable else "."),
            )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: kind, count of items, problems, warnings."""
        return {
            "kind": self.kind,
            "items": len(self.items),
            "validation": len(self.validation),
            "problems": [problem.as_dict() for problem in self.problems],
            "warnings": self.warnings,
            "notes": self.notes,
            "buckets": self.buckets,
        }
