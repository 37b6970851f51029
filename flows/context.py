"""What a flow run finds in its environment: the store, the app, and this machine's folders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ops.errors import UsageError
from tasks import home
from tasks.platform import Platform
from tasks.store import open_store

if TYPE_CHECKING:
    from lora_ops.spec import PlatformSpec

STORE_ENV = "LORA_OPS_STORE"
APP_ENV = "LORA_OPS_APP"
SPEC_ENV = "LORA_OPS_SPEC"
WORKER_ENV = "LORA_OPS_WORKER"
STALL_ENV = "LORA_OPS_STALL_DEADLINE_S"
HEARTBEAT_ENV = "LORA_OPS_HEARTBEAT_DEADLINE_S"
IMAGE_ENV = "LORA_OPS_IMAGE"
STALL_S = 1800.0
HEARTBEAT_S = 120.0


@dataclass(frozen=True, slots=True)
class FlowContext:
    """`image`: the reference of the image that holds this process, if one does. `stall_s`: how long a trainer
    may give no sign of life. `heartbeat_s`: how long a training goes on while the store does not answer. Both
    are the spec's `requests` deadlines, in seconds."""

    platform: Platform
    home: Path
    worker: str | None
    image: str | None = None
    stall_s: float = STALL_S
    heartbeat_s: float = HEARTBEAT_S


def flow_context(actor: str) -> FlowContext:
    """Open what the environment names. UsageError when the run was not started by lora-ops."""
    url, app = os.environ.get(STORE_ENV), os.environ.get(APP_ENV)
    if not url or not app:
        raise UsageError(
            f"{STORE_ENV} and {APP_ENV} are not set for this flow run.",
            "Start its worker with `lora-ops up`, which sets them.",
        )
    store = open_store(url)
    return FlowContext(
        Platform(store, app, actor),
        home.home(),
        os.environ.get(WORKER_ENV),
        os.environ.get(IMAGE_ENV),
        float(os.environ.get(STALL_ENV) or STALL_S),
        float(os.environ.get(HEARTBEAT_ENV) or HEARTBEAT_S),
    )


def flow_spec() -> PlatformSpec:
    """The lora-ops.yaml that this run's worker was started for. UsageError when there is none."""
    where = os.environ.get(SPEC_ENV)
    if not where:
        raise UsageError(f"{SPEC_ENV} is not set.", "Start the worker with `lora-ops up`.")
    from tasks.specs import load_spec  # attempts do without: they start sooner

    return load_spec(Path(where))


def flow_env(url: str, app: str, base: Path, extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment that flow runs of this platform need."""
    return {
        STORE_ENV: url,
        APP_ENV: app,
        home.HOME_ENV: str(base),
        "PYTHONSAFEPATH": "1",
        "DO_NOT_TRACK": "1",
        "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "crash",
        **(extra or {}),
    }
