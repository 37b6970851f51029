"""A rollout's own small trainings: probes that judge it, and one-step probes that verify a pointer."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

import yaml

from flows.submit import submit
from lora_ops import ids, keys
from lora_ops.errors import ObjectMissing
from lora_ops.gates.counts import RATIOS
from lora_ops.request import Pin, RequestState
from lora_ops.state import Rollout, Track
from tasks.platform import Platform


def probe_key(rollout_id: str) -> str:
    """The probe's config, frozen when the rollout was validated."""
    return f"{keys.rollout(rollout_id)}/probe.yaml"


def derived_id(rollout_id: str, what: str) -> str:
    """One request id for one purpose of a rollout, so that submitting it again finds it."""
    bits = int.from_bytes(hashlib.blake2b(f"{rollout_id}/{what}".encode(), digest_size=4).digest(), "big")
    return ids.new_id(ids.REQUEST, ids.created_at(rollout_id), bits)


@dataclass(slots=True)
class Prober:
    """Keeps `parallel` probes under way on each cloud of the wave, until nobody asks for more."""

    platform: Platform
    next_n: dict[str, int] = field(default_factory=dict)
    open: dict[str, list[str]] = field(default_factory=dict)

    def keep(self, rollout: Rollout, decided: Collection[str] = ()) -> int:
        """Submit what is missing on clouds that are not `decided`; how many probes were submitted."""
        policy = rollout.policy.probes
        if policy is None or rollout.paused:
            return 0
        ratios = [gate for gate in rollout.policy.gates if gate.metric in RATIOS]
        submitted = 0
        for cloud in sorted(set(rollout.wave_clouds) - set(decided)):
            pairs = any(gate.covers(cloud) for gate in ratios)
            pending = [
                each for each in self.open.get(cloud, []) if self.platform.request(each).result is None
            ]
            while len(pending) < policy.parallel * (2 if pairs else 1):
                n = self.next_n.get(cloud, 0)
                if n >= policy.max_per_cloud:
                    break
                self.next_n[cloud] = n + 1
                made = self._submit(rollout, cloud, n, pairs)
                pending += [state.id for state in made if state.result is None]
                submitted += len(made)
            self.open[cloud] = pending
        return submitted

    def _submit(self, rollout: Rollout, cloud: str, n: int, pairs: bool) -> list[RequestState]:
        marker = f"{rollout.id}/{cloud}-{n}"
        text = _changed(self.platform, rollout.id, seed=n)
        tracks = (Track.CANARY, Track.STABLE) if pairs else (Track.CANARY,)
        return [
            submit(
                self.platform,
                text,
                source="probe.yaml",
                cwd="/",
                name=f"probe {cloud} {n} {track.value}",
                pin=Pin(cloud=cloud, track=track),
                probe=marker,
                request_id=derived_id(rollout.id, f"probe/{cloud}/{n}/{track.value}"),
                max_attempts=1,
            )
            for track in tracks
        ]


def submit_verification(platform: Platform, rollout_id: str, cloud: str, turn: str) -> RequestState | None:
    """The one-step probe that shows where the pointer of a cloud really leads; None without a probe config.

    `turn`: which pointer is verified (`promoted` or `restored`), since a rollout may move it twice.
    """
    request_id = derived_id(rollout_id, f"verify/{cloud}/{turn}")
    known = platform.request(request_id)
    if known.order is not None:
        return known
    try:
        text = _changed(platform, rollout_id, max_steps=1)
    except ObjectMissing:
        return None
    return submit(
        platform,
        text,
        source="probe.yaml",
        cwd="/",
        name=f"verify {cloud}",
        canary=False,
        pin=Pin(cloud=cloud),
        verifies=f"{rollout_id}/{turn}",
        request_id=request_id,
        max_attempts=4,
    )


def _changed(platform: Platform, rollout_id: str, **changes: int) -> str:
    document = yaml.safe_load(platform.store.get(probe_key(rollout_id)).data)
    document.update(changes)
    return yaml.safe_dump(document, sort_keys=False)
