"""Following a rollout or a request to its end: a live display on a terminal, one line a change elsewhere.

Ctrl-C detaches: what is followed goes on, and the exit status is 130.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import typer

from cli.session import Session
from lora_ops.errors import UnreachableError

EVERY_S = 1.0
GIVE_UP_S = 120.0  # serve may be restarted while it is watched
DETACHED = 130
Json = dict[str, Any]


@dataclass(frozen=True)
class View:
    """How one kind of thing is followed."""

    fetch: Callable[[], Json]
    done: Callable[[Json], bool]
    line: Callable[[Json], str]  # a change is a change of this line
    lines: Callable[[Json], list[str]]
    come_back: str


def follow(session: Session, view: View, timeout_s: float | None = None) -> Json:
    """The document when it is done, or when `timeout_s` is over. typer.Exit(130) after Ctrl-C."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    document: Json | None = None
    with _display(session) as display:
        try:
            while True:
                document = _patient(session, view.fetch)
                display.show(view, document)
                if view.done(document) or (deadline is not None and time.monotonic() >= deadline):
                    return document
                time.sleep(EVERY_S)
        except KeyboardInterrupt:
            display.close()
            session.note(f"\ndetached: it goes on. {view.come_back}")
            if document is not None:
                session.emit(document, [])
            raise typer.Exit(DETACHED) from None


def _patient(session: Session, fetch: Callable[[], Json]) -> Json:
    """The document, waiting for a server that is away for a while. UnreachableError when it stays away."""
    gone_since: float | None = None
    while True:
        try:
            return fetch()
        except UnreachableError:
            now = time.monotonic()
            if gone_since is None:
                gone_since = now
                session.note("the server does not answer; trying again")
            elif now - gone_since > GIVE_UP_S:
                raise
            time.sleep(EVERY_S)


class _Lines:
    """One line a change: on stdout, or on stderr when stdout is for a document."""

    def __init__(self, session: Session) -> None:
        self._silent = session.quiet
        self._stream = sys.stderr if session.as_json else sys.stdout
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def show(self, view: View, document: Json) -> None:
        line = view.line(document)
        if line != self._last and not self._silent:
            self._last = line
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def close(self) -> None:
        """Nothing is open."""


class _Live(_Lines):
    """The whole picture, redrawn in place; it stays on the screen at the end."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="visible")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def show(self, view: View, document: Json) -> None:
        from rich.text import Text

        self._live.update(Text.from_ansi("\n".join(view.lines(document))), refresh=True)

    def close(self) -> None:
        self._live.stop()


def _display(session: Session) -> _Lines:
    live = sys.stdout.isatty() and not session.as_json and not session.quiet
    return _Live(session) if live else _Lines(session)
