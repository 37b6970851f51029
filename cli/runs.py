"""`lora-ops runs ls | show | logs | watch | cancel | retry`."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import Annotated, Any

import typer

from cli import follow
from cli.session import Session
from cli.text import ago, paint, pairs, short, table
from lora_ops.errors import NotFoundError

Json = dict[str, Any]
RequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="Its id.", show_default=False)]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=0,
        help="Stop following after so long (exit 101).",
        show_default=False,
    ),
]
FINAL = {"succeeded": 0, "failed": 100, "cancelled": 103}
NOT_FINISHED = 101
NOT_FOUND = 102


def ls(
    session: Session,
    state: Annotated[
        str | None,
        typer.Option("--state", help="Only those: waiting, running, succeeded, ...", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
    probes: Annotated[bool, typer.Option("--probes", help="Rollouts' probes too.")] = False,
) -> None:
    """List the requests, the newest first."""
    answer = session.api.get("/requests", state=state, limit=limit, probes=int(probes))
    rows = [_row(item, session.api.now) for item in answer["items"]]
    heads = ["REQUEST", "NAME", "STATE", "TRIES", "ON", "PROGRESS", "AGE"]
    empty = "No request: submit one with `lora-ops train CONFIG`."
    session.emit(answer, table(heads, rows, empty), [item["id"] for item in answer["items"]])


def show(session: Session, request: RequestId) -> None:
    """One request: attempts, progress, result."""
    document = session.api.get(f"/requests/{request}")
    session.emit(document, picture(document, session.api.now), [document["id"]])


def logs(
    session: Session,
    request: RequestId,
    follow_on: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the request ends.")] = False,
) -> None:
    """What the newest attempt printed. With -f, Ctrl-C only detaches (exit 130)."""
    log = Log(session, request)
    try:
        while True:
            ended = not follow_on or session.api.get(f"/requests/{request}").get("state") in FINAL
            log.read_on()
            if ended:
                break
            time.sleep(follow.EVERY_S)
    except KeyboardInterrupt:
        session.note(f"\ndetached: it goes on. Come back: lora-ops runs logs -f {request}")
        raise typer.Exit(follow.DETACHED) from None
    if session.as_json:
        document = {"id": request, "text": "".join(log.chunks), "next": log.position, "dropped": log.dropped}
        session.emit(document, [])


class Log:
    """The output of a request's attempts, as far as it was read: one attempt to its end, then the next."""

    def __init__(self, session: Session, request: str) -> None:
        self.session = session
        self.request = request
        self.attempt: int | None = None
        self.position = self.dropped = 0
        self.chunks: list[str] = []

    def read_on(self) -> None:
        """What came since the last time."""
        answer = self._get(after=self.position)
        newest = answer.get("attempt")
        if self.attempt is None or newest is None or newest == self.attempt:
            self._take(answer)
        else:
            self._take(self._get(after=self.position, attempt=self.attempt))
            for n in range(self.attempt + 1, newest + 1):
                self.session.note(f"attempt {n}:")
                self._take(self._get(after=0, attempt=n))
        self.attempt = newest

    def _get(self, **where: int) -> Json:
        return self.session.api.get(f"/requests/{self.request}/logs", **where)

    def _take(self, answer: Json) -> None:
        text, lost = str(answer["text"]), int(answer.get("dropped") or 0)
        self.position = int(answer["next"])
        self.dropped += lost
        if lost:
            self.session.note(f"({lost} bytes of the log are not kept any more)")
        if self.session.as_json:
            self.chunks.append(text)
        else:
            sys.stdout.write(text)
            sys.stdout.flush()


def watch(session: Session, request: RequestId, timeout: Timeout = None) -> int:
    """Follow a request to its end. Ctrl-C only detaches (exit 130).

    Exits 0 succeeded, 100 failed, 101 not finished in --timeout, 102 not found, 103 cancelled.
    """
    return follow_request(session, request, timeout)


def cancel(
    session: Session,
    request: RequestId,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why, for the journal.")] = "",
) -> None:
    """Cancel a request. Its checkpoints stay."""
    session.confirm(f"Cancel {request}?", destructive=True)
    document = session.api.post(f"/requests/{request}/cancel", session.decision(reason))
    session.emit(
        document, [f"{'would cancel' if session.dry_run else 'cancel:'} {one_line(document)}"], [request]
    )


