"""A cloud's entry in lora-ops.yaml, written where a person wrote the rest: comments and order stay."""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yaml import SafeLoader, ScalarNode

from lora_ops.errors import ConfigError
from lora_ops.spec import parse_spec

_TEXT = "tag:yaml.org,2002:str"


def with_cloud(text: str, source: str, name: str, values: Mapping[str, Any]) -> str:
    """The spec's text with `values` set in the entry of the cloud `name`, made when there is none.

    A new cloud joins the waves, where there are any, as the last. Raises ConfigError as `parse_spec` does.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.util import load_yaml_guess_indent

    yaml: Any = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    try:
        _, step, offset = load_yaml_guess_indent(text)
        deep = re.search(r"^( +)[^\s#-]", text, re.MULTILINE)
        yaml.indent(
            mapping=len(deep[1]) if deep else 2, sequence=step or 4, offset=2 if offset is None else offset
        )
        document = yaml.load(text)
    except YAMLError:
        document = None
    if not isinstance(document, dict):
        parse_spec(text, source)  # tells where it is wrong
        raise ConfigError(f"{source} is no mapping of keys.", "Write one with `lora-ops init`.")
    clouds = _section(document, "clouds", source)
    fresh = name not in clouds
    entry = _section(clouds, _quoted(name), source)
    for key, value in values.items():
        if isinstance(value, Mapping):
            _section(entry, key, source).update(_quoted(value))
        elif entry.get(key) != value:
            entry[key] = _quoted(value)
    waves = (document.get("rollout") or {}).get("waves")
    if fresh and isinstance(waves, list) and not any(name in wave for wave in waves):
        waves.append([_quoted(name)])
    out = io.StringIO()
    yaml.dump(document, out)
    parse_spec(out.getvalue(), source)
    return out.getvalue()


def write_whole(path: Path, text: str) -> None:
    """Replace the file at once, with its mode; a reader sees the old text or the new one."""
    real = path.resolve()  # a link stays one
    handle, name = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, real.stat().st_mode & 0o7777)
        os.replace(name, real)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _quoted(value: Any) -> Any:
    """With quotes around text that YAML 1.1 takes for something else, as `on`, `1:30`: ruamel writes 1.2."""
    if isinstance(value, Mapping):
        return {key: _quoted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_quoted(each) for each in value]
    loader: Any = SafeLoader("")
    if isinstance(value, str) and loader.resolve(ScalarNode, value, (True, False)) != _TEXT:
        from ruamel.yaml.scalarstring import DoubleQuotedScalarString

        return DoubleQuotedScalarString(value)
    return value


def _section(document: Any, key: str, source: str) -> Any:
    """The mapping below a key, made when it is absent or empty."""
    if document.get(key) is None:
        document[key] = {}
    found = document[key]
    if not isinstance(found, dict):
        raise ConfigError(f"{source}: {key}: a mapping of keys is wanted.")
    return found
