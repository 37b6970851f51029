"""lora-ops.yaml: all of it parses; each wrong thing is named with its file, line, key and a way out."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.errors import ConfigError, UsageError
from lora_ops.gates.counts import Metric
from lora_ops.reconcile import Limits
from lora_ops.spec import PlatformSpec, RolloutSpec, parse_spec
from lora_ops.state import Policy, Provider

EXAMPLE = """\
app: lora-training
store: s3://bucket/folder
backup: {url: "s3://away/folder?encryption=sse-s3", credentials_block: aws-credentials/backup, every: 10m}
prefect: {api_url: "http://127.0.0.1:4200/api"}
serve:
  host: 127.0.0.1
  port: 8700
clouds:
  east: {kind: local, size: 2, share: 1}
  west-2: {size: 1, share: 0.5, steps: [0, 100], env: {OMP_NUM_THREADS: "1"}}
providers:
  prometheus-prod:
    kind: prometheus
    url: https://prometheus:9090/
    timeout: 3s
    bearer_token_env: TOKEN
    headers_env: {X-Scope-OrgID: TENANT}
    labels: {cluster: prod}
rollout:
  steps: [10, 25, 50, 100]
  waves: [[east], [west-2]]
  gates:
    - {metric: error_rate, limit: 5%}
    - {metric: step_latency, limit: 250ms, harmful: 50%}
    - metric: loss_ratio
      limit: 1.2
  confidence: 99%
  pass_confidence: 95%
  harmful: 30%
  horizon: 20
  fresh_samples: 3
  min_time: 1m
  deadline: 1h
  undecided: pause
  look_every: 2s
  lease: 90s
  hold: 10m
  approval: true
  accept_unverified_approval: false
  failed_wave: rollback
  verify_timeout: 5m
  abandon_after: 1h
  max_restarts: 5
  probes: {config: probe.yaml, parallel: 2, max_per_cloud: 50}
requests:
  max_attempts: 4
  start_deadline: 5m
  heartbeat_deadline: 2m
  spill_after: 120
