"""The events of one rollout: what each does to the state, and when it is refused.

Events that the deploy flow writes carry its `epoch`; an event of an older epoch is refused, so a flow that
was given up cannot decide any more. `lora_ops/rollout.py` folds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lora_ops.errors import NotFoundError, Refused, nearest
from lora_ops.state import AppState, CloudState, Finished, Phase, Rollout

KEEP_FINISHED = 20

Data = Mapping[str, Any]
Rule = Callable[[AppState, Data, int], AppState]
#: Each kind of event with its rule; those of the platform register themselves from lora_ops/rollout.py.
RULES: dict[str, Rule] = {}


def rule(kind: str) -> Callable[[Rule], Rule]:
    """Register the rule of an event."""

    def register(made: Rule) -> Rule:
        RULES[kind] = made
        return made

    return register


@rule("validated")
def _validated(state: AppState, data: Data, seq: int) -> AppState:
    rollout = _active(state, data, Phase.VALIDATING)
    return _with(state, rollout, phase=Phase.BUILDING, phase_seq=seq)


@rule("built")
def _built(state: AppState, data: Data, seq: int) -> AppState:
    rollout = _active(state, data, Phase.BUILDING)
    release = data["release"]
    need(bool(release), "the event names no release")
    # A flow that builds again must not put another release behind a self-check that it never passed.
    need(rollout.release in (None, release), f"{rollout.release} is built already")
    return _with(state, rollout, release=release, revision=data.get("revision"))


@rule("self-checked")
def _self_checked(state: AppState, data: Data, seq: int) -> AppState:
    rollout = _active(state, data, Phase.BUILDING)
    need(rollout.release is not None, "nothing is built yet")
    return _with(state, rollout, self_checked=True)


@rule("distributed")
def _distributed(state: AppState, data: Data, seq: int) -> AppState:
    rollout = _active(state, data, Phase.BUILDING)
    need(rollout.release is not None, "nothing is built yet")
    for name in rollout.clouds:
        found = data["clouds"].get(name)
        need(found == rollout.release, f"cloud {name} holds {found}, not {rollout.release}")
    return _with(state, rollout, distributed=True)


@rule("step-started")
def _step_started(state: AppState, data: Data, seq: int) -> AppState:
    rollout = _active(state, data, Phase.BUILDING, Phase.CANARYING, Phase.PROMOTING)
    wave, step = data["wave"], data["step"]
    need(not rollout.paused, "the rollout is paused")
    if rollout.phase is Phase.BUILDING:
        need(rollout.self_checked, "the release has not passed its self-check")
        need(rollout.distributed and (wave, step) == (0, 0), "the release is not on every cloud yet")
    elif rollout.phase is Phase.CANARYING:
        need((wave, step) == (rollout.wave, rollout.step + 1), "steps go up one by one")
        need(step <= rollout.last_step, "the plan has no such step")
        need(not rollout.forced, "the wave is to be promoted by hand")
    else:
        need((wave, step) == (rollout.wave + 1, 0), "waves go up one by one")
        need(wave < len(rollout.policy.waves), "there is no such wave")
    moved = rollout.model_copy(update={"wave": wave, "step": step})
    clouds = {
        name: cloud.model_copy(update={"weight": moved.weight_at(name, step)})
        if cloud.wave == wave
        else cloud
        for name, cloud in rollout.clouds.items()
    }
    moved = moved.model_copy(update={"step_seq": seq, "phase_seq": seq, "approved": False, "forced": False})
    return _with(state, moved, clouds=clouds, phase=Phase.CANARYING)


@rule("approval-requested")
def _approval_requested(state: AppState, data: Data, seq: int) -> AppState:
    rollout = _active(state, data, Phase.CANARYING)
    need(not rollout.paused, "the rollout is paused")
    need(rollout.step == rollout.last_step, "the wave has not finished its plan")
    need(data.get("wave", rollout.wave) == rollout.wave, "another wave is active")
    return _with(state, rollout, phase=Phase.AWAITING_APPROVAL, phase_seq=seq)


@rule("approved")
def _approved(state: AppState, data: Data, seq: int) -> AppState:
    """A person's word on one wave, `data["wave"]` (events of old have none). It outlives the flow that
    asked for it, so it carries no epoch."""
    rollout = _active(state, data, Phase.AWAITING_APPROVAL)
    meant = data.get("wave", rollout.wave)
    if meant != rollout.wave:
        raise Refused(
            f"this approves wave {meant + 1}, but wave {rollout.wave + 1} of {rollout.id} awaits approval.",
            f"Look at it, then `lora-ops rollout approve {rollout.id} --wave {rollout.wave + 1}`.",
        )
    if data.get("via") == "prefect-ui" and not rollout.policy.accept_unverified_approval:
        raise Refused(
            "an approval through Prefect's form names nobody that we can verify.",
            "Approve with `lora-ops rollout approve`, or set `accept_unverified_approval: true`.",
        )
    return _with(state, rollout, approved=True)


@rule("promote-forced")
def _forced(state: AppState, data: Data, seq: int) -> AppState:
    """A person skips what is left of the present wave's plan. The gates of the hold still judge."""
    rollout = _active(state, data, Phase.CANARYING, Phase.AWAITING_APPROVAL)
    return _with(state, rollout, forced=True, paused=False)


