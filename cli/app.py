"""The Typer application: groups that know their commands by name, and import one only to run it."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from cli.registry import COMMANDS, GROUPS, Command, group_overview, overview
from cli.session import with_session
from lora_ops.errors import LoraOpsError, UsageError, nearest

HELP = {"help_option_names": ["-h", "--help"]}


def load(target: str) -> Callable[..., Any]:
    """The function that `module:name` names."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


class LazyGroup(TyperGroup):
    """A group whose commands are a static table; only the one that runs is imported."""

    def __init__(
        self, name: str, table: Mapping[str, Command], groups: Mapping[str, Any], **options: Any
    ) -> None:
        super().__init__(name=name, rich_markup_mode=None, context_settings=HELP, **options)
        self.table = table
        self.groups = groups

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the table's order."""
        return [*self.table, *self.groups]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command or group of that name, imported now; None when there is none."""
        if cmd_name in self.groups:
            text, table = self.groups[cmd_name]
            return LazyGroup(cmd_name, table, {}, help=text, no_args_is_help=True)
        if cmd_name not in self.table:
            return None
        target, text, shared = self.table[cmd_name]
        app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=HELP)
        function = load(target)
        app.command(cmd_name, help=None if function.__doc__ else text)(with_session(function, shared))
        command = typer.main.get_command(app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As Typer's; an unknown name is answered with the nearest."""
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            where = ctx.command_path
            raise UsageError(
                f"`{where}` has no command `{args[0]}`.", nearest(args[0], self.list_commands(ctx))
            )
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Written from the registry alone: the same as on cli.main's fast path, and nothing is imported."""
        formatter.write((overview() if self.groups else group_overview(str(self.name))) + "\n")


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit status. Errors become `error: …` on stderr, and JSON with `--json`."""
    options = list(arguments)
    ours = options[: options.index("--")] if "--" in options else options
    debug, as_json = "--debug" in ours, "--json" in ours
    if debug:
        options.remove("--debug")
    try:
        root = LazyGroup("lora-ops", COMMANDS, GROUPS, no_args_is_help=True)
        if options[1:] and options[-1] in HELP["help_option_names"]:
            text = _help_of(root, options[:-1])
            if text is not None:
                sys.stdout.write(f"{text}\n")
                return 0
        status = root.main(options, prog_name="lora-ops", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except LoraOpsError as error:
        if debug:
            traceback.print_exc()
        return report(error, as_json)
    except typer.Abort:
        return report(UsageError("Cancelled.", "Nothing was changed."), as_json)
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stdout.write(f"{error}\n")
            return 0
        return report(_usage(error), as_json)
    except Exception as error:  # noqa: BLE001 - the last resort: a person gets a sentence, --debug the traceback
        if debug:
            traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        return report(LoraOpsError(message, "This is a defect of lora-ops; `--debug` shows where."), as_json)


def _help_of(root: LazyGroup, path: Sequence[str]) -> str | None:
    """The help of `lora-ops GROUP COMMAND`, without parsing, for which Typer imports pydantic.

    None when the words are not just a command's name.
    """
    group: Any = root
    context = root.context_class(root, info_name="lora-ops")
    for word in path:
        command = group.get_command(context, word) if isinstance(group, LazyGroup) else None
        if command is None:
            return None
        settings = command.context_settings
        context = command.context_class(command, info_name=word, parent=context, **settings)
        group = command
    return str(group.get_help(context))


def report(error: LoraOpsError, as_json: bool) -> int:
    """Print the error for people on stderr, for programs on stdout; its exit status."""
    lines = [f"error: {error.message}", *(f"  {line}" for line in error.details)]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    sys.stdout.flush()
    sys.stderr.write("\n".join(lines) + "\n")
    if as_json:
        document = {"schema_version": 1, "error": {**error.to_dict(), "exit_code": error.exit_code}}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return error.exit_code


def _usage(error: typer.TyperException) -> UsageError:
    """Typer's own complaint about the command line, in our form."""
    message = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "lora-ops"
    return UsageError(message, f"See `{path} --help`.")