"""


def complaints(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_spec(text, "lora-ops.yaml")
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value.details or [caught.value.message]


def complaint(rollout: str = "", clouds: str = "{a: {}, b: {}}") -> str:
    """The only complaint about a spec; its rollout section begins on line 3."""
    found = complaints(f"clouds: {clouds}\nrollout:\n  {rollout or '{}'}\n")
    assert len(found) == 1, found
    return found[0]


def test_every_key_parses() -> None:
    spec = parse_spec(EXAMPLE, "lora-ops.yaml")
    assert spec.clouds["west-2"].env == {"OMP_NUM_THREADS": "1"}
    assert set(spec.model_fields_set) == set(PlatformSpec.model_fields) - {"image", "insecure_registries"}
    assert set(spec.rollout.model_fields_set) == set(RolloutSpec.model_fields)
    policy = spec.policy()
    assert policy.waves == (("east",), ("west-2",))
    assert policy.plans == {"east": (10, 25, 50, 100), "west-2": (0, 100)}
    assert [(gate.metric, gate.limit, gate.harmful) for gate in policy.gates] == [
        (Metric.ERROR_RATE, 0.05, None),
        (Metric.STEP_LATENCY, 0.25, 0.5),
        (Metric.LOSS_RATIO, 1.2, None),
    ]
    times = (policy.min_time_s, policy.deadline_s, policy.lease_s, policy.hold_s, policy.look_every_s)
    assert times == (60, 3600, 90, 600, 2)
    assert (policy.approval, policy.undecided, policy.max_restarts) == (True, "pause", 5)
    assert policy.probes is not None
    assert policy.probes.model_dump() == {"config": "probe.yaml", "parallel": 2, "max_per_cloud": 50}
    assert spec.requests.limits() == Limits(300, 120, 120)


def test_the_shortest_spec_is_careful() -> None:
    policy = parse_spec("clouds: {a: {}, b: {}}", "lora-ops.yaml").policy()
    assert policy.waves == (("a", "b"),)
    assert policy.plans == dict.fromkeys("ab", (10, 25, 50, 100))
    assert [(gate.metric, gate.limit) for gate in policy.gates] == [(Metric.ERROR_RATE, 0.05)]
    assert (policy.harmful, policy.horizon, policy.undecided) == (0.3, 20, "rollback")
    assert Policy.model_validate_json(policy.model_dump_json()) == policy


@pytest.mark.parametrize(
    ("written", "alpha", "beta"),
    [("99%", 0.01, 0.05), ("0.99", 0.01, 0.05), ("99.9%", 0.001, 0.05), ("95%", 0.05, 0.05)],
)
def test_confidences_are_round_numbers(written: str, alpha: float, beta: float) -> None:
    """1 - 0.99 is 0.010000000000000009, and a boundary that is pinned to 1 % would move."""
    policy = parse_spec(f"clouds: {{a: {{}}}}\nrollout: {{confidence: {written}}}", "f").policy()
    assert (policy.alpha, policy.beta) == (alpha, beta)


@pytest.mark.parametrize(
    ("rollout", "told"),
    [
        ("step: [1]", "lora-ops.yaml:3: unknown key `rollout.step`. Did you mean `steps`?"),
        (
            "steps: [50, 10]",
            "lora-ops.yaml:3: `rollout.steps`: steps are weights from 0 to 100 that never go down",
        ),
        ("steps: []", "`rollout.steps`: steps are weights"),
        ("steps: [10, 101]", "`rollout.steps`: steps are weights"),
        ("steps: 50", "`rollout.steps`: a list is wanted."),
        ("steps: [10, x]", "`rollout.steps.1`: Input should be a valid integer"),
        ("waves: [[a], [c]]", "lora-ops.yaml:3: `rollout.waves.1.0`: cloud `c` is unknown. Known: a, b."),
        ("waves: [[a]]", "`rollout.waves`: cloud `b` is in no wave, so no release would ever reach it."),
        ("waves: [[a, b], [a]]", "`rollout.waves`: cloud `a` is named twice"),
        ("waves: []", "`rollout.waves`: a wave names at least one cloud"),
        ("waves: [[a, b], []]", "`rollout.waves`: a wave names at least one cloud"),
        ("waves: [a]", "`rollout.waves.0`: a list is wanted."),
        ("lease: 4s", "`rollout.lease`: the lease is at least 5s and twice `look_every`"),
        ("{lease: 20s, look_every: 11s}", "`rollout.lease`: the lease is at least 5s and twice `look_every`"),
        ("lease: soon", "`rollout.lease`: `soon` is not a duration; write 90s, 5m or 1h."),
        ("look_every: 0s", "`rollout.look_every`: Input should be greater than or equal to 0.1."),
        ("{min_time: 1h, deadline: 30m}", "`rollout.deadline`: the deadline lies after `min_time`"),
        ("confidence: 100%", "`rollout.confidence`: a confidence lies between 50% and 100%, usually 99%."),
        ("pass_confidence: 1%", "`rollout.pass_confidence`: a confidence lies between 50% and 100%"),
        ("harmful: 0%", "`rollout.harmful`: it lies between 0% and 100%, usually 30%."),
        ("harmful: 30", "`rollout.harmful`: `30` is not between 0% and 100%."),
        ("horizon: yes", "`rollout.horizon`: a number is wanted, not true."),
        ("horizon: 0", "`rollout.horizon`: Input should be greater than or equal to 1."),
        ("undecided: promote", "`rollout.undecided`: Input should be 'rollback' or 'pause'."),
        ("gates: []", "`rollout.gates`: at least one gate is needed"),
        ("gates: [{metric: error_rate}]", "lora-ops.yaml:3: key `rollout.gates.0.limit` is missing."),
        (
            "gates: [{metric: error_rat, limit: 1}]",
            "`rollout.gates.0.metric`: Input should be 'error_rate', ",
        ),
        ("gates: [{metric: error_rate, limit: 5s}]", "`rollout.gates.0.limit`: `5s` is not a share"),
        ("gates: [{metric: step_latency, limit: 5%}]", "`rollout.gates.0.limit`: `5%` is not a duration"),
        (
            "gates: [{metric: step_latency, limit: 0s}]",
            "`rollout.gates.0.limit`: the limit of step_latency must be",
        ),
        (
            "gates: [{metric: loss_ratio, limit: yes}]",
            "`rollout.gates.0.limit`: a number is wanted, not true.",
        ),
        (
            "gates: [{metric: loss_ratio, limit: .nan}]",
            "`rollout.gates.0.limit`: Input should be a finite number",
        ),
        (
            "gates: [{metric: error_rate, limit: 50%, harmful: 10%}]",
            "`rollout.gates.0.harmful`: harmful (0.1) is below the limit (0.5)",
        ),
        (
            "gates: [{metric: error_rate, limit: 5%}, {metric: error_rate, limit: 6%}]",
            "`rollout.gates.1`: there are two gates of error_rate.",
        ),
        ("probes: {}", "key `rollout.probes.config` is missing."),
    ],
)
def test_a_wrong_rollout_is_told_where_and_how_to_mend_it(rollout: str, told: str) -> None:
    found = complaint(rollout)
    assert found.startswith("lora-ops.yaml:3: ")
    assert told in found


@pytest.mark.parametrize(
    ("clouds", "told"),
    [
        ("{}", "`clouds`: at least one cloud is needed."),
        ("", "`clouds`: a mapping of keys is wanted."),
        ("[a]", "`clouds`: a mapping of keys is wanted."),
        ("{a: }", "`clouds.a`: a mapping of keys is wanted."),
        ("{control: {}}", "`clouds.control`: that is the pool of the deploy flow; name the cloud otherwise."),
        ("{US_East: {}}", "`clouds.US_East`: `US_East` is not a name; write 1 to 40 of a-z, 0-9 and -"),
        ("{ost-ö: {}}", "`clouds.ost-ö`: `ost-ö` is not a name"),
        ("{-a: {}}", "`clouds.-a`: `-a` is not a name"),
        ("{1: {}}", "`clouds.1`: text is wanted; put it in quotes."),
        ("{a: {sise: 2}}", "unknown key `clouds.a.sise`. Did you mean `size`?"),
        ("{size: {shar: 2}}", "unknown key `clouds.size.shar`. Did you mean `share`?"),
        ("{a: {size: 0}}", "`clouds.a.size`: Input should be greater than or equal to 1."),
        ("{a: {share: -1}}", "`clouds.a.share`: Input should be greater than or equal to 0."),
        ("{a: {share: .inf}}", "`clouds.a.share`: Input should be a finite number."),
        ("{a: {share: 0}}", "`clouds`: every cloud has `share: 0`, so none gets requests."),
        ("{a: {steps: [50, 10]}}", "`clouds.a.steps`: steps are weights from 0 to 100 that never go down"),
        ("{a: {kind: kubernets}}", "`clouds.a.kind`: Input should be 'local' or 'kubernetes'"),
        ("{a: {env: {N: 1}}}", "`clouds.a.env.N`: text is wanted; put it in quotes."),
    ],
)
def test_a_wrong_cloud_is_told_where_and_how_to_mend_it(clouds: str, told: str) -> None:
    found = complaint(clouds=clouds)
    assert found.startswith("lora-ops.yaml:1: ")
    assert told in found


def test_all_errors_are_told_at_once_each_with_its_own_line() -> None:
    text = """\
