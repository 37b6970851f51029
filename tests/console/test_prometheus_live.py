"""Gates, rules and the dashboard against Debian's Prometheus, which scrapes real console apps."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cli.local.doctor import _providers
from console.app import create_app
from flows.looks import judge_now
from lora_ops import keys
from lora_ops.gates.statistics import Verdict
from lora_ops.gates.verdict import GateResult, Look
from lora_ops.spec import PlatformSpec, parse_spec
from tests.console.conftest import NEW, OLD
from tests.console.prometheus_site import DEPLOYMENTS, Exporter, Serve, Site, binary, free_port, until

RULES = sorted((DEPLOYMENTS / "prometheus" / "rules").glob("*.yml"))
DASHBOARD = json.loads((DEPLOYMENTS / "grafana" / "lora-ops.json").read_text())
OWN = ("error_rate", "step_latency", "start_latency")
SPEC = """
app: loras
clouds: {{east: {{size: 2}}, west: {{size: 1}}}}
providers: {{prod: {{url: "http://127.0.0.1:{port}", timeout: 20s}}}}
rollout:
  steps: [10, 50]
  gates:
    - {{metric: error_rate, limit: 5%}}
    - {{metric: step_latency, limit: 1.7s}}
    - {{metric: start_latency, limit: 7s}}
    - {{metric: error_rate, limit: 5%, provider: prometheus, name: error-rate-seen}}
    - {{metric: step_latency, limit: 1.7s, provider: prod, name: step-latency-seen}}
    - {{metric: start_latency, limit: 7s, provider: prod, name: start-latency-seen}}
    - metric: promql
      limit: 5%
      provider: prod
      name: own
      query_bad: 'trainer_failures_total{{release="{{{{release}}}}",cloud="{{{{cloud}}}}"}}[{{{{window}}}}]'
      query_total: 'trainer_runs_total{{release="{{{{release}}}}",cloud="{{{{cloud}}}}"}}[{{{{window}}}}]'
"""

pytestmark = pytest.mark.server


@pytest.fixture(scope="session")
def prometheus_port() -> int:
    binary("prometheus")
    return free_port()


@pytest.fixture
def spec(prometheus_port: int) -> PlatformSpec:
    """In the place of conftest's."""
    return parse_spec(SPEC.format(port=prometheus_port), "lora-ops.yaml")


@pytest.fixture
def site(tmp_path: Path, prometheus_port: int) -> Iterator[Site]:
    made = Site(tmp_path / "prometheus", prometheus_port)
    yield made
    if made.process is not None:
        made.kill()


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    made = Exporter()
    yield made
    made.stop()


@pytest.fixture
def replicas(world: Any) -> Iterator[list[Serve]]:
    """Two of serve: what they export are the same facts."""
    made = [Serve(world.client.app), Serve(create_app(world.restarted().context))]
    yield made
    for each in made:
        each.stop()


def shows(failures: int, runs: int, cloud: str = "east") -> str:
    labels = f'{{release="{NEW}",cloud="{cloud}"}}'
    return (
        "# TYPE trainer_failures_total counter\n"
        f"trainer_failures_total{labels} {failures}\n"
        "# TYPE trainer_runs_total counter\n"
        f"trainer_runs_total{labels} {runs}\n"
    )


def look(world: Any) -> Look:
    rollout = world.platform.state().rollout
    found = judge_now(world.platform, rollout)
    assert found is not None
    return found


def of(seen: Look, gate: str, cloud: str = "east") -> GateResult:
    return next(each for each in seen.results if (each.gate, each.cloud) == (gate, cloud))


def counts(result: GateResult) -> Any:
    numbers = (result.k_fail, result.n_fail, result.k_pass, result.n_pass)
    return (*numbers, result.verdict, result.stable_k, result.stable_n)


