"""`lora-ops cloud add` and `cloud check`: what is written, what is refused, what is reported."""

from __future__ import annotations

import json

import pytest
import yaml

SPEC = """\
store: file://store            # ours
prefect: {api_url: "http://127.0.0.1:9/api"}
image: {repository: 127.0.0.1:9/lora-scripts}
clouds:
"""
AWS = (
    "aws",
    "--context",
    "aws-prod",
    "--namespace",
    "team",
    "--registry",
    "127.0.0.1:9",
    "--size",
    "3",
    "--share",
    "2",
)


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A platform without a cloud, a store that is a folder, no kubeconfig and no Prefect."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    path = tmp_path / "lora-ops.yaml"
    path.write_text(SPEC)
    return path


def ended(process, *arguments: str) -> tuple[int, str, str]:
    started = process(*arguments)
    out, err = started.communicate(timeout=120)
    return started.returncode, out, err


def test_a_dry_run_shows_the_change_and_makes_none(cli, spec):
    status, out, err = cli(
        "cloud", "add", *AWS, "--provider", "aws", "--gpu", "2", "--env-from", "a", "--dry-run"
    )
    assert (status, err) == (0, "")
    assert "+    context: aws-prod" in out
    assert "+      gpu: 2" in out
    assert "would apply the worker's manifests" in out
    document = json.loads(cli("cloud", "add", *AWS, "--dry-run", "--no-apply", "--json")[1])
    assert "+    size: 3" in document["diff"]
    assert not [line for line in document["would"] if "manifests" in line]
    assert spec.read_text() == SPEC


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("aws",), 3, "name a context of your kubeconfig"),
        (("aws", "--context", "c", "--namespace", "No_"), 3, "namespace"),
        (("aws", "--context", "c", "--size", "0"), 3, "size"),
        (("control", "--context", "c"), 3, "control"),
        (("Aws", "--context", "c"), 3, "Aws"),
        (("aws", "--context", "c", "--provider", "aliyun"), 2, "aliyun"),
        ((), 2, "NAME"),
    ],
)
def test_what_is_no_cloud_is_refused_and_nothing_written(cli, spec, arguments, status, words):
    found, _, err = cli("cloud", "add", *arguments)
    assert found == status
    assert words in err
    assert spec.read_text() == SPEC


def test_a_platform_of_this_machine(cli, spec):
    spec.write_text("clouds: {east: {kind: local}}\n")
    assert cli("cloud", "check")[0] == 2
    status, _, err = cli("cloud", "add", "aws", "--context", "c")
    assert status == 3
    assert "one kind" in err


def test_there_is_no_spec(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("cloud", "add", "aws", "--context", "c")[0] == 3
    assert cli("cloud", "add", "aws", "--context", "c", "--spec", "none.yaml")[0] == 3


def test_an_unknown_cloud(cli, spec):
    spec.write_text(SPEC + "  aws: {kind: kubernetes, context: c}\n")
    status, _, err = cli("cloud", "check", "aws1")
    assert status == 5
    assert "Did you mean `aws`?" in err


def test_what_fails_is_a_finding_and_the_entry_stays(process, spec):
    """No kubeconfig: all else is tried, nothing goes into service, and `cloud check` says it again."""
    status, out, err = ended(process, "cloud", "add", *AWS, "--json")
    assert status == 1, err
    assert f"wrote {spec}" in err
    cloud = yaml.safe_load(spec.read_text())["clouds"]["aws"]
    assert (cloud["context"], cloud["size"], cloud["share"]) == ("aws-prod", 3, 2)
    assert "# ours" in spec.read_text()
    document = json.loads(out)
    assert document["ok"] is False
    found = {each["name"]: each for each in document["clouds"]["aws"]}
    assert found["manifests"]["status"] == found["kubeconfig"]["status"] == "failed"
    assert "Set KUBECONFIG" in found["kubeconfig"]["remedy"]
    assert found["image"]["status"] == found["deployment"]["status"] == "warning"
    assert "service" not in found
    status, out, _ = ended(process, "cloud", "check")
    assert status == 1
    assert "-> Set KUBECONFIG" in out
    assert [line for line in out.splitlines() if line.startswith("  failed  kubeconfig")]
