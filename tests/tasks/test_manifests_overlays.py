"""The overlays fit what is rendered: patches find their targets, and the outcome is valid and linted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from lora_ops.spec import parse_spec
from tasks import manifests
from tasks.manifests import Manifest
from tasks.manifests.templates import FOLDER
from tests import kube_rules
from tests.tasks.made_manifests import IMAGE, SPEC, attempt, check, cloud_of, of_kind

OVERLAYS = {
    "aws": "eks.amazonaws.com/role-arn",
    "gcp": "iam.gke.io/gcp-service-account",
    "azure": "azure.workload.identity/client-id",
}


def kustomized(name: str, folder: Path) -> list[Manifest]:
    """What `kubectl kustomize` makes of the overlay and of a cloud's manifests."""
    if shutil.which("kubectl") is None and not os.environ.get("LORA_OPS_CI"):
        pytest.skip("there is no kubectl")
    shutil.copytree(FOLDER / "overlays" / name, folder, dirs_exist_ok=True)
    rendered = manifests.render(parse_spec(SPEC, "x"), IMAGE)["aws.yaml"]
    (folder / "cloud.yaml").write_text(manifests.dump(rendered))
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_gives_the_trainer_an_identity_and_a_volume(name: str, tmp_path: Path) -> None:
    found = kustomized(name, tmp_path)
    assert OVERLAYS[name] in of_kind("ServiceAccount", found)["lora-ops-trainer"]["metadata"]["annotations"]
    claim = of_kind("PersistentVolumeClaim", found)["lora-ops-shared"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for manifest in found:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
    assert kube_rules.lint(found) == []
    assert of_kind("Deployment", found)["lora-ops-worker-aws"]["spec"]["replicas"] == 1


@pytest.mark.parametrize("name", OVERLAYS)
def test_all_files_of_an_overlay_are_used(name: str) -> None:
    folder = FOLDER / "overlays" / name
    top = yaml.safe_load((folder / "kustomization.yaml").read_text())
    used = {*top["resources"], *(each["path"] for each in top["patches"])}
    assert {each.name for each in folder.iterdir()} | {"cloud.yaml"} == used | {"kustomization.yaml"}


def test_azure_s_webhook_is_asked_by_a_label() -> None:
    """Only there: elsewhere the account's annotation is enough."""
    azure = cloud_of().model_copy(update={"provider": "azure"})
    wanted = ("azure.workload.identity/use", "true")
    for job in (attempt(azure), check(azure)):
        assert wanted in job["spec"]["template"]["metadata"]["labels"].items()
    assert wanted not in attempt(cloud_of())["spec"]["template"]["metadata"]["labels"].items()


def test_the_readme_s_clouds_are_valid() -> None:
    """The GPU example, with what an example leaves out."""
    readme = (FOLDER / "overlays" / "README.md").read_text()
    (example,) = re.findall(r"\n\n(    clouds:\n(?:    .*\n)+)", readme)
    document = yaml.safe_load(example)
    for cloud in document["clouds"].values():
        cloud.update(kind="kubernetes", context="ctx")
    text = yaml.safe_dump({"image": {"repository": "ghcr.io/team/lora-scripts"}, **document})
    clouds = parse_spec(text, "README.md").clouds
    assert {cloud.provider for cloud in clouds.values()} == set(OVERLAYS)
    assert all(cloud.node_selector and cloud.tolerations for cloud in clouds.values())
