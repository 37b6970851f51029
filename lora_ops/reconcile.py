"""What the reconciler does next with one request: a pure decision from its journal and what is seen.

A canary attempt that fails costs its user nothing: the trainer's or the platform's fault means another
attempt on stable, no capacity means another cloud, the user's fault is final at once if stable says so (a
release on trial that wrongly blames its users must not cost them, so stable is asked again). Durations are
in seconds on the reconciler's own monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lora_ops.gates.samples import COUNTED
from lora_ops.pods import PodSight, Trouble
from lora_ops.request import Attempt, AttemptState, RequestState, ResultState
from lora_ops.state import Track

ABANDON_AFTER_S = 60.0
MOST_ATTEMPTS = 24  # superseded ones included: a bound on moving about
MOST_SPILLS = 4  # then it waits its turn: a long queue everywhere must not use its attempts up
FINAL_CAUSES = frozenset({"user_error"})
#: EX_TEMPFAIL of sysexits.h: the exit code of a process that could not reach Prefect.
PREFECT_AWAY = 75
_POD_CAUSES: dict[Trouble | None, str] = {
    Trouble.OUT_OF_MEMORY: "out_of_memory",
    Trouble.EVICTED: "evicted",
    Trouble.DELETED: "evicted",
    Trouble.NODE_LOST: "lost_worker",
    Trouble.DEADLINE: "deadline",
}


class Run(StrEnum):
    """A flow run as Prefect shows it, in the words that matter here."""

    NONE = "none"
    WAITING = "waiting"
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class Worker(StrEnum):
    """Whether the attempt's worker was seen alive after the run ended or fell silent."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines of attempts, from lora-ops.yaml's `requests` section."""

    start_deadline_s: float = 300.0
    heartbeat_deadline_s: float = 120.0
    spill_after_s: float = 120.0
    pull_deadline_s: float = 60.0
    dark_after_s: float = 20.0
    settle_s: float = 5.0
    worker_verdict_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of the attempt under way. `run_for_s`: how long its run has been in
    that state. `said`: the cause that the attempt told through Prefect when it could not reach the store.
    `moving`: its cloud is drained, and what runs there goes elsewhere.

    On a kubernetes cloud (`cluster`): `dark_for_s`, how long its API server has been silent; `polled`,
    whether its worker asks Prefect for work, a second witness of a region that lives; `pod`, what it
    said of the attempt's pod while it answered, unchanged for `pod_for_s`; None when there is no Job."""

    marker_age_s: float = 0.0
    run: Run = Run.UNKNOWN
    run_for_s: float = 0.0
    run_detail: str = ""
    said: str | None = None
    started: bool = False
    heartbeat_age_s: float | None = None
    worker: Worker = Worker.UNKNOWN
    canary_open: bool = True
    withdrawn: bool = False
    other_cloud_open: bool = False
    moving: bool = False
    dark_for_s: float = 0.0
    polled: bool = False
    cluster: bool = False
    pod: PodSight | None = None
    pod_for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Nothing:
    pass


@dataclass(frozen=True, slots=True)
class CreateRun:
    pass


@dataclass(frozen=True, slots=True)
class StartAttempt:
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class EndAttempt:
    """Create the sample, journal the end, cancel the run: in this order."""

    state: AttemptState
    cause: str
    message: str


@dataclass(frozen=True, slots=True)
class Evict:
    """Ask the attempt to save a checkpoint and to end; it says so itself."""


@dataclass(frozen=True, slots=True)
class Finish:
    state: ResultState
    cause: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Abandon:
    pass


@dataclass(frozen=True, slots=True)
class Close:
    """The request has its result: only its marker is left to delete."""


Action = Nothing | CreateRun | StartAttempt | EndAttempt | Evict | Finish | Abandon | Close


def decide(request: RequestState, sight: Sight, limits: Limits) -> Action:
    """The next action; doing it twice, or by two reconcilers, does no harm."""
    if request.result is not None:
        return Close()
    if request.order is None:
        return Abandon() if sight.marker_age_s > ABANDON_AFTER_S else Nothing()
    if request.current is not None:
        return _under_way(request, sight, limits)
    return _between(request)


