"""The `approve` flow: asks for a person's word in Prefect's UI and writes it into the journal.

Prefect's open edition knows no users, so such an approval is journalled as `prefect-ui, unverified` and
counts only where the spec accepts that; `lora-ops rollout approve` is the way that names its author.
"""

from __future__ import annotations

import asyncio
from typing import Any

from prefect import flow, get_run_logger, pause_flow_run
from prefect.input import RunInput
from prefect.states import Cancelled, Completed, Failed, State

from flows.context import flow_context
from lora_ops.errors import LoraOpsError, StoreUnavailable
from lora_ops.state import Phase
from tasks.platform import Platform

APPROVE_DEPLOYMENT = "approve/control"
WAIT_S = 7 * 86400
LOOK_S = 2.0


class Approval(RunInput):
    """The form."""

    approve: bool = False
    name: str = ""
    note: str = ""


@flow(name="approve", flow_run_name="approve {rollout}")
async def approve(rollout: str, summary: str = "", wave: int | None = None) -> State[None]:
    """Pause for the form, then journal `approved` or `rolled-back`; end when it was decided elsewhere.

    `wave`: the one that is asked about, by default the present one; no other is approved by this form.
    """
    platform = flow_context(f"approve {rollout}").platform
    active = platform.state().rollout
    if wave is None and active is not None:
        wave = active.wave
    asked = f"**Promote wave {(wave or 0) + 1} of {rollout}?**"
    form = Approval.with_initial_data(description=f"{asked}\n\n{summary}")
    waiting: Any = pause_flow_run(wait_for_input=form, timeout=WAIT_S, poll_interval=2)
    answering: asyncio.Future[Approval] = asyncio.ensure_future(waiting)
    elsewhere = asyncio.create_task(_decided(platform, rollout, wave))
    both: set[asyncio.Future[Any]] = {answering, elsewhere}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    elsewhere.cancel()
    if not answering.done():
        answering.cancel()
        return Cancelled(name="Decided", message="It was decided elsewhere.")
    answer = answering.result()
    said = f"prefect-ui, unverified: {answer.name or 'no name'}: {answer.note}"
    try:
        if answer.approve:
            data = {"rollout": rollout, "wave": wave, "by": answer.name, "via": "prefect-ui"}
            platform.record("approved", data, reason=said)
        else:
            platform.record("rolled-back", {"rollout": rollout, "reason": f"rejected: {said}"}, reason=said)
    except LoraOpsError as error:
        get_run_logger().warning("%s %s", error.message, error.hint)
        return Failed(message=error.message)
    return Completed(message=said)


async def _decided(platform: Platform, rollout_id: str, wave: int | None) -> None:
    """Return when nobody is asked any more."""
    while True:
        try:
            rollout = (await asyncio.to_thread(platform.state)).rollout
            asking = rollout is not None and rollout.id == rollout_id and not rollout.approved
            if rollout is None or not asking or rollout.phase is not Phase.AWAITING_APPROVAL:
                return
            if rollout.wave != wave:
                return
        except StoreUnavailable:
            pass
        await asyncio.sleep(LOOK_S)
