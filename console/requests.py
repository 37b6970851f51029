"""`/api/requests`: submit, list, follow, cancel and retry trainings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from console import request_views as views
from console.bodies import Decision, Submit
from console.reader import ReaderDep
from console.request_index import STATES
from console.views import Json, document, listing
from flows import submit as submission
from lora_ops.errors import Refused, UsageError, nearest

router = APIRouter(prefix="/api/requests")

_READ_AT_ONCE = 8


@router.get("")
def index(
    reader: ReaderDep,
    state: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    probes: bool = False,
) -> Json:
    """Newest first. Rollouts' own trainings only with `probes`."""
    if state is not None and state not in STATES:
        raise UsageError(f"`{state}` is not a state of a request.", nearest(state, STATES))
    chosen = [
        facts.id
        for facts in reader.requests.refresh()
        if (facts.own or probes) and state in (None, facts.state)
    ]
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return listing(pool.map(reader.request_views.full, chosen[:limit]))


@router.post("", status_code=201)
def submit(reader: ReaderDep, body: Submit, response: Response) -> Json:
    """201 with the request; 200 for a dry run, which checks everything and writes nothing."""
    wanted: dict[str, Any] = {
        "source": body.source,
        "cwd": body.cwd,
        "name": body.name,
        "canary": body.canary != "never",
        "cloud": body.cloud,
        "cloud_only": body.cloud_only,
        "max_attempts": reader.context.spec.requests.max_attempts,
    }
    if body.dry_run:
        response.status_code = 200
        return document(submission.plan(reader.platform, body.config, **wanted))
    state = submission.submit(
        reader.platform,
        body.config,
        **wanted,
        idempotency_key=body.idempotency_key,
        actor=body.actor or "api",
    )
    return document(reader.request_views.full(state.id))


@router.get("/{request_id}")
def show(reader: ReaderDep, request_id: str) -> Json:
    return document(reader.request_views.full(request_id))


@router.get("/{request_id}/history")
def history(reader: ReaderDep, request_id: str) -> Json:
    return listing(views.history(views.found(reader.platform, request_id)[1]))


@router.get("/{request_id}/logs")
def logs(
    reader: ReaderDep,
    request_id: str,
    after: Annotated[int, Query(ge=0)] = 0,
    attempt: int | None = None,
) -> Json:
    state, _ = views.found(reader.platform, request_id)
    return document(views.log_part(reader.platform, state, after, attempt))


@router.post("/{request_id}/cancel")
def cancel(reader: ReaderDep, request_id: str, body: Decision) -> Json:
    """Journal the wish; the reconciler ends the attempt. Asking twice is asking once."""
    state, _ = views.found(reader.platform, request_id)
    if state.result is not None:
        raise Refused(f"request {request_id} is {state.result.state.value} already.")
    if not body.dry_run and not state.cancel:
        reader.platform.record_request(
            request_id, "cancel-requested", {}, reason=body.reason, actor=body.signed
        )
    return document({**reader.request_views.full(request_id), "dry_run": body.dry_run})


@router.post("/{request_id}/retry", status_code=201)
def retry(reader: ReaderDep, request_id: str, body: Decision, response: Response) -> Json:
    """A new request with the same config and the same stored dataset."""
    state, _ = views.found(reader.platform, request_id)
    if body.dry_run:
        response.status_code = 200
        submission.check_over(state)
        return document({**reader.request_views.full(request_id), "dry_run": True})
    fresh = submission.resubmit(reader.platform, request_id, actor=body.signed)
    return document(reader.request_views.full(fresh.id))
