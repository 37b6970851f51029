"""`lora-ops status`."""

from __future__ import annotations

from typing import Any

from cli.clouds import cloud_table
from cli.rollouts import one_line
from cli.session import Session


def status(session: Session) -> None:
    """The platform at a glance."""
    answer = session.api.get("/status")
    prefect = answer.get("prefect") or {}
    requests = answer.get("requests") or {}
    rollout, queue = answer.get("rollout"), answer.get("queue") or []
    lines = [
        f"app      {answer.get('app')} (lora-ops {answer.get('version')})",
        f"server   {session.api.url}",
        f"store    {answer.get('store')}",
        *_backup(answer.get("backup")),
        f"prefect  {prefect.get('url')}: {'ok' if prefect.get('ok') else 'does not answer'}",
        f"rollout  {one_line(rollout) if rollout else 'none'}{f', {len(queue)} queued' if queue else ''}",
        f"requests {', '.join(f'{count} {state}' for state, count in requests.items())}",
        "",
        *cloud_table(answer.get("clouds") or []),
    ]
    session.emit(answer, lines, [rollout["id"]] if rollout else [])


def _backup(backup: dict[str, Any] | None) -> list[str]:
    if backup is None:
        return []
    return [f"backup   {backup['url']}: {backup.get('problem') or 'ok'}"]
