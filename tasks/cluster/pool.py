"""The cloud's work pool and its worker, as Prefect knows them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from lora_ops.errors import LoraOpsError, UnreachableError
from tasks.cluster.checks import Check, Subject, failed
from tasks.prefect_api import PrefectApi

POLL_S = 1.0


def check_pool(
    subject: Subject, prefect: PrefectApi, wait_s: float = 0.0, say: Callable[[str], None] = lambda _: None
) -> Iterator[Check]:
    """The work pool exists and a worker polls it. `wait_s`: how long one that was just started may take."""
    try:
        if not prefect.ok():
            raise UnreachableError(
                f"Prefect's API at {prefect.api_url} does not answer.", "Run `lora-ops up`."
            )
        if not prefect.has_pool(subject.name):
            yield Check("work pool", "failed", f"Prefect has no {subject.name}", "Run `lora-ops up`.")
            return
        yield Check("work pool", "ok", subject.name)
        if subject.stable is None:
            yield Check("worker", "warning", "there is no release yet, so no worker", "Run `lora-ops up`.")
            return
        end, told = time.monotonic() + wait_s, False
        while True:
            workers = prefect.workers(subject.name)
            online = [name for name, status in workers if status == "ONLINE"]
            if online or time.monotonic() >= end:
                break
            if not told:
                say(f"waiting for the worker of {subject.name}")
                told = True
            time.sleep(POLL_S)
    except LoraOpsError as error:
        yield failed("work pool", error)
        return
    if online:
        yield Check("worker", "ok", ", ".join(online))
        return
    where = f"kubectl --context {subject.cloud.context} -n {subject.cloud.namespace}"
    found = f"{', '.join(name for name, _ in workers)} is silent" if workers else "none has ever polled"
    remedy = (
        f"{where} get pods -l app.kubernetes.io/instance={subject.name}; `lora-ops cloud add` starts one."
    )
    yield Check("worker", "failed", found, remedy)
