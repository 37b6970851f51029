"""The PromQL that a gate asks: ready-made over lora-ops' own counters, or a user's with placeholders.

Why raw counters: `rate` and `increase` extrapolate to the edges of their window, so they answer 3.04 for 3
and overlap from look to look; the gates' formulas hold for counts only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

GATE_COUNTER = "lora_ops_gate_attempts_total"
STATES = ("started", "uncounted", "finished", "bad")
"""The label `state`. n of the fail test is started - uncounted, n of the pass test finished, k bad."""

PLACEHOLDERS = ("app", "cloud", "release", "rollout", "track", "window")
LOOKBACK_S = 300.0
"""How far before the rollout a raw query reaches for the counter's value at its beginning."""

_MARK = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_RAW = re.compile(r"\[\s*\{\{\s*window\s*\}\}\s*\]\s*$")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True)
class Scope:
    """What the placeholders stand for. `since`, `now`: the rollout's time, in seconds since the epoch.

    `stable`: the digest that the release replaces on this cloud. `labels`: matchers of the provider, put
    into every ready-made query.
    """

    app: str
    rollout: str
    cloud: str
    release: str
    stable: str
    since: float
    now: float
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def window_s(self) -> int:
        """The rollout's time in whole seconds, at least one: the same on every clock."""
        return max(1, math.ceil(self.now - self.since))


def check_query(query: str) -> None:
    """Raises ValueError, in words for a person, for an unknown placeholder or braces without a pair."""
    for name in _MARK.findall(query):
        if name not in PLACEHOLDERS:
            known = ", ".join(f"{{{{{each}}}}}" for each in PLACEHOLDERS)
            raise ValueError(f"unknown placeholder {{{{{name}}}}}; there are {known}")
    rest = _MARK.sub("", query)
    if "{{" in rest or "}}" in rest:
        raise ValueError("a placeholder is written {{name}}; a brace is missing or too many")


def placeholders(query: str) -> set[str]:
    """The placeholders that a query names."""
    return set(_MARK.findall(query))


def is_raw(query: str) -> bool:
    """Whether it ends with `[{{window}}]`: it yields the counter's own samples (`increase_of`)."""
    return _RAW.search(query) is not None


def fill(query: str, scope: Scope, *, stable: bool = False) -> str:
    """The query for the release, or for stable beside it. Raises ValueError as `check_query` does.

    A raw query reaches LOOKBACK_S further back: its baseline is the last value before the rollout.
    """
    check_query(query)
    window = scope.window_s + (math.ceil(LOOKBACK_S) if is_raw(query) else 0)
    values = {
        "app": scope.app,
        "cloud": scope.cloud,
        "release": scope.stable if stable else scope.release,
        "rollout": scope.rollout,
        "track": "stable" if stable else "canary",
    }
    escaped = {name: _escape(value) for name, value in values.items()}
    return _MARK.sub(lambda found: ({**escaped, "window": f"{window}s"})[found[1]], query)


def selector(name: str, labels: Mapping[str, str]) -> str:
    """`name{a="1",b="2"}`. Raises ValueError for a label that Prometheus would refuse."""
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ValueError(f"`{label}` is not a label's name: letters, digits and _, no digit first")
    inside = ",".join(f'{label}="{_escape(value)}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inside}}}"


def counts_query(gate: str, scope: Scope) -> str:
    """The counts of a built-in gate by track, release and state, cumulative from the rollout's beginning.

    Every replica of serve exports the same facts of the store, which only grow: the greatest is the newest.
    """
    return f"max by (track, release, state) ({_own(gate, scope)})"


def resets_query(gate: str, scope: Scope) -> str:
    """How often one of those counters went back: then what was counted before is lost.

    Reaches further back than the rollout, whose label they carry, so that it never misses their first sample.
    """
    return f"max(resets({_own(gate, scope)}[{scope.window_s + math.ceil(LOOKBACK_S)}s]))"


def _own(gate: str, scope: Scope) -> str:
    labels = {"app": scope.app, "rollout": scope.rollout, "cloud": scope.cloud, "gate": gate}
    return selector(GATE_COUNTER, {**scope.labels, **labels})


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
