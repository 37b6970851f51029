"""Pipeline documents for the tests: the reference case, the platform that it is for, what it means there."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lora_ops.errors import ConfigError
from lora_ops.pipeline import Translation, translate
from lora_ops.spec import PlatformSpec, parse_spec

EXAMPLE = (Path(__file__).resolve().parents[2] / "examples" / "pipeline.json").read_text(encoding="utf-8")
AWS, GCP, AZURE = CLOUDS = ("aws-eu-central-1", "gcp-us-west1", "azure-westeurope")
SPEC = """
app: loras
image: {repository: "ghcr.io/team/lora-scripts"}
clouds:
  aws-eu-central-1: {kind: kubernetes, context: aws, size: 3}
  gcp-us-west1: {kind: kubernetes, context: gcp, size: 1}
  azure-westeurope: {kind: kubernetes, context: azure, steps: [25, 100]}
providers:
  prometheus-prod: {url: "http://p:9090"}
rollout:
  gates:
    - {metric: error_rate, limit: 10%}
    - {metric: memory_ratio, limit: 1.3}
    - {metric: start_latency, limit: 60s, clouds: [gcp-us-west1]}
  probes: {config: probe.yaml}
"""


@cache
def spec(text: str = SPEC) -> PlatformSpec:
    return parse_spec(text, "lora-ops.yaml")


def example() -> Any:
    return json.loads(EXAMPLE)


def stage(document: Any, n: int) -> Any:
    return document["pipeline"]["stages"][n]


def meant(document: Any, of: str = SPEC) -> Translation:
    text = document if isinstance(document, str) else json.dumps(document, indent=1)
    return translate(text, spec(of), "p.json")


def complaints(document: Any, of: str = SPEC) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        meant(document, of)
    assert caught.value.hint
    return caught.value.details