def busy(world: Any) -> str:
    """A rollout with every kind of attempt, and trainings under way."""
    name: str = world.rollout()
    world.canary(name, step_seconds=[0.5] * 20, start_latency_s=3.0)
    world.canary(name, step_seconds=[1.8] * 20, start_latency_s=8.0)
    world.canary(name, "trainer_error")
    world.canary(name, "evicted")
    world.contact(world.request(rollout=name, track="canary", digest=NEW))
    stable = world.request(rollout=name)
    world.contact(stable)
    world.sample(stable, step_seconds=[0.4] * 20, start_latency_s=2.0)
    world.succeed(stable)
    world.look(name, 0)
    running = world.request()
    world.contact(running)
    beat = {"step": 3, "steps": 9, "loss": 0.5, "step_s": 1.0, "samples_per_s": 4.0, "memory_bytes": 5}
    world.store.put(keys.heartbeat(running, 1), json.dumps(beat).encode())
    return name


def agree(world: Any) -> Look | None:
    """A look in which Prometheus has caught up with the store; None before."""
    seen = look(world)
    for cloud in ("east", "west"):
        for gate in OWN:
            ours, theirs = of(seen, gate, cloud), of(seen, f"{gate.replace('_', '-')}-seen", cloud)
            if counts(ours) != counts(theirs) or theirs.note != ours.note:
                return None
    return seen


def test_it_counts_what_the_store_counts(
    world: Any, site: Site, replicas: list[Serve], exporter: Exporter
) -> None:
    """The same verdicts, with two replicas of serve, through the death of either and of Prometheus."""
    name = busy(world)
    site.start(*[each.target for each in replicas], exporter.target)
    seen = until(lambda: agree(world), "Prometheus sees the same")
    assert counts(of(seen, "error-rate-seen"))[:4] == (1, 4, 1, 3)
    assert counts(of(seen, "step-latency-seen"))[0] == 1
    assert of(seen, "error-rate-seen").stable_n == 1
    assert of(seen, "error-rate-seen", "west").note == "no attempt of the new release yet"

    replicas[0].stop()
    for _ in range(4):
        world.canary(name, "trainer_error")
    failed = until(lambda: agree(world), "the other replica is enough")
    assert of(failed, "error-rate-seen").verdict is Verdict.FAIL

    until(lambda: site.ask(f'up{{instance="{replicas[0].target}"}} == 0'), "its death is seen")
    site.kill()
    away = look(world)
    assert away.providers_away == ["prod"]
    assert not away.good_for_lease
    assert "did not answer: http://127.0.0.1" in of(away, "error-rate-seen").note
    site.again()
    last = f'timestamp(up{{instance="{replicas[1].target}"}})'
    before = site.ask(last)[0]["value"][1]
    until(lambda: site.ask(f"{last} > {before}"), "it scrapes again")
    again = until(lambda: agree(world), "Prometheus is back")
    assert of(again, "error-rate-seen").verdict is Verdict.FAIL

    replicas[1].stop()
    gone = until(
        lambda: (s := look(world)) and "no series" in of(s, "error-rate-seen").note and s, "serve is gone"
    )
    assert of(gone, "error-rate-seen").verdict is Verdict.INCONCLUSIVE


def test_a_restarted_exporter_loses_no_count(
    world: Any, site: Site, replicas: list[Serve], exporter: Exporter
) -> None:
    """Raw counters: 4 failures of 6 before the restart, 1 of 3 after it."""
    world.rollout()
    exporter.text = shows(4, 6)
    site.start(replicas[0].target, exporter.target)

    def counted(k: int, n: int) -> Any:
        result = of(look(world), "own")
        return (result.k_fail, result.n_fail) == (k, n) and result

    until(lambda: counted(4, 6), "the first life")
    exporter.text = shows(1, 3)
    result = until(lambda: counted(5, 9), "the second life")
    assert result.verdict is Verdict.FAIL
    assert "no series" in of(look(world), "own", "west").note
    exporter.text = shows(1, 3).replace(" 3\n", " NaN\n")
    until(lambda: "answered nan" in of(look(world), "own").note, "no number")


