"""`lora-ops deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.rollouts import follow_rollout
from cli.session import Session
from cli.text import pairs
from lora_ops.errors import UsageError


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
    rolled back. With --wait: exits 0 promoted, 9 rolled back, 1 aborted or failed, 8 awaiting approval with
    --no-wait-approval. Exits 6 when another rollout is active.
    """
    if release is not None and (source is not None or revision is not None or dirty):
        raise UsageError(
            "--release names a release that exists: it goes without --source, --revision and --dirty."
        )
    if dirty and revision is not None:
        raise UsageError("--dirty builds the working tree: it goes without --revision.")
    body: dict[str, Any] = {
        "source": None if release else _checkout(source or Path(".")),
        "revision": revision,
        "dirty": dirty,
        "release": release,
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
    session.confirm("Start this rollout?", destructive=False)
    document = session.api.post("/rollouts", body)
    name = str(document["id"])
    if wait:
        session.note(f"rollout {name}")
        return follow_rollout(session, name, wait_approval=not no_wait_approval)
    state = document.get("phase") or "started"
    session.emit(document, [f"rollout {name} is {state}: lora-ops rollout watch {name}"], [name])
    return 0


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
