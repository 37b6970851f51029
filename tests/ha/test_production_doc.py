"""docs/production.md: its commands, keys and files are those that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache

import pytest
import yaml

from cli.registry import COMMANDS, GROUPS
from lora_ops.spec import parse_spec
from tasks.cluster.entry import with_cloud
from tests.stub.make import REPO

DOC = REPO / "docs" / "production.md"


def _commands() -> list[str]:
    """Every `lora-ops …` of the page, also where a line goes on after a backslash."""
    text = DOC.read_text().replace("\\\n", " ")
    found = re.findall(r"`lora-ops ([^`\n]+)`", text)
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        found += [line.strip()[9:] for line in block.splitlines() if line.strip().startswith("lora-ops ")]
    return sorted({" ".join(each.partition("#")[0].split()) for each in found})


@cache
def _help(*words: str) -> str:
    command = [sys.executable, "-m", "cli.main", *words, "--help"]
    done = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("command", _commands())
def test_a_command_and_its_options_exist(command: str) -> None:
    words = command.split()
    if words[0] in GROUPS:
        assert words[1] in GROUPS[words[0]][1]
        known = _help(*words[:2])
    else:
        assert words[0] in COMMANDS
        known = _help(words[0])
    for option in re.findall(r"(?<!\S)--[a-z-]+", command):
        assert re.search(rf"(?<!\S){option}(?![a-z-])", known), f"{option} is no option of {command}"


def test_the_spec_is_one_once_its_clouds_are_added() -> None:
    (text,) = [
        each for each in re.findall(r"```yaml\n(.*?)```", DOC.read_text(), re.DOTALL) if "app:" in each
    ]
    assert yaml.safe_load(text)["clouds"] == {}
    for name, keys in {
        "aws-eu-central-1": {"context": "prod-eu", "provider": "aws"},
        "gcp-us-west1": {"context": "prod-us", "registry": "us-west1-docker.pkg.dev/my-project/lora"},
    }.items():
        text = with_cloud(text, "lora-ops.yaml", name, {"kind": "kubernetes", **keys})
    assert set(parse_spec(text, "lora-ops.yaml").clouds) == {"aws-eu-central-1", "gcp-us-west1"}


def test_what_it_points_at_is_there() -> None:
    text = DOC.read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    paths = re.findall(r"`((?:deployments|tests|docs)/[\w./-]+)`", text)
    missing = [each for each in links if not (DOC.parent / each).exists()]
    missing += [each for each in paths if not (REPO / each).exists()]
    assert missing == []


def test_alerts_that_it_explains_are_those_that_there_are() -> None:
    rules = yaml.safe_load((REPO / "deployments" / "prometheus" / "rules" / "alerting.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert set(re.findall(r"`(LoraOps\w+)`", DOC.read_text())) <= alerts
