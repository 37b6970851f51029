"""`POST /api/rollouts`: start a rollout, queue it, or say what it would do."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from console import rollout_views as views
from console.bodies import Deploy
from console.reader import Reader, ReaderDep
from console.views import Json, document
from flows.start import begin_rollout
from lora_ops.errors import ConfigError, ConflictError, NotFoundError, UsageError, nearest
from lora_ops.rollout import apply
from lora_ops.state import AppState, Policy, Source
from tasks.bundle import find_release
from tasks.source_tree import read_folder, read_revision

router = APIRouter(prefix="/api/rollouts")


@router.post("", status_code=201)
def start(reader: ReaderDep, body: Deploy, response: Response) -> Json:
    """201 when it started, 202 when it is queued, 200 for a dry run, 409 during another rollout."""
    source = _source(reader, body)
    policy = _policy(reader, body)
    state = reader.state()
    if body.dry_run:
        response.status_code = 200
        return document(_plan(state, source, policy, body))
    rollout_id, _, queued = begin_rollout(
        reader.platform,
        reader.context.spec,
        source,
        actor=body.signed,
        reason=body.reason,
        steps=_steps(body),
        queue=body.queue,
    )
    if queued:
        response.status_code = 202
    found = views.find(reader.state(), reader.events, rollout_id)
    return document(views.brief(found, reader.events))


def _source(reader: Reader, body: Deploy) -> Source:
    """Where the release comes from, with its revision fixed now: a queued rollout builds what was meant.

    BundleError, before anything is journalled, for what cannot become a release.
    """
    if body.release is not None:
        if body.source is not None or body.revision is not None or body.dirty:
            raise UsageError("A release that exists has no source, revision or changes of its own.")
        return Source(release=find_release(reader.store, body.release).digest)
    if body.source is None:
        raise UsageError("A rollout needs `source` (a git checkout) or `release` (a digest).")
    if body.dirty and body.revision is not None:
        raise UsageError("`dirty` means the working tree: it goes without a revision.")
    path = Path(body.source)
    if not path.is_absolute():
        raise UsageError(f"The source `{path}` is not an absolute path.", "Send the checkout's whole path.")
    if not path.is_dir():
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise NotFoundError(f"The source {path} is not a folder.", nearest(path.name, beside))
    if body.dirty:
        read_folder(path)
        return Source(path=str(path), dirty=True)
    return Source(path=str(path), revision=read_revision(path, body.revision or "HEAD").revision)


def _policy(reader: Reader, body: Deploy) -> Policy:
    try:
        return reader.context.spec.policy(_steps(body))
    except ValueError as error:
        raise ConfigError(f"{reader.context.spec_path}: {error}", "Mend its `rollout` section.") from error


def _steps(body: Deploy) -> tuple[int, ...] | None:
    return tuple(body.plan) if body.plan is not None else None


def _plan(state: AppState, source: Source, policy: Policy, body: Deploy) -> Json:
    """What a dry run answers. Raises what the real one would."""
    active = state.rollout
    if active is not None and not body.queue:
        raise ConflictError(
            f"rollout {active.id} is {active.phase.value}.", "Wait behind it with `--queue`, or end it first."
        )
    if active is None:
        data = {"id": "dry-run", "source": source.model_dump(), "policy": policy.model_dump()}
        apply(state, "rollout-started", data, state.seq + 1)
    overtaken = [each.id for each in state.queue if active and each.source.line == source.line]
    return {
        "dry_run": True,
        "source": source.model_dump(mode="json"),
        "waves": [list(wave) for wave in policy.waves],
        "plans": {name: list(plan) for name, plan in policy.plans.items()},
        "gates": [gate.model_dump(mode="json", exclude_defaults=True) for gate in policy.gates],
        "probes": policy.probes.model_dump(mode="json") if policy.probes else None,
        "approval": policy.approval,
        "deadline_s": policy.deadline_s,
        "hold_s": policy.hold_s,
        "behind": active.id if active else None,
        "overtakes": overtaken,
    }
