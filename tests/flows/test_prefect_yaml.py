"""`prefect --no-prompt deploy --all`, on a bare server and on a running platform."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient

from flows import bare_server, catalogue
from lora_ops.spec import parse_spec
from tasks.prefect_api import CONTROL_POOL, PrefectApi
from tests.flows.site import Site, eventually, free_port
from tests.stub.make import REPO

PROJECT = REPO / "prefect.yaml"
CLEAN = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_LOGGING_COLORS": "false"}


def _deployments() -> list[dict[str, Any]]:
    return list(yaml.safe_load(PROJECT.read_text())["deployments"])


def test_it_names_what_up_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same deployments in the same pools, by module path, without pull steps or a working directory."""
    from cli.local.init import TEMPLATE

    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "none")  # no pools are made
    spec = parse_spec(TEMPLATE.format(app="loras", probes=""), "lora-ops.yaml")
    found = set()
    for each in _deployments():
        module, _, name = each["entrypoint"].rpartition(".")
        flow = getattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name)
        found.add((f"{flow.name}/{each['name']}", each["work_pool"]["name"]))
        assert each["pull"] == []
        assert set(each) == {"name", "entrypoint", "work_pool", "pull"}
        assert ":" not in each["entrypoint"]
    control = {(f"{flow.name}/control", CONTROL_POOL) for flow in catalogue.CONTROL_FLOWS}
    assert found == control | {(f"train/{cloud}", cloud) for cloud in spec.clouds}


def _deploy_all(api_url: str, home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=REPO,
        env={**_env(), "PREFECT_API_URL": api_url, "PREFECT_HOME": str(home), **CLEAN},
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _env() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "LORA_OPS"))}


@pytest.fixture
def bare_api(tmp_path: Path) -> Iterator[str]:
    """A Prefect server that nobody has told anything."""
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    prefect = PrefectApi(f"http://127.0.0.1:{port}/api")
    env = {**_env(), "PREFECT_HOME": str(tmp_path / "prefect"), **CLEAN}
    with (
        (tmp_path / "server.log").open("w") as log,
        subprocess.Popen(
            command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        ) as server,
    ):
        family = psutil.Process(server.pid)
        try:
            eventually(prefect.ok, "the server answers", 180)
            yield prefect.api_url
        finally:
            prefect.close()
            for each in [*family.children(recursive=True), family]:
                each.kill()


@pytest.mark.server
def test_on_a_bare_server(bare_api: str, tmp_path: Path) -> None:
    _deploy_all(bare_api, tmp_path / "prefect")
    with SyncPrefectClient(bare_api) as client:
        pools = {pool.name: pool for pool in client.read_work_pools()}
        assert {"control", "east", "west"} <= pools.keys()
        assert {pools[name].type for name in ("control", "east", "west")} == {"process"}
        for name in ("east", "west"):
            limits = {queue.name: queue.concurrency_limit for queue in client.read_work_queues(name)}
            assert limits["canary"] == limits["stable"] == 1
        assert len(client.read_deployments()) == 5
        for flow, name in (("approve", "control"), ("deploy", "control"), ("train", "west")):
            made = client.read_deployment_by_name(f"{flow}/{name}")
            assert made.work_pool_name == name
            assert not made.pull_steps
            assert made.entrypoint.startswith("flows.")  # type: ignore[union-attr]
    assert bare_server.make_missing_pools(Path("nowhere")) == []


@pytest.mark.server
def test_an_attempt_runs_its_bundle_also_after_deploying_from_a_checkout(site: Site) -> None:
    """The checkout holds the real trainer, and the digest is computed from where the code came from."""
    before = {queue.name: queue.concurrency_limit for queue in _queues(site)}
    _deploy_all(site.spec.prefect.api_url, site.base / "prefect")
    assert {queue.name: queue.concurrency_limit for queue in _queues(site)} == before
    request = site.submit(cloud="west")
    state = site.result(request)
    attempt = state.attempts[0]
    assert attempt.digest == site.platform.state().clouds[attempt.cloud].stable
    assert [each.state.value for each in state.attempts] == ["succeeded"]
    bundle = site.base / "bundles" / attempt.digest.removeprefix("sha256:")
    assert site.trainer_events(request, 1)[0]["package"] == str(bundle / "trainer" / "__main__.py")
    assert not (bundle / "trainer" / "loop.py").exists()


def _queues(site: Site) -> list[Any]:
    with SyncPrefectClient(site.spec.prefect.api_url) as client:
        return client.read_work_queues("east")
