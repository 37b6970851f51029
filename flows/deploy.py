"""The `deploy` flow: leads one rollout from validate to hold, and back if a gate fails.

A loop: read the state, do the next idempotent step, journal it. It may be killed on any line; the reconciler
starts it again under the next epoch, and an older epoch cannot journal any more.
"""

from __future__ import annotations

import asyncio
from typing import Any

from prefect import flow, get_run_logger
from prefect.states import Cancelled, Completed, Failed, State

from flows.context import flow_context
from flows.phases import Lead
from flows.start import start_rollout
from lora_ops.errors import LoraOpsError
from lora_ops.state import Phase


@flow(name="deploy", flow_run_name="{rollout}-{epoch}", validate_parameters=True)
async def deploy(rollout: str = "", epoch: int = 0, source: str = "", revision: str = "") -> State[Any]:
    """Lead the rollout. Started by hand without one, it journals a rollout of `source` (a checkout's path,
    `revision` of it) and ends: the reconciler starts the flow that leads it."""
    context = flow_context(f"deploy {rollout or 'by-hand'}/{epoch}")
    logger = get_run_logger()
    if not rollout:
        try:
            begun = start_rollout(context.platform, source, revision or None, actor="prefect-ui")
        except LoraOpsError as error:
            return Failed(message=f"{error.message} {error.hint}")
        return Completed(message=f"{begun} is journalled; a flow run of its own leads it.")
    lead = Lead(context, rollout, epoch)
    beat = asyncio.create_task(lead.beat())
    try:
        ended = await lead.run()
    finally:
        beat.cancel()
        context.platform.close()
        if lead.shows:
            await asyncio.wait(lead.shows, timeout=5)
    if ended is None:
        logger.info("rollout %s is led by another flow", rollout)
        return Cancelled(name="Superseded", message="Another flow leads this rollout.")
    message = f"{rollout}: {ended.phase.value}: {ended.reason}"
    if ended.phase is Phase.PROMOTED:
        return Completed(name="Promoted", message=message)
    name = {Phase.ROLLED_BACK: "RolledBack", Phase.ABORTED: "Aborted"}.get(ended.phase, "Failed")
    return Failed(name=name, message=message)
