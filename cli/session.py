"""What every command shares: its common options, where output goes, and whether to ask first.

A command's function takes `session: Session`; `with_session` puts the options that its line in the registry
names in that parameter's place.
"""

from __future__ import annotations

import functools
import getpass
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ops import SCHEMA_VERSION
from lora_ops.errors import UsageError

if TYPE_CHECKING:
    from cli.client import Api

_OPTIONS: dict[str, tuple[str, Any, Any]] = {
    "json": (
        "as_json",
        Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")],
        False,
    ),
    "quiet": ("quiet", Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")], False),
    "dry-run": (
        "dry_run",
        Annotated[bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")],
        False,
    ),
    "yes": ("yes", Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")], False),
    "server": (
        "server",
        Annotated[
            str | None,
            typer.Option(
                "--server",
                help="Address of `lora-ops serve` (or LORA_OPS_SERVER, or lora-ops.yaml).",
                metavar="URL",
            ),
        ],
        None,
    ),
}


@dataclass
class Session:
    """The common options of one command."""

    as_json: bool = False
    quiet: bool = False
    dry_run: bool = False
    yes: bool = False
    server: str | None = None

    @functools.cached_property
    def api(self) -> Api:
        """The client of `lora-ops serve`, opened when it is first used."""
        from cli.client import Api, server_url

        return Api(server_url(self.server))

    def close(self) -> None:
        """Close the client, if it was opened."""
        if "api" in self.__dict__:
            self.api.close()

    def emit(self, document: Mapping[str, Any], lines: Iterable[str], ids: Iterable[str] = ()) -> None:
        """The command's answer on stdout: one JSON document, or ids, or lines for people."""
        if self.as_json:
            print_json(document)
        else:
            for line in ids if self.quiet else lines:
                sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """A remark for people, on stderr."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def decision(self, reason: str = "") -> dict[str, Any]:
        """The body of a writing request: who, why, and whether only to say what would happen."""
        return {"reason": reason, "actor": actor(), "dry_run": self.dry_run}

    def confirm(self, question: str, *, destructive: bool) -> None:
        """Ask on a terminal; off it, what destroys something needs `--yes`, the rest goes on.

        Raises UsageError when `--yes` is missing, typer.Abort when the answer is no.
        """
        if self.yes or self.dry_run:
            return
        if sys.stdin.isatty() and sys.stderr.isatty():
            if not typer.confirm(question, default=False, err=True):
                raise typer.Abort
        elif destructive:
            raise UsageError(f"Not confirmed: {question}", "There is no terminal to ask on: add --yes.")


def actor() -> str:
    """Who is at this terminal, for the journal: a name, not a proof."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def print_json(document: Mapping[str, Any]) -> None:
    """One document with its schema's version, on stdout."""
    body = {"schema_version": SCHEMA_VERSION, **document}
    sys.stdout.write(json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def with_session(function: Callable[..., Any], shared: frozenset[str]) -> Callable[..., Any]:
    """`function` with its `session` parameter replaced by the shared options, as Typer wants to see them."""
    if not shared:
        return function
    own = inspect.signature(function, eval_str=True)
    chosen = [_OPTIONS[name] for name in _OPTIONS if name in shared]

    @functools.wraps(function)
    def command(**arguments: Any) -> Any:
        session = Session(**{name: arguments.pop(name) for name, _, _ in chosen})
        try:
            return function(session=session, **arguments)
        finally:
            session.close()

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in own.parameters.values()
        if parameter.name != "session"
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in chosen
    ]
    command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command
