"""Durations, shares and limits as people write them: `90s`, `5m`, `5%`, `2s`, `1.5`."""

from __future__ import annotations

import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")
_PERCENT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*%\s*$")


def seconds(value: object) -> float:
    """Seconds from `90s`, `5m`, `1h`, `250ms`, or a number of seconds. ValueError otherwise."""
    if isinstance(value, bool):
        raise ValueError("a duration like 90s, 5m or 1h is wanted")
    if isinstance(value, int | float):
        number = float(value)
    else:
        found = _DURATION.match(str(value))
        if not found:
            raise ValueError(f"`{value}` is not a duration; write 90s, 5m or 1h")
        number = float(found[1]) * _UNITS[found[2]]
    if not 0 <= number < 1e9:
        raise ValueError(f"`{value}` is not a duration between 0 and 30 years")
    return number


def fraction(value: object) -> float:
    """A share between 0 and 1 from `5%` or `0.05`. ValueError otherwise."""
    if isinstance(value, str) and (found := _PERCENT.match(value)):
        number = float(found[1]) / 100
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    else:
        raise ValueError(f"`{value}` is not a share; write 5% or 0.05")
    if not 0 <= number <= 1:
        raise ValueError(f"`{value}` is not between 0% and 100%")
    return number


def age(elapsed_s: float) -> str:
    """`8s`, `3m`, `2h`, `5d`: how long ago, for tables."""
    for limit, unit, size in ((90, "s", 1), (5400, "m", 60), (129600, "h", 3600)):
        if elapsed_s < limit:
            return f"{max(0, round(elapsed_s / size))}{unit}"
    return f"{round(elapsed_s / 86400)}d"
