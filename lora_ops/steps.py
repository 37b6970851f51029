"""What the deploy flow does next with the active rollout: a pure decision from its state and sight."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lora_ops.state import IMAGE, Phase, Rollout


class Do(StrEnum):
    VALIDATE = "validate"
    BUILD = "build"
    SELF_CHECK = "self-check"
    DISTRIBUTE = "distribute"
    START_STEP = "start-step"
    LOOK = "look"
    REQUEST_APPROVAL = "request-approval"
    PROMOTE_WAVE = "promote-wave"
    HOLD = "hold"
    FINISH = "finish"
    PAUSE = "pause"
    ROLL_BACK = "roll-back"


@dataclass(frozen=True, slots=True)
class Sight:
    """What the flow sees: the newest look's verdict, samples since the step began, and durations (s).

    `decided`: the clouds of the wave that need no further sample.
    """

    verdict: str | None = None
    summary: str = ""
    fresh: Mapping[str, int] = field(default_factory=dict)
    decided: frozenset[str] = frozenset()
    in_step_s: float = 0.0
    in_phase_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Next:
    do: Do
    reason: str = ""
    wave: int = 0
    step: int = 0


def next_step(rollout: Rollout, sight: Sight) -> Next:
    """The next idempotent step. A failed gate rolls back in every phase that exposes the release.

    A paused rollout still validates and builds, looks and rolls back, but nothing more is exposed.
    """
    match rollout.phase:
        case Phase.VALIDATING:
            return Next(Do.VALIDATE)
        case Phase.BUILDING:
            return _building(rollout)
    if sight.verdict == "fail":
        return Next(Do.ROLL_BACK, sight.summary)
    match rollout.phase:
        case Phase.CANARYING:
            return _canarying(rollout, sight)
        case Phase.AWAITING_APPROVAL:
            if (rollout.approved or rollout.forced) and not rollout.paused:
                return Next(Do.PROMOTE_WAVE, "approved", rollout.wave)
            return Next(Do.LOOK)
        case Phase.PROMOTING:
            return _promoting(rollout, sight)
        case Phase.HOLDING:
            if sight.in_phase_s >= rollout.policy.hold_s and not rollout.paused:
                return Next(Do.FINISH, "the hold ended and no gate failed")
            return Next(Do.LOOK)
        case _:
            raise ValueError(f"rollout {rollout.id} is {rollout.phase.value}: nothing is left to do")


def kept(rollout: Rollout, failing: Collection[str]) -> list[str]:
    """The clouds that stay on the release when it is rolled back: with `failed_wave: keep`, those of earlier
    waves on which no gate fails. `failing`: clouds with a failed gate."""
    if rollout.policy.failed_wave != "keep":
        return []
    earlier = {name for name, cloud in rollout.clouds.items() if cloud.promoted and cloud.wave < rollout.wave}
    return sorted(earlier - set(failing))


def passed(rollout: Rollout, sight: Sight) -> bool:
    """Whether the step's gates, fresh samples and time are all there."""
    policy = rollout.policy
    fresh = all(sight.fresh.get(name, 0) >= policy.fresh_samples for name in rollout.wave_clouds)
    first = rollout.step == 0
    return sight.verdict == "pass" and (fresh or first) and sight.in_step_s >= policy.min_time_s


def _building(rollout: Rollout) -> Next:
    if rollout.release is None:
        return Next(Do.BUILD)
    # A bundle is checked here, where it was built; an image on the nodes that will run it.
    order = [(rollout.self_checked, Do.SELF_CHECK), (rollout.distributed, Do.DISTRIBUTE)]
    for done, what in reversed(order) if rollout.source.kind == IMAGE else order:
        if not done:
            return Next(what)
    if rollout.paused:
        return Next(Do.LOOK)
    return Next(Do.START_STEP, "the release is on every cloud", 0, 0)


def _canarying(rollout: Rollout, sight: Sight) -> Next:
    if rollout.paused:
        return Next(Do.LOOK)
    if rollout.forced:
        return Next(Do.PROMOTE_WAVE, "promoted by hand", rollout.wave)
    if passed(rollout, sight):
        if rollout.step < rollout.last_step:
            return Next(Do.START_STEP, sight.summary, rollout.wave, rollout.step + 1)
        if rollout.policy.approval and not rollout.approved:
            return Next(Do.REQUEST_APPROVAL, sight.summary, rollout.wave)
        return Next(Do.PROMOTE_WAVE, sight.summary, rollout.wave)
    if sight.in_step_s > rollout.policy.deadline_s:
        reason = f"undecided after {rollout.policy.deadline_s:.0f} s: {sight.summary or 'no data'}"
        return Next(Do.PAUSE if rollout.policy.undecided == "pause" else Do.ROLL_BACK, reason)
    return Next(Do.LOOK)


def _promoting(rollout: Rollout, sight: Sight) -> Next:
    """The wave is promoted; the next one starts when this one is verified by effect, or after its time."""
    open_clouds = [name for name in rollout.wave_clouds if name not in rollout.verified]
    if rollout.paused or (open_clouds and sight.in_phase_s < rollout.policy.verify_timeout_s):
        return Next(Do.LOOK)
    if rollout.wave + 1 < len(rollout.policy.waves):
        return Next(Do.START_STEP, "the wave is promoted", rollout.wave + 1, 0)
    return Next(Do.HOLD, "every wave is promoted")
