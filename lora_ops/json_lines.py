"""JSON with the line of every value, and a cursor that collects complaints: `file:line: path: what`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from lora_ops.errors import ConfigError, nearest

Path = tuple[str | int, ...]

_TOKEN = re.compile(r'[ \t\r\n]*("(?:[^"\\]|\\.)*"|[^\s"{}\[\],:]+|[{}\[\],:])', re.DOTALL)


class Page:
    """A document, the line of each of its values, and what is wrong with it so far.

    ConfigError when the text is not JSON, says a key twice, or holds a number that JSON has not (NaN).
    """

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.complaints: list[tuple[int, str]] = []
        self.lines: dict[Path, int] = {}
        text = text.removeprefix("\ufeff")  # some editors on Windows write one
        try:
            document = json.loads(text)
            self._walk(_tokens(text), ())
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{source}:{error.lineno}: not valid JSON, column {error.colno}: {error.msg}.",
                "Mend the line; JSON has double quotes, and no comma before a closing bracket.",
            ) from None
        except ValueError as error:  # a number of thousands of digits
            raise ConfigError(f"{source}: not valid JSON: {error}.", "Mend that number.") from None
        except RecursionError:
            raise ConfigError(f"{source}: it is nested too deep.", "Take levels out.") from None
        self.check("Keep one of each, and plain numbers.")
        self.root = Place(self, document, ())

    def check(self, hint: str = "Mend the lines named above and run it again.") -> None:
        """Raises ConfigError when there are complaints."""
        if self.complaints:
            count = f"{len(self.complaints)} errors" if len(self.complaints) > 1 else "an error"
            ordered = sorted(self.complaints, key=lambda each: each[0])
            details = [line for _, told in ordered for line in told.split("\n")]
            raise ConfigError(f"{self.source} has {count}.", hint, details)

    def line(self, path: Path) -> int:
        """The line on which the value begins, or the nearest thing above it."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), 1)

    def complain(self, path: Path, message: str, line: int | None = None, below: str = "") -> None:
        """`below`: further lines, as they are."""
        line = line or self.line(path)
        where = f"`{written(path)}`: " if path else ""
        end = "" if message.endswith(("?", ".")) else "."
        self.complaints.append((line, printable(f"{self.source}:{line}: {where}{message}{end}") + below))

    def _walk(self, tokens: Iterator[tuple[str, int]], path: Path) -> str:
        """Notes the line of the next value and of all below it; its first token. The text is valid JSON."""
        token, line = next(tokens)
        if token in ("]", "}"):
            return token
        self.lines.setdefault(path, line)
        if token == "[":
            n = 0
            while self._walk(tokens, (*path, n)) != "]" and next(tokens)[0] == ",":
                n += 1
        elif token == "{":
            first: dict[str, int] = {}
            while (found := next(tokens))[0] != "}":
                key = json.loads(found[0])
                if key in first:
                    self.complain((*path, key), f"it stands on line {first[key]} already", found[1])
                first.setdefault(key, found[1])
                next(tokens)
                self._walk(tokens, (*path, key))
                if next(tokens)[0] == "}":
                    break
        elif token[0] != '"' and token not in ("true", "false", "null") and not math.isfinite(float(token)):
            self.complain(path, f"`{token}` is not a number of JSON")
        return token


class Place:
    """A value of a page, and where it stands. Each reading returns None, or nothing, after a complaint."""

    def __init__(self, page: Page, value: Any, path: Path) -> None:
        self.page, self.value, self.path = page, value, path

    def wrong(self, message: str) -> None:
        self.page.complain(self.path, message)

    @property
    def line(self) -> int:
        return self.page.line(self.path)

    def keys(self, known: Mapping[str, bool]) -> dict[str, Place]:
        """The places below a mapping, by key. `known`: its keys, and whether each must be there."""
        if not isinstance(self.value, dict):
            self.wrong("a mapping of keys is wanted")
            return {}
        found = {key: Place(self.page, value, (*self.path, key)) for key, value in self.value.items()}
        for key in [key for key in found if key not in known]:
            found.pop(key).wrong(f"unknown key. {nearest(key, known)}")
        for key in known:
            if known[key] and key not in found:
                self.wrong(f"key `{key}` is missing")
        return found

    def items(self, what: str) -> list[Place]:
        """The places of a list that is not empty. `what`: one of its items, for the complaint."""
        if not isinstance(self.value, list) or not self.value:
            self.wrong(f"a list of at least one {what} is wanted")
            return []
        return [Place(self.page, value, (*self.path, n)) for n, value in enumerate(self.value)]

    def text(self) -> str | None:
        if isinstance(self.value, str) and self.value.strip():
            return self.value
        self.wrong("text in quotes is wanted")
        return None

    def one_of(self, words: Collection[str]) -> str | None:
        """One of the words; another is answered with the nearest."""
        found = self.text()
        if found is None or found in words:
            return found
        self.wrong(f"`{found}` is unknown. {nearest(found, words)}")
        return None

    def whole(self, low: int, high: int) -> int | None:
        if isinstance(self.value, int) and not isinstance(self.value, bool) and low <= self.value <= high:
            return self.value
        self.wrong(f"a whole number from {low} to {high} is wanted")
        return None

    def pointed(self, message: str, at: int) -> None:
        """A complaint about a text, with a caret under its character `at`."""
        shown = printable(str(self.value), lambda each: "\N{MIDDLE DOT}")
        self.page.complain(self.path, message, below=f"\n    {shown}\n    {' ' * at}^")


def written(path: Path) -> str:
    """`pipeline.stages[0].type`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def printable(text: str, instead: Callable[[str], str] = lambda each: repr(each)[1:-1]) -> str:
    """A complaint is one line, and no terminal obeys it."""
    return "".join(each if each.isprintable() else instead(each) for each in text)


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Each token with its line, counted from 1."""
    at, line = 0, 1
    while found := _TOKEN.match(text, at):
        line += text.count("\n", at, found.start(1))
        yield found[1], line
        at = found.end()