def _between(request: RequestState) -> Action:
    """No attempt is under way: start one, or end the request."""
    order, attempts = request.order, request.attempts
    assert order is not None
    last = attempts[-1] if attempts else None
    if request.cancel:
        return Finish(ResultState.CANCELLED, "cancelled", "Cancelled on request.")
    if last is None:
        return StartAttempt()
    if not last.on_trial and last.state is AttemptState.FAILED and last.cause in FINAL_CAUSES:
        return Finish(ResultState.FAILED, last.cause, last.message)
    if order.probe is not None:
        state = ResultState.CANCELLED if last.state is AttemptState.SUPERSEDED else ResultState.FAILED
        return Finish(state, last.cause, last.message)
    failures = sum(not each.on_trial and _counts_against_it(each) for each in attempts)
    if failures >= order.max_attempts or len(attempts) >= MOST_ATTEMPTS:
        return Finish(
            ResultState.FAILED, last.cause, f"{len(attempts)} attempts failed; the last: {last.message}"
        )
    avoid = {
        each.cloud for each in attempts[-2:] if each.state is AttemptState.LOST or each.cause == "no_capacity"
    }
    return StartAttempt(avoid=frozenset(avoid))


def _counts_against_it(attempt: Attempt) -> bool:
    """A failure of the training; what the platform lost costs no try (MOST_ATTEMPTS bounds it), nor does an
    image that a registry does not give: on stable that is the registry's fault."""
    if attempt.state is AttemptState.FAILED:
        return True
    mine = attempt.cause in COUNTED and attempt.cause != "image_pull"
    return attempt.state is AttemptState.LOST and mine


def _under_way(request: RequestState, sight: Sight, limits: Limits) -> Action:
    attempt = request.current
    assert attempt is not None
    on_canary = attempt.track is Track.CANARY
    if request.cancel:
        return EndAttempt(AttemptState.SUPERSEDED, "cancelled", "Cancelled on request.")
    if sight.withdrawn:
        return EndAttempt(AttemptState.SUPERSEDED, "superseded", "Its release was rolled back.")
    if on_canary and not sight.started and not sight.canary_open:
        return EndAttempt(
            AttemptState.SUPERSEDED, "superseded", "The canary's lease ran out before it started."
        )
    dark = sight.dark_for_s > limits.dark_after_s and (sight.started or not sight.polled)
    if dark and not _beats(sight, limits):
        return _lost("dead_region", f"{attempt.cloud} has not answered for {sight.dark_for_s:.0f} s.")
    if sight.moving and not sight.started:
        return EndAttempt(AttemptState.SUPERSEDED, "no_capacity", f"{attempt.cloud} was drained.")
    if sight.moving and _beats(sight, limits):
        return Evict()
    if sight.pod is not None and (end := _pod_end(request, sight, sight.pod, limits)) is not None:
        return end
    match sight.run:
        case Run.UNKNOWN:
            return Nothing()
        case Run.NONE:
            return CreateRun()
        case Run.WAITING:
            may_spill = sight.other_cloud_open and _spills(request) < MOST_SPILLS
            if sight.run_for_s > limits.spill_after_s and may_spill:
                return EndAttempt(
                    AttemptState.SUPERSEDED,
                    "no_capacity",
                    f"No free slot on {attempt.cloud} for {sight.run_for_s:.0f} s; it goes to another cloud.",
                )
            return Nothing()
        case Run.PENDING:
            waits = sight.pod is not None and sight.pod.trouble is Trouble.UNSCHEDULABLE
            if sight.run_for_s > limits.start_deadline_s and not waits:
                why = f" {sight.pod.message}" if sight.pod is not None else ""
                return _lost("lost_worker", f"It did not start within {limits.start_deadline_s:.0f} s.{why}")
            return Nothing()
        case Run.RUNNING:
            return _running(sight, limits)
        case Run.ENDED | Run.CANCELLED:
            return _ended(sight, limits)


def _spills(request: RequestState) -> int:
    """How often it went elsewhere, or tried again, for want of room."""
    return sum(each.cause in ("no_capacity", "unschedulable") for each in request.attempts)


def _beats(sight: Sight, limits: Limits) -> bool:
    """Whether the attempt itself is heard of, whatever its cloud's API says."""
    age = sight.heartbeat_age_s
    return sight.started and age is not None and age <= min(limits.dark_after_s, limits.heartbeat_deadline_s)


