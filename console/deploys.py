"""`POST /api/rollouts`: start a rollout, queue it, or say what it would do."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from console import rollout_views as views
from console.bodies import Deploy
from console.reader import Reader, ReaderDep
from console.views import Json, document
from flows.start import begin_rollout, release_kind, rollout_policy
from lora_ops.errors import ConfigError, ConflictError, NotFoundError, UsageError, nearest
from lora_ops.image_ref import full_reference, repository_of
from lora_ops.pipeline import Translation, translate
from lora_ops.rollout import apply
from lora_ops.spec import PlatformSpec
from lora_ops.state import AppState, Policy, Source
from tasks.releases import find_release
from tasks.source_tree import read_folder, read_revision

router = APIRouter(prefix="/api/rollouts")


@router.post("", status_code=201)
def start(reader: ReaderDep, body: Deploy, response: Response) -> Json:
    """201 when it started, 202 when it is queued, 200 for a dry run, 409 during another rollout."""
    translation = _translation(reader, body)
    policy = _policy(reader, body, translation)
    kind = release_kind(reader.context.spec)
    source = _source(reader, body, translation).model_copy(update={"kind": kind})
    state = reader.state()
    if body.dry_run:
        response.status_code = 200
        return document(_plan(state, source, policy, body, translation))
    rollout_id, _, queued = begin_rollout(
        reader.platform,
        reader.context.spec,
        source,
        actor=body.signed,
        reason=body.reason,
        steps=_steps(body),
        translation=translation,
        queue=body.queue,
    )
    if queued:
        response.status_code = 202
    found = views.find(reader.state(), reader.events, rollout_id)
    return document(views.brief(found, reader.events))


def _translation(reader: Reader, body: Deploy) -> Translation | None:
    if body.pipeline is None:
        return None
    if body.plan is not None:
        raise UsageError("A pipeline document has the plans: it goes without `plan`.")
    return translate(body.pipeline, reader.context.spec, body.pipeline_source)


def _source(reader: Reader, body: Deploy, translation: Translation | None) -> Source:
    """Where the release comes from, with its revision or digest fixed now: a queued rollout brings out what
    was meant.

    BundleError, before anything is journalled, for what cannot become a release.
    """
    built = body.source is not None or body.revision is not None or body.dirty
    named = body.image if translation is None else translation.container
    if named is not None:
        if built or body.release is not None:
            raise UsageError(
                "An image that exists has no source, revision, changes or other digest of its own."
            )
        return _image(reader.context.spec, named, body.image)
    if body.release is not None:
        if built:
            raise UsageError("A release that exists has no source, revision or changes of its own.")
        return Source(release=_release(reader, body.release))
    if body.source is None:
        raise UsageError(
            "A rollout needs `source` (a git checkout), `release` (a digest), `image` or `pipeline`."
        )
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


def _image(spec: PlatformSpec, named: str, pinned: str | None) -> Source:
    """The image by the digest that its registry has for it now. `pinned`: what a client was shown before:
    its tag may have moved since."""
    try:
        reference = full_reference(named, spec)
        if pinned is not None and pinned != named:
            shown = full_reference(pinned, spec)
            if "@" not in shown or repository_of(shown) != repository_of(reference):
                raise ValueError(f"`{pinned}` is no digest of the document's container {reference}")
            reference = shown
    except ValueError as error:
        raise UsageError(
            f"{error}.", "Name it like ghcr.io/team/lora-scripts:v2, or by its digest."
        ) from None
    from tasks.images import Registries

    digest = Registries(spec.insecure_registries).resolve(reference)
    return Source(image=f"{repository_of(reference)}@{digest}")


def _release(reader: Reader, digest: str) -> str:
    """The whole digest. UsageError for a release of a kind that these clouds do not run."""
    found = find_release(reader.store, digest)
    wanted = release_kind(reader.context.spec)
    if found.kind != wanted:
        raise UsageError(
            f"{found.digest} is a release of kind {found.kind}; these clouds run kind {wanted}.",
            "See `lora-ops release ls`.",
        )
    return found.digest


def _policy(reader: Reader, body: Deploy, translation: Translation | None) -> Policy:
    try:
        return rollout_policy(reader.context.spec, _steps(body), translation)
    except ValueError as error:
        raise ConfigError(f"{reader.context.spec_path}: {error}", "Mend its `rollout` section.") from error


def _steps(body: Deploy) -> tuple[int, ...] | None:
    return tuple(body.plan) if body.plan is not None else None


def _plan(
    state: AppState, source: Source, policy: Policy, body: Deploy, translation: Translation | None
) -> Json:
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
        "translation": list(translation.lines) if translation is not None else [],
        "source": source.model_dump(mode="json"),
        "waves": [list(wave) for wave in policy.waves],
        "plans": {name: list(plan) for name, plan in policy.plans.items()},
        "sizes": {
            name: {"now": state.clouds[name].size, "then": size}
            for name, size in policy.sizes.items()
            if name in state.clouds and state.clouds[name].size != size
        },
        "gates": [gate.model_dump(mode="json", exclude_defaults=True) for gate in policy.gates],
        "probes": policy.probes.model_dump(mode="json") if policy.probes else None,
        "approval": policy.approval,
        "deadline_s": policy.deadline_s,
        "hold_s": policy.hold_s,
        "behind": active.id if active else None,
        "overtakes": overtaken,
    }
