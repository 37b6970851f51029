"""Durations, shares and limits as people write them: `90s`, `5m`, `5%`, `2s`, `1.5`."""

from __future__ import annotations

import math
import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")
_EXPONENT = re.compile(r"^\s*\d+(?:\.\d+)?[eE][+-]?\d+\s*$")  # `2e-4` is a string to PyYAML
_PERCENT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*%\s*$")


def seconds(value: object) -> float:
    """Seconds from `90s`, `5m`, `1h`, `250ms`, or a number of seconds. ValueError otherwise."""
    if isinstance(value, bool):
        raise ValueError("a duration like 90s, 5m or 1h is wanted")
    if (plain := _plain(value)) is not None:
        number = plain
    else:
        found = _DURATION.match(str(value))
        if not found:
            raise ValueError(f"`{_short(value)}` is not a duration; write 90s, 5m or 1h")
        number = round(float(found[1]) * _UNITS[found[2]], 9)
    if not 0 <= number < 1e9:
        raise ValueError(f"`{_short(value)}` is not a duration between 0 and 30 years")
    return number


def fraction(value: object) -> float:
    """A share between 0 and 1 from `5%` or `0.05`. ValueError otherwise."""
    if isinstance(value, str) and (found := _PERCENT.match(value)):
        number = round(float(found[1]) / 100, 12)  # 99.9 % is 0.999
    elif not isinstance(value, bool) and (plain := _plain(value)) is not None:
        number = plain
    else:
        raise ValueError(f"`{_short(value)}` is not a share; write 5% or 0.05")
    if not 0 <= number <= 1:
        raise ValueError(f"`{_short(value)}` is not between 0% and 100%")
    return number


def _plain(value: object) -> float | None:
    if isinstance(value, str):
        return float(value) if _EXPONENT.match(value) else None
    if not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def age(elapsed_s: float) -> str:
    """`8s`, `3m`, `2h`, `5d`: how long ago, for tables."""
    for limit, unit, size in ((90, "s", 1), (5400, "m", 60), (129600, "h", 3600)):
        if elapsed_s < limit:
            return f"{max(0, round(elapsed_s / size))}{unit}"
    return f"{round(elapsed_s / 86400)}d"
