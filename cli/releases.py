"""`lora-ops release ls | show`."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.session import Session
from cli.text import ago, pairs, short, table


def ls(session: Session) -> None:
    """List the releases, the newest first."""
    answer = session.api.get("/releases")
    rows = [
        [
            short(item.get("digest")),
            str(item.get("revision") or "-")[:12],
            ago(item.get("created"), session.api.now),
            _where(item.get("clouds")),
        ]
        for item in answer["items"]
    ]
    empty = "No release yet: `lora-ops deploy` builds one."
    session.emit(
        answer,
        table(["RELEASE", "REVISION", "AGE", "CLOUDS"], rows, empty),
        [i["digest"] for i in answer["items"]],
    )


def show(
    session: Session,
    release: Annotated[
        str, typer.Argument(metavar="RELEASE", help="Its digest, or the beginning.", show_default=False)
    ],
) -> None:
    """One release, by digest or its beginning."""
    document = session.api.get(f"/releases/{release}")
    session.emit(document, pairs(document), [str(document.get("digest"))])


def _where(clouds: object) -> str:
    if isinstance(clouds, dict):
        return ", ".join(f"{name}/{track}" for name, track in clouds.items())
    return ", ".join(str(name) for name in clouds) if isinstance(clouds, list) else ""
