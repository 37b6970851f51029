"""`/api/clouds`: where trainers run, how they are, and taking one out of service."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter

from console.bodies import Decision, Drain
from console.reader import Reader, ReaderDep
from console.request_index import RequestFacts
from console.views import Json, document, listing
from lora_ops.errors import LoraOpsError, NotFoundError, nearest
from lora_ops.rollout import apply
from lora_ops.state import AppState, CloudState, Track

router = APIRouter(prefix="/api/clouds")


@router.get("")
def index(reader: ReaderDep) -> Json:
    return listing(cloud_views(reader, reader.state(), reader.requests.refresh()))


@router.get("/{name}")
def show(reader: ReaderDep, name: str) -> Json:
    return document(_one(reader, reader.state(), name))


@router.post("/{name}/drain")
def drain(reader: ReaderDep, name: str, body: Drain) -> Json:
    """No new attempts go there; those that run go elsewhere from a checkpoint, or go on (`keep_running`)."""
    return _turn(reader, name, body, "cloud-drained", move=not body.keep_running)


@router.post("/{name}/undrain")
def undrain(reader: ReaderDep, name: str, body: Decision) -> Json:
    return _turn(reader, name, body, "cloud-undrained")


def cloud_views(reader: Reader, state: AppState, requests: list[RequestFacts]) -> list[Json]:
    prefect = reader.context.prefect.ok()
    return [_view(reader, state, cloud, requests, prefect) for _, cloud in sorted(state.clouds.items())]


def _one(reader: Reader, state: AppState, name: str) -> Json:
    cloud = _find(state, name)
    return _view(reader, state, cloud, reader.requests.refresh(), reader.context.prefect.ok())


def _turn(reader: Reader, name: str, body: Decision, kind: str, *, move: bool = False) -> Json:
    """Journal it, unless the cloud is that way already: doing it twice is doing it once."""
    state = reader.state()
    cloud = _find(state, name)
    if cloud.drained != (kind == "cloud-drained") or cloud.moving != move:
        data = {"cloud": name, "reason": body.reason, "move": move}
        if body.dry_run:
            state = apply(state, kind, data, state.seq + 1)
        else:
            reader.platform.record(kind, data, reason=body.reason, actor=body.signed)
            state = reader.state()
    return document({**_one(reader, state, name), "dry_run": body.dry_run})


def _find(state: AppState, name: str) -> CloudState:
    if name not in state.clouds:
        raise NotFoundError(f"There is no cloud `{name}`.", nearest(name, state.clouds))
    return state.clouds[name]


def _view(
    reader: Reader, state: AppState, cloud: CloudState, requests: Iterable[RequestFacts], prefect: bool
) -> Json:
    """`prefect`: whether it answers; its client would try for long."""
    here = [
        attempt
        for facts in requests
        if not facts.final
        for attempt in facts.attempts
        if attempt.open and attempt.cloud == cloud.name
    ]
    running = {track.value: sum(a.started and a.track is track for a in here) for track in Track}
    part = state.rollout.clouds.get(cloud.name) if state.rollout and state.rollout.phase.exposes else None
    return {
        "name": cloud.name,
        "kind": cloud.kind,
        "size": cloud.size,
        "share": cloud.share,
        "stable": cloud.stable,
        "previous": cloud.previous,
        "canary": state.rollout.release if state.rollout and part and part.weight else None,
        "weight": part.weight if part else 0,
        "drained": cloud.drained,
        "moving": cloud.moving,
        "problem": reader.context.problem(cloud.name) or None,
        "healthy": reader.context.health().get(cloud.name),
        "workers": _workers(reader, cloud.name) if prefect else None,
        "running": running,
        "queued": sum(not attempt.started for attempt in here),
    }


def _workers(reader: Reader, name: str) -> list[Json] | None:
    """None when Prefect cannot be asked."""
    try:
        return [{"name": worker, "status": status} for worker, status in reader.context.prefect.workers(name)]
    except LoraOpsError:
        return None
