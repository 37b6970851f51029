"""From a file, a text or a dict to a TrainConfig; all faults of a file are named at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from trainer.config.schema import TrackerConfig, TrainConfig
from trainer.config.yaml_lines import KeyPath, read
from trainer.errors import ConfigError

_PLAIN = {
    "tuple_type": "should be a list, such as [one, two]",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "int_type": "should be a whole number",
    "dict_type": "should be keys with values",
}
"""What pydantic says in Python's words, in YAML's."""
_SECTIONS: dict[str, type[BaseModel]] = {"tracker": TrackerConfig}


def load_config(path: str | Path) -> TrainConfig:
    """Read the YAML file `path`. Raises ConfigError naming file, line, key and what is allowed."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            [f"{path}: no such config file."], "Check the path; configs/default.yaml is an example."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 (byte {error.start})."], "Save the file as UTF-8.") from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}."]) from None
    return parse_config(text, str(path))


def parse_config(text: str, source: str = "config") -> TrainConfig:
    """Parse YAML `text`; `source` names it in errors. Raises ConfigError."""
    values, lines = read(text, source)
    return _validate(values, lines, source)


def config_from(config: TrainConfig | Mapping[str, Any] | str | Path) -> TrainConfig:
    """A TrainConfig from itself, a dict, or the path of a YAML file. Raises ConfigError."""
    if isinstance(config, TrainConfig):
        return config
    if isinstance(config, Mapping):
        return _validate(dict(config), {}, "config")
    return load_config(config)


def _validate(values: dict[str, Any], lines: dict[KeyPath, int], source: str) -> TrainConfig:
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        found = [(_line(_key_path(e["loc"]), lines), _describe(e)) for e in error.errors()]
    found.sort(key=lambda item: item[0] or 0)
    seen: list[str] = []
    for line, text in found:
        where = f"{source}:{line}" if line else source
        if (entry := f"{where}: {text}") not in seen:
            seen.append(entry)
    raise ConfigError(seen)


def _key_path(loc: tuple[int | str, ...]) -> KeyPath:
    """Pydantic's location without list positions and union branches."""
    path: list[str] = []
    model: type[BaseModel] | None = TrainConfig
    for part in loc:
        if model is None or not isinstance(part, str):
            break
        path.append(part)
        model = _SECTIONS.get(part)
    return tuple(path)


def _line(path: KeyPath, lines: dict[KeyPath, int]) -> int | None:
    return lines.get(path)


def _describe(error: Any) -> str:
    path = _key_path(error["loc"])
    name = ".".join(path)
    model = _SECTIONS[path[0]] if len(path) > 1 else TrainConfig
    fields = model.model_fields
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1].lower(), fields, n=1, cutoff=0.5)
        return f"unknown key `{name}`" + (
            f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(fields)}."
        )
    if error["type"] == "missing":
        return f"`{name}` is missing: {fields[path[-1]].description}."
    if path and path[-1] not in fields:
        return f"`{name}`: {error['msg']}."
    if not path:
        return str(error["msg"])
    extra = fields[path[-1]].json_schema_extra
    usual = str(extra.get("usual", "")) if isinstance(extra, dict) else ""
    bounds = _range(fields[path[-1]].metadata)
    wanted = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    wanted = _PLAIN.get(error["type"], wanted)
    if error["type"] == "string_pattern_mismatch":
        wanted = f"not one of its values ({fields[path[-1]].description})"
    parts = [f"`{name}` is {_short(error['input'])}: {wanted[:1].lower()}{wanted[1:]}"]
    if bounds:
        parts.append(f"allowed: {bounds}")
    if usual:
        parts.append(f"usual: {usual}")
    return "; ".join(parts) + "."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _range(metadata: list[Any]) -> str:
    low = high = ""
    for item in metadata:
        if (value := getattr(item, "ge", None)) is not None:
            low = f"{value:,} or more"
        elif (value := getattr(item, "gt", None)) is not None:
            low = f"more than {value:,}"
        elif (value := getattr(item, "le", None)) is not None:
            high = f"at most {value:,}"
        elif (value := getattr(item, "lt", None)) is not None:
            high = f"less than {value:,}"
    return ", ".join(part for part in (low, high) if part)
