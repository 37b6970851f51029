"""Kubernetes manifests from the templates of deployments/kubernetes: YAML with `<< values >>`.

Values are filled in as JSON, which is YAML: none can become a key, a list or a comment.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deployments" / "kubernetes"

Manifest = dict[str, Any]


def render_template(template: str, /, **values: Any) -> list[Manifest]:
    """The documents of `<template>.yaml.j2`. A value that the template names and nobody gave is an error."""
    text = _environment().get_template(f"{template}.yaml.j2").render(security=_security(), **values)
    return [document for document in yaml.safe_load_all(text) if document is not None]


def dump(manifests: list[Manifest]) -> str:
    """One YAML stream, keys in the templates' order: the same manifests give the same text."""
    return "".join(
        f"---\n{yaml.dump(each, Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)}"
        for each in manifests
    )


#: What JSON lets stand in a string and YAML does not, or takes for the end of a line.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


class _Plain(yaml.SafeDumper):
    """No anchors (what two pods share is written twice), and files in ConfigMaps line by line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if _ESCAPED.search(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _text)


def _inline(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        finalize=_inline,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )


@cache
def _security() -> Manifest:
    found: Manifest = yaml.safe_load((FOLDER / "security.yaml").read_text())
    return found
