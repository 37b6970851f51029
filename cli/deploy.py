"""`lora-ops deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.rollouts import follow_rollout
from cli.session import Session
from cli.text import pairs
from lora_ops.errors import ConfigError, UsageError, nearest


def deploy(
    session: Session,
    canary: Annotated[
        bool, typer.Option("--canary", help="By canary: the only way, so it may be left out.")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option("--source", help="The git checkout to build from.", show_default="this folder"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A commit, tag or branch of it.", show_default="HEAD")
    ] = None,
    dirty: Annotated[
        bool, typer.Option("--dirty", help="Build the working tree, with what is not committed.")
    ] = False,
    release: Annotated[
        str | None,
        typer.Option("--release", metavar="DIGEST", help="A release that exists; nothing is built."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="REF", help="An image: repo:tag or repo@sha256:…; nothing is built."),
    ] = None,
    pipeline: Annotated[
        Path | None,
        typer.Option("--pipeline", metavar="FILE", help="A pipeline's JSON document: image, plans, gates."),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option("--plan", metavar="10,50,100", help="Canary weights, instead of lora-ops.yaml's."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why, for the journal.")] = "",
    queue: Annotated[
        bool, typer.Option("--queue", help="Wait behind an active rollout instead of failing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    no_wait_approval: Annotated[
        bool, typer.Option("--no-wait-approval", help="With --wait: exit 8 when an approval is awaited.")
    ] = False,
) -> int:
    """Bring a new release of the trainer out, by canary.

    A few percent of the training requests reach the new release; its gates decide whether it is promoted or
    rolled back. A tag is resolved to its digest once, at the start. --pipeline with --dry-run shows what
    became of each key of the document. With --wait: exits 0 promoted, 9 rolled back, 1 aborted or failed,
    8 awaiting approval with --no-wait-approval. Exits 6 when another rollout is active.
    """
    if dirty and revision is not None:
        raise UsageError("--dirty builds the working tree: it goes without --revision.")
    ready = {"--release": release, "--image": image, "--pipeline": pipeline}
    given = [option for option, value in ready.items() if value is not None]
    building = {"--source": source, "--revision": revision, "--dirty": dirty or None}
    clash = given + [option for option, value in building.items() if value is not None]
    if given and len(clash) > 1:
        raise UsageError(
            f"{given[0]} names what is there already: it goes without {', '.join(clash[1:])}.",
            "Give one of --source, --release, --image and --pipeline.",
        )
    if pipeline is not None and plan is not None:
        raise UsageError("A pipeline document has the plans: --pipeline goes without --plan.")
    body: dict[str, Any] = {
        "source": None if given else _checkout(source or Path(".")),
        "revision": revision,
        "dirty": dirty,
        "release": release,
        **({"image": image} if image is not None else {}),
        **(_document(pipeline) if pipeline is not None else {}),
        "canary": True,  # there is no other way, with or without the option
        "queue": queue,
        "plan": _weights(plan),
        **session.decision(reason),
    }
    if session.dry_run:
        answer = session.api.post("/rollouts", body)
        session.emit(answer, pairs(answer))
        return 0
    if not session.yes and not session.as_json:
        planned = session.api.post("/rollouts", {**body, "dry_run": True})
        for line in pairs(planned):
            session.note(line)
        if found := (planned.get("source") or {}).get("image"):
            body["image"] = found  # what was shown: a tag may move until the answer
    session.confirm("Start this rollout?", destructive=False)
    document = session.api.post("/rollouts", body)
    name = str(document["id"])
    if found := (document.get("source") or {}).get("image"):
        session.note(f"image {found}")
    if wait:
        session.note(f"rollout {name}")
        return follow_rollout(session, name, wait_approval=not no_wait_approval)
    state = document.get("phase") or "started"
    session.emit(document, [f"rollout {name} is {state}: lora-ops rollout watch {name}"], [name])
    return 0


def _document(path: Path) -> dict[str, str]:
    try:
        return {"pipeline": path.read_text(encoding="utf-8"), "pipeline_source": str(path)}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8: {error}.", "Save it as UTF-8.") from None
    except OSError as error:
        beside = [each.name for each in path.parent.glob("*.json")] if path.parent.is_dir() else []
        raise UsageError(
            f"--pipeline {path} cannot be read: {error.strerror}.", nearest(path.name, beside)
        ) from None


def _checkout(folder: Path) -> str:
    if not folder.is_dir():
        raise UsageError(
            f"--source {folder} is not a folder.", "Name the git checkout that the trainer is built from."
        )
    return str(folder.resolve())


def _weights(plan: str | None) -> list[int] | None:
    if plan is None:
        return None
    from lora_ops.state import check_plan  # pydantic: what starts fast does without

    try:
        weights = [int(word.strip().removesuffix("%")) for word in plan.split(",")]
    except ValueError:
        raise UsageError(f"--plan {plan} is not a plan.", "Write weights such as 10,50,100.") from None
    try:
        return list(check_plan(tuple(weights)))
    except ValueError as error:
        raise UsageError(f"--plan {plan} is not a plan: {error}.") from None
