"""`/api/rollouts`: list, show, and every decision that people make about one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from console import rollout_views as views
from console.bodies import Decision, Steer
from console.reader import Reader, ReaderDep
from console.views import Json, document, listing
from lora_ops.errors import NotFoundError, Refused, UsageError
from lora_ops.rollout import apply
from lora_ops.state import AppState, Phase, Queued

router = APIRouter(prefix="/api/rollouts")

#: verb of the API: kind of the event
DECISIONS = {
    "approve": "approved",
    "reject": "rolled-back",
    "promote": "promote-forced",
    "pause": "paused",
    "resume": "resumed",
    "abort": "aborted",
    "rollback": "rolled-back",
}


@router.get("")
def index(reader: ReaderDep, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> Json:
    """The queue (newest last to start first), then the rollouts, newest first."""
    state = reader.state()
    ids = [queued.id for queued in reversed(state.queue)] + reader.events.rollouts()
    found = [views.find(state, reader.events, each) for each in dict.fromkeys(ids)]
    return listing(views.brief(each, reader.events) for each in found[:limit])


@router.get("/{rollout_id}")
def show(reader: ReaderDep, rollout_id: str) -> Json:
    found = views.find(reader.state(), reader.events, rollout_id)
    return document(views.full(found, reader.events, reader.platform))


@router.get("/{rollout_id}/history")
def history(reader: ReaderDep, rollout_id: str) -> Json:
    reader.state()
    events = reader.events.of(rollout_id)
    if not events:
        views.find(reader.state(), reader.events, rollout_id)
    return listing(views.history(events))


@router.get("/{rollout_id}/looks")
def looks(reader: ReaderDep, rollout_id: str) -> Json:
    views.find(reader.state(), reader.events, rollout_id)
    return listing(views.look(seen) for seen in reader.platform.looks(rollout_id))


@router.post("/{rollout_id}/{verb}")
def decide(reader: ReaderDep, rollout_id: str, verb: str, body: Steer) -> Json:
    """Journal a person's decision. Refused (409) when it does not hold in the rollout's phase."""
    if verb not in DECISIONS:
        raise NotFoundError(f"`{verb}` cannot be done to a rollout.", f"There are {', '.join(DECISIONS)}.")
    if body.wave is not None and verb != "approve":
        raise UsageError(f"`wave` goes with approve only, not with {verb}.", "Leave it out.")
    state = reader.state()
    found = views.find(state, reader.events, rollout_id)
    if isinstance(found, Queued):
        return _leave_queue(reader, found, verb, body)
    kind = DECISIONS[verb]
    reason = body.reason or f"{verb} by {body.signed}"
    data: dict[str, Any] = {"rollout": rollout_id, "reason": reason}
    if kind == "approved":
        wave = found.rollout.wave if body.wave is None else body.wave
        data |= {"by": body.signed, "via": "api", "wave": wave}
    if found.over:
        raise Refused(f"rollout {rollout_id} is {found.phase} already.", _way_back(state, found, verb))
    if not body.dry_run:
        reader.platform.record(kind, data, reason=reason, actor=body.signed)
        after = views.find(reader.state(), reader.events, rollout_id)
        return document(views.full(after, reader.events, reader.platform))
    would = apply(state, kind, data, state.seq + 1)
    ended = next((each for each in would.finished if each.id == rollout_id), None)
    phase = ended.phase if ended else would.rollout.phase if would.rollout else None
    planned = views.full(found, reader.events, reader.platform)
    return document({**planned, "phase": phase.value if phase else None, "event": kind, "dry_run": True})


def _leave_queue(reader: Reader, queued: Queued, verb: str, body: Decision) -> Json:
    if verb not in ("abort", "reject", "rollback"):
        raise Refused(
            f"rollout {queued.id} waits in the queue.", "It can be taken out: `lora-ops rollout abort`."
        )
    line = views.brief(queued, reader.events)
    if not body.dry_run:
        data = {"id": queued.id, "by": None, "reason": body.reason or f"{verb} by {body.signed}"}
        reader.platform.record("rollout-overtaken", data, reason=data["reason"] or "", actor=body.signed)
    return document({**line, "phase": "overtaken", "dry_run": body.dry_run})


def _way_back(state: AppState, found: views.Found, verb: str) -> str:
    """After the end there is nothing to steer; the way back is a rollout of the release before."""
    if found.phase == Phase.PROMOTED.value and verb in ("rollback", "abort", "reject"):
        before = {part.before for name, part in found.rollout.clouds.items() if name in state.clouds}
        previous = sorted(before)[0] if before else "<previous>"
        return f"Deploy the release before it: `lora-ops deploy --canary --release {previous}`."
    return "`lora-ops rollout ls` lists them all."
