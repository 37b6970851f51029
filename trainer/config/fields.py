"""How a key of the config is declared: its type, its range, its usual choice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _number(value: Any) -> Any:
    """`"2e-4"` (what PyYAML makes of an unquoted 2e-4) means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _path(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be empty")
    return Path(value).expanduser() if isinstance(value, str) else value


def _word(value: Any) -> Any:
    """YAML 1.1 reads a bare `no` or `off` as false; here they are words."""
    return {False: "off", True: "on"}[value] if isinstance(value, bool) else value


def _list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _precision(value: Any) -> Any:
    return "no" if value is False else value


def _modules(value: Any) -> Any:
    if isinstance(value, list):
        if not value:
            raise ValueError("must name at least one module, or be auto")
        return tuple(value)
    if isinstance(value, str) and value != "auto":
        raise ValueError("must be auto or a list of module names")
    return value


def _batch(value: Any) -> Any:
    if value != "auto" and (type(value) is not int or not 1 <= value <= 4096):
        raise ValueError("must be auto or a whole number; allowed: 1 or more, at most 4,096")
    return value


Real = Annotated[float, BeforeValidator(_number)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Words = Annotated[tuple[str, ...], BeforeValidator(_list)]
Paths = Annotated[tuple[FilePath, ...], BeforeValidator(_list)]
Modules = Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_modules)]
BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_batch)]
Precision = Annotated[Literal["auto", "no", "bf16", "fp16"], BeforeValidator(_precision)]
AutoOff = Annotated[Literal["auto", "off"], BeforeValidator(_word)]


def default_cache_root() -> Path:
    """$LORA_OPS_CACHE, or ~/.cache/lora-ops."""
    named = os.environ.get("LORA_OPS_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "lora-ops"


class Strict(BaseModel):
    """Unknown keys, NaN and words where a number belongs are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def key(description: str, usual: str = "", **limits: Any) -> Any:
    """A key with its one-line description and what most people choose."""
    return Field(description=description, json_schema_extra={"usual": usual}, **limits)