@rule("wave-promoted")
def _wave_promoted(state: AppState, data: Data, seq: int) -> AppState:
    """The pointer moves: stable is the new release on every cloud of the wave."""
    rollout = _active(state, data, Phase.CANARYING, Phase.AWAITING_APPROVAL)
    need(data["wave"] == rollout.wave, "another wave is active")
    need(not rollout.paused, "the rollout is paused")
    if not rollout.forced:
        need(rollout.step == rollout.last_step, "the wave has not finished its plan")
        need(not rollout.policy.approval or rollout.approved, "nobody has approved it")
    for name in rollout.wave_clouds:
        current = state.clouds[name].stable
        state = set_cloud(state, name, stable=rollout.release, previous=current)
    clouds = {
        name: cloud.model_copy(update={"promoted": True, "weight": 0})
        if cloud.wave == rollout.wave
        else cloud
        for name, cloud in rollout.clouds.items()
    }
    return _with(state, rollout, clouds=clouds, phase=Phase.PROMOTING, phase_seq=seq, approved=False)


@rule("holding")
def _holding(state: AppState, data: Data, seq: int) -> AppState:
    rollout = _active(state, data, Phase.PROMOTING)
    need(not rollout.paused, "the rollout is paused")
    need(all(cloud.promoted for cloud in rollout.clouds.values()), "a wave is not promoted yet")
    return _with(state, rollout, phase=Phase.HOLDING, phase_seq=seq)


@rule("promoted")
def _promoted(state: AppState, data: Data, seq: int) -> AppState:
    rollout = _active(state, data, Phase.HOLDING)
    need(not rollout.paused, "the rollout is paused")
    return _finish(state, rollout, Phase.PROMOTED, data, seq)


@rule("rolled-back")
def _rolled_back(state: AppState, data: Data, seq: int) -> AppState:
    """`keep`: clouds of earlier waves that stay on the release, where the policy has it so."""
    rollout = _active(state, data, *[phase for phase in Phase if not phase.final])
    keep = tuple(data.get("keep", ()))
    for name in keep:
        cloud = rollout.clouds.get(name)
        earlier = cloud is not None and cloud.promoted and cloud.wave < rollout.wave
        need(earlier and rollout.policy.failed_wave == "keep", f"cloud {name} cannot stay on the release")
    return _finish(_restore(state, rollout, keep), rollout, Phase.ROLLED_BACK, data, seq)


@rule("aborted")
def _aborted(state: AppState, data: Data, seq: int) -> AppState:
    rollout = _active(state, data, *[phase for phase in Phase if not phase.final])
    return _finish(_restore(state, rollout), rollout, Phase.ABORTED, data, seq)


@rule("failed")
def _failed(state: AppState, data: Data, seq: int) -> AppState:
    """It ended before any request reached it."""
    rollout = _active(state, data, Phase.VALIDATING, Phase.BUILDING)
    return _finish(state, rollout, Phase.FAILED, data, seq)


@rule("paused")
def _paused(state: AppState, data: Data, seq: int) -> AppState:
    rollout = _active(state, data, *[phase for phase in Phase if not phase.final])
    need(not rollout.paused, "it is paused already")
    return _with(state, rollout, paused=True)


@rule("resumed")
def _resumed(state: AppState, data: Data, seq: int) -> AppState:
    rollout = _active(state, data, *[phase for phase in Phase if not phase.final])
    need(rollout.paused, "it is not paused")
    return _with(state, rollout, paused=False, resumed_seq=seq)


