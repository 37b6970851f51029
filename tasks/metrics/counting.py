"""The counts of gates on clouds, as a provider answers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from lora_ops.gates import answers, promql
from lora_ops.gates.counts import Metric
from lora_ops.gates.external import Asked, ExternalCounts
from lora_ops.gates.promql import Scope
from lora_ops.gates.verdict import GateSpec
from lora_ops.state import Provider
from tasks.metrics.prometheus import NoAnswer, Prometheus, QueryRefused

AT_ONCE = 8
NO_SERIES = "the query found no series; does this Prometheus scrape `lora-ops serve`, and is serve up?"


class _Server:
    """A provider in one look. Once silent it is not asked again: the look has a lease to renew."""

    def __init__(self, name: str, client: Prometheus | None) -> None:
        self.name = name
        self.client = client
        self.silent = Event()
        self.why = f"provider `{name}` is not declared"

    def query(self, text: str) -> Any:
        if self.client is None or self.silent.is_set():
            raise NoAnswer(self.why)
        try:
            return self.client.query(text)
        except NoAnswer as silence:
            self.why = str(silence)
            self.silent.set()
            raise


def count_all(
    gates: Sequence[GateSpec], scopes: Sequence[Scope], providers: Mapping[str, Provider]
) -> dict[tuple[str, str], ExternalCounts]:
    """By (gate title, cloud): every external gate on every scope's cloud that it covers, with what was asked.

    Never raises for what a server does; takes about a provider's timeout when it is silent.
    """
    external = [gate for gate in gates if gate.external]
    if not external:
        return {}
    servers: dict[str, _Server] = {}
    for name in {gate.provider for gate in external}:
        known = providers.get(name)
        servers[name] = _Server(name, Prometheus(known) if known is not None else None)
    pairs = [(gate, scope) for scope in scopes for gate in external if gate.covers(scope.cloud)]
    try:
        with ThreadPoolExecutor(min(AT_ONCE, len(pairs) or 1)) as pool:
            found = pool.map(lambda pair: _Question(servers[pair[0].provider], *pair).counts(), pairs)
            return {(gate.title, scope.cloud): each for (gate, scope), each in zip(pairs, found, strict=True)}
    finally:
        for server in servers.values():
            if server.client is not None:
                server.client.close()


class _Question:
    """One gate on one cloud: the queries in their order, each with its answer."""

    def __init__(self, server: _Server, gate: GateSpec, scope: Scope) -> None:
        self.server = server
        self.gate = gate
        self.scope = scope
        self.asked: list[Asked] = []
        self.since: float | None = None

    def counts(self) -> ExternalCounts:
        try:
            found = self._written() if self.gate.metric is Metric.PROMQL else self._ready_made()
        except NoAnswer as silence:
            found = ExternalCounts(k=None, n=None, problem=str(silence), answered=False)
        except QueryRefused as refusal:
            found = ExternalCounts(k=None, n=None, problem=f"{self.server.name} refused the query: {refusal}")
        except ValueError as error:
            found = ExternalCounts(k=None, n=None, problem=f"{self.server.name}: {error}")
        return found.model_copy(update={"asked": tuple(self.asked)})

    def _ready_made(self) -> ExternalCounts:
        gate, scope = self.gate.title, self.scope
        lanes = answers.lane_counts(self._ask(promql.counts_query(gate, scope)), scope.release)
        if lanes is None:
            return ExternalCounts(k=None, n=None, problem=NO_SERIES)
        resets = answers.one_number(self._ask(promql.resets_query(gate, scope)))
        if resets != 0:
            raise ValueError(
                f"a counter of this rollout went back (resets: {resets}): what it had counted is lost, "
                "so the counts are not whole"
            )
        return ExternalCounts(
            k=lanes.k, n=lanes.n, n_pass=lanes.n_pass, stable_k=lanes.stable_k, stable_n=lanes.stable_n
        )

    def _written(self) -> ExternalCounts:
        """Bad first, all last: counters that grow in between cannot make k greater than n."""
        ours = {key: self._number(query, stable=False) for key, query in self.gate.queries.items()}
        if None in ours.values():
            missing = ", ".join(key for key, value in ours.items() if value is None)
            return ExternalCounts(k=None, n=None, problem=f"the query found no series ({missing})")
        stable = {
            key: self._number(self.gate.queries[key], stable=True) for key in ("query_bad", "query_total")
        }
        return ExternalCounts(
            k=ours["query_bad"],
            n=ours["query_total"],
            n_pass=ours.get("query_finished"),
            stable_k=stable["query_bad"],
            stable_n=stable["query_total"],
        )

    def _number(self, query: str, *, stable: bool) -> float | None:
        if promql.is_raw(query):
            self._since()
        document = self._ask(promql.fill(query, self.scope, stable=stable))
        if promql.is_raw(query):
            return answers.increase_of(document, self._since())
        return answers.one_number(document)

    def _since(self) -> float:
        """When the rollout began, on the clock of the server: that one stamps its samples."""
        if self.since is None:
            now = answers.one_number(self.server.query("vector(time())"))
            if now is None:
                raise ValueError("the server does not tell its time")
            self.since = now - self.scope.window_s
        return self.since

    def _ask(self, query: str) -> Any:
        answer = ""
        try:
            document = self.server.query(query)
            answer = answers.told(document)
            return document
        except (NoAnswer, QueryRefused) as error:
            answer = str(error)
            raise
        finally:
            asked = Asked(
                gate=self.gate.title,
                cloud=self.scope.cloud,
                provider=self.server.name,
                query=query,
                answer=answer,
            )
            self.asked.append(asked)
