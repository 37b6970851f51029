"""Routing: which cloud, track and digest a request gets. Pure, and the same for ever for one input.

Two independent salted hashes (BLAKE2b, 64 bits): weighted rendezvous over the clouds (score
-share / ln u, the greatest wins: Wang & Ravishankar, "A Name-Based Mapping Scheme for Rendezvous"), so a lost
cloud moves only its own share; then `hash(rollout, request) < weight` for that cloud's canary, so a
step from 10 to 25 % keeps the first 10.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from math import log
from typing import NamedTuple

from lora_ops.errors import ConflictError
from lora_ops.lease import may_start
from lora_ops.state import AppState, Track

_SPACE = 2.0**64


class Route(NamedTuple):
    cloud: str
    track: Track
    digest: str


@dataclass(frozen=True, slots=True)
class Lane:
    """One cloud as the router sees it. `threshold`: the canary's weight times 2^64."""

    cloud: str
    share: float
    stable: str
    canary: str | None
    threshold: float
    open: bool


@dataclass(frozen=True, slots=True)
class Fleet:
    """What of the state routing needs, made once a state and used for every request."""

    lanes: tuple[Lane, ...]
    rollout: str | None
    lease_until: float | None

    @classmethod
    def of(
        cls, state: AppState, healthy: Mapping[str, bool] | None = None, lease_until: float | None = None
    ) -> Fleet:
        """The fleet of a state; a cloud that `healthy` does not name is taken as healthy."""
        rollout = state.rollout
        lanes = []
        for name, cloud in sorted(state.clouds.items()):
            part = rollout.clouds.get(name) if rollout is not None and rollout.phase.exposes else None
            exposed = (
                rollout is not None
                and part is not None
                and not part.promoted
                and part.wave == rollout.wave
                and rollout.release is not None
            )
            weight = part.weight if exposed and part is not None else 0
            lanes.append(
                Lane(
                    cloud=name,
                    share=cloud.share,
                    stable=cloud.stable,
                    canary=rollout.release if exposed and rollout is not None else None,
                    threshold=weight / 100 * _SPACE,
                    open=cloud.share > 0 and not cloud.drained and (healthy or {}).get(name, True),
                )
            )
        return cls(tuple(lanes), rollout.id if rollout else None, lease_until)


def route(
    request_id: str,
    fleet: Fleet,
    now: float,
    *,
    canary: bool = True,
    cloud: str | None = None,
    only: bool = False,
    avoid: Collection[str] = (),
    dark: Collection[str] = (),
) -> Route:
    """Where the request goes. `now`: the pessimistic (latest) store time, seconds since the epoch.

    `canary=False` keeps it on stable; `dark` names clouds that get nothing while another is open, `avoid`
    those of the others that it should not go to (it does, rather than nowhere); `cloud` is preferred when it
    is open and none of these, with `only` the one that it waits for. Raises ConflictError when no cloud is
    open that may take it.
    """
    lanes = [lane for lane in fleet.lanes if lane.open and not (only and lane.cloud != cloud)]
    if dark:
        lanes = [lane for lane in lanes if lane.cloud not in dark] or lanes
    if avoid:
        lanes = [lane for lane in lanes if lane.cloud not in avoid] or lanes
    if cloud is not None:
        lanes = [lane for lane in lanes if lane.cloud == cloud] or lanes
    if not lanes:
        who = f"cloud {cloud} cannot take it" if only else "no cloud can take a request: all are"
        raise ConflictError(
            f"{who}{': it is' if only else ''} drained or unhealthy.",
            "See `lora-ops cloud ls`; undrain one with `lora-ops cloud undrain NAME`.",
        )
    name = request_id.encode()
    lane = lanes[0] if len(lanes) == 1 else max(lanes, key=lambda each: _score(each, name))
    if (
        canary
        and lane.canary is not None
        and lane.threshold > 0
        and may_start(now, fleet.lease_until)
        and _hash("canary", fleet.rollout or "", name) < lane.threshold
    ):
        return Route(lane.cloud, Track.CANARY, lane.canary)
    return Route(lane.cloud, Track.STABLE, lane.stable)


def pinned(fleet: Fleet, cloud: str, track: Track, now: float) -> Route | None:
    """Where a probe that is pinned to a track goes; None when its canary may not run any more."""
    lane = next((each for each in fleet.lanes if each.cloud == cloud), None)
    if lane is None:
        return None
    if track is Track.STABLE:
        return Route(cloud, track, lane.stable)
    if lane.canary is None or not may_start(now, fleet.lease_until):
        return None
    return Route(cloud, track, lane.canary)


@lru_cache(maxsize=1024)
def _salted(salt: str, what: str) -> blake2b:
    """The hash so far: a copy of it is almost twice as fast as beginning anew for each request."""
    return blake2b(f"{salt}\0{what}\0".encode(), digest_size=8)


def _hash(salt: str, what: str, request: bytes) -> int:
    hashed = _salted(salt, what).copy()
    hashed.update(request)
    return int.from_bytes(hashed.digest(), "big")


def _score(lane: Lane, request: bytes) -> float:
    # 52 bits: the greatest hash, too, stays below 1 as a float, and its logarithm below 0.
    return -lane.share / log(((_hash("cloud", lane.cloud, request) >> 12) + 0.5) / 2.0**52)