def _pod_end(request: RequestState, sight: Sight, pod: PodSight, limits: Limits) -> EndAttempt | None:
    """The end that its pod shows and nobody else tells; Prefect leaves what never starts pending for ever."""
    match pod.trouble:
        case Trouble.IMAGE_PULL:
            # A registry that is away must not use up the attempts of whoever waits for it.
            before = sum(each.cause == "image_pull" for each in request.attempts)
            patience = limits.pull_deadline_s * 2 ** min(before, 6)
            return _lost("image_pull", pod.message) if sight.pod_for_s > patience else None
        case Trouble.CONFIG:
            return _lost("misconfigured", pod.message) if sight.pod_for_s > limits.pull_deadline_s else None
        case Trouble.UNSCHEDULABLE:
            if _spills(request) >= MOST_SPILLS:
                return None  # full everywhere: it keeps its place, up to its Job's own deadline
            patience = limits.spill_after_s if sight.other_cloud_open else limits.start_deadline_s
            return _lost("unschedulable", pod.message) if sight.pod_for_s > patience else None
        case Trouble.NODE_LOST if not pod.over:
            silent = sight.pod_for_s > limits.dark_after_s and not _beats(sight, limits)
            return _lost("lost_worker", pod.message) if silent else None
    if not pod.over or sight.pod_for_s < limits.settle_s:
        return None
    if sight.run is Run.RUNNING and _beats(sight, limits):
        return None  # Prefect may start two Jobs for a run: this one found the other at work
    if sight.run not in (Run.ENDED, Run.CANCELLED) and sight.pod_for_s < 3 * limits.settle_s:
        return None  # Prefect may still hear why
    if sight.said is not None:
        return _lost(sight.said, f"Its process ended without a word to the store. {pod.message}".strip())
    if pod.trouble is Trouble.EXITED and pod.exit_code == PREFECT_AWAY:
        return _lost("prefect_away", pod.message)
    unheard = "no_heartbeat" if sight.started else "exit_before_contact"
    return _lost(_POD_CAUSES.get(pod.trouble, unheard), pod.message or "Its pod ended without a result.")


def _running(sight: Sight, limits: Limits) -> Action:
    if not sight.started:
        if sight.run_for_s > limits.start_deadline_s:
            return _silent(sight, "exit_before_contact", "It runs, but never made contact with the store.")
        return Nothing()
    answers = sight.cluster and sight.dark_for_s <= limits.settle_s
    gone = answers and sight.pod is None and sight.pod_for_s > 3 * limits.settle_s
    if gone and not _beats(sight, limits):
        return _lost("evicted", "Its Job is gone from the cluster.")
    age, deadline = sight.heartbeat_age_s, limits.heartbeat_deadline_s
    if age is None:  # it started and was never heard of since
        age, deadline = sight.run_for_s, limits.start_deadline_s + limits.heartbeat_deadline_s
    if age > deadline:
        return _silent(sight, "no_heartbeat", f"No heartbeat for {age:.0f} s.")
    return Nothing()


def _ended(sight: Sight, limits: Limits) -> Action:
    """Prefect says that the run is over, and the attempt said nothing."""
    if sight.run_for_s < limits.settle_s:
        return Nothing()
    if sight.run is Run.CANCELLED:
        return EndAttempt(AttemptState.SUPERSEDED, "cancelled", "Its flow run was cancelled in Prefect.")
    if sight.worker is Worker.UNKNOWN and sight.run_for_s < limits.worker_verdict_s:
        return Nothing()
    told = f" Prefect: {sight.run_detail}" if sight.run_detail else ""
    if sight.cluster and sight.pod is None and sight.said is None:
        if sight.dark_for_s > limits.settle_s:
            return Nothing()  # it answers again, or it is dark
        return _lost("evicted", f"Its Job is gone from the cluster.{told}")
    if sight.said is not None:
        return _lost(sight.said, f"Its process ended without a word to the store.{told}")
    if sight.started:
        return _silent(sight, "no_heartbeat", f"Its process ended without a result.{told}")
    return _silent(sight, "exit_before_contact", f"Its process ended before it made contact.{told}")


def _silent(sight: Sight, cause: str, message: str) -> Action:
    """A silent death counts against the release only when its worker was seen alive afterwards."""
    if sight.worker is Worker.ALIVE:
        return _lost(cause, message)
    return _lost("lost_worker", f"{message} Its worker is gone too.")


def _lost(cause: str, message: str) -> EndAttempt:
    return EndAttempt(AttemptState.LOST, cause, message)
