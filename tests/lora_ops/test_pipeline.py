"""A pipeline document becomes a rollout of ours, key by key; what it cannot mean is told with its place."""

from __future__ import annotations

from typing import Any

import pytest

from lora_ops.errors import UsageError
from lora_ops.gates.counts import Metric
from lora_ops.gates.verdict import number_of_tests
from lora_ops.state import Policy
from tests.lora_ops.pipelines import (
    AWS,
    AZURE,
    CLOUDS,
    EXAMPLE,
    GCP,
    SPEC,
    complaints,
    example,
    meant,
    spec,
    stage,
)

# --- the reference case ---------------------------------------------------------------------------


def test_the_example_as_it_stands() -> None:
    found = meant(EXAMPLE)
    assert found.container == "ghcr.io/team/lora-scripts:latest"
    policy = found.policy(spec())
    assert policy.plans == {AWS: (10, 100), GCP: (0, 100), AZURE: (25, 100)}
    assert policy.sizes == {AWS: 3, GCP: 2}
    assert policy.waves == (CLOUDS,)
    assert {gate.title: (gate.metric, gate.limit, gate.provider, gate.clouds) for gate in policy.gates} == {
        "error_rate": (Metric.ERROR_RATE, 0.1, "store", (AZURE,)),
        "memory_ratio": (Metric.MEMORY_RATIO, 1.3, "store", ()),
        "start_latency": (Metric.START_LATENCY, 60.0, "store", (GCP,)),
        "pipeline-error-rate": (Metric.ERROR_RATE, 0.05, "prometheus-prod", (AWS, GCP)),
        "step_latency": (Metric.STEP_LATENCY, 2.0, "prometheus-prod", (AWS, GCP)),
    }
    assert number_of_tests(policy.gates, CLOUDS) == 1 + 3 + 1 + 2 + 2
    assert Policy.model_validate_json(policy.model_dump_json()) == policy
    assert found.reason == "pipeline p.json of lora-training-platform"


def test_its_dry_run_shows_what_each_key_became() -> None:
    image = "ghcr.io/team/lora-scripts:latest"
    assert "\n".join(meant(EXAMPLE).lines) == (
        f"""\
application: the journal names lora-training-platform as what this is for; this platform's app is loras
pipeline.stages[0].clusters[0].account: cloud {AWS}
pipeline.stages[0].clusters[0].container: {image}, resolved to a digest once, at the start
pipeline.stages[0].clusters[0].targetSize: size 3, as in lora-ops.yaml
pipeline.stages[0].clusters[0].strategy: plan 10, 100
pipeline.stages[0].clusters[1].account: cloud {GCP}
pipeline.stages[0].clusters[1].container: {image}, resolved to a digest once, at the start
pipeline.stages[0].clusters[1].targetSize: size 2 from the rollout's start; lora-ops.yaml says 1, and \
`lora-ops up` puts that back unless it is changed there
pipeline.stages[0].clusters[1].strategy: plan 0, 100
pipeline.stages[1].metricsAccount: the conditions are asked of prometheus-prod
pipeline.stages[1].scopes[0]: the conditions hold on {AWS}
pipeline.stages[1].scopes[1]: the conditions hold on {GCP}
pipeline.stages[2].trigger: a gate that fails rolls back at once; undecided at the deadline: rollback, as in \
lora-ops.yaml
pipeline.stages[2].conditions[0]: gate pipeline-error-rate with limit 5 % on {AWS}, {GCP}
pipeline.stages[2].conditions[1]: gate step_latency with limit 2 s on {AWS}, {GCP}
lora-ops.yaml: gate error_rate holds on {AZURE}; elsewhere its condition does
lora-ops.yaml: gate memory_ratio holds on {AWS}, {GCP}, {AZURE}
lora-ops.yaml: gate start_latency holds on {GCP}
lora-ops.yaml: {AZURE}, which the document does not name, takes part with its own plan 25, 100 and gates"""
    )


def test_where_it_holds_everywhere_the_gates_have_no_scope() -> None:
    document = example()
    del stage(document, 0)["clusters"][1]
    stage(document, 0)["clusters"][0]["account"] = "east"
    stage(document, 1)["scopes"] = ["ea"]
    one = SPEC.partition("clouds:")[0] + "clouds: {east: {kind: kubernetes, context: c}}\n"
    found = meant(document, one + "providers: {prometheus-prod: {url: 'http://p'}}")
    assert [(gate.title, gate.limit, gate.clouds) for gate in found.gates] == [
        ("error_rate", 0.05, ()),
        ("step_latency", 2.0, ()),
    ]
    assert "lora-ops.yaml: gate error_rate holds nowhere: its condition takes its place" in found.lines