def retry(
    session: Session,
    request: RequestId,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the new request to its end.")] = False,
    timeout: Timeout = None,
) -> int:
    """Submit a finished request anew: a new request that names the old one."""
    document = session.api.post(f"/requests/{request}/retry", session.decision())
    if session.dry_run:
        session.emit(document, [f"would submit anew {one_line(document)}"], [request])
        return 0
    name = str(document["id"])
    if wait:
        session.note(f"request {name}")
        return follow_request(session, name, timeout)
    session.emit(document, [f"submitted {name}, which retries {request}: lora-ops runs watch {name}"], [name])
    return 0


def follow_request(session: Session, request: str, timeout_s: float | None) -> int:
    """Follow to the end, print the result, and give the exit status."""
    view = follow.View(
        fetch=lambda: session.api.get(f"/requests/{request}"),
        done=lambda document: document.get("state") in FINAL,
        line=one_line,
        lines=lambda document: picture(document, session.api.now),
        come_back=f"Come back: lora-ops runs watch {request}; end it: lora-ops runs cancel {request}",
    )
    try:
        document = follow.follow(session, view, timeout_s)
    except NotFoundError as error:
        raise NoSuchRequest(error.message, error.hint, error.details) from error
    session.emit(document, [], [request])
    fault = document.get("error")
    if fault and not session.as_json:
        session.note(f"error: {fault.get('message')}")
        if fault.get("hint"):
            session.note(f"hint: {fault['hint']}")
    return FINAL.get(str(document.get("state")), NOT_FINISHED)


class NoSuchRequest(NotFoundError):
    """A request that is followed does not exist: these commands have exit codes of their own."""

    exit_code = NOT_FOUND
    kind = "no-such-request"


def one_line(document: Json) -> str:
    """Where a request stands, in one line."""
    words = [str(document.get("id")), paint(str(document.get("state")))]
    attempts = document.get("attempts") or []
    if attempts:
        newest = attempts[-1]
        words.append(f"attempt {newest.get('n')} on {newest.get('cloud')}/{newest.get('track')}")
        if newest.get("cause"):
            words.append(f"({newest['cause']})")
    if document.get("state") not in FINAL:
        words.append(_progress(document))
    return " ".join(word for word in words if word)


def picture(document: Json, now: datetime) -> list[str]:
    """A request as people see it."""
    lines = [f"request {one_line(document)}", f"name    {document.get('name') or '-'}"]
    lines.append(f"submitted {ago(document.get('submitted'), now) or '-'} ago")
    rows = [
        [
            attempt.get("n"),
            f"{attempt.get('cloud')}/{attempt.get('track')}",
            short(attempt.get("digest")),
            attempt.get("state"),
            attempt.get("cause"),
            ago(attempt.get("started"), now),
            attempt.get("message"),
        ]
        for attempt in document.get("attempts") or []
    ]
    heads = ["ATTEMPT", "ON", "RELEASE", "STATE", "CAUSE", "AGE", "MESSAGE"]
    lines += ["", *table(heads, rows, "No attempt yet.")]
    for key in ("progress", "result", "error"):
        if document.get(key):
            lines += ["", f"{key}:", *pairs(document[key], "  ")]
    lineage = {
        key: document.get(key) for key in ("dataset", "dataset_digest", "config_digest", "retry_of", "probe")
    }
    return [*lines, "", *pairs(lineage)]


def _row(item: Json, now: datetime) -> list[Any]:
    attempts = item.get("attempts") or []
    on = f"{attempts[-1].get('cloud')}/{attempts[-1].get('track')}" if attempts else None
    age = ago(item.get("submitted"), now)
    return [item.get("id"), item.get("name"), item.get("state"), len(attempts), on, _progress(item), age]


def _progress(document: Json) -> str:
    progress = document.get("progress") or {}
    if progress.get("step") is None:
        return ""
    text = f"step {progress['step']}/{progress.get('steps') or '?'}"
    if progress.get("loss") is not None:
        text += f" loss {progress['loss']:.4g}"
    if progress.get("eta_s") is not None:
        text += f" {progress['eta_s']:.0f} s left"
    return text
