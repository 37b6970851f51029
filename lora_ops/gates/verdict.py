"""One look: the gates of a rollout judged on the clouds of its wave."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from lora_ops.gates.counts import (
    LATENCIES,
    RATIOS,
    TOLERATED_SHARE,
    Attempt,
    AttemptKey,
    Counts,
    Metric,
    attempts_of,
    count,
)
from lora_ops.gates.external import Asked, ExternalCounts
from lora_ops.gates.promql import check_query
from lora_ops.gates.samples import SCHEMA_VERSION, Sample, Start
from lora_ops.gates.sentences import bad_of, why
from lora_ops.gates.statistics import (
    DEFAULT_ALPHA,
    DEFAULT_BETA,
    DEFAULT_HARMFUL,
    Verdict,
    check_limits,
    check_share,
    decide,
    finite_exp,
    log_e_fail,
    log_e_pass,
    more_bad_to_fail,
    more_good_to_pass,
    threshold_fail,
    threshold_pass,
)

STORE = "store"
"""The provider that is built in: our own samples."""


class GateSpec(BaseModel):
    """A metric with a limit.

    limit: a share between 0 and 1 (error_rate, promql: the share of bad samples), seconds (latencies) or
    canary/stable (ratios). harmful: the share of bad samples that must not pass; None takes the rollout's.
    provider: `store`, or a provider's name. query_bad, query_total and, where attempts still run,
    query_finished: PromQL that yields the counts, as differences of raw counters (`gates/promql.py`).
    clouds: those that it judges; empty means all.
    """

    # Ignored, not forbidden: a release reads what a newer one journalled. The spec refuses unknown keys.
    model_config = ConfigDict(frozen=True, extra="ignore")

    metric: Metric
    limit: float
    harmful: float | None = None
    provider: str = STORE
    name: str = ""
    query_bad: str = ""
    query_total: str = ""
    query_finished: str = ""
    clouds: tuple[str, ...] = ()

    def covers(self, cloud: str) -> bool:
        """Whether it judges this cloud."""
        return not self.clouds or cloud in self.clouds

    @property
    def title(self) -> str:
        """Its name, by default the metric; unique among a rollout's gates."""
        return self.name or self.metric.value

    @property
    def external(self) -> bool:
        """Whether its counts come from a provider outside of the store."""
        return self.provider != STORE

    @property
    def queries(self) -> dict[str, str]:
        """The user's own, by the key that they stand at, in the order in which they are asked."""
        found = {
            "query_bad": self.query_bad,
            "query_finished": self.query_finished,
            "query_total": self.query_total,
        }
        return {key: query for key, query in found.items() if query}

    @property
    def p0(self) -> float:
        """The share of bad samples that a release within its limits may have."""
        return TOLERATED_SHARE if self.metric in LATENCIES | RATIOS else self.limit

    def p1(self, default_harmful: float) -> float:
        """The share of bad samples that must not pass; the rollout's default gives way to a higher limit."""
        return max(default_harmful, self.p0) if self.harmful is None else self.harmful

    @model_validator(mode="after")
    def _check(self) -> "GateSpec":
        if self.metric in LATENCIES | RATIOS:
            unit = "seconds" if self.metric in LATENCIES else "a ratio of canary to stable"
            if not (math.isfinite(self.limit) and self.limit > 0):
                raise ValueError(f"the limit of {self.title} must be {unit} above 0, but is {self.limit!r}")
        else:
            check_share(f"the limit of {self.title}", self.limit)
        if self.harmful is not None:
            check_limits(self.p0, self.harmful)
        if self.metric is Metric.PROMQL:
            if not self.external:
                raise ValueError(f"gate {self.title}: metric promql needs `provider: prometheus`")
            if not (self.query_bad and self.query_total):
                raise ValueError(f"gate {self.title}: metric promql needs query_bad and query_total")
        elif self.queries:
            raise ValueError(f"gate {self.title}: {next(iter(self.queries))} belongs to metric promql")
        if self.external and self.metric in RATIOS:
            raise ValueError(f"gate {self.title} compares probe pairs, which only the provider `store` knows")
        for key, query in self.queries.items():
            try:
                check_query(query)
            except ValueError as error:
                raise ValueError(f"gate {self.title}: {key}: {error}") from None
        return self

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the younger keys where they say nothing: releases from before them refuse unknown keys."""
        document: dict[str, Any] = handler(self)
        for key in ("query_finished", "clouds"):
            if not getattr(self, key):
                document.pop(key, None)
        return document


class GateResult(BaseModel):
    """One gate on one cloud, with all that its verdict follows from.

    more_bad, more_good: further bad or good samples in a row that would decide it; None beyond a million.
    stable: what the same test says of stable's stable_k of stable_n; None for a ratio or when unknown.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    gate: str
    metric: Metric
    cloud: str
    k_fail: int
    n_fail: int
    k_pass: int
    n_pass: int
    limit: float
    harmful: float
    e_value: float
    e_value_good: float
    threshold: float
    threshold_pass: float
    verdict: Verdict
    more_bad: int | None
    more_good: int | None
    stable: Verdict | None = None
    stable_k: int = 0
    stable_n: int = 0
    note: str = ""
    summary: str = ""