app: Lora Training
clouds:
  a:
    sise: 2
  b: {share: -1}
rollout:
  steps: [50,
    10]
  lease: 1s
  gates:
    - metric: error_rate
      limit: 5
      harmfull: 2
requests: {max_attempts: 0}
servee: {}
"""
    assert [each.split(": ")[0] + " " + each.split("`")[1] for each in complaints(text)] == [
        "lora-ops.yaml:1 app",
        "lora-ops.yaml:4 clouds.a.sise",
        "lora-ops.yaml:5 clouds.b.share",
        "lora-ops.yaml:7 rollout.steps",
        "lora-ops.yaml:12 rollout.gates.0.limit",
        "lora-ops.yaml:13 rollout.gates.0.harmfull",
        "lora-ops.yaml:9 rollout.lease",
        "lora-ops.yaml:14 requests.max_attempts",
        "lora-ops.yaml:15 servee",
    ]


def test_an_overridden_plan_is_checked_too() -> None:
    spec = parse_spec("clouds: {a: {steps: [1, 2]}}", "lora-ops.yaml")
    assert spec.policy().plans == {"a": (1, 2)}
    assert spec.policy((0, 100)).plans == {"a": (0, 100)}
    for steps in ((), (50, 10), (101,)):
        with pytest.raises(UsageError, match="never go down"):
            spec.policy(steps)


@pytest.mark.parametrize("name", ["a", "9", "a-b", "x" * 40])
def test_names_of_clouds(name: str) -> None:
    assert name in parse_spec(f'clouds: {{"{name}": {{}}}}', "f").clouds
    for wrong in (f"{name}-", f"-{name}", f"{name}_", f"{name} ", f"{name}x" * 40, f"{name}/b", f"{name}\\n"):
        complaints(f'clouds: {{"{wrong}": {{}}}}')


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
sections = st.sampled_from(["app", "store", "prefect", "serve", "clouds", "rollout", "requests"])


@given(st.dictionaries(sections | st.text(max_size=4), yaml_values, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_document_is_a_spec_or_a_config_error(document: dict[str, object]) -> None:
    text = yaml.safe_dump(document, allow_unicode=True)
    try:
        spec = parse_spec(text, "lora-ops.yaml")
    except ConfigError as error:
        told = [error.message, *error.details]
    else:
        told = []
        assert spec.policy()
    assert not [each for each in told if "\n" in each]


# --- providers ---

PROVIDERS = "clouds: {a: {}}\nproviders: {prod: {url: 'http://p:9090'}}\n"
PROMQL = "{metric: promql, name: oom, limit: 5%, provider: prod, query_bad: 'bad{{release}}', query_total: "


def test_a_gate_names_its_provider() -> None:
    gates = f"[{{metric: error_rate, limit: 5%, provider: prometheus}}, {PROMQL}'all{{{{track}}}}'}}]"
    policy = parse_spec(f"{PROVIDERS}rollout:\n  gates: {gates}", "f").policy()
    assert [(gate.title, gate.provider) for gate in policy.gates] == [("error_rate", "prod"), ("oom", "prod")]
    assert policy.gates[1].queries == {"query_bad": "bad{{release}}", "query_total": "all{{track}}"}
    assert policy.providers == {"prod": Provider(url="http://p:9090")}
    assert Policy.model_validate_json(policy.model_dump_json()) == policy
    assert "query_finished" not in policy.model_dump_json()  # releases from before it would refuse it


def test_two_gates_of_one_metric_have_names() -> None:
    gates = "[{metric: error_rate, limit: 5%}, {metric: error_rate, name: seen, limit: 5%, provider: prod}]"
    policy = parse_spec(f"{PROVIDERS}rollout:\n  gates: {gates}", "f").policy()
    assert [gate.title for gate in policy.gates] == ["error_rate", "seen"]


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (
            "{metric: error_rate, limit: 5%, provider: prud}",
            "provider `prud` is unknown. Did you mean `prod`?",
        ),
        ("{metric: loss_ratio, limit: 1.2, provider: prod}", "only the provider `store` knows"),
        ("{metric: error_rate, limit: 5%, query_bad: x}", "query_bad belongs to metric promql"),
        (
            "{metric: promql, name: x, limit: 5%, query_bad: a, query_total: b}",
            "needs `provider: prometheus`",
        ),
        ("{metric: promql, name: x, limit: 5%, provider: prod}", "needs query_bad and query_total"),
        (PROMQL.replace("name: oom, ", "") + "'a{{release}}'}", "a promql gate needs a `name`"),
        (PROMQL + "'all'}", "it names no {{release}}"),
        (PROMQL + "'a{{release}}{{clod}}'}", "query_total: unknown placeholder {{clod}}"),
        (PROMQL.replace("5%", "2s") + "'a{{release}}'}", "`2s` is not a share"),
    ],
)
def test_a_gate_that_no_provider_could_judge(gate: str, said: str) -> None:
    found = complaints(f"{PROVIDERS}rollout:\n  gates: [{gate}]\n")
    assert len(found) == 1, found
    assert found[0].startswith("lora-ops.yaml:4: ")
    assert said in found[0]


@pytest.mark.parametrize(
    ("providers", "said"),
    [
        ("{store: {url: 'http://p'}}", "that provider is built in"),
        ("{prod: {url: 'p:9090'}}", "begins with http:// or https://"),
        ("{prod: {url: 'http://me:secret@p'}}", "no user and password in a url"),
        ("{prod: {url: 'http://p/?x=1'}}", "the server's address alone"),
        ("{prod: {url: 'http://p', timeout: 2m}}", "less than or equal to 60"),
        ("{prod: {url: 'http://p', labels: {a-b: x}}}", "not a label's name"),
        ("{prod: {url: 'http://p', headers_env: {'X Y': T}}}", "`X Y` is not a header's name"),
        ("{prod: {url: 'http://p', headers_env: {\u00dc: T}}}", "`\u00dc` is not a header's name"),
        ("{prod: {url: 'http://p', token: x}}", "unknown key `providers.prod.token`"),
        ("{prod: {kind: graphite, url: 'http://p'}}", "prometheus"),
    ],
)
def test_a_provider_that_could_not_be_asked(providers: str, said: str) -> None:
    found = complaints(f"clouds: {{a: {{}}}}\nproviders: {providers}\n")
    assert len(found) == 1, found
    assert said in found[0]


@pytest.mark.parametrize(
    ("providers", "said"),
    [("{}", "declare one"), ("{p: {url: 'http://p'}, q: {url: 'http://q'}}", "name one of p, q")],
)
def test_prometheus_alone_means_the_only_one(providers: str, said: str) -> None:
    gates = "[{metric: error_rate, limit: 5%, provider: prometheus}]"
    found = complaints(f"clouds: {{a: {{}}}}\nproviders: {providers}\nrollout:\n  gates: {gates}\n")
    assert said in found[0]
