"""`/api/gates/explain`: the gates of a rollout judged now, from the evidence in the store."""

from __future__ import annotations

from fastapi import APIRouter

from console import rollout_views as views
from console.reader import Reader, ReaderDep
from console.views import Json, document
from flows.looks import judge_now
from lora_ops.gates.statistics import Verdict
from lora_ops.gates.verdict import Look
from lora_ops.state import Queued

router = APIRouter(prefix="/api/gates")

_NOTHING = "no request has reached the release yet: there is nothing to judge"


@router.get("/explain")
def explain(reader: ReaderDep, rollout: str | None = None) -> Json:
    """Of a rollout, by default of the active one or else of the newest."""
    state = reader.state()
    found = views.find(state, reader.events, rollout or views.newest(state, reader.events))
    look = None if isinstance(found, Queued) else _look(reader, found)
    name = found.id if isinstance(found, Queued) else found.rollout.id
    if look is None:
        verdict = Verdict.INCONCLUSIVE.value
        return document({"rollout": name, "results": [], "verdict": verdict, "summary": _NOTHING})
    return document({**look.model_dump(mode="json"), "rollout": name})


def _look(reader: Reader, found: views.Found) -> Look | None:
    """Judged now; of a rollout that is over, the last look if a provider knows active ones only."""
    if found.over and any(gate.external for gate in found.rollout.policy.gates):
        looks = reader.platform.looks(found.rollout.id)
        return looks[-1].look if looks else None
    return judge_now(reader.platform, found.rollout)
