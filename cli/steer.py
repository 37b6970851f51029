"""`lora-ops rollout approve | reject | promote | pause | resume | abort | rollback`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.rollouts import FINAL, RolloutId, Store, one_line
from cli.session import Session, actor
from lora_ops.errors import NotFoundError, UnreachableError

Reason = Annotated[str, typer.Option("--reason", "-m", help="Why, for the journal.")]
WITHOUT_SERVE = "Without serve: lora-ops rollout {verb} --store URL acts on the journal directly."


def approve(
    session: Session,
    rollout: RolloutId = None,
    reason: Reason = "",
    wave: Annotated[
        int | None,
        typer.Option("--wave", min=1, help="The wave that you looked at.", show_default="the one that waits"),
    ] = None,
) -> None:
    """Let a rollout that awaits approval go on. It counts for the wave that was shown, never for a later."""
    name = rollout or _active(session, "approve")
    if wave is None:
        wave = int(session.api.get(f"/rollouts/{name}").get("wave") or 0) + 1
        session.confirm(f"Approve wave {wave} of {name}?", destructive=False)
    _act(session, "approve", name, reason, wave=wave - 1)


def reject(session: Session, rollout: RolloutId = None, reason: Reason = "") -> None:
    """Refuse the approval: every cloud goes back to stable."""
    _act(session, "reject", rollout, reason, "Reject {id}: every cloud goes back to stable?")


def promote(session: Session, rollout: RolloutId = None, reason: Reason = "") -> None:
    """Promote the present wave now, without waiting for the gates. Looks go on in the hold."""
    _act(session, "promote", rollout, reason, "Promote {id} without waiting for its gates?")


def pause(session: Session, rollout: RolloutId = None, reason: Reason = "") -> None:
    """Stay at the present step. A gate that fails still rolls back."""
    _act(session, "pause", rollout, reason)


def resume(session: Session, rollout: RolloutId = None, reason: Reason = "") -> None:
    """Go on after a pause."""
    _act(session, "resume", rollout, reason)


def abort(session: Session, rollout: RolloutId = None, reason: Reason = "", store: Store = None) -> None:
    """End a rollout: every cloud goes back to stable. With --store it acts on the journal directly."""
    _act(session, "abort", rollout, reason, "Abort {id}: every cloud goes back to stable?", store)


def rollback(session: Session, rollout: RolloutId = None, reason: Reason = "", store: Store = None) -> None:
    """Point every cloud back at stable now. With --store it acts on the journal directly."""
    _act(session, "rollback", rollout, reason, "Roll {id} back: every cloud goes back to stable?", store)


def _act(
    session: Session,
    verb: str,
    rollout: str | None,
    reason: str,
    question: str = "",
    store: str | None = None,
    **more: Any,
) -> None:
    """Ask where needed, act on the server or on the journal, and print the rollout after it."""
    if store is not None:
        if question:
            session.confirm(question.format(id=rollout or "the active rollout"), destructive=True)
        from cli.app import load

        act = load(f"cli.local.rollouts:{verb}")
        document: dict[str, Any] = act(store, rollout, reason=reason, actor=actor(), dry_run=session.dry_run)
    else:
        name = rollout or _active(session, verb)
        if question:
            session.confirm(question.format(id=name), destructive=True)
        try:
            document = session.api.post(f"/rollouts/{name}/{verb}", {**session.decision(reason), **more})
        except UnreachableError as error:
            raise _with_way_out(error, verb) from error
    done = f"{verb} would give" if session.dry_run else f"{verb}:"
    session.emit(document, [f"{done} {one_line(document)}"], [str(document.get("id"))])


def _active(session: Session, verb: str) -> str:
    try:
        items = session.api.get("/rollouts", limit=20)["items"]
    except UnreachableError as error:
        raise _with_way_out(error, verb) from error
    for item in items:
        if item.get("phase") not in {*FINAL, "queued"}:
            return str(item["id"])
    raise NotFoundError("No rollout is active.", "`lora-ops rollout ls` lists those that ended.")


def _with_way_out(error: UnreachableError, verb: str) -> UnreachableError:
    if verb not in ("abort", "rollback"):
        return error
    return type(error)(error.message, f"{error.hint} {WITHOUT_SERVE.format(verb=verb)}", error.details)
