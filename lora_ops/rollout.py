"""The fold of the platform's journal, and the events of its clouds and of its queue.

`apply(state, kind, data, seq)` gives the state after an event, or raises Refused when the event does
not hold in that state. The events of one rollout are in `lora_ops/rollout_events.py`.
"""

from __future__ import annotations

from pydantic import ValidationError

from lora_ops.errors import Refused, nearest
from lora_ops.rollout_events import RULES, Data, known_cloud, need, rule, set_cloud
from lora_ops.state import AppState, CloudRollout, CloudState, Policy, Queued, Rollout, Source, misfit


def apply(state: AppState, kind: str, data: Data, seq: int) -> AppState:
    """The state after event `kind` at journal position `seq` (which must be `state.seq + 1`).

    Raises Refused, also for data that are not of this event's shape; NotFoundError for an unknown name.
    """
    if seq != state.seq + 1:
        raise Refused(f"event {seq} cannot follow event {state.seq}", "Read the journal again.")
    found = RULES.get(kind)
    if found is None:
        raise Refused(f"`{kind}` is not an event of this version.", nearest(kind, RULES))
    try:
        after = found(state, data, seq)
        # Validated anew: what the event carries is exactly what a reader of the journal gets from it.
        return AppState.model_validate({**after.model_dump(warnings=False), "seq": seq})
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise Refused(f"the data of this `{kind}` do not fit it: {misfit(error)}.") from error


def replay(app: str, events: list[tuple[str, Data]]) -> AppState:
    """Fold a whole journal anew."""
    state = AppState(app=app)
    for seq, (kind, data) in enumerate(events):
        state = apply(state, kind, data, seq)
    return state


# --- the platform -----------------------------------------------------------------------------


@rule("cloud-set")
def _cloud_set(state: AppState, data: Data, seq: int) -> AppState:
    """A cloud is added (needs `stable`), or its size or share changes."""
    name = data["name"]
    known = state.clouds.get(name)
    changes = {key: data[key] for key in ("kind", "size", "share") if key in data}
    if known is not None:
        cloud = known.model_copy(update=changes)
    else:
        if not data.get("stable"):
            raise Refused(f"cloud `{name}` is new and names no stable release.", "Run `lora-ops init` first.")
        if state.rollout is not None and data["stable"] == state.rollout.release:
            raise Refused(
                f"cloud `{name}` cannot begin with a release that is on trial.", "Name its stable one."
            )
        cloud = CloudState(name=name, stable=data["stable"], **changes)
    return state.model_copy(update={"clouds": {**state.clouds, name: cloud}})


@rule("cloud-drained")
def _drained(state: AppState, data: Data, seq: int) -> AppState:
    return set_cloud(state, data["cloud"], drained=True, moving=bool(data.get("move", False)))


@rule("cloud-undrained")
def _undrained(state: AppState, data: Data, seq: int) -> AppState:
    return set_cloud(state, data["cloud"], drained=False, moving=False)


# --- the queue ----------------------------------------------------------------------------------


@rule("rollout-queued")
def _queued(state: AppState, data: Data, seq: int) -> AppState:
    _unused(state, data["id"])
    need(all(entry.id != data["id"] for entry in state.queue), f"rollout {data['id']} is queued already")
    entry = Queued(
        id=data["id"],
        source=Source.model_validate(data["source"]),
        policy=Policy.model_validate(data["policy"]),
        seq=seq,
    )
    return state.model_copy(update={"queue": (*state.queue, entry)})


@rule("rollout-overtaken")
def _overtaken(state: AppState, data: Data, seq: int) -> AppState:
    if all(entry.id != data["id"] for entry in state.queue):
        raise Refused(f"rollout {data['id']} is not in the queue.")
    return state.model_copy(update={"queue": tuple(e for e in state.queue if e.id != data["id"])})


@rule("rollout-started")
def _started(state: AppState, data: Data, seq: int) -> AppState:
    if state.rollout is not None:
        raise Refused(
            f"rollout {state.rollout.id} is {state.rollout.phase.value}.",
            f"Watch it with `lora-ops rollout watch {state.rollout.id}`, end it with "
            f"`lora-ops rollout abort {state.rollout.id}`, or wait behind it with `--queue`.",
        )
    _unused(state, data["id"])
    policy = Policy.model_validate(data["policy"])
    clouds = {
        name: CloudRollout(wave=number, plan=policy.plans[name], before=known_cloud(state, name).stable)
        for number, wave in enumerate(policy.waves)
        for name in wave
    }
    rollout = Rollout(
        id=data["id"],
        source=Source.model_validate(data["source"]),
        policy=policy,
        clouds=clouds,
        started_seq=seq,
        phase_seq=seq,
    )
    for name, size in policy.sizes.items():
        state = set_cloud(state, name, size=size)
    queue = tuple(entry for entry in state.queue if entry.id != data["id"])
    return state.model_copy(update={"rollout": rollout, "queue": queue})


def _unused(state: AppState, rollout_id: str) -> None:
    """A rollout that is over never starts again, even when its writer asks twice."""
    ended = next((each for each in state.finished if each.id == rollout_id), None)
    if ended is not None:
        raise Refused(f"rollout {rollout_id} is {ended.phase.value} already.")
    if state.rollout is not None and state.rollout.id == rollout_id:
        raise Refused(f"rollout {rollout_id} is {state.rollout.phase.value}.")
