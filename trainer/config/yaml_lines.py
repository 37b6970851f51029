"""Read YAML and remember where each key stood."""

from __future__ import annotations

import re
from typing import Any

import yaml

from trainer.errors import ConfigError

KeyPath = tuple[str, ...]
_KINDS: dict[type, str] = {yaml.ScalarNode: "single value", yaml.SequenceNode: "list"}


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `2e-4` as the number (YAML 1.2); PyYAML's YAML 1.1 wants a dot."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read(text: str, source: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The mapping in `text` and the 1-based line of each key path.

    Raises ConfigError naming `source` and the line: bad syntax, a top level that is not a mapping, a
    key that is not a string, a key given twice.
    """
    loader = _Loader(text.lstrip("\ufeff"))
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        if node is None:
            return {}, lines
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                [f"{source}:{node.start_mark.line + 1}: expected `key: value`, found a {_KINDS[type(node)]}."]
            )
        problems: list[str] = []
        _walk(node, (), source, lines, problems)
        if problems:
            raise ConfigError(problems)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        what = getattr(error, "problem", None) or str(error)
        raise ConfigError(
            [f"{where}: not YAML: {what}."], "Check indentation, colons and quotes there."
        ) from None
    finally:
        loader.dispose()


def _walk(
    node: yaml.MappingNode, prefix: KeyPath, source: str, lines: dict[KeyPath, int], problems: list[str]
) -> None:
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            problems.append(f"{source}:{line}: a key must be a plain word.")
            continue
        path = (*prefix, str(key.value))
        if path in lines:
            problems.append(
                f"{source}:{line}: `{'.'.join(path)}` is given twice (first on line {lines[path]}); "
                "delete one."
            )
        lines.setdefault(path, line)
        if isinstance(value, yaml.MappingNode):
            _walk(value, path, source, lines, problems)
