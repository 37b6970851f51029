"""Several writers, each with an old view of the journal, and a create-only put as their only arbiter."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.errors import NotFoundError, Refused
from lora_ops.rollout import replay
from lora_ops.state import AppState, Phase
from lora_ops.steps import Do, next_step
from tests.lora_ops.worlds import (
    CLOUDS,
    OLD,
    Event,
    all_is_well,
    cloud_set,
    event_of,
    policy,
    started,
    step,
)

RULES = policy([("a",), ("b", "c")], plan=(10, 100), max_restarts=3)


@dataclass
class Store:
    """Entry n can be created once: `create` answers whether it was this writer's."""

    entries: list[Event] = field(default_factory=list)
    states: list[AppState] = field(default_factory=list)

    def create(self, seq: int, event: Event, after: AppState) -> bool:
        if seq != len(self.entries):
            assert seq < len(self.entries), "a writer left a gap"
            return False
        self.entries.append(event)
        self.states.append(after)
        return True


@dataclass
class Writer:
    """A process. `view`: how many entries it has read; `wants`: what it decided from them."""

    name: str
    store: Store
    view: int = 0
    wants: Event | None = None

    def state(self) -> AppState:
        return self.store.states[self.view - 1]

    def read_and_decide(self, choice: int) -> None:
        self.view = len(self.store.entries)
        self.wants = self.decide(choice)

    def write(self) -> bool:
        """As the journal does it: the loser reads again, and writes if the event still holds."""
        while self.wants is not None:
            try:
                after = step(self.state(), self.wants)
            except (Refused, NotFoundError):
                break
            if self.store.create(self.view, self.wants, after):
                self.wants = None
                return True
            self.view = len(self.store.entries)
        self.wants = None
        return False

    def decide(self, choice: int) -> Event | None:
        rollout = self.state().rollout
        if self.name == "deployer":
            return started(f"roll-{choice}", RULES)
        if rollout is None:
            return None
        if self.name.startswith("flow"):
            epoch = int(self.name[-1])
            event = event_of(next_step(rollout, all_is_well(rollout)), rollout)
            return None if event is None else (event[0], {**event[1], "epoch": epoch})
        mine = {"rollout": rollout.id}
        if self.name == "reconciler":
            return "flow-restarted", {**mine, "epoch": rollout.epoch}
        kinds = ("paused", "resumed", "resumed", "promote-forced", "aborted", "rolled-back")
        return kinds[choice % len(kinds)], mine


NAMES = ("deployer", "flow-0", "flow-0", "flow-1", "flow-2", "reconciler", "reconciler", "person")
FLOWS = [index for index, name in enumerate(NAMES) if name.startswith("flow")]

Turn = tuple[int, bool, int]
"""(writer, whether it writes or only reads and decides, what it chooses)"""


def turns_of(index: int, choice: int, how: str) -> list[Turn]:
    return [(index, writes, choice) for writes in ((False, True) if how == "both" else (how == "write",))]


#: Flows act most of the time, so that rollouts get far before somebody ends them.
turns = st.builds(
    turns_of,
    st.sampled_from([*FLOWS * 4, *range(len(NAMES))]),
    st.integers(0, 40),
    st.sampled_from(["read", "write", "both", "both"]),
)
schedules = st.lists(turns, min_size=30, max_size=90).map(
    lambda many: [turn for each in many for turn in each]
)


def run(schedule: list[Turn]) -> Store:
    store = Store()
    for name in CLOUDS:
        state = store.states[-1] if store.states else AppState(app="app")
        assert store.create(len(store.entries), cloud_set(name), step(state, cloud_set(name)))
    writers = [Writer(name, store, view=len(store.entries)) for name in NAMES]
    for index, writes, choice in schedule:
        if writes:
            writers[index].write()
        else:
            writers[index].read_and_decide(choice)
    return store


