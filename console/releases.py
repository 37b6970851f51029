"""`/api/releases`: what was published, where it runs, and which rollouts brought it out."""

from __future__ import annotations

from fastapi import APIRouter

from console.reader import Reader, ReaderDep
from console.views import Json, document, iso, listing
from lora_ops.state import AppState
from tasks.releases import Release, find_release, list_releases

router = APIRouter(prefix="/api/releases")


@router.get("")
def index(reader: ReaderDep) -> Json:
    """Newest first."""
    state = reader.state()
    return listing(_view(each, state, reader) for each in reversed(list_releases(reader.store)))


@router.get("/{digest}")
def show(reader: ReaderDep, digest: str) -> Json:
    """By digest, or by the beginning of one."""
    return document(_view(find_release(reader.store, digest), reader.state(), reader))


def _view(release: Release, state: AppState, reader: Reader) -> Json:
    digest = release.digest
    tracks = {name: "stable" for name, cloud in state.clouds.items() if cloud.stable == digest}
    active = state.rollout
    if active is not None and active.release == digest and active.phase.exposes:
        tracks |= {name: "canary" for name, part in active.clouds.items() if part.weight}
    return {
        "digest": digest,
        "kind": release.kind,
        "revision": release.revision,
        "source": release.source,
        "created": iso(release.created),
        "created_by": release.created_by,
        "size": release.size,
        "lock_sha256": release.lock_sha256,
        "stable_on": [name for name, track in tracks.items() if track == "stable"],
        "clouds": tracks,
        "rollouts": [each for each in reader.events.rollouts() if _released(reader, each, state) == digest],
    }


def _released(reader: Reader, rollout_id: str, state: AppState) -> str | None:
    ended = reader.events.ended(rollout_id)
    if ended is not None:
        return ended.rollout.release
    return state.rollout.release if state.rollout and state.rollout.id == rollout_id else None
