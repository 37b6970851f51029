"""A rollout as the API shows it: active, ended or queued, from the journal and its evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from console.events import Ended, Event, Events
from console.views import Json, iso
from lora_ops.errors import NotFoundError, nearest
from lora_ops.gates.counts import attempts_of
from lora_ops.gates.samples import Outcome, Sample
from lora_ops.gates.statistics import Verdict
from lora_ops.state import AppState, CloudState, Phase, Queued, Rollout, Track
from tasks.platform import Platform, SeenLook


@dataclass(frozen=True, slots=True)
class Found:
    """A rollout with what its documents are made of. `phase` is a Phase or `queued`."""

    rollout: Rollout
    phase: str
    clouds: Mapping[str, CloudState]
    events: list[Event]
    ended: Ended | None = None

    @property
    def over(self) -> bool:
        return self.ended is not None


def find(state: AppState, events: Events, rollout_id: str) -> Found | Queued:
    """The rollout of an id. NotFoundError names the nearest."""
    ended = events.ended(rollout_id)
    if ended is not None:
        return Found(ended.rollout, ended.phase.value, ended.clouds, events.of(rollout_id), ended)
    if state.rollout is not None and state.rollout.id == rollout_id:
        return Found(state.rollout, state.rollout.phase.value, state.clouds, events.of(rollout_id))
    for queued in state.queue:
        if queued.id == rollout_id:
            return queued
    own = events.of(rollout_id)
    if own and own[-1].kind == "rollout-overtaken":
        by = own[-1].data.get("by")
        raise NotFoundError(
            f"rollout {rollout_id} left the queue: {own[-1].reason or 'overtaken'}.",
            f"Watch {by} instead." if by else "Deploy it again.",
        )
    raise NotFoundError(f"There is no rollout `{rollout_id}`.", nearest(rollout_id, events.known()))


def newest(state: AppState, events: Events) -> str:
    """The active rollout's id, else the newest one's. NotFoundError when there was none yet."""
    if state.rollout is not None:
        return state.rollout.id
    started = events.rollouts()
    if not started:
        raise NotFoundError("There is no rollout yet.", "Start one with `lora-ops deploy --canary`.")
    return started[0]


def brief(found: Found | Queued, events: Events) -> Json:
    """A line of the list: what the journal alone knows."""
    if isinstance(found, Queued):
        return _queued(found, events.of(found.id))
    rollout, last = found.rollout, found.events[-1]
    own = [event for event in found.events if event.kind not in ("verified", "unverified")]
    return {
        "id": rollout.id,
        "release": rollout.release,
        "revision": rollout.revision or rollout.source.revision,
        "source": rollout.source.model_dump(mode="json"),
        "phase": found.phase,
        "wave": rollout.wave,
        "step": rollout.step,
        "weight": _weight(found),
        "reason": found.ended.event.reason if found.ended else own[-1].reason,
        "started": iso(_time_of(found.events, "rollout-started")),
        "updated": iso(last.time),
        "ended": iso(found.ended.event.time) if found.ended else None,
        "paused": rollout.paused and not found.over,
        "approved": rollout.approved,
        "epoch": rollout.epoch,
        "verified": _verified(found.events),
    }


def full(found: Found | Queued, events: Events, platform: Platform) -> Json:
    """The whole document, with the evidence that the store holds now."""
    if isinstance(found, Queued):
        return _queued(found, events.of(found.id))
    rollout = found.rollout
    starts, samples = platform.attempts(rollout.id)
    looks = platform.looks(rollout.id)
    last = looks[-1] if looks else None
    lease = None if found.over else platform.lease_until(rollout)
    tally = _tally(attempts_of(starts, samples).values(), rollout)
    document = brief(found, events)
    if last is not None and not found.over:
        document["updated"] = iso(max(found.events[-1].time, last.time))
    return {
        **document,
        "clouds": {
            name: {
                "weight": 0 if found.over else part.weight,
                "stable": found.clouds[name].stable if name in found.clouds else part.before,
                "canary": rollout.release,
                "promoted": part.promoted,
                "wave": part.wave,
                "plan": list(part.plan),
                **tally[name],
            }
            for name, part in rollout.clouds.items()
        },
        "verdict": last.look.verdict.value if last else None,
        "last_look": look(last) if last else None,
        "lease_until": iso(lease),
        **_durations(found, platform.sample_times(rollout.id), looks),
    }


def look(seen: SeenLook) -> Json:
    body = seen.look.model_dump(mode="json")
    return {"n": seen.n, "time": iso(seen.time), **body}


def history(events: Iterable[Event]) -> list[Json]:
    return [
        {
            "seq": event.seq,
            "time": iso(event.time),
            "kind": event.kind,
            "actor": event.actor,
            "reason": event.reason,
            "data": event.data,
            "evidence": event.evidence,
        }
        for event in events
    ]


def _queued(queued: Queued, events: list[Event]) -> Json:
    return {
        "id": queued.id,
        "release": queued.source.release,
        "revision": queued.source.revision,
        "source": queued.source.model_dump(mode="json"),
        "phase": "queued",
        "reason": events[-1].reason if events else "",
        "started": None,
        "updated": iso(events[-1].time) if events else None,
        "ended": None,
    }


def _weight(found: Found) -> int:
    """The greatest share of requests that the canary gets now on a cloud of its wave, in percent."""
    if found.over or not found.rollout.phase.exposes:
        return 0
    return max(found.rollout.clouds[name].weight for name in found.rollout.wave_clouds)


def _verified(events: Iterable[Event]) -> dict[str, str]:
    return {event.data["cloud"]: event.kind for event in events if event.kind in ("verified", "unverified")}


def _time_of(events: Iterable[Event], kind: str) -> float | None:
    return next((event.time for event in events if event.kind == kind), None)


def _tally(attempts: Iterable[Any], rollout: Rollout) -> dict[str, dict[str, dict[str, int]]]:
    """Per cloud and track: attempts that count as started, those with a counted sample, and the bad ones."""
    zero = {track.value: 0 for track in Track}
    tally = {name: {"starts": {**zero}, "samples": {**zero}, "bad": {**zero}} for name in rollout.clouds}
    for attempt in attempts:
        row = tally.get(attempt.cloud)
        if row is None or attempt.outcome is Outcome.UNCOUNTED:
            continue
        track = (Track.CANARY if attempt.digest == rollout.release else Track.STABLE).value
        row["starts"][track] += 1
        row["samples"][track] += attempt.outcome in (Outcome.GOOD, Outcome.BAD)
        row["bad"][track] += attempt.outcome is Outcome.BAD
    return tally


def _durations(found: Found, timed: list[tuple[float, Sample]], looks: list[SeenLook]) -> Json:
    """Seconds on the store's clock from the first, and from the deciding, bad sample to the rollback.

    The deciding sample is the last bad one that the first failed look counted on the cloud that it failed;
    without a failed look (a rollback by hand, or at a deadline) there is none.
    """
    first = deciding = None
    if found.ended is not None and found.ended.phase is Phase.ROLLED_BACK:
        end = found.ended.event.time
        bad = [
            (time, sample.cloud)
            for time, sample in timed
            if sample.digest == found.rollout.release and sample.outcome is Outcome.BAD and time <= end
        ]
        if bad:
            first = end - bad[0][0]
        failed = next((seen.look for seen in looks if seen.look.verdict is Verdict.FAIL), None)
        moments = []
        for result in failed.results if failed is not None else ():
            here = [time for time, cloud in bad if cloud == result.cloud][: result.k_fail]
            if result.verdict is Verdict.FAIL and here:
                moments.append(here[-1])
        if moments:
            deciding = end - max(moments)
    return {"first_failure_to_rollback_s": first, "deciding_sample_to_rollback_s": deciding}