def test_our_counter_that_goes_back_decides_nothing(world: Any, site: Site, exporter: Exporter) -> None:
    """A store that was replaced under a running rollout: what had been counted is lost."""
    name = world.rollout()

    def show(started: int, bad: int) -> None:
        values = {"started": started, "uncounted": 0, "finished": started, "bad": bad}
        lane = (
            f'app="loras",rollout="{name}",cloud="east",track="canary",release="{NEW}",gate="error-rate-seen"'
        )
        exporter.text = "".join(
            f'lora_ops_gate_attempts_total{{{lane},state="{state}"}} {value}\n'
            for state, value in values.items()
        )

    show(13, 0)
    site.start(exporter.target)
    until(lambda: of(look(world), "error-rate-seen").verdict is Verdict.PASS, "it passes")
    show(2, 0)
    until(lambda: "went back" in of(look(world), "error-rate-seen").note, "the reset is seen")
    show(30, 0)
    until(lambda: site.ask('lora_ops_gate_attempts_total{state="started"} == 30'), "it grows again")
    assert of(look(world), "error-rate-seen").verdict is Verdict.INCONCLUSIVE


def test_the_dashboard_and_the_rules_have_something_to_show(
    world: Any, site: Site, replicas: list[Serve]
) -> None:
    busy(world)
    site.start(replicas[0].target)
    until(lambda: agree(world), "Prometheus sees the same")
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    for panel in panels:
        for target in panel["targets"]:
            query = target["expr"].replace("$app", ".*")
            until(lambda query=query: site.ask(query), f"panel {panel['title']}: {query}")
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                assert site.ask(rule["expr"]) is not None
                if "record" in rule:
                    until(lambda rule=rule: site.ask(rule["record"]), rule["record"])
    assert until(lambda: site.ask('ALERTS{alertname="LoraOpsCloudDown",cloud="west"}'), "an alert is pending")


def test_a_rollback_and_a_dead_serve_are_alerts(world: Any, site: Site, replicas: list[Serve]) -> None:
    name = world.rollout()
    site.start(replicas[0].target)
    until(lambda: site.ask("lora_ops_lease_seconds"), "the lease is seen")
    assert site.ask('ALERTS{alertname="LoraOpsRolledBack"}') == []
    world.record(name, "rolled-back")
    fired = until(lambda: site.ask('ALERTS{alertname="LoraOpsRolledBack"}'), "the alert")
    assert fired[0]["metric"]["rollout"] == name
    assert fired[0]["metric"]["alertstate"] == "firing"
    replicas[0].stop()
    until(lambda: site.ask('ALERTS{alertname="LoraOpsServeDown"}'), "the alert")


def test_doctor_and_explain_say_what_prometheus_says(world: Any, site: Site, replicas: list[Serve]) -> None:
    local: Any = SimpleNamespace(spec=world.context.spec, serve_url="http://127.0.0.1:8700")
    (dead,) = _providers(local)
    assert (dead.name, dead.ok) == ("provider prod", False)
    site.start()
    (empty,) = _providers(local)
    assert not empty.ok
    assert 'has no series lora_ops_build_info{app="loras"}' in empty.found
    site.kill()
    site.start(*[each.target for each in replicas])
    until(lambda: next(iter(_providers(local))).ok, "doctor is content")
    busy(world)
    until(lambda: agree(world), "Prometheus sees the same")
    document = world.get("/api/gates/explain")
    asked = [
        each for each in document["asked"] if each["gate"] == "error-rate-seen" and each["cloud"] == "east"
    ]
    assert len(asked) == 2
    assert "max by (track, release, state)" in asked[0]["query"]
    assert f'release="{OLD}"' in asked[0]["answer"]
    world.record(document["rollout"], "rolled-back")
    later = world.get("/api/gates/explain", rollout=document["rollout"])
    assert later["asked"] == look_of(world, document["rollout"])


def look_of(world: Any, rollout: str) -> Any:
    """What the newest look of a rollout had asked."""
    return [each.model_dump() for each in world.platform.looks(rollout)[-1].look.asked]


def test_promtool_accepts_what_we_ship() -> None:
    promtool = binary("promtool")
    subprocess.run([promtool, "check", "rules", *map(str, RULES)], check=True, capture_output=True)
    config = DEPLOYMENTS / "prometheus" / "prometheus.yml"
    subprocess.run([promtool, "check", "config", str(config)], check=True, capture_output=True)
    subprocess.run(
        [promtool, "test", "rules", str(Path(__file__).with_name("alerts_test.yml"))],
        check=True,
        capture_output=True,
    )
