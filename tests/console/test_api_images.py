"""Rollouts of images over HTTP: from a registry's tag or digest, and from a pipeline document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lora_ops.spec import parse_spec
from tasks.releases import describe
from tasks.store import open_store
from tests.console.conftest import OLD, World, client_of, context_on
from tests.tasks.registry_site import Registry, need, registry

DOCUMENT = (Path(__file__).resolve().parents[2] / "examples" / "pipeline.json").read_text(encoding="utf-8")
AWS, GCP, AZURE = "aws-eu-central-1", "gcp-us-west1", "azure-westeurope"
SPEC = """
app: loras
image: {{repository: "{host}/team/lora-scripts"}}
clouds:
  aws-eu-central-1: {{kind: kubernetes, context: aws, size: 3}}
  gcp-us-west1: {{kind: kubernetes, context: gcp}}
  azure-westeurope: {{kind: kubernetes, context: azure, steps: [25, 100]}}
providers: {{prometheus-prod: {{url: "http://127.0.0.1:9"}}}}
rollout:
  gates: [{{metric: error_rate, limit: 10%}}]
  probes: {{config: probe.yaml}}
"""
BUNDLE = f"sha256:{'c' * 64}"


@dataclass
class Site:
    """A platform of kubernetes clouds and the registry of its images. `now`: what the tag latest means."""

    world: World
    registry: Registry
    now: str

    @property
    def repository(self) -> str:
        return f"{self.registry.host}/team/lora-scripts"

    def move_the_tag(self) -> None:
        self.now = self.registry.push("team/lora-scripts", "latest", text="the next")

    def dry(self, status: int = 200, **body: Any) -> Any:
        return self.world.post("/api/rollouts", status, dry_run=True, **body)

    def start(self, status: int = 201, **body: Any) -> Any:
        return self.world.post("/api/rollouts", status, **body)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    need("skopeo", "docker-registry")
    with registry(tmp_path_factory.mktemp("registry") / "r") as running:
        yield running


@pytest.fixture
def site(home: Registry, tmp_path: Path) -> Iterator[Site]:
    now = home.push("team/lora-scripts", "latest", text="the first")
    spec = parse_spec(SPEC.format(host=home.host), "lora-ops.yaml")
    context = context_on(open_store("memory://"), spec, tmp_path)
    with client_of(context) as client:
        yield Site(World(context.platform.store, context.platform, context, client), home, now)


def test_a_tag_is_resolved_once_and_shown(site: Site) -> None:
    shown = site.dry(image="lora-scripts:latest")
    image = f"{site.repository}@{site.now}"
    assert (shown["source"]["kind"], shown["source"]["image"]) == ("image", image)
    assert site.world.platform.state().rollout is None
    site.move_the_tag()
    made = site.start(image=shown["source"]["image"])
    assert made["source"]["image"] == image, "the digest that was shown, though the tag has moved"
    rollout = site.world.platform.state().rollout
    assert rollout is not None
    assert (rollout.source.kind, rollout.source.image, rollout.source.path) == ("image", image, None)


def test_the_example_document_becomes_a_rollout(site: Site) -> None:
    shown = site.dry(pipeline=DOCUMENT, pipeline_source="examples/pipeline.json")
    assert shown["source"]["image"] == f"{site.repository}@{site.now}"
    assert shown["plans"] == {AWS: [10, 100], GCP: [0, 100], AZURE: [25, 100]}
    assert shown["sizes"] == {GCP: {"now": 1, "then": 2}}
    assert [(gate["metric"], gate.get("clouds"), gate.get("provider")) for gate in shown["gates"]] == [
        ("error_rate", [AZURE], None),
        ("error_rate", [AWS, GCP], "prometheus-prod"),
        ("step_latency", [AWS, GCP], "prometheus-prod"),
    ]
    assert "pipeline.stages[0].clusters[1].strategy: plan 0, 100" in shown["translation"]
    assert site.world.platform.state().clouds[GCP].size == 1, "a dry run changes nothing"
    site.move_the_tag()
    made = site.start(pipeline=DOCUMENT, pipeline_source="p.json", image=shown["source"]["image"])
    state = site.world.platform.state()
    assert state.rollout is not None
    assert state.rollout.source.image == shown["source"]["image"]
    assert {name: each.size for name, each in state.clouds.items()} == {AWS: 3, GCP: 2, AZURE: 1}
    assert state.rollout.policy.plans[GCP] == (0, 100)
    (event,) = site.world.get(f"/api/rollouts/{made['id']}/history")["items"]
    assert event["reason"] == "pipeline p.json of lora-training-platform"
    assert event["evidence"] == {"pipeline": "p.json", "translation": shown["translation"]}


def test_one_that_waits_keeps_its_digest_gates_and_sizes(site: Site) -> None:
    first = site.start(image="lora-scripts:latest")["id"]
    waiting = site.start(202, pipeline=DOCUMENT, queue=True, reason="next")
    assert waiting["reason"] == "next"
    assert site.world.platform.state().clouds[GCP].size == 1
    (entry,) = site.world.platform.state().queue
    assert entry.source.image == f"{site.repository}@{site.now}"
    assert entry.policy.sizes == {AWS: 3, GCP: 2}
    error = site.start(409, pipeline=DOCUMENT)["error"]
    assert first in error["message"]


def test_a_release_of_another_kind_is_refused(site: Site) -> None:
    facts = {"revision": "r", "source": "s", "created_by": "t", "lock_sha256": "l", "size": 1}
    describe(site.world.store, BUNDLE, **facts)
    describe(site.world.store, site.now, **facts, kind="image", repository=site.repository)
    error = site.start(400, release=BUNDLE)["error"]
    assert "is a release of kind bundle; these clouds run kind image" in error["message"]
    assert site.dry(release=site.now[:20])["source"]["release"] == site.now


def test_a_checkout_becomes_an_image(site: Site, checkout: Path) -> None:
    assert site.dry(source=str(checkout))["source"]["kind"] == "image"


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"image": "lora-script:latest"}, 400, "`lora-script` names no registry, and is not the name of"),
        ({"image": "lora-scripts"}, 400, "neither a tag nor a digest"),
        ({"image": "lora-scripts:latst"}, 404, "latest"),
        ({"image": f"lora-scripts@{OLD}"}, 404, OLD),
        ({"image": "lora-scripts:latest", "release": OLD}, 400, "An image that exists"),
        ({"image": "lora-scripts:latest", "dirty": True}, 400, "An image that exists"),
        ({"pipeline": DOCUMENT, "source": "/x"}, 400, "An image that exists"),
        ({"pipeline": DOCUMENT, "plan": [10, 100]}, 400, "goes without `plan`"),
        ({"pipeline": DOCUMENT, "image": "lora-scripts:latest@" + OLD}, 404, OLD),
        ({"pipeline": DOCUMENT, "image": "ghcr.io/other/x@" + OLD}, 400, "is no digest of the document's"),
        ({"pipeline": DOCUMENT, "image": "lora-scripts:v2"}, 400, "is no digest of the document's container"),
        ({"pipeline": "{"}, 422, "not valid JSON"),
        (
            {"pipeline": DOCUMENT.replace("latency > 2s", "latency is 2s"), "pipeline_source": "a/p.json"},
            422,
            "a/p.json:6: `pipeline.stages[2].conditions[1]`: `>` or `>=` is wanted",
        ),
    ],
)
def test_what_cannot_become_a_rollout(site: Site, body: dict[str, Any], status: int, told: str) -> None:
    assert told in json.dumps(site.start(status, **body)["error"])
    assert site.world.platform.state().rollout is None


def test_probes_alone_need_probes(site: Site) -> None:
    context = site.world.context
    bare = context.spec.model_copy(
        update={"rollout": context.spec.rollout.model_copy(update={"probes": None})}
    )
    object.__setattr__(context, "spec", bare)
    for body in ({"pipeline": DOCUMENT}, {"image": "lora-scripts:latest", "plan": [0, 100]}):
        error = site.dry(422, **body)["error"]
        assert "begins with 0 %, where probes alone judge, and there are none" in error["message"]
        assert site.start(422, **body)["error"] == error


def test_clouds_of_this_machine_run_no_images(world: World) -> None:
    for body in (
        {"image": "ghcr.io/team/x:v1"},
        {"pipeline": DOCUMENT.replace(AWS, "east").replace(GCP, "west")},
    ):
        error = world.post("/api/rollouts", 400, **body)["error"]
        assert "the clouds of this platform are local" in error["message"]
