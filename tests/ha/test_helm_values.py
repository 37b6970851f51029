"""deployments/helm: what the chart and Prefect know of it, and what Pod Security "restricted" asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import Settings

from tests.ha.scaled import VALUES, values
from tests.stub.make import REPO

KNOWN = Path(__file__).with_name("prefect_server_chart.txt")


def _keys(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _keys(below, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix


def _known(key: str, chart: list[str]) -> bool:
    return any(key == each or (each.endswith(".*") and key.startswith(each[:-1])) for each in chart)


def test_the_chart_knows_every_key() -> None:
    chart = [line for line in KNOWN.read_text().splitlines() if line and not line.startswith("#")]
    assert [key for key in _keys(values()) if not _known(key, chart)] == []
    assert not _known("server.replicas", chart)
    assert not _known("backgroundServices.redis.host", chart)


def test_prefect_knows_every_setting() -> None:
    """A misspelt variable would be ignored without a word."""
    named = [entry["name"] for entry in values()["global"]["prefect"]["env"]]
    assert len(named) == len(set(named))
    settings = _settings(Settings, "prefect")
    foreign = [name for name in named if name.startswith("PREFECT_") and name.lower() not in settings]
    assert foreign == []


def test_two_of_everything_with_what_they_share_elsewhere() -> None:
    given = values()
    assert given["server"]["replicaCount"] >= 2
    assert given["backgroundServices"]["runAsSeparateDeployment"] is True
    assert not any(given[name]["enabled"] for name in ("postgresql", "redis", "sqlite"))
    for part in (given["server"], given["backgroundServices"]):
        assert (
            part["extraEnvVarsSecret"] == "prefect-redis"
        )  # the docket's URL, without which two would do all twice


def test_no_secret_stands_in_the_values() -> None:
    given = values()
    assert given["server"]["basicAuth"] == {"enabled": True, "existingSecret": "prefect-auth"}
    assert given["secret"] == {"create": False, "name": "prefect-database"}
    assert "password" not in given["backgroundServices"]["messaging"]["redis"]


@pytest.mark.parametrize("part", ["server", "backgroundServices"])
def test_pods_are_restricted(part: str) -> None:
    given = values()[part]
    pod, container = given["podSecurityContext"], given["containerSecurityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == values()["migrations"]["securityContext"]
    assert container["allowPrivilegeEscalation"] is False
    assert container["readOnlyRootFilesystem"] is True
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert given["resources"]["requests"]["memory"] == given["resources"]["limits"]["memory"]


def test_the_tested_prefect_is_the_deployed_one() -> None:
    pinned = re.search(r"^prefect==(.+)$", (REPO / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert values()["global"]["prefect"]["image"]["prefectTag"].startswith(f"{pinned[1]}-python")


def test_a_drain_leaves_servers() -> None:
    given = values()
    replicas = {
        "server": given["server"]["replicaCount"],
        "background-services": given["backgroundServices"]["replicaCount"],
    }
    for budget in yaml.safe_load_all((VALUES.parent / "prefect-server-pdb.yaml").read_text()):
        component = budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
        assert 0 < budget["spec"]["minAvailable"] < replicas.pop(component)  # and one may go
    assert replicas == {}


def _settings(model: Any, prefix: str) -> set[str]:
    """The environment variables of Prefect's settings, in lower case."""
    found = set()
    for name, field in model.model_fields.items():
        below = field.annotation
        if hasattr(below, "model_fields"):
            found |= _settings(below, f"{prefix}_{name}")
        else:
            found.add(f"{prefix}_{name}")
    return found
