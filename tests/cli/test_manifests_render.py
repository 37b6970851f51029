"""`lora-ops manifests render`: YAML on stdout or in files, the same each time; bad input is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cli.app import run
from tests.tasks.made_manifests import DIGEST, IMAGE, SPEC


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "lora-ops.yaml"
    path.write_text(SPEC)
    return str(path)


def render(spec: str, *options: str) -> int:
    return run(["manifests", "render", "--spec", spec, *options])


def test_the_same_spec_is_the_same_text(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert render(spec, "--image", IMAGE) == 0
    once = capsys.readouterr()
    assert render(spec, "--image", IMAGE) == 0
    assert capsys.readouterr() == once
    assert not once.err
    found = list(yaml.safe_load_all(once.out))
    assert {each["metadata"]["name"] for each in found if each["kind"] == "Deployment"} == {
        "lora-ops-worker-aws",
        "lora-ops-worker-gcp",
    }


def test_without_an_image_the_rest_is_printed_and_what_is_missing_is_told(
    spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render(spec, "--cloud", "gcp") == 0
    said = capsys.readouterr()
    assert "--image" in said.err
    found = list(yaml.safe_load_all(said.out))
    assert {each["metadata"].get("namespace", "team-b") for each in found} == {"team-b"}
    assert "Deployment" not in {each["kind"] for each in found}


def test_files_are_written_whole_a_file_a_cloud(
    spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gitops" / "clouds"
    assert (
        render(spec, "--image", IMAGE, "--serve-image", f"ghcr.io/team/serve@{DIGEST}", "--out", str(out))
        == 0
    )
    files = {"aws.yaml", "gcp.yaml", "serve.yaml"}
    assert {each.name for each in out.iterdir()} == files
    assert {Path(line).name for line in capsys.readouterr().out.splitlines()} == files
    assert render(spec, "--image", IMAGE) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "aws.yaml").read_text() + (out / "gcp.yaml").read_text()


def test_no_disruption_budget_where_kubernetes_has_none(
    spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render(spec, "--serve-image", IMAGE, "--no-pdb") == 0
    assert "PodDisruptionBudget" not in capsys.readouterr().out
    assert render(spec, "--serve-image", IMAGE) == 0
    assert "PodDisruptionBudget" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (["--cloud", "awz"], 5, "Did you mean `aws`?"),
        (["--image", "ghcr.io/team/lora-scripts:latest"], 2, "not named by its digest"),
        (["--serve-image", "ghcr.io/team/serve"], 2, "not named by its digest"),
        (["--egress", "10.0.0.1/8"], 2, "10.0.0.0/8"),
    ],
)
def test_bad_options_are_told_and_nothing_is_printed(
    spec: str, options: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render(spec, *options) == status
    said = capsys.readouterr()
    assert told in said.err
    assert not said.out


def test_a_folder_that_cannot_be_written_is_named(
    spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert render(spec, "--image", IMAGE, "--out", str(tmp_path / "file")) == 3
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_clouds_of_this_machine_need_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lora-ops.yaml"
    path.write_text("clouds: {east: {}}\n")
    assert render(str(path)) == 3
    assert "kind: kubernetes" in capsys.readouterr().err