def test_a_document_may_say_less() -> None:
    container = "ghcr.io/x/y@sha256:" + "a" * 64
    clusters = [{"account": AWS, "container": container}]
    document = {"application": "loras", "pipeline": {"stages": [{"type": "deploy", "clusters": clusters}]}}
    found = meant(document)
    assert (found.container, dict(found.sizes)) == (container, {})
    assert found.policy(spec()) == spec().policy()
    assert f"lora-ops.yaml: {AWS} has no strategy in the document: plan 10, 25, 50, 100" in found.lines
    document["pipeline"]["stages"].append({"type": "rollback", "conditions": ["latency > 2s"]})  # type: ignore[index]
    found = meant(document)
    assert [(g.title, g.provider, g.clouds) for g in found.gates][-1] == ("step_latency", "store", (AWS,))


def test_steps_of_a_canary() -> None:
    document = example()
    stage(document, 0)["clusters"][0]["steps"] = [5, 50, 100]
    assert meant(document).plans[AWS] == (5, 50, 100)
    del stage(document, 0)["clusters"][0]["strategy"]
    found = meant(document)
    assert found.plans[AWS] == (5, 50, 100)
    assert "pipeline.stages[0].clusters[0].steps: plan 5, 50, 100" in found.lines


def test_waves_of_the_spec_stay() -> None:
    waves = f"rollout:\n  waves: [[{AZURE}], [{AWS}, {GCP}]]\n"
    found = meant(EXAMPLE, SPEC.replace("rollout:\n", waves))
    assert found.policy(spec(SPEC.replace("rollout:\n", waves))).waves == ((AZURE,), (AWS, GCP))
    assert found.lines[-1] == f"lora-ops.yaml: waves: {AZURE}, then {AWS} and {GCP}"


def test_a_cloud_in_no_scope_is_judged_by_its_own_gates() -> None:
    document = example()
    stage(document, 1)["scopes"] = ["aws"]
    found = meant(document)
    assert {gate.title: gate.clouds for gate in found.gates}["error_rate"] == (GCP, AZURE)
    assert f"lora-ops.yaml: {GCP} is in no scope: it is judged by its own gates" in found.lines


# --- what it cannot mean --------------------------------------------------------------------------


def put(n: int, **changes: Any) -> Any:
    document = example()
    stage(document, n).update(changes)
    return document


def cluster(n: int, **changes: Any) -> Any:
    document = example()
    stage(document, 0)["clusters"][n].update(changes)
    return document


