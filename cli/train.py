"""`lora-ops train`."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.runs import Timeout, follow_request
from cli.session import Session, actor
from cli.text import pairs
from lora_ops.errors import ConfigError, UsageError

SENDS = 3  # with an idempotency key a lost answer is asked for again


def train(
    session: Session,
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="The trainer's YAML file.", show_default=False)
    ],
    name: Annotated[str, typer.Option("--name", help="A name for lists.", show_default="the file's")] = "",
    canary: Annotated[
        str, typer.Option("--canary", metavar="auto|never", help="Whether a canary may get it.")
    ] = "auto",
    cloud: Annotated[
        str | None, typer.Option("--cloud", help="Prefer this cloud.", show_default=False)
    ] = None,
    only_cloud: Annotated[
        str | None,
        typer.Option(
            "--only-cloud", help="Wait for this cloud, whatever others are free.", show_default=False
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", help="Submitting twice with one key is one request.", show_default=False
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    timeout: Timeout = None,
) -> int:
    """Submit a training request. Relative paths in the config are those of this folder.

    With --wait: exits 0 succeeded, 100 failed, 101 not finished in --timeout, 103 cancelled.
    """
    if canary not in ("auto", "never"):
        raise UsageError(f"--canary {canary}: there are auto and never.")
    if cloud is not None and only_cloud is not None:
        raise UsageError("--cloud prefers a cloud, --only-cloud insists on one: give one of them.")
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config} cannot be read: {error}", "Name the trainer's YAML file.") from error
    body: dict[str, Any] = {
        "config": text,
        "source": str(config),
        "cwd": os.getcwd(),
        "name": name or config.stem,
        "canary": canary,
        "cloud": only_cloud or cloud,
        "cloud_only": only_cloud is not None,
        "idempotency_key": key or uuid.uuid4().hex,
        "actor": actor(),
        "dry_run": session.dry_run,
    }
    document = session.api.post("/requests", body, tries=SENDS)
    if session.dry_run:
        session.emit(document, pairs(document))
        return 0
    request = str(document["id"])
    if wait:
        session.note(f"request {request}")
        return follow_request(session, request, timeout)
    session.emit(document, [f"submitted {request}: lora-ops runs watch {request}"], [request])
    return 0
