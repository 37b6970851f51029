"""`lora-ops rollout ls | show | watch | history`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from cli import follow
from cli.session import Session
from cli.text import ago, paint, short, table
from lora_ops.errors import ConflictError, NotFoundError, UnreachableError

Json = dict[str, Any]
RolloutId = Annotated[
    str | None,
    typer.Argument(metavar="[ROLLOUT]", help="Its id; without one the active rollout.", show_default=False),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URL", help="Act on the journal in this store directly: serve is not needed."
    ),
]
CLOUD_HEADS = ["CLOUD", "WEIGHT", "ATTEMPTS OF NEW", "STABLE", "NEW", "PROMOTED", "VERIFIED"]
FINAL = {"promoted": 0, "rolled-back": 9, "aborted": 1, "failed": 1}
AWAITING_APPROVAL = 8


def ls(
    session: Session,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
) -> None:
    """List the rollouts, the newest first."""
    answer = session.api.get("/rollouts", limit=limit)
    items = answer["items"][:limit]
    now = session.api.now
    rows = [
        [
            item.get("id"),
            item.get("phase"),
            short(item.get("release")),
            str(item.get("revision") or "-")[:12],
            ago(item.get("started") or item.get("updated"), now),
            item.get("reason"),
        ]
        for item in items
    ]
    heads = ["ROLLOUT", "PHASE", "RELEASE", "REVISION", "AGE", "REASON"]
    session.emit(
        {**answer, "items": items},
        table(heads, rows, "No rollout yet: start one with `lora-ops deploy --canary`."),
        [item["id"] for item in items],
    )


def show(session: Session, rollout: RolloutId = None, store: Store = None) -> None:
    """One rollout: clouds, gates, the last look. With --store it is read from the journal."""
    if store is not None:
        from cli.app import load

        document: Json = load("cli.local.rollouts:show")(store, rollout)
        now = datetime.fromisoformat(document["now"]) if "now" in document else datetime.now().astimezone()
    else:
        try:
            document = session.api.get(f"/rollouts/{newest(session, rollout)}")
        except UnreachableError as error:
            way_out = "Without serve: lora-ops rollout show --store URL reads the journal."
            raise UnreachableError(error.message, f"{error.hint} {way_out}", error.details) from error
        now = session.api.now
    session.emit(document, picture(document, now), [document["id"]])


def watch(
    session: Session,
    rollout: RolloutId = None,
    no_wait_approval: Annotated[
        bool, typer.Option("--no-wait-approval", help="Exit 8 when an approval is awaited.")
    ] = False,
) -> int:
    """Follow a rollout to its end. Ctrl-C only detaches (exit 130).

    Exits 0 promoted, 9 rolled back, 1 aborted or failed, 8 awaiting approval with --no-wait-approval.
    """
    return follow_rollout(session, newest(session, rollout), wait_approval=not no_wait_approval)


def history(session: Session, rollout: RolloutId = None) -> None:
    """Every decision of a rollout, with who and why."""
    name = newest(session, rollout)
    answer = session.api.get(f"/rollouts/{name}/history")
    rows = [
        [item.get("seq"), item.get("time"), item.get("kind"), item.get("actor"), item.get("reason")]
        for item in answer["items"]
    ]
    heads = ["SEQ", "TIME", "EVENT", "ACTOR", "REASON"]
    ids = [str(item.get("seq")) for item in answer["items"]]
    session.emit(answer, table(heads, rows, f"{name} has no events."), ids)


def follow_rollout(session: Session, name: str, *, wait_approval: bool) -> int:
    """Follow to the end, print the result, and give the exit status."""

    def done(document: Json) -> bool:
        phase = document.get("phase")
        return phase in FINAL or (phase == "awaiting-approval" and not wait_approval)

    queued = False

    def fetch() -> Json:
        nonlocal queued
        try:
            document = session.api.get(f"/rollouts/{name}")
        except NotFoundError as error:
            if not queued:
                raise
            message = f"Rollout {name} left the queue before it started."
            raise ConflictError(
                message, "A newer one of its source overtook it, or someone aborted it."
            ) from error
        queued = document.get("phase") == "queued"
        return document

    view = follow.View(
        fetch=fetch,
        done=done,
        line=one_line,
        lines=lambda document: picture(document, session.api.now),
        come_back=f"Come back: lora-ops rollout watch {name}; end it: lora-ops rollout abort {name}",
    )
    document = follow.follow(session, view)
    session.emit(document, [], [name])
    phase = str(document.get("phase"))
    if phase not in FINAL:
        wave = document.get("wave")
        which = f" --wave {_ordinal(wave)}" if wave is not None else ""
        session.note(f"hint: lora-ops rollout approve {name}{which}")
        return AWAITING_APPROVAL
    return FINAL[phase]


def newest(session: Session, rollout: str | None) -> str:
    """The id that was given, else the active rollout's, else the newest one's. NotFoundError without any."""
    if rollout is not None:
        return rollout
    items = session.api.get("/rollouts", limit=20)["items"]
    running = [item["id"] for item in items if item.get("phase") not in {*FINAL, "queued"}]
    if not items:
        raise NotFoundError("There is no rollout yet.", "Start one with `lora-ops deploy --canary`.")
    return str(running[0] if running else items[0]["id"])


def one_line(document: Json) -> str:
    """Where a rollout stands, in one line."""
    return f"{document.get('id')}  {_standing(document)}"


def picture(document: Json, now: datetime) -> list[str]:
    """A rollout as people see it."""
    lines = [
        f"rollout {document.get('id')}  {_standing(document)}",
        f"release {document.get('release') or 'not built yet'}",
        f"from    revision {document.get('revision') or '-'}, {ago(document.get('started'), now) or '-'} ago",
    ]
    if document.get("reason"):
        lines.append(f"reason  {document['reason']}")
    for key, label in (
        ("first_failure_to_rollback_s", "first failure to rollback"),
        ("deciding_sample_to_rollback_s", "deciding sample to rollback"),
    ):
        if document.get(key) is not None:
            lines.append(f"{label}: {document[key]:.1f} s")
    verified = document.get("verified") or {}
    rows = [
        [
            name,
            f"{cloud.get('weight', 0)} %",
            _tally(cloud),
            short(cloud.get("stable")),
            short(cloud.get("canary")),
            cloud.get("promoted"),
            verified.get(name),
        ]
        for name, cloud in (document.get("clouds") or {}).items()
    ]
    lines += ["", *table(CLOUD_HEADS, rows, "It has not started.")]
    return [*lines, *look_lines(document.get("last_look"), now)]


def look_lines(look: Json | None, now: datetime) -> list[str]:
    """One look with its evidence."""
    if not look:
        return ["", "No look yet."]
    verdict = str(look.get("verdict"))
    when = ago(look.get("time"), now)
    lines = [
        "",
        f"look {look.get('n')} ({when or '-'} ago): {paint(verdict)}. {look.get('summary') or ''}".rstrip(),
    ]
    return [*lines, *result_lines(look.get("results") or [])]


def result_lines(results: list[Json]) -> list[str]:
    """Gate results as a table: bad of started attempts, and the evidence either way with what is needed."""
    rows = [
        [
            result.get("gate"),
            result.get("cloud"),
            f"{result.get('k_fail', '-')} of {result.get('n_fail', '-')}",
            _evidence(result.get("e_value"), result.get("threshold")),
            _evidence(result.get("e_value_good"), result.get("threshold_pass")),
            result.get("verdict"),
            _needs(result),
        ]
        for result in results
    ]
    heads = ["GATE", "CLOUD", "BAD", "AGAINST IT", "FOR IT", "VERDICT", "WOULD DECIDE"]
    return table(heads, rows, "No gate has counts yet.")


def _evidence(value: Any, threshold: Any) -> str:
    if value is None or threshold is None:
        return "-"
    return f"{value:.3g} of {threshold:.3g}"


def _needs(result: Json) -> str:
    if result.get("verdict") != "inconclusive":
        return ""
    if result.get("note"):
        return str(result["note"])
    ahead = [(result.get("more_bad"), "bad"), (result.get("more_good"), "good")]
    return " or ".join(f"{count} more {kind}" for count, kind in ahead if count is not None)


def _standing(document: Json) -> str:
    words = [paint(str(document.get("phase")))]
    if document.get("phase") in ("canarying", "awaiting-approval", "promoting"):
        wave, step = document.get("wave"), document.get("step")
        words.append(f"wave {_ordinal(wave)} step {_ordinal(step)}")
        if document.get("weight") is not None:
            words.append(f"{document['weight']} %")
        if document.get("verdict"):
            words.append(str(document["verdict"]))
    if document.get("paused"):
        words.append("paused")
    if document.get("phase") in FINAL:
        return " ".join([*words, f"- {document['reason']}"] if document.get("reason") else words)
    counts = _counts((document.get("last_look") or {}).get("results") or [])
    return " ".join([*words, f"({counts})"] if counts else words)


def _counts(results: list[Json]) -> str:
    """Bad of started attempts, for each gate on each cloud: `east 0/3, west 1/4 bad`."""
    several = len({result.get("gate") for result in results}) > 1
    parts = [
        f"{result.get('cloud')} {str(result.get('gate')) + ' ' if several else ''}"
        f"{result.get('k_fail')}/{result.get('n_fail')}"
        for result in results
    ]
    return f"{', '.join(parts)} bad" if parts else ""


def _tally(cloud: Json) -> str:
    """Of the new release's attempts: bad ones, those with a sample, all that started."""
    bad, samples, starts = ((cloud.get(key) or {}).get("canary", 0) for key in ("bad", "samples", "starts"))
    return f"{bad} bad of {samples}, {starts} started"


def _ordinal(index: Any) -> str:
    return str(index + 1) if isinstance(index, int) else "-"
