"""YAML with the line of every key, and pydantic's complaints told as `file:line: key: what, hint`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from lora_ops.errors import ConfigError, nearest

Path = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

_PLAIN = {
    "model_type": "a mapping of keys is wanted",
    "dict_type": "a mapping of keys is wanted",
    "tuple_type": "a list is wanted",
    "string_type": "text is wanted; put it in quotes",
}


class Wrong(ValueError):
    """A validator's complaint about something below the field that it validates."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path: Path = path


def load(text: str, source: str) -> tuple[Any, dict[Path, int]]:
    """The document and the 1-based line of each path in it.

    ConfigError when it is not YAML, or when a key stands twice in one mapping (YAML would keep the last).
    """
    hint = "Mend the line; indent with spaces."
    lines: dict[Path, int] = {}
    twice: list[str] = []
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            found = _walk(node, (), lines, set())
            twice = [_printable(f"{source}:{line}: {message}") for line, message in found]
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}.", hint) from None
    except (yaml.YAMLError, ValueError) as error:  # a character or a value that YAML cannot hold
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}.", hint) from None
    except RecursionError:
        raise ConfigError(f"{source}: it is nested too deep.", "Take levels out.") from None
    if twice:
        raise ConfigError(f"{source} says things twice.", "Keep one line of each.", twice)
    return document, lines


def validate(model: type[M], document: Any, lines: dict[Path, int], source: str) -> M:
    """The model, or one ConfigError that lists every complaint with its line and the nearest key."""
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: it is empty, or not a mapping of keys.", "See `lora-ops init`.")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        details = [_printable(_tell(model, dict(each), lines, source)) for each in error.errors()]
    count = f"{len(details)} errors" if len(details) > 1 else "an error"
    raise ConfigError(f"{source} has {count}.", "Mend the lines named above and run it again.", details)


def _tell(model: type[BaseModel], error: dict[str, Any], lines: dict[Path, int], source: str) -> str:
    path: Path = tuple(part for part in error["loc"] if part != "[key]")
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, Wrong):
        path += cause.path
    line = _line(path, lines)
    key = ".".join(str(part) for part in path) or "(document)"
    message = str(error["msg"]).removeprefix("Value error, ").removesuffix(".")
    if error["type"] == "extra_forbidden":
        known = _fields(model, path[:-1])
        return f"{source}:{line}: unknown key `{key}`. {nearest(str(path[-1]), known)}"
    if error["type"] == "missing":
        return f"{source}:{line}: key `{key}` is missing."
    message = _PLAIN.get(error["type"], message)
    return f"{source}:{line}: `{key}`: {message}" + ("" if message.endswith("?") else ".")


def _printable(text: str) -> str:
    """A key may hold a line break; a complaint is one line."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _line(path: Path, lines: dict[Path, int]) -> int:
    """The line of the path, or of the nearest thing above it. A key is text in YAML's tree, even `1`."""
    texts = {tuple(map(str, each)): line for each, line in lines.items()}
    keys = tuple(map(str, path))
    return next((texts[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in texts), 1)


def _fields(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The names that are valid below `path`."""
    kind: Any = model
    for part in path:
        kind = _below(_bare(kind), part)
    kind = _bare(kind)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _below(kind: Any, part: str | int) -> Any:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        return field.annotation if field is not None else None
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return arguments[1]
    return arguments[0] if arguments else None


def _bare(kind: Any) -> Any:
    """Without Annotated and without `| None`."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return _bare(next(each for each in get_args(kind) if each is not type(None)))
    return kind


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int], seen: set[int]) -> Iterator[tuple[int, str]]:
    """Notes the line of everything below the node; yields keys that stand twice. An alias is walked once."""
    lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        first: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # safe_load refuses it
            line = key.start_mark.line + 1
            below = (*path, key.value)
            if (key.tag, key.value) in first:
                name = ".".join(str(part) for part in below)
                yield line, f"key `{name}` stands on line {first[key.tag, key.value]} already."
            first.setdefault((key.tag, key.value), line)
            lines.setdefault(below, line)
            yield from _walk(value, below, lines, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*path, index), lines, seen)
