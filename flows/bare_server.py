"""The first entry of prefect.yaml: when it is looked up, the work pools that a server lacks are made.

`prefect deploy` refuses a deployment whose work pool does not exist, and asks that before it runs any build
step, but after it looked the flow up. So looking this one up is where the pools are made; a flow run that
looks it up does nothing of the kind.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from prefect.settings import get_current_settings

from flows.approve import approve
from tasks.prefect_api import CONTROL_POOL, PrefectApi, track_queues

PROJECT = Path("prefect.yaml")


def __getattr__(name: str) -> Any:
    if name != "approve_on_a_bare_server":
        raise AttributeError(name)
    if "PREFECT__FLOW_RUN_ID" not in os.environ:
        make_missing_pools(PROJECT)
    return approve


def make_missing_pools(project: Path) -> list[str]:
    """Make the pools of the project file that the server lacks; those that are there stay as they are.

    A cloud's queues get one slot each: `lora-ops up` sets what lora-ops.yaml says. Without a server's address
    nothing is done (`prefect deploy` says so itself). Raises UnreachableError.
    """
    url = get_current_settings().api.url
    if url is None or not project.is_file():
        return []
    wanted = [each["work_pool"]["name"] for each in yaml.safe_load(project.read_text())["deployments"]]
    prefect = PrefectApi(url)
    try:
        missing = [name for name in dict.fromkeys(wanted) if not prefect.has_pool(name)]
        for name in missing:
            prefect.ensure_pool(name, {"default": None} if name == CONTROL_POOL else track_queues(1))
    finally:
        prefect.close()
    return missing
