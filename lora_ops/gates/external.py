"""What a provider outside of the store says of one gate on one cloud, with its queries and answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Asked(BaseModel):
    """One query of a look and what came back, in words that fit on a line."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    gate: str
    cloud: str
    provider: str
    query: str
    answer: str


class ExternalCounts(BaseModel):
    """What a provider answered for one gate on one cloud: k bad of n that started; None for no series.

    n_pass: those that finished, needed where attempts still run (default: n). stable_k, stable_n: stable's.
    problem: why there are no counts; the gate is then inconclusive. answered: False when the provider gave
    no answer in time, so that the look renews no lease.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: float | None
    n: float | None
    n_pass: float | None = None
    stable_k: float | None = None
    stable_n: float | None = None
    problem: str = ""
    answered: bool = True
    asked: tuple[Asked, ...] = ()
