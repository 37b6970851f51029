"""Requests on a running platform: from the API through Prefect, a worker and a child to the result."""

from __future__ import annotations

import json

import pytest
from prefect.client.orchestration import SyncPrefectClient

from lora_ops import keys
from lora_ops.reconcile import Run
from lora_ops.request import AttemptState, ResultState
from tasks.store import open_store
from tests.flows.site import ALWAYS_FAILS, SLOW, USERS_FAULT, Site, eventually

pytestmark = pytest.mark.server


def test_a_request_leaves_its_artifact_and_all_about_it(site: Site) -> None:
    request = site.submit(name="first")
    state = site.result(request)
    assert state.result is not None
    assert (state.result.state, len(state.attempts)) == (ResultState.SUCCEEDED, 1)
    attempt = state.attempts[0]
    assert site.artifact(request, 1, "adapter.safetensors") == b"stub"
    assert [each["path"] for each in state.result.files] == ["adapter.safetensors"]
    lineage = json.loads(site.artifact(request, 1, "lineage.json"))
    assert state.order is not None
    assert lineage["release"] == attempt.digest == site.platform.state().clouds[attempt.cloud].stable
    assert lineage["dataset_digest"] == state.order.dataset_digest
    assert lineage["config_digest"] == state.order.config_digest
    assert json.loads(site.platform.store.get(keys.heartbeat(request, 1)).data)["step"] == 4
    assert site.exists(keys.log(request, 1))
    assert site.results_in_journal(request) == 1
    bundle = site.base / "bundles" / attempt.digest.removeprefix("sha256:")
    assert site.trainer_events(request, 1)[0]["package"].startswith(f"{bundle}/")


def test_faults_of_the_user_and_of_the_trainer(site: Site) -> None:
    """The user's is final at once; the trainer's is tried as often as the spec says."""
    users, trainers = site.submit(USERS_FAULT), site.submit(ALWAYS_FAILS)
    state = site.result(users)
    assert state.result is not None
    assert (state.result.state, state.result.cause) == (ResultState.FAILED, "user_error")
    assert len(state.attempts) == 1
    state = site.result(trainers)
    assert state.result is not None
    assert (state.result.state, state.result.cause) == (ResultState.FAILED, "trainer_error")
    assert "stub failure" in state.result.message
    assert [each.state for each in state.attempts] == [AttemptState.FAILED] * 3
    assert b"stub failure" in site.platform.store.get(keys.log(trainers, 3)).data


def test_cancelling_and_trying_again(site: Site) -> None:
    request = site.submit(SLOW)
    attempt = site.attempted(request).attempts[0]
    assert site.api.post(f"/requests/{request}/cancel", json={}).status_code == 200
    state = site.result(request)
    assert state.result is not None
    assert (state.result.state, len(state.attempts)) == (ResultState.CANCELLED, 1)
    run = site.prefect.find_run(f"{request}-1")
    assert run is not None
    eventually(lambda: site.prefect.runs([run])[run].run in (Run.ENDED, Run.CANCELLED), "its run is over")
    again = site.api.post(f"/requests/{request}/retry", json={}).json()["id"]
    order = site.platform.request(again).order
    assert order is not None
    assert order.retry_of == request
    site.api.post(f"/requests/{again}/cancel", json={})
    assert site.result(again).result.state is ResultState.CANCELLED  # type: ignore[union-attr]
    assert attempt.cloud in ("east", "west")


def test_a_drained_cloud_gets_nothing_until_it_is_undrained(site: Site) -> None:
    def cloud_of(request: str) -> str:
        state = eventually(lambda: site.platform.request(request).attempts, f"{request} is routed", 30)
        site.api.post(f"/requests/{request}/cancel", json={})
        return state[0].cloud

    assert site.cli("cloud", "drain", "east", "--yes").returncode == 0
    try:
        assert [cloud_of(site.submit(SLOW, cloud="east")) for _ in range(3)] == ["west"] * 3
    finally:
        assert site.cli("cloud", "undrain", "east", "--yes").returncode == 0
    last = site.submit(SLOW, cloud="east")
    assert cloud_of(last) == "east"
    site.result(last)


def test_a_train_run_started_by_hand_submits_a_request(site: Site) -> None:
    before = site.open_requests()
    with SyncPrefectClient(site.spec.prefect.api_url) as client:
        deployment = client.read_deployment_by_name("train/east")
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters={"config": str(site.config)}
        ).id
        made = eventually(lambda: site.open_requests() - before, "the run has submitted a request", 60)
        assert len(made) == 1
        (request,) = made
        over = eventually(
            lambda: (s := client.read_flow_run(run).state) and s.is_final() and s, "the run has ended", 60
        )
        assert over
        assert over.is_completed()
        assert request in (over.message or "")
    site.all_succeeded([request])


def test_what_a_training_made_is_in_the_backup_soon(site: Site) -> None:
    """serve keeps the second store up to date by itself."""
    request = site.submit()
    site.all_succeeded([request])
    backup = open_store(f"file://{site.folder / 'backup'}")
    where = keys.artifacts(request, 1)

    def there() -> bool | None:
        """Each turn copies what a journal speaks of before it copies the journal."""
        made = any(meta.key == f"{where}/MANIFEST.json" for meta in backup.list(where))
        told = [
            json.loads(backup.get(meta.key).data)
            for meta in backup.list(keys.request(request))
            if _event(meta.key)
        ]
        return (made and any(event["kind"] == "result" for event in told)) or None

    eventually(there, "the artifact and its result are in the backup", 90)
    assert site.api.get("/status").json()["backup"]["problem"] is None


def test_registering_alone_starts_nothing(site: Site) -> None:
    daemons = {process.pid for process in site.processes()}
    done = site.cli("up", "--register-only")
    assert done.returncode == 0, done.stderr
    assert "registering work pools" in done.stderr
    assert "starting" not in done.stderr
    assert daemons <= {process.pid for process in site.processes()}


def _event(key: str) -> bool:
    return key.rpartition("/")[2].removesuffix(".json").isdecimal()
