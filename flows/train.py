"""The `train` flow: one flow run tries a request once, on the cloud, track and digest of its record."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

from prefect import flow
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed, State

from flows.attempt import Attempt
from flows.context import flow_context
from flows.report import Duplicate, Outcome
from lora_ops.errors import LoraOpsError, StoreError, StoreFull

QUIET = {"Superseded"}


@flow(name="train", flow_run_name="{request}-{attempt}")
async def train(request: str = "", attempt: int = 0, config: str = "") -> State[Any]:
    """Try a request. Started by hand without one, `config` (a path here) is submitted as a request first."""
    logger = get_run_logger()
    try:
        context = flow_context(f"train {request}-{attempt}")
        with closing(context.platform):
            if not request:
                from flows.submit import submit_file  # an attempt does without: it starts sooner

                submitted = submit_file(context.platform, config)
                return Completed(message=f"Submitted as {submitted.id}; the reconciler starts its attempts.")
            ended = await Attempt(context, request, attempt, flow_run.id).run()
    except Duplicate as duplicate:
        if (
            duplicate.own_run
        ):  # Prefect lost its database, and with it the first one's: this run only holds a slot
            return Cancelled(name="Duplicate", message=str(duplicate))
        raise Abort(str(duplicate)) from None
    except Outcome as outcome:
        logger.info("%s: %s", outcome.state, outcome.message)
        if outcome.state in QUIET:
            return Cancelled(name=outcome.state, message=outcome.message)
        return Failed(name=outcome.state, message=outcome.message)
    except StoreError as error:
        name = "NoSpace" if isinstance(error, StoreFull) else "StoreAway"
        return Failed(name=name, message=error.message)
    except LoraOpsError as error:
        return Failed(message=" ".join([error.message, *error.details, error.hint]))
    return Completed(message=f"{ended} in process {os.getpid()}")
