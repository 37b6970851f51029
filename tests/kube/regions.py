"""The clusters that the suite runs on, and what can be done to a whole region of them.

By default those of three local clusters. Otherwise these variables tell:

LORA_OPS_KUBE_CLOUDS       `context=registry` pairs, of the contexts of KUBECONFIG
LORA_OPS_KUBE_REPOSITORY   where images are pushed
LORA_OPS_KUBE_BASE         their base image
LORA_OPS_KUBE_IMAGE        the digest of an image there with this lock, so that none is built
LORA_OPS_KUBE_HOST         the address by which pods reach this machine
LORA_OPS_KUBE_REGIONS      a program that knows `freeze`, `thaw`, `kill` and `start CONTEXT`
"""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass

import pytest

NAMES = {"aws": "aws-eu-central-1", "gcp": "gcp-us-west1", "azure": "azure-westeurope"}
CLOUDS = "aws=127.0.0.1:5001 gcp=127.0.0.1:5002 azure=127.0.0.1:5003"
REPOSITORY = os.environ.get("LORA_OPS_KUBE_REPOSITORY", "127.0.0.1:5000/lora-scripts")
BASE = os.environ.get("LORA_OPS_KUBE_BASE", "127.0.0.1:5000/base/python:3.11")


@dataclass(frozen=True)
class Region:
    """One cluster: the cloud's name, the kubeconfig's context, its own registry."""

    cloud: str
    context: str
    registry: str

    def do(self, verb: str) -> None:
        """`freeze`, `thaw`, `kill` or `start` it; skips the test where nothing can."""
        program = os.environ.get("LORA_OPS_KUBE_REGIONS")
        if not program:
            pytest.skip("LORA_OPS_KUBE_REGIONS names no program that freezes and kills regions")
        subprocess.run([program, verb, self.context], check=True, capture_output=True, timeout=180)


def regions() -> list[Region]:
    pairs = (each.partition("=") for each in os.environ.get("LORA_OPS_KUBE_CLOUDS", CLOUDS).split())
    return [Region(NAMES.get(context, context), context, registry) for context, _, registry in pairs]


def host_address() -> str:
    """The address of this machine on its way out, which pods reach, too."""
    named = os.environ.get("LORA_OPS_KUBE_HOST")
    if named:
        return named
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])


def kubectl(context: str, *args: str, given: str | None = None, check: bool = True) -> str:
    """kubectl's answer."""
    done = subprocess.run(
        ["kubectl", "--context", context, "--request-timeout=20s", *args],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 or not check, f"kubectl {' '.join(args)}: {done.stderr}"
    return done.stdout