@rule("flow-restarted")
def _flow_restarted(state: AppState, data: Data, seq: int) -> AppState:
    rollout = _active(state, data, *[phase for phase in Phase if not phase.final])
    need(rollout.epoch < rollout.policy.max_restarts, "its flow was restarted often enough")
    return _with(state, rollout, epoch=rollout.epoch + 1, epoch_seq=seq)


@rule("verified")
def _verified(state: AppState, data: Data, seq: int) -> AppState:
    return _verify(state, data, "verified")


@rule("unverified")
def _unverified(state: AppState, data: Data, seq: int) -> AppState:
    return _verify(state, data, "unverified")


# --- helpers ------------------------------------------------------------------------------------


def _active(state: AppState, data: Data, *phases: Phase) -> Rollout:
    """The active rollout, when the event is its own, of its present epoch, and fits its phase."""
    rollout = state.rollout
    wanted = data.get("rollout")
    if rollout is None or rollout.id != wanted:
        ended = next((f for f in state.finished if f.id == wanted), None)
        if ended is not None:
            raise Refused(f"rollout {wanted} is {ended.phase.value} already.")
        known = [f.id for f in state.finished] + ([rollout.id] if rollout else [])
        raise NotFoundError(f"no rollout `{wanted}` is active.", nearest(str(wanted), known))
    epoch = data.get("epoch")
    if epoch is not None and epoch != rollout.epoch:
        raise Refused(f"rollout {rollout.id} is led by flow {rollout.epoch}, not {epoch}.")
    if rollout.phase not in phases:
        allowed = ", ".join(phase.value for phase in phases)
        raise Refused(f"rollout {rollout.id} is {rollout.phase.value}; this is for: {allowed}.")
    return rollout


def need(holds: bool, why_not: str) -> None:
    if not holds:
        raise Refused(f"Not now: {why_not}.", "See `lora-ops rollout show`.")


def _with(state: AppState, rollout: Rollout, **changes: Any) -> AppState:
    return state.model_copy(update={"rollout": rollout.model_copy(update=changes)})


def known_cloud(state: AppState, name: str) -> CloudState:
    if name not in state.clouds:
        raise NotFoundError(f"cloud `{name}` is unknown.", nearest(name, state.clouds))
    return state.clouds[name]


def set_cloud(state: AppState, name: str, **changes: Any) -> AppState:
    cloud = known_cloud(state, name).model_copy(update=changes)
    return state.model_copy(update={"clouds": {**state.clouds, name: cloud}})


def _restore(state: AppState, rollout: Rollout, keep: tuple[str, ...] = ()) -> AppState:
    """Every cloud that the rollout promoted, but those to `keep`, points again at what it ran before."""
    for name, cloud in rollout.clouds.items():
        if cloud.promoted and name not in keep:
            state = set_cloud(state, name, stable=cloud.before, previous=None)
    return state


def _finish(state: AppState, rollout: Rollout, phase: Phase, data: Data, seq: int) -> AppState:
    entry = Finished(
        id=rollout.id,
        release=rollout.release,
        phase=phase,
        reason=data.get("reason", ""),
        started_seq=rollout.started_seq,
        ended_seq=seq,
        clouds=tuple(rollout.clouds),
        verified=rollout.verified if phase is Phase.PROMOTED else {},
        verify_timeout_s=rollout.policy.verify_timeout_s,
    )
    finished = (*state.finished, entry)[-KEEP_FINISHED:]
    return state.model_copy(update={"rollout": None, "finished": finished})


def _verify(state: AppState, data: Data, verdict: str) -> AppState:
    name, cloud = data["rollout"], data["cloud"]
    if state.rollout is not None and state.rollout.id == name:
        part = state.rollout.clouds.get(cloud)
        need(data.get("turn") != "restored", f"{name} has not been rolled back")
        need(part is not None and part.promoted, f"cloud {cloud} does not run the release of {name}")
        return _with(state, state.rollout, verified={**state.rollout.verified, cloud: verdict})
    for entry in state.finished:
        if entry.id == name:
            need(cloud in entry.clouds, f"cloud {cloud} was not part of rollout {name}")
            turn = "promoted" if entry.phase is Phase.PROMOTED else "restored"
            need(data.get("turn", turn) == turn, f"{name} was rolled back since")
            changed = entry.model_copy(update={"verified": {**entry.verified, cloud: verdict}})
            kept = tuple(changed if e.id == name else e for e in state.finished)
            return state.model_copy(update={"finished": kept})
    raise NotFoundError(f"no rollout `{name}` is known.", nearest(name, [e.id for e in state.finished]))
