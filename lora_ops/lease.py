"""Leases: how long a canary may receive requests, on the store's clock (seconds since the epoch).

A lease begins with the step and is renewed only by a look that was not `fail` and whose providers
all answered, from the moment when the look's evidence was gathered. With nobody renewing it, it runs out,
and the canary gets nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterable

from lora_ops.state import Phase, Rollout


def lease_until(step_began: float, good_looks: Iterable[float], lease_s: float) -> float:
    """When the lease ends: `lease_s` after the newest of the step's event and its good looks."""
    return max([step_began, *good_looks]) + lease_s


def renews_from(
    look_epoch: int, written: float, gathered: float | None, epoch: int, epoch_began: float | None
) -> float | None:
    """From when a look renews the lease: from when its evidence was gathered, however late it was written.

    None for a look that is fenced: a flow of an older epoch wrote it when `epoch` had begun already (in
    doubt, too: the store's clock may tick in whole seconds). `gathered`: None in looks of old.
    """
    if look_epoch < epoch and (epoch_began is None or written >= epoch_began):
        return None
    return written if gathered is None else min(written, gathered)


def may_start(latest_now: float, until: float | None) -> bool:
    """Whether a canary attempt may start: the pessimistic end of `now` lies before the lease's end."""
    return until is not None and latest_now < until


def canary_open(rollout: Rollout | None, rollout_id: str, cloud: str, digest: str) -> bool:
    """Whether the rollout still gives its canary requests on this cloud (the lease comes on top)."""
    if rollout is None or rollout.id != rollout_id or rollout.release != digest:
        return False
    part = rollout.clouds.get(cloud)
    return rollout.phase.exposes and part is not None and part.wave <= rollout.wave


def due(age_of_newest_s: float, lease_s: float, counts_changed: bool) -> bool:
    """Whether a look must be written: the counts changed, or half of the lease is gone."""
    return counts_changed or age_of_newest_s >= lease_s / 2


def needs_lease(phase: Phase) -> bool:
    return phase in (Phase.CANARYING, Phase.AWAITING_APPROVAL)
