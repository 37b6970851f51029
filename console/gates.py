"""`/api/gates/explain`: the gates of a rollout judged now, from the evidence in the store."""

from __future__ import annotations

from fastapi import APIRouter

from console import rollout_views as views
from console.reader import ReaderDep
from console.views import Json, document
from flows.looks import judge_now
from lora_ops.gates.statistics import Verdict
from lora_ops.state import Queued

router = APIRouter(prefix="/api/gates")

_NOTHING = "no request has reached the release yet: there is nothing to judge"


@router.get("/explain")
def explain(reader: ReaderDep, rollout: str | None = None) -> Json:
    """Of a rollout, by default of the active one or else of the newest."""
    state = reader.state()
    found = views.find(state, reader.events, rollout or views.newest(state, reader.events))
    look = None if isinstance(found, Queued) else judge_now(reader.platform, found.rollout)
    name = found.id if isinstance(found, Queued) else found.rollout.id
    if look is None:
        verdict = Verdict.INCONCLUSIVE.value
        return document({"rollout": name, "results": [], "verdict": verdict, "summary": _NOTHING})
    return document({**look.model_dump(mode="json"), "rollout": name})
