"""`lora-ops rollout show|rollback|abort --store URL`: on the journal itself, with serve and Prefect away."""

from __future__ import annotations

import time
from typing import Any

from console.events import Events
from console.rollout_views import find, full, newest
from console.views import iso
from lora_ops.errors import ConfigError
from lora_ops.rollout import apply
from tasks.platform import Platform
from tasks.store import open_store


def show(store: str, rollout: str | None) -> dict[str, Any]:
    """The rollout's document as the API gives it; the newest one when none is named."""
    platform = _platform(store, "lora-ops")
    events = Events(platform)
    state = events.refresh()
    document = full(find(state, events, rollout or newest(state, events)), events, platform)
    return {**document, "now": iso(time.time())}


def rollback(store: str, rollout: str | None, *, reason: str, actor: str, dry_run: bool) -> dict[str, Any]:
    """Journal `rolled-back`: the pointer is back on stable with this one write."""
    return _end(store, "rolled-back", rollout, reason=reason, actor=actor, dry_run=dry_run)


def abort(store: str, rollout: str | None, *, reason: str, actor: str, dry_run: bool) -> dict[str, Any]:
    """Journal `aborted`: the pointer is back on stable with this one write."""
    return _end(store, "aborted", rollout, reason=reason, actor=actor, dry_run=dry_run)


def _end(
    store: str, kind: str, rollout: str | None, *, reason: str, actor: str, dry_run: bool
) -> dict[str, Any]:
    platform = _platform(store, actor)
    events = Events(platform)
    state = events.refresh()
    rollout_id = rollout or newest(state, events)
    find(state, events, rollout_id)
    why = reason or f"{kind} by {actor}, with --store"
    data = {"rollout": rollout_id, "reason": why}
    if dry_run:
        apply(state, kind, data, state.seq + 1)
    else:
        platform.record(kind, data, reason=why, actor=actor)
    return show(store, rollout_id)


def _platform(url: str, actor: str) -> Platform:
    """The one app of the store; the spec's app when there are several."""
    store = open_store(url, prove=True)
    apps = store.list_folders("journal")
    if not apps:
        raise ConfigError(f"{url} holds no journal of lora-ops.", "Name the store of lora-ops.yaml.")
    if len(apps) > 1:
        from cli.local.platform import find_local

        wanted = find_local().spec.app
        if wanted not in apps:
            raise ConfigError(
                f"{url} holds the apps {', '.join(apps)}.", "Name one of them as `app` in lora-ops.yaml."
            )
        return Platform(store, wanted, actor)
    return Platform(store, apps[0], actor)