class Look(BaseModel):
    """One evaluation of the gates. Two looks with equal `results` have seen the same counts."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1)
    release: str
    clouds: list[str]
    verdict: Verdict
    good_for_lease: bool
    providers_away: list[str] = Field(default_factory=list)
    alpha: float
    beta: float
    tests: int
    results: list[GateResult]
    summary: str
    asked: list[Asked] = Field(default_factory=list)


def number_of_tests(gates: Sequence[GateSpec], clouds: Iterable[str]) -> int:
    """m of the fail threshold m/alpha: how many pairs there are of a gate and a cloud in its scope."""
    return sum(gate.covers(cloud) for cloud in clouds for gate in gates)


def judge(
    gates: Sequence[GateSpec],
    clouds: Sequence[str],
    starts: Iterable[Start],
    samples: Iterable[Sample],
    release: str,
    *,
    alpha: float = DEFAULT_ALPHA,
    beta: float = DEFAULT_BETA,
    harmful: float = DEFAULT_HARMFUL,
    tests: int | None = None,
    external_counts: Mapping[tuple[str, str], ExternalCounts] | None = None,
    provider_ok: Mapping[str, bool] | None = None,
) -> Look:
    """Judge every gate on every cloud in its scope: fail if any fails, pass if all pass, else inconclusive.

    starts, samples: the rollout's, of all tracks; the release's are told by its digest. tests: m of the fail
    threshold m/alpha, by default `number_of_tests` of these; give the whole rollout's when it has several
    waves. external_counts: by (gate title, cloud), for gates of other providers than `store`. provider_ok:
    False for a provider that did not answer. Raises ValueError for no gates, no clouds, a cloud without a
    gate, two gates of one title, or fewer tests than there are.
    """
    check_share("harmful", harmful)
    for what, names in (("gate", [gate.title for gate in gates]), ("cloud", list(clouds))):
        if not names:
            raise ValueError(f"there is no {what} to judge; a rollout without one can never pass")
        if len(set(names)) < len(names):
            raise ValueError(f"two {what}s share a name: {', '.join(names)}; give each its own")
    if not release:
        raise ValueError("the release to judge has no digest")
    if bare := [cloud for cloud in clouds if not any(gate.covers(cloud) for gate in gates)]:
        raise ValueError(f"no gate judges {', '.join(bare)}: nothing could ever pass there")
    here = number_of_tests(gates, clouds)
    m = here if tests is None else tests
    if m < here:
        raise ValueError(f"tests is {m}, but gates x clouds is {here}: too few raise false alarms")
    bench = _Bench(release, alpha, beta, harmful, m, attempts_of(starts, samples), external_counts or {})
    dark = {name for name, answered in (provider_ok or {}).items() if not answered}
    results: list[GateResult] = []
    away: set[str] = set()
    for cloud in clouds:
        for gate in gates:
            if not gate.covers(cloud):
                continue
            given = bench.external.get((gate.title, cloud)) if gate.external else None
            missing = gate.external and (given is None or not given.answered)
            if gate.provider in dark or missing:
                away.add(gate.provider)
                note = f"{gate.provider} did not answer"
                if given is not None and given.problem:
                    note = f"{note}: {given.problem}"
                results.append(bench.result(gate, cloud, Counts(), None, note))
            else:
                results.append(bench.result(gate, cloud, *bench.counts(gate, cloud)))
    verdict = _overall([result.verdict for result in results])
    return Look(
        release=release,
        clouds=list(clouds),
        verdict=verdict,
        good_for_lease=verdict is not Verdict.FAIL and not away and not dark,
        providers_away=sorted(away | dark),
        alpha=alpha,
        beta=beta,
        tests=m,
        results=results,
        summary="; ".join(result.summary for result in results if result.verdict is verdict),
        asked=[each for given in bench.external.values() for each in given.asked],
    )


def _overall(verdicts: Sequence[Verdict]) -> Verdict:
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    return Verdict.PASS if all(v is Verdict.PASS for v in verdicts) else Verdict.INCONCLUSIVE


class _Bench:
    """What all gates of one look share."""

    def __init__(
        self,
        release: str,
        alpha: float,
        beta: float,
        harmful: float,
        tests: int,
        attempts: Mapping[AttemptKey, Attempt],
        external: Mapping[tuple[str, str], ExternalCounts],
    ) -> None:
        self.release, self.alpha, self.beta, self.harmful = release, alpha, beta, harmful
        self.tests, self.attempts, self.external = tests, attempts, external

    def counts(self, gate: GateSpec, cloud: str) -> tuple[Counts, Counts | None, str]:
        """The release's counts, stable's, and what is wrong with them ("" when nothing is)."""
        if not gate.external:
            ours, stable = count(gate.metric, gate.limit, self.attempts, self.release, cloud)
            return ours, stable, ""
        given = self.external[gate.title, cloud]
        if given.problem:
            return Counts(), None, given.problem
        try:
            if given.k is None or given.n is None:
                return Counts(), None, "the query found no series"
            stable = None
            if given.stable_k is not None and given.stable_n is not None:
                stable = _external(given.stable_k, given.stable_n, given.stable_n)
            n_pass = given.n if given.n_pass is None else given.n_pass
            return _external(given.k, given.n, n_pass), stable, ""
        except ValueError as error:
            return Counts(), None, str(error)

    def result(
        self, gate: GateSpec, cloud: str, counts: Counts, stable: Counts | None, problem: str
    ) -> GateResult:
        p0, p1 = gate.p0, gate.p1(self.harmful)
        verdict = self._decide(counts, p0, p1)
        stable_verdict = None if stable is None else self._decide(stable, p0, p1)
        note = problem
        if not note and counts.n_fail == 0:
            note = "no attempt of the new release yet"
        if not note and stable is not None and stable_verdict is Verdict.FAIL:
            note = (
                f"stable fails the same test here ({stable.k_fail} of {stable.n_fail} bad, release"
                f" {counts.k_fail} of {counts.n_fail}): look at the cloud and the data first"
            )
        if note:
            verdict = Verdict.INCONCLUSIVE
        result = GateResult(
            gate=gate.title,
            metric=gate.metric,
            cloud=cloud,
            **counts._asdict(),
            limit=p0,
            harmful=p1,
            e_value=finite_exp(log_e_fail(counts.k_fail, counts.n_fail, p0)),
            e_value_good=finite_exp(log_e_pass(counts.k_pass, counts.n_pass, p1)),
            threshold=threshold_fail(self.alpha, self.tests),
            threshold_pass=threshold_pass(self.beta),
            verdict=verdict,
            more_bad=more_bad_to_fail(
                counts.k_fail,
                counts.n_fail,
                limit=p0,
                alpha=self.alpha,
                tests=self.tests,
                running=counts.n_fail - counts.n_pass,
            ),
            more_good=more_good_to_pass(counts.k_pass, counts.n_pass, harmful=p1, beta=self.beta),
            stable=stable_verdict,
            stable_k=stable.k_fail if stable else 0,
            stable_n=stable.n_fail if stable else 0,
            note=note,
        )
        return result.model_copy(update={"summary": _sentence(gate, result)})

    def _decide(self, counts: Counts, p0: float, p1: float) -> Verdict:
        return decide(*counts, limit=p0, harmful=p1, alpha=self.alpha, beta=self.beta, tests=self.tests)


def _external(k: float, n: float, n_pass: float) -> Counts:
    """Raises ValueError, in words for a person, unless these are counts."""
    for value in (k, n, n_pass):
        if not math.isfinite(value):
            raise ValueError(f"the query answered {value}")
        if abs(value - round(value)) > 1e-6:
            raise ValueError(
                f"the query answered {value:g}, not a count: subtract raw counters, or end it with"
                " [{{window}}]; rate() and increase() extrapolate"
            )
    k, n, n_pass = round(k), round(n), round(n_pass)
    if not 0 <= k <= n_pass <= n:
        raise ValueError(f"the query answered {k} bad of {n_pass} finished of {n} started, which cannot be")
    return Counts(k, n, k, n_pass)


def _sentence(gate: GateSpec, result: GateResult) -> str:
    if result.note:
        return f"{result.cloud}: {result.gate}: {result.note} -> {result.verdict}"
    passed = result.verdict is Verdict.PASS
    k, n = (result.k_pass, result.n_pass) if passed else (result.k_fail, result.n_fail)
    running = result.n_fail - result.n_pass
    aside = f" ({running} still running)" if running and not passed else ""
    metric = gate.title if gate.metric is Metric.PROMQL else gate.metric.value
    reason = why(
        result.verdict,
        p0=result.limit,
        p1=result.harmful,
        e_value=result.e_value,
        e_value_good=result.e_value_good,
        threshold=result.threshold,
        threshold_pass=result.threshold_pass,
        more_bad=result.more_bad,
        more_good=result.more_good,
    )
    return f"{result.cloud}: {bad_of(metric, k, n, gate.limit)}{aside}; {reason}"
