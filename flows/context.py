"""What a flow run finds in its environment: the store, the app, and this machine's folders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lora_ops.errors import UsageError
from tasks import home
from tasks.platform import Platform
from tasks.store import open_store

STORE_ENV = "LORA_OPS_STORE"
APP_ENV = "LORA_OPS_APP"
SPEC_ENV = "LORA_OPS_SPEC"
WORKER_ENV = "LORA_OPS_WORKER"


@dataclass(frozen=True, slots=True)
class FlowContext:
    platform: Platform
    home: Path
    worker: str | None


def flow_context(actor: str) -> FlowContext:
    """Open what the environment names. UsageError when the run was not started by lora-ops."""
    url, app = os.environ.get(STORE_ENV), os.environ.get(APP_ENV)
    if not url or not app:
        raise UsageError(
            f"{STORE_ENV} and {APP_ENV} are not set for this flow run.",
            "Start its worker with `lora-ops up`, which sets them.",
        )
    store = open_store(url)
    return FlowContext(Platform(store, app, actor), home.home(), os.environ.get(WORKER_ENV))


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
