"""`/api/status` and `/healthz`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fastapi import APIRouter

from console import rollout_views
from console.clouds import cloud_views
from console.reader import Reader, ReaderDep
from console.request_index import FINAL_STATES, RUNNING, SUBMITTED, WAITING, RequestFacts
from console.views import Json, document
from lora_ops import __version__

router = APIRouter()


@router.get("/healthz")
def healthz() -> Json:
    """Open to anyone: it says nothing but that the process answers."""
    return {"ok": True}


@router.get("/api/status")
def status(reader: ReaderDep) -> Json:
    state = reader.state()
    requests = reader.requests.refresh()
    prefect = reader.context.prefect
    rollout = None
    if state.rollout is not None:
        found = rollout_views.find(state, reader.events, state.rollout.id)
        rollout = rollout_views.full(found, reader.events, reader.platform)
    return document(
        {
            "app": state.app,
            "store": reader.store.url,
            "backup": _backup(reader),
            "prefect": {"url": prefect.api_url, "ok": prefect.ok()},
            "ui": prefect.api_url.rstrip("/").removesuffix("/api"),
            "clouds": cloud_views(reader, state, requests),
            "rollout": rollout,
            "queue": [rollout_views.brief(queued, reader.events) for queued in state.queue],
            "requests": request_counts(requests),
            "version": __version__,
        }
    )


def _backup(reader: Reader) -> Json | None:
    """The second store, and why it is not up to date; None without one."""
    backup = reader.context.spec.backup
    return {"url": backup.url, "problem": reader.context.backup_problem()} if backup is not None else None


def request_counts(requests: Iterable[RequestFacts]) -> dict[str, int]:
    """Users' own requests by state; `open` is all that have no result yet, running and waiting ones too."""
    states = Counter(facts.state for facts in requests if facts.own)
    waiting = states[SUBMITTED] + states[WAITING]
    final = {state: states[state] for state in FINAL_STATES}
    return {"open": waiting + states[RUNNING], "running": states[RUNNING], "waiting": waiting, **final}