def reordered(*order: int) -> Any:
    document = example()
    document["pipeline"]["stages"] = [stage(document, n) for n in order]
    return document


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (put(0, type="deploi"), "`pipeline.stages[0].type`: `deploi` is unknown. Did you mean `deploy`?"),
        (put(1, type=1), "`pipeline.stages[1].type`: text in quotes is wanted."),
        (put(1, scope=["aws"]), "`pipeline.stages[1].scope`: unknown key. Did you mean `scopes`?"),
        (put(0, clusters=[]), "`pipeline.stages[0].clusters`: a list of at least one cluster is wanted."),
        (
            cluster(0, strategy="blue-green"),
            "clusters[0].strategy`: `blue-green` is unknown. Did you mean `bluegreen`?",
        ),
        (cluster(0, strategy="rolling"), "`rolling` is unknown. Known: bluegreen, canary."),
        (cluster(0, canarySteps=[1]), "`pipeline.stages[0].clusters[0].canarySteps`: unknown key."),
        (cluster(0, account="aws-eu-centrall"), f"cloud `aws-eu-centrall` is unknown. Did you mean `{AWS}`?"),
        (cluster(1, account=AWS), f"`{AWS}` stands on line 9 already."),
        (cluster(0, targetSize=0), "targetSize`: a whole number from 1 to 1000 is wanted."),
        (cluster(0, targetSize=2.5), "targetSize`: a whole number from 1 to 1000 is wanted."),
        (cluster(0, targetSize=True), "targetSize`: a whole number from 1 to 1000 is wanted."),
        (cluster(0, targetSize="3"), "targetSize`: a whole number from 1 to 1000 is wanted."),
        (
            cluster(0, steps=[50, 10]),
            "clusters[0].steps`: steps are weights from 0 to 100 that never go down",
        ),
        (cluster(0, steps=[50, 101]), "clusters[0].steps[1]`: a whole number from 0 to 100 is wanted."),
        (cluster(0, steps=[]), "clusters[0].steps`: a list of at least one weight is wanted."),
        (
            cluster(1, steps=[50]),
            "clusters[1].steps`: bluegreen is the plan 0, 100; steps are those of a canary.",
        ),
        (
            cluster(1, container="lora-scripts:v2"),
            "a rollout has one image, and line 10 names ghcr.io/team/lora",
        ),
        (
            cluster(0, container="lora-scripts"),
            "clusters[0].container`: `lora-scripts` has neither a tag nor",
        ),
        (
            put(1, metricsAccount="prometheus-prd"),
            "provider `prometheus-prd` is unknown. Did you mean `prometheus-prod`?",
        ),
        (put(1, scopes=["asw", "gcp"]), "scopes[0]`: no cloud's name begins with `asw`. Did you mean `aws`?"),
        (put(1, scopes=["azure"]), f"`azure` begins the name of {AZURE}, which no cluster here names."),
        (put(1, scopes=[""]), "scopes[0]`: text in quotes is wanted."),
        (
            put(2, trigger="manual"),
            "trigger`: a gate that fails always rolls back at once; `undecided: pause`",
        ),
        (put(2, trigger="auto"), "trigger`: `auto` is unknown. Did you mean `automatic`?"),
        (put(2, conditions=[]), "conditions`: a list of at least one condition is wanted."),
        (
            put(2, conditions=["errorRate > 5%", "error_rate > 9%"]),
            "line 34 has a condition on error_rate already",
        ),
        (
            reordered(1, 0, 2),
            "`pipeline.stages[1].type`: `deploy` comes before `monitor`: the order is deploy,",
        ),
        (reordered(0, 2, 1), "`pipeline.stages[2].type`: `monitor` comes before `rollback`"),
        (
            reordered(0, 0),
            "there is a stage `deploy` already: write one; the order of clouds is `rollout.waves`",
        ),
        (reordered(0, 1, 1, 2), "there is a stage `monitor` already: write one."),
        (
            reordered(0, 1),
            "`pipeline.stages[1].type`: it has no conditions to watch: a stage `rollback` has them.",
        ),
        (reordered(1, 2), "`pipeline.stages`: there is no stage `deploy`."),
        (
            {"application": "x", "pipeline": {"stages": [{}]}},
            "stages[0]`: a stage has a `type`: deploy, monitor",
        ),
        (
            {"application": "x", "pipeline": {"stages": {}}},
            "stages`: a list of at least one stage is wanted.",
        ),
        ({"application": "x"}, "p.json:1: key `pipeline` is missing."),
        ({"application": "x", "pipeline": []}, "p.json:3: `pipeline`: a mapping of keys is wanted."),
        ({**example(), "aplication": "y"}, "`aplication`: unknown key. Did you mean `application`?"),
        ({**example(), "application": " "}, "p.json:2: `application`: text in quotes is wanted."),
        ([], "p.json:1: a mapping of keys is wanted."),
    ],
)
def test_what_it_cannot_mean_is_told_once_with_its_place(document: Any, told: str) -> None:
    (found,) = complaints(document)
    assert found.startswith("p.json:")
    assert told in found


def test_a_condition_is_shown_with_a_caret() -> None:
    told, *below = complaints(put(2, conditions=["errorRate > 5%", "latency >\t> 2s"]))
    assert told.startswith("p.json:35: `pipeline.stages[2].conditions[1]`: a duration with its unit, such as")
    assert below == [
        "    latency >\N{MIDDLE DOT}> 2s",
        "              ^",
    ]


def test_every_error_is_told_in_the_order_of_the_lines() -> None:
    text = EXAMPLE.replace("bluegreen", "blue").replace('"monitor"', '"watch"').replace("5%", "5")
    assert [line.partition(" ")[0] for line in complaints(text)] == [
        "p.json:4:",
        "p.json:5:",
        "p.json:6:",
        "",
        "",
    ]


def test_a_key_that_stands_twice_and_a_number_that_is_none() -> None:
    assert complaints(EXAMPLE.replace('"strategy": "canary"', '"account": "x"')) == [
        "p.json:3: `pipeline.stages[0].clusters[0].account`: it stands on line 3 already."
    ]
    (found,) = complaints(EXAMPLE.replace('"targetSize": 3', '"targetSize": NaN'))
    assert "`NaN` is not a number of JSON" in found


def test_local_clouds_run_no_images() -> None:
    with pytest.raises(
        UsageError, match="`lora-scripts:latest` is an image, but the clouds of this platform"
    ):
        meant(
            EXAMPLE,
            f"clouds: {{{AWS}: {{}}, {GCP}: {{}}}}\nproviders: {{prometheus-prod: {{url: 'http://p'}}}}",
        )