def audit(store: Store) -> None:
    """What the journal says, read without the rules' code."""
    pointers = dict.fromkeys(CLOUDS, OLD)
    active: str | None = None
    epoch, release = 0, ""
    waves: list[int] = []
    before: dict[str, str] = {}
    over: set[str] = set()
    for (kind, data), state in zip(store.entries, store.states, strict=True):
        if kind == "cloud-set":
            continue
        if kind == "rollout-started":
            assert active is None, "two rollouts are active"
            assert data["id"] not in over
            active, epoch, waves, before = data["id"], 0, [], dict(pointers)
            continue
        assert data["rollout"] == active, f"{kind} of a rollout that is not active"
        assert data.get("epoch", epoch) == epoch, f"flow {data['epoch']} decided {kind}; {epoch} leads"
        if kind == "flow-restarted":
            epoch += 1
        elif kind == "built":
            release = data["release"]
        elif kind == "wave-promoted":
            waves.append(data["wave"])
            pointers |= dict.fromkeys(RULES.waves[data["wave"]], release)
        elif kind in ("rolled-back", "aborted"):
            pointers = dict(before)
        elif kind == "promoted":
            assert waves == [0, 1], "a promotion was lost or doubled"
        assert waves == sorted(set(waves))
        assert {name: cloud.stable for name, cloud in state.clouds.items()} == pointers
        if kind in ("rolled-back", "aborted", "promoted"):
            over.add(active)
            active = None
    assert replay("app", store.entries) == store.states[-1]


@given(schedules)
@settings(max_examples=150, deadline=None)
def test_any_interleaving_is_one_history(schedule: list[Turn]) -> None:
    audit(run([(0, False, 0), (0, True, 0), *schedule]))


def lead(*between: Turn, rounds: int = 20) -> list[Turn]:
    """The deployer starts a rollout, then both flows of epoch 0 read, and write, in step."""
    schedule = [(0, False, 1), (0, True, 0)]
    for _ in range(rounds):
        schedule += [(1, False, 0), (2, False, 0), *between, (1, True, 0), (2, True, 0)]
    return schedule


def test_two_flows_that_decide_the_same_do_it_once() -> None:
    store = run(lead())
    audit(store)
    kinds = [kind for kind, _ in store.entries]
    assert kinds.count("wave-promoted") == 2
    assert kinds.count("promoted") == 1
    assert store.states[-1].finished[-1].phase is Phase.PROMOTED


def test_a_flow_that_was_given_up_between_reading_and_writing_decides_nothing_more() -> None:
    restart = [(5, False, 0), (5, True, 0)]
    store = run([*lead(rounds=3), (1, False, 0), *restart, (1, True, 0), (1, False, 0), (1, True, 0)])
    audit(store)
    assert store.entries[-1][0] == "flow-restarted"


def test_two_reconcilers_that_see_the_same_death_restart_once() -> None:
    store = run([*lead(rounds=1), (5, False, 0), (6, False, 0), (5, True, 0), (6, True, 0)])
    assert [kind for kind, _ in store.entries].count("flow-restarted") == 1


@given(st.integers(1, 9), st.sampled_from([4, 5]))
@settings(max_examples=20, deadline=None)
def test_a_person_who_rolls_back_wins_over_a_flow_that_promotes_at_the_same_time(
    rounds: int, verb: int
) -> None:
    """Whoever loses reads again: the promotion finds its rollout gone, the rollback still holds."""
    both = [(1, False, 0), (7, False, verb)]
    for order in ([1, 7], [7, 1]):
        store = run([*lead(rounds=rounds), *both, *[(index, True, 0) for index in order]])
        audit(store)
        state = store.states[-1]
        assert state.rollout is None
        assert {cloud.stable for cloud in state.clouds.values()} == {OLD}


def test_every_decision_of_the_model_is_reached() -> None:
    """The schedules are no use if they end early: the happy path passes every kind of step."""
    done = {kind for kind, _ in run(lead()).entries}
    assert {"validated", "built", "self-checked", "distributed", "step-started", "holding"} <= done
    assert Do.REQUEST_APPROVAL.value not in done
