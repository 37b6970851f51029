"""Any sequence of events, valid or not: the journal's fold keeps its promises or refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lora_ops.errors import NotFoundError, Refused
from lora_ops.rollout import apply, replay
from lora_ops.rollout_events import KEEP_FINISHED
from lora_ops.state import AppState, Phase
from lora_ops.steps import Sight
from tests.lora_ops import worlds
from tests.lora_ops.worlds import (
    CLOUDS,
    FLOW_KINDS,
    OTHER_KINDS,
    VERIFY_KINDS,
    Event,
    cloud_set,
    fold,
    next_event,
    platform,
    policies,
    readable_again,
    sights,
    started,
)

POINTER_MOVES = ("wave-promoted", "rolled-back", "aborted")
CLOUD_KINDS = ("cloud-set", "cloud-drained", "cloud-undrained")
PLATFORM_KINDS = (*CLOUD_KINDS, "rollout-queued", "rollout-overtaken")
ROLLOUT_KINDS = (*FLOW_KINDS, *OTHER_KINDS, "rollout-started", "rollout-queued")
KINDS = (*FLOW_KINDS, *OTHER_KINDS, *VERIFY_KINDS, *PLATFORM_KINDS, "rollout-started")

rubbish = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 200), st.text(max_size=3), st.lists(st.integers(), max_size=2)
)
rubbish_data = st.dictionaries(
    st.sampled_from(
        [
            "rollout",
            "id",
            "epoch",
            "wave",
            "step",
            "release",
            "clouds",
            "cloud",
            "name",
            "stable",
            "size",
            "share",
            "policy",
            "source",
            "reason",
            "revision",
            "via",
            "kind",
        ]
    ),
    rubbish,
    max_size=5,
)


class Journal(RuleBasedStateMachine):
    """A platform whose journal gets anything; beside it, what a bookkeeper would know."""

    def __init__(self) -> None:
        super().__init__()
        self.state = AppState(app="app")
        self.journal: list[Event] = []
        self.carried: list[AppState] = []
        self.ids: list[str] = []
        self.queue: list[str] = []
        self.ended: list[str] = []
        self.before: dict[str, str] = {}
        self.promoted: set[int] = set()

    @initialize()
    def clouds(self) -> None:
        for name in CLOUDS:
            assert self.write(cloud_set(name, stable=f"sha256:{name}"))

    # --- what writers do ---

    @rule(rules=policies(), queue=st.booleans())
    def deploy(self, rules: Any, queue: bool) -> None:
        event = started(f"roll-{len(self.ids)}", rules)
        if queue:
            assert self.write(("rollout-queued", event[1]))
        else:
            free = self.state.rollout is None
            assert self.write(event) == free

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def leave_queue(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.state.queue))
        kind = data.draw(st.sampled_from(["rollout-overtaken", "rollout-started"]))
        free = self.state.rollout is None
        assert self.write((kind, entry.model_dump())) == (free or kind == "rollout-overtaken")

    @precondition(lambda self: self.state.rollout is not None)
    @rule(sight=sights)
    def see(self, sight: Sight) -> None:
        """The deploy flow's own next step always holds, whatever it sees."""
        assert self.state.rollout is not None
        event = next_event(self.state.rollout, sight)
        assert event is None or self.write(event), f"the flow would do {event} in {self.state.rollout}"

    @precondition(lambda self: self.state.rollout is not None)
    @rule(turns=st.integers(1, 12))
    def all_goes_well(self, turns: int) -> None:
        for _ in range(turns):
            rollout = self.state.rollout
            if rollout is None:
                return
            kind = "resumed" if rollout.paused else "approved"
            event = next_event(rollout) or (kind, {"rollout": rollout.id})
            assert self.write(event), f"the flow would do {event} in {rollout}"

    @precondition(lambda self: self.state.rollout is not None)
    @rule(kind=st.sampled_from(OTHER_KINDS), rarely=st.integers(0, 3))
    def interfere(self, kind: str, rarely: int) -> None:
        rollout = self.state.rollout
        assert rollout is not None
        if rarely and kind in ("rolled-back", "aborted"):
            return
        self.write((kind, {"rollout": rollout.id, "reason": "a person said so"}))

    @precondition(lambda self: self.state.rollout is not None)
    @rule(kind=st.sampled_from((*FLOW_KINDS, *OTHER_KINDS)), behind=st.integers(1, 3))
    def old_flow(self, kind: str, behind: int) -> None:
        """A flow that was given up goes on deciding: nothing of it counts."""
        rollout = self.state.rollout
        assert rollout is not None
        data = {"rollout": rollout.id, "epoch": rollout.epoch - behind, "wave": rollout.wave, "step": 0}
        assert not self.write((kind, {**data, "release": "sha256:stale", "clouds": {}}))

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), kind=st.sampled_from(ROLLOUT_KINDS))
    def over_is_over(self, data: st.DataObject, kind: str) -> None:
        name = data.draw(st.sampled_from(self.ended[-KEEP_FINISHED:]))
        assert not self.write((kind, {**started(name)[1], "rollout": name, "wave": 0, "step": 0}))

    @precondition(lambda self: self.state.finished)
    @rule(data=st.data(), kind=st.sampled_from(VERIFY_KINDS))
    def verify(self, data: st.DataObject, kind: str) -> None:
        entry = data.draw(st.sampled_from(self.state.finished))
        assert self.write((kind, {"rollout": entry.id, "cloud": entry.clouds[0]}))
        assert not self.write((kind, {"rollout": entry.id, "cloud": "elsewhere"}))

    @rule(kind=st.sampled_from(KINDS), data=rubbish_data, real=st.booleans())
    def nonsense(self, kind: str, data: dict[str, Any], real: bool) -> None:
        if real and self.state.rollout is not None:
            data = {**data, "rollout": self.state.rollout.id}
        if kind != "rollout-started":  # which only `deploy` counts
            self.write((kind, data))

    @rule(name=st.sampled_from((*CLOUDS, "d")), change=st.sampled_from(CLOUD_KINDS))
    def cloud(self, name: str, change: str) -> None:
        if change != "cloud-set":
            assert self.write((change, {"cloud": name})) == (name in self.state.clouds)
        else:
            assert self.write(cloud_set(name, stable="sha256:other", size=3))

    # --- the journal and its bookkeeper ---

    def write(self, event: Event) -> bool:
        kind, data = event
        before = self.state
        frozen = before.dump()
        try:
            after = apply(before, kind, data, before.seq + 1)
        except (Refused, NotFoundError):
            assert before.dump() == frozen, "a refused event changed the state"
            return False
        assert before.dump() == frozen, "an event changed the state that it was given"
        assert readable_again(after) == after
        self.journal.append(event)
        self.carried.append(after)
        self.state = after
        self.keep_books(before, kind, data)
        return True

    def keep_books(self, before: AppState, kind: str, data: dict[str, Any]) -> None:
        after, active = self.state, before.rollout
        moved = {name for name in before.clouds if before.clouds[name].stable != after.clouds[name].stable}
        assert not moved or kind in POINTER_MOVES, f"{kind} moved the pointer of {moved}"
        if kind == "rollout-started":
            assert active is None, "a second rollout became active"
            assert data["id"] not in self.ended, "a rollout that was over started again"
            self.before = {name: cloud.stable for name, cloud in before.clouds.items()}
            self.promoted = set()
        if kind in ("rollout-started", "rollout-queued"):
            self.ids.append(data["id"])
        if kind == "rollout-queued":
            self.queue.append(data["id"])
        elif kind in ("rollout-overtaken", "rollout-started") and data["id"] in self.queue:
            self.queue.remove(data["id"])
        if kind == "wave-promoted":
            assert active is not None
            assert active.wave not in self.promoted, "a wave was promoted twice"
            self.promoted.add(active.wave)
            assert all(after.clouds[name].stable == active.release for name in active.wave_clouds)
            assert all(after.clouds[name].previous == self.before[name] for name in active.wave_clouds)
        if kind in ("rolled-back", "aborted"):
            assert {name: after.clouds[name].stable for name in self.before} == self.before
        if kind == "promoted":
            assert active is not None
            assert self.promoted == set(range(len(active.policy.waves)))
            assert all(after.clouds[name].stable == active.release for name in active.clouds)
        if active is not None and after.rollout is None:
            self.ended.append(active.id)
            assert after.finished[-1].id == active.id
            assert after.finished[-1].phase.final

    @invariant()
    def queue_is_the_journals(self) -> None:
        assert [entry.id for entry in self.state.queue] == self.queue

    @invariant()
    def exposure(self) -> None:
        rollout = self.state.rollout
        if rollout is None:
            return
        assert not rollout.phase.final
        assert 0 <= rollout.step <= rollout.last_step
        assert {name for name, part in rollout.clouds.items() if part.promoted} == {
            name for number in self.promoted for name in rollout.policy.waves[number]
        }
        if rollout.phase.exposes:
            assert rollout.release
            assert rollout.self_checked
            assert rollout.distributed
        for part in rollout.clouds.values():
            assert part.weight in (0, *part.plan)
            if part.weight:
                assert rollout.phase in (Phase.CANARYING, Phase.AWAITING_APPROVAL)
                assert part.wave == rollout.wave
                assert not part.promoted

    def teardown(self) -> None:
        state = AppState(app="app")
        for seq, (kind, data) in enumerate(self.journal):
            state = apply(readable_again(state), kind, data, seq)
            assert state == self.carried[seq], f"event {seq} folds to another state than it carried"
        assert replay("app", self.journal) == self.state


