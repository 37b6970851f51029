"""The deployments of this platform: what runs in which pool. Registering them again changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.flows import EntrypointType, Flow

from flows.approve import approve
from flows.context import SPEC_ENV, WORKER_ENV, flow_env
from flows.dataset import dataset
from flows.deploy import deploy
from flows.train import train
from lora_ops.cloud_spec import CloudSpec
from lora_ops.spec import PlatformSpec
from tasks.prefect_api import CONTROL_POOL, PrefectApi, track_queues

CONTROL_FLOWS: tuple[Flow[Any, Any], ...] = (deploy, approve, dataset)


def register(prefect: PrefectApi, spec: PlatformSpec) -> None:
    """Pools, queues and deployments for every cloud of the spec and for the control pool.

    Must run with PREFECT_API_URL set to the same server (RunnerDeployment reads it from the environment).
    """
    prefect.ensure_pool(CONTROL_POOL, {"default": None})
    for made in CONTROL_FLOWS:
        _deployment(made, "control", CONTROL_POOL).apply()
    for name, cloud in spec.clouds.items():
        ensure_cloud(prefect, name, cloud, spec.app)
        _deployment(train, name, name).apply()


def ensure_cloud(prefect: PrefectApi, name: str, cloud: CloudSpec, app: str) -> None:
    """The cloud's work pool and its queues, made or brought up to date."""
    if not cloud.on_kubernetes:
        return prefect.ensure_pool(name, track_queues(cloud.size))
    from tasks.manifests import job_template

    template = job_template(name, cloud, app)
    prefect.ensure_pool(name, track_queues(cloud.size), kind="kubernetes", template=template)


def worker_env(spec: PlatformSpec, spec_path: str, base: str, worker: str) -> dict[str, str]:
    """The environment of a worker and so of the flow runs that it starts."""
    return flow_env(spec.store, spec.app, Path(base), {SPEC_ENV: spec_path, WORKER_ENV: worker})


def _deployment(made: Flow[Any, Any], name: str, pool: str) -> RunnerDeployment:
    """A module-path entrypoint and no pull steps: the code that runs is what the run's PYTHONPATH names."""
    deployment = made.to_deployment(name, work_pool_name=pool, entrypoint_type=EntrypointType.MODULE_PATH)
    assert isinstance(deployment, RunnerDeployment)  # a coroutine only inside an event loop
    return deployment
