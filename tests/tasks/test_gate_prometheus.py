"""What a Prometheus may answer, from a stand-in that says it: never a pass, never a fail, always a reason."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from lora_ops.gates.counts import Metric
from lora_ops.gates.promql import STATES, Scope
from lora_ops.gates.statistics import Verdict
from lora_ops.gates.verdict import GateSpec, Look, judge
from lora_ops.state import Provider
from tasks.metrics.counting import count_all
from tasks.metrics.prometheus import NoAnswer, Prometheus

NEW, OLD = "sha256:new", "sha256:old"
OURS = GateSpec(metric=Metric.ERROR_RATE, limit=0.05, provider="prod")
THEIRS = GateSpec(
    metric=Metric.PROMQL,
    limit=0.05,
    provider="prod",
    name="oom",
    query_bad='bad{r="{{release}}"}',
    query_total='all{r="{{release}}"}',
)
RAW = THEIRS.model_copy(
    update={
        "query_bad": 'bad{r="{{release}}"}[{{window}}]',
        "query_total": 'all{r="{{release}}"}[{{window}}]',
    }
)
Reply = tuple[int, bytes]


def series(*found: tuple[dict[str, str], str], kind: str = "vector") -> Reply:
    result = [{"metric": labels, "value": [1.0, value]} for labels, value in found]
    return 200, json.dumps({"status": "success", "data": {"resultType": kind, "result": result}}).encode()


def number(value: str) -> Reply:
    return series(({}, value))


def lane(started: int, uncounted: int, finished: int, bad: int) -> Reply:
    values = zip(STATES, (started, uncounted, finished, bad), strict=True)
    return series(
        *[({"track": "canary", "release": NEW, "state": name}, str(value)) for name, value in values]
    )


class Server:
    """Answers each query by the first of `replies` whose key is in it. `hold`: to be set for an answer."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply | Callable[[Any], None]] = {}
        self.queries: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.hold = threading.Event()
        self.hold.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                query = parse_qs(self.rfile.read(size).decode())["query"][0]
                outer.queries.append(query)
                outer.headers.append(dict(self.headers))
                outer.hold.wait(30)
                reply = next((each for key, each in outer.replies.items() if key in query), series())
                with suppress(OSError):  # the client has gone
                    if callable(reply):
                        reply(self)
                        return
                    self.send_response(reply[0])
                    self.send_header("Content-Length", str(len(reply[1])))
                    self.end_headers()
                    self.wfile.write(reply[1])

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.hold.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


def look(server: Server, gate: GateSpec = OURS, clouds: tuple[str, ...] = ("east",), **provider: Any) -> Look:
    scopes = [Scope("loras", "roll-1", cloud, NEW, OLD, since=7100.0, now=7160.0) for cloud in clouds]
    providers = {"prod": Provider(url=server.url, **{"timeout_s": 5.0, **provider})}
    counts = count_all([gate], scopes, providers)
    return judge([gate], clouds, [], [], NEW, external_counts=counts)


def test_the_counts_of_a_built_in_gate_decide(server: Server) -> None:
    server.replies = {"resets": number("0"), "max by": lane(6, 1, 4, 4)}
    failed = look(server)
    assert (failed.verdict, failed.good_for_lease) == (Verdict.FAIL, False)
    result = failed.results[0]
    assert (result.k_fail, result.n_fail, result.k_pass, result.n_pass) == (4, 5, 4, 4)
    server.replies["max by"] = lane(20, 0, 13, 0)
    assert look(server).verdict is Verdict.PASS
    server.replies["max by"] = lane(20, 0, 12, 0)
    assert look(server).verdict is Verdict.INCONCLUSIVE


def test_the_queries_and_answers_are_kept(server: Server) -> None:
    server.replies = {"resets": number("0"), "max by": lane(1, 0, 0, 0)}
    kept = look(server, clouds=("east", "west")).asked
    assert [(each.gate, each.cloud, each.provider) for each in kept] == [
        ("error_rate", cloud, "prod") for cloud in ("east", "east", "west", "west")
    ]
    assert {each.query for each in kept} == set(server.queries)
    assert 'state="started", track="canary"} 1;' in kept[0].answer
    assert kept[1].answer == "{} 0"


def test_a_written_gate_asks_for_the_release_and_for_stable(server: Server) -> None:
    server.replies = {
        f'bad{{r="{NEW}"}}': number("4"),
        f'all{{r="{NEW}"}}': number("5"),
        f'bad{{r="{OLD}"}}': number("4"),
        f'all{{r="{OLD}"}}': number("5"),
    }
    both = look(server, THEIRS)
    assert both.verdict is Verdict.INCONCLUSIVE
    assert "stable fails the same test" in both.summary
    del server.replies[f'all{{r="{OLD}"}}']
    assert look(server, THEIRS).verdict is Verdict.FAIL


def test_raw_counters_are_counted_here(server: Server) -> None:
    """On the server's own clock, here two hours behind the store's."""

    def points(*values: tuple[float, int]) -> Reply:
        result = [{"metric": {}, "values": [[at, str(value)] for at, value in values]}]
        data = {"resultType": "matrix", "result": result}
        return 200, json.dumps({"status": "success", "data": data}).encode()

    server.replies = {
        "time()": number("160"),
        "bad": points((90.0, 7), (110.0, 9), (120.0, 2)),  # 7 before the rollout, then a restart
        "all": points((110.0, 5)),
    }
    raw = look(server, RAW.model_copy(update={"query_bad": RAW.query_bad.replace("bad", "bad_x")}))
    assert (raw.results[0].k_fail, raw.results[0].n_fail) == (4, 5)
    assert server.queries[:2] == ["vector(time())", f'bad_x{{r="{NEW}"}}[360s]']