TestJournal = Journal.TestCase
TestJournal.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@given(state=worlds.live_platforms(), kind=st.sampled_from(["rolled-back", "aborted"]))
@settings(max_examples=100, deadline=None)
def test_every_phase_can_be_taken_back(state: AppState, kind: str) -> None:
    rollout = state.rollout
    assert rollout is not None
    after = fold((kind, {"rollout": rollout.id, "reason": "harm"}), state=state)
    assert after.rollout is None
    assert {name: cloud.stable for name, cloud in after.clouds.items()} == dict.fromkeys(CLOUDS, worlds.OLD)
    assert (after.finished[-1].phase.value, after.finished[-1].reason) == (kind, "harm")


def test_the_taking_back_of_each_phase_of_two_waves() -> None:
    """The same without chance, so that no phase is left out."""
    rules = worlds.policy([("a",), ("b", "c")], approval=True)
    seen = set()
    state = fold(started(rules=rules), state=platform())
    while state.rollout is not None:
        seen.add((state.rollout.phase, state.rollout.wave))
        back = fold(("rolled-back", {"rollout": "roll-1"}), state=state)
        assert {cloud.stable for cloud in back.clouds.values()} == {worlds.OLD}
        state = worlds.drive(state, 1)
    assert {phase for phase, _ in seen} == {phase for phase in Phase if not phase.final}
    assert state.finished[-1].phase is Phase.PROMOTED
    assert {cloud.stable for cloud in state.clouds.values()} == {worlds.NEW}


@pytest.mark.parametrize("seq", [-1, 0, 1, 3, 99])
def test_an_event_follows_its_predecessor(seq: int) -> None:
    state = fold(cloud_set("a"), cloud_set("b"))
    with pytest.raises(Refused, match="cannot follow event 1"):
        apply(state, "cloud-drained", {"cloud": "a"}, seq)
