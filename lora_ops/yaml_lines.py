"""YAML with the line of every key, and pydantic's complaints told as `file:line: key: what, hint`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from lora_ops.errors import ConfigError, nearest

Path = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


def load(text: str, source: str) -> tuple[Any, dict[Path, int]]:
    """The document and the 1-based line of each path in it. ConfigError when it is not YAML."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(
            f"{where}: not valid YAML: {problem}.", "Mend the line; indent with spaces."
        ) from None
    lines: dict[Path, int] = {}
    if node is not None:
        _walk(node, (), lines)
    return document, lines


def validate(model: type[M], document: Any, lines: dict[Path, int], source: str) -> M:
    """The model, or one ConfigError that lists every complaint with its line and the nearest key."""
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: it is empty, or not a mapping of keys.", "See `lora-ops init`.")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        details = [_tell(model, dict(each), lines, source) for each in error.errors()]
    count = f"{len(details)} errors" if len(details) > 1 else "an error"
    raise ConfigError(f"{source} has {count}.", "Mend the lines named above and run it again.", details)


def _tell(model: type[BaseModel], error: dict[str, Any], lines: dict[Path, int], source: str) -> str:
    path: Path = tuple(error["loc"])
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), 1)
    key = ".".join(str(part) for part in path) or "(document)"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = _fields(model, path[:-1])
        return f"{source}:{line}: unknown key `{key}`. {nearest(str(path[-1]), known)}"
    if error["type"] == "missing":
        return f"{source}:{line}: key `{key}` is missing."
    return f"{source}:{line}: `{key}`: {message}."


def _fields(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The names that are valid below `path`."""
    kind: Any = model
    for part in path:
        options = [kind, *_arguments(kind)]
        models = [each for each in options if isinstance(each, type) and issubclass(each, BaseModel)]
        if models and part in models[0].model_fields:
            kind = models[0].model_fields[str(part)].annotation
        elif models and not _arguments(kind):
            return []
        else:
            kind = next(iter(models), kind)
    options = [kind, *_arguments(kind)]
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return list(option.model_fields)
    return []


def _arguments(kind: Any) -> list[Any]:
    found: list[Any] = []
    for each in get_args(kind):
        found += [each, *_arguments(each)]
    return found


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, key.value)
            lines[below] = key.start_mark.line + 1
            _walk(value, below, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines)