def drip(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        threading.Event().wait(0.02)


REFUSED = json.dumps({"status": "error", "errorType": "bad_data", "error": "parse error: no such function"})


@pytest.mark.parametrize(
    ("gate", "reply", "said", "answered"),
    [
        (OURS, series(), "found no series; does this Prometheus scrape", True),
        (THEIRS, series(), r"found no series \(query_bad, query_total\)", True),
        (THEIRS, number("NaN"), "answered nan", True),
        (THEIRS, number("+Inf"), "answered inf", True),
        (THEIRS, number("3.04"), r"answered 3.04, not a count: .*end it with \[\{\{window\}\}\]", True),
        (THEIRS, series(({"i": "1"}, "3"), ({"i": "2"}, "3")), "found 2 series .*aggregate", True),
        (
            THEIRS,
            (200, b'{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}'),
            "scalar",
            True,
        ),
        (RAW, number("3"), r"answered a vector; a query that ends with \[\{\{window\}\}\]", True),
        (OURS, (400, REFUSED.encode()), "refused the query: HTTP 400: parse error: no such function", True),
        (OURS, (404, b"<html>nothing here</html>"), "HTTP 404: <html>nothing here", True),
        (OURS, (401, b""), "HTTP 401: no body", True),
        (OURS, (200, b"<html>a login page</html>"), "HTTP 200: <html>a login page", True),
        (OURS, (200, b'{"status":"success","data":7}'), "not one of Prometheus' query API", True),
        (
            OURS,
            (503, b'{"status":"error","error":"query timed out"}'),
            "did not answer: .*query timed out",
            False,
        ),
        (OURS, (502, b"Bad Gateway"), "did not answer: .*HTTP 502: Bad Gateway", False),
        (OURS, (429, b"slow down"), "did not answer: .*HTTP 429", False),
        (OURS, drip, "did not answer: .*within 0.3 s", False),
    ],
)
def test_what_is_no_count_is_inconclusive(
    server: Server, gate: GateSpec, reply: Any, said: str, answered: bool
) -> None:
    server.replies = {"time()": number("160")} if gate is RAW else {}
    server.replies[""] = reply
    seen = look(server, gate, timeout_s=0.3 if reply is drip else 5.0)
    assert seen.verdict is Verdict.INCONCLUSIVE
    assert re.search(said, seen.summary), seen.summary
    assert seen.good_for_lease is answered
    assert seen.providers_away == ([] if answered else ["prod"])
    assert seen.asked
    assert all(each.answer for each in seen.asked)


@pytest.mark.parametrize("resets", [number("1"), number("NaN"), series()])
def test_a_counter_that_went_back_decides_nothing(server: Server, resets: Reply) -> None:
    server.replies = {"resets": resets, "max by": lane(20, 0, 20, 0)}
    seen = look(server)
    assert seen.verdict is Verdict.INCONCLUSIVE
    assert "went back" in seen.summary


def test_half_of_the_states_is_no_count(server: Server) -> None:
    server.replies = {"max by": series(({"track": "canary", "release": NEW, "state": "bad"}, "0"))}
    seen = look(server)
    assert "no series for state started, uncounted, finished" in seen.summary
    assert seen.verdict is Verdict.INCONCLUSIVE


def test_a_dead_server_is_away(server: Server) -> None:
    server.stop()
    seen = look(server)
    assert (seen.verdict, seen.good_for_lease, seen.providers_away) == (Verdict.INCONCLUSIVE, False, ["prod"])
    assert "refused" in seen.summary


def test_a_slow_server_is_given_up_once_for_all_gates(server: Server) -> None:
    """A look must end long before the lease, however many gates and clouds ask."""
    server.hold.clear()
    clouds = tuple(f"c{n}" for n in range(40))
    seen = look(server, clouds=clouds, timeout_s=0.3)
    assert len(server.queries) <= 8
    assert seen.providers_away == ["prod"]
    assert all(result.verdict is Verdict.INCONCLUSIVE for result in seen.results)
    assert "nothing within 0.3 s" in seen.results[-1].note


def test_secrets_come_from_the_environment(server: Server) -> None:
    provider = Provider(url=server.url, bearer_token_env="TOK", headers_env={"X-Scope-OrgID": "TENANT"})
    client = Prometheus(provider, {"TOK": "s3cret\n", "TENANT": "team-1"})
    client.query("up")
    client.close()
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    assert server.headers[0]["X-Scope-OrgID"] == "team-1"
    without = Prometheus(provider, {"TENANT": "team-1"})
    with pytest.raises(NoAnswer, match="TOK is not set"):
        without.query("up")
    without.close()
    assert len(server.queries) == 1


@pytest.mark.parametrize("secret", ["hush\nhush", "hush\x01", "h\u00fcsh"])
def test_a_secret_that_no_header_holds_is_named_and_never_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("TOK", secret)
    seen = look(server, bearer_token_env="TOK")
    assert seen.providers_away == ["prod"]
    assert "TOK holds a line break or a letter beyond ASCII" in seen.summary
    assert "hush" not in seen.model_dump_json()
    assert server.queries == []


def test_an_undeclared_provider_is_away(server: Server) -> None:
    scope = Scope("loras", "roll-1", "east", NEW, OLD, since=100.0, now=160.0)
    counts = count_all([OURS], [scope], {})
    seen = judge([OURS], ["east"], [], [], NEW, external_counts=counts)
    assert "provider `prod` is not declared" in seen.summary
    assert not seen.good_for_lease


def test_without_external_gates_nobody_is_asked() -> None:
    gate = GateSpec(metric=Metric.ERROR_RATE, limit=0.05)
    assert count_all([gate], [], {}) == {}
