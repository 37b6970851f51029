"""`lora-ops cloud ls | show | drain | undrain`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.session import Session
from cli.text import pairs, short, table

CloudName = Annotated[str, typer.Argument(metavar="CLOUD", help="Its name.", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why, for the journal.")]


def ls(session: Session) -> None:
    """List the clouds."""
    answer = session.api.get("/clouds")
    names = [str(item.get("name")) for item in answer["items"]]
    session.emit(answer, cloud_table(answer["items"]), names)


def show(session: Session, cloud: CloudName) -> None:
    """One cloud."""
    document = session.api.get(f"/clouds/{cloud}")
    session.emit(document, pairs(document), [cloud])


def drain(
    session: Session,
    cloud: CloudName,
    reason: Reason = "",
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Let the attempts that run there go on.")
    ] = False,
) -> None:
    """Empty a cloud: no new attempts, and those that run there go elsewhere from a checkpoint."""
    question = f"Drain {cloud}: it gets no new attempts{'' if keep_running else ', and those there move'}?"
    _turn(session, "drain", cloud, reason, question, {"keep_running": keep_running})


def undrain(session: Session, cloud: CloudName, reason: Reason = "") -> None:
    """Take a cloud back into service."""
    _turn(session, "undrain", cloud, reason)


def cloud_table(items: list[dict[str, Any]]) -> list[str]:
    """Clouds as people see them."""
    rows = [
        [
            item.get("name"),
            item.get("kind"),
            "drained" if item.get("drained") else ("away" if item.get("healthy") is False else "ok"),
            item.get("size"),
            short(item.get("stable")),
            short(item.get("canary")),
            f"{item.get('weight', 0)} %",
        ]
        for item in items
    ]
    heads = ["CLOUD", "KIND", "STATE", "SIZE", "STABLE", "CANARY", "WEIGHT"]
    return table(heads, rows, "No cloud: add one to lora-ops.yaml.")


def _turn(
    session: Session,
    verb: str,
    cloud: str,
    reason: str,
    question: str = "",
    more: dict[str, Any] | None = None,
) -> None:
    if question:
        session.confirm(question, destructive=True)
    document = session.api.post(f"/clouds/{cloud}/{verb}", {**session.decision(reason), **(more or {})})
    session.emit(document, [f"{'would ' if session.dry_run else ''}{verb} {cloud}"], [cloud])
