"""A request's journal: exactly one result, attempts in turn, and none that was given up publishes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lora_ops.errors import Refused
from lora_ops.request import (
    AttemptState,
    Order,
    RequestState,
    ResultState,
    apply_request,
)
from lora_ops.state import Track

Event = tuple[str, dict[str, Any]]

ORDER: Event = ("submitted", {"order": {"name": "styles"}})
START: Event = ("attempt-started", {"cloud": "a", "track": "canary", "digest": "sha256:new", "rollout": "r"})


def ended(kind: str, n: int) -> Event:
    return f"attempt-{kind}", {"n": n, "cause": "trainer_error", "message": "it broke"}


def success(n: int) -> Event:
    return "result", {"state": "succeeded", "attempt": n, "files": [{"key": "lora.safetensors"}]}


def failure() -> Event:
    return "result", {"state": "failed", "cause": "trainer_error", "message": "it broke"}


def step(state: RequestState, event: Event) -> RequestState:
    return apply_request(state, event[0], event[1], state.seq + 1)


def fold(*events: Event) -> RequestState:
    state = RequestState(id="req-1")
    for event in events:
        state = step(state, event)
    return state


def refused(state: RequestState, event: Event, words: str) -> None:
    with pytest.raises(Refused, match=words):
        step(state, event)


@dataclass
class Process:
    """One that read the journal at some point, decided, and will try to write that."""

    view: int
    wants: Event


class Request(RuleBasedStateMachine):
    """Attempts and reconcilers with old views; entry n can be created once, and a loser tries anew."""

    def __init__(self) -> None:
        super().__init__()
        self.states = [RequestState(id="req-1")]
        self.events: list[Event] = []
        self.waiting: list[Process] = []
        self.given_up: set[int] = set()

    @property
    def state(self) -> RequestState:
        return self.states[-1]

    @rule()
    def submit(self) -> None:
        self.waiting.append(Process(len(self.events), ORDER))

    @rule(kind=st.sampled_from(["abandoned", "cancel-requested"]))
    def someone_gives_up(self, kind: str) -> None:
        if kind == "abandoned" or self.state.seq % 5 == 4:  # few are cancelled
            self.waiting.append(Process(len(self.events), (kind, {})))

    @precondition(lambda self: self.state.order is not None)
    @rule()
    def reconciler_starts(self) -> None:
        self.waiting.append(Process(len(self.events), START))

    @precondition(lambda self: self.state.attempts)
    @rule(data=st.data(), kind=st.sampled_from(["lost", "superseded", "failed", "publish"]))
    def an_attempt_ends(self, data: st.DataObject, kind: str) -> None:
        """The attempt itself, however old, or one who gives it up."""
        n = data.draw(st.integers(1, len(self.state.attempts)))
        event = success(n) if kind == "publish" else ended(kind, n)
        self.waiting.append(Process(len(self.events), event))

    @precondition(lambda self: self.state.order is not None)
    @rule()
    def reconciler_ends_it(self) -> None:
        self.waiting.append(Process(len(self.events), failure()))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        process = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        kind, content = process.wants
        for view in (process.view, len(self.events)):
            try:
                after = step(self.states[view], process.wants)
            except Refused:
                return
            if view == len(self.events):  # the create-only put went through
                break
        if kind == "result" and content["state"] == "succeeded":
            assert content["attempt"] not in self.given_up, "an attempt that was given up published"
        if kind in ("attempt-lost", "attempt-superseded", "attempt-failed"):
            self.given_up.add(content["n"])
        self.events.append(process.wants)
        self.states.append(after)

    @invariant()
    def one_result_and_it_is_last(self) -> None:
        kinds = [kind for kind, _ in self.events]
        results = [n for n, kind in enumerate(kinds) if kind in ("result", "abandoned")]
        assert results in ([], [len(kinds) - 1])
        assert (self.state.result is not None) == bool(results)

    @invariant()
    def attempts_never_overlap(self) -> None:
        attempts = self.state.attempts
        assert [each.n for each in attempts] == list(range(1, len(attempts) + 1))
        for earlier, later in pairwise(attempts):
            assert earlier.ended_seq is not None
            assert earlier.ended_seq < later.seq
            assert earlier.state not in (AttemptState.OPEN, AttemptState.SUCCEEDED)
        if self.state.result is not None:
            assert self.state.current is None
            succeeded = [each.n for each in attempts if each.state is AttemptState.SUCCEEDED]
            published = self.state.result.state is ResultState.SUCCEEDED
            assert succeeded == ([self.state.result.attempt] if published else [])

    @invariant()
    def a_reader_gets_the_same(self) -> None:
        dumped = json.dumps(self.state.dump(), allow_nan=False)
        assert RequestState.model_validate_json(dumped) == self.state

    def teardown(self) -> None:
        assert fold(*self.events) == self.state


TestRequest = Request.TestCase
TestRequest.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("kind", ["lost", "superseded", "failed"])
def test_an_attempt_that_was_given_up_cannot_publish(kind: str) -> None:
    state = fold(ORDER, START, ended(kind, 1))
    refused(state, success(1), "was given up")
    refused(state, ended("failed", 1), "was given up")
    again = step(state, START)
    refused(again, success(1), "was given up")
    refused(again, ended("lost", 1), "was given up")
    assert step(again, success(2)).result.attempt == 2  # type: ignore[union-attr]


def test_a_published_result_cannot_be_taken_back_nor_given_twice() -> None:
    state = fold(ORDER, START, success(1))
    for event in (success(1), failure(), ended("lost", 1), START, ("cancel-requested", {})):
        refused(state, event, "has its result: succeeded")
    assert state.attempts[0].state is AttemptState.SUCCEEDED
    assert state.attempts[0].ended_seq == 2


def test_a_request_does_not_fail_under_a_running_attempt() -> None:
    refused(fold(ORDER, START), failure(), "attempt 1 of req-1 is under way")
    refused(fold(ORDER, START), START, "attempt 1 of req-1 is under way")


def test_a_request_that_is_to_be_cancelled_starts_nothing_but_may_still_succeed() -> None:
    refused(fold(ORDER, ("cancel-requested", {})), START, "to be cancelled")
    state = fold(ORDER, START, ("cancel-requested", {}), success(1))
    assert state.result is not None
    assert state.result.state is ResultState.SUCCEEDED


def test_nothing_precedes_the_submission_and_only_a_missing_one_is_abandoned() -> None:
    for event in (START, failure(), success(1), ended("lost", 1), ("cancel-requested", {})):
        refused(fold(), event, "does not fit")
    refused(fold(ORDER), ORDER, "does not fit")
    refused(fold(ORDER), ("abandoned", {}), "does not fit")
    refused(fold(ORDER), ("result", {"state": "abandoned"}), "cannot be abandoned")
    refused(fold(("abandoned", {})), ORDER, "has its result: abandoned")


def test_an_attempt_begins_open_whatever_its_event_says() -> None:
    kind, data = START
    state = fold(ORDER, (kind, {**data, "state": "succeeded", "n": 7, "seq": 9, "ended_seq": 1}))
    assert state.current is not None
    assert (state.current.n, state.current.seq, state.current.ended_seq) == (1, 1, None)


@pytest.mark.parametrize("canary", [True, False])
def test_one_canary_attempt_is_the_last(canary: bool) -> None:
    order: Event = ("submitted", {"order": {"canary": canary}})
    assert fold(order).canary_ok is canary
    kind, data = START
    stable: Event = (kind, {**data, "track": Track.STABLE.value})
    assert fold(order, stable, ended("lost", 1)).canary_ok is canary
    assert not fold(order, START, ended("superseded", 1)).canary_ok


def test_probes_and_verifications_are_not_users_own() -> None:
    assert Order().users_own
    assert Order().canary
    assert not Order(probe="r/a-1").users_own
    assert not Order(verifies="r/promoted").users_own


rubbish = st.one_of(st.none(), st.integers(-1, 3), st.text(max_size=2), st.lists(st.none(), max_size=1))


@given(
    st.sampled_from(["submitted", "attempt-started", "attempt-failed", "result", "cancelled", ""]),
    st.dictionaries(st.sampled_from(["order", "n", "state", "attempt", "cloud", "message"]), rubbish),
    st.sampled_from([(), (ORDER,), (ORDER, START)]),
)
@settings(max_examples=150, deadline=None)
def test_misshapen_events_are_refused_in_one_line(
    kind: str, data: dict[str, Any], before: tuple[Event, ...]
) -> None:
    state = fold(*before)
    try:
        after = step(state, (kind, data))
    except Refused as error:
        message = error.message
    else:
        message = ""
        assert RequestState.model_validate_json(json.dumps(after.dump())) == after
    assert "\n" not in message


def test_an_event_follows_its_predecessor() -> None:
    with pytest.raises(Refused, match="event 3 cannot follow event 0 of request req-1"):
        apply_request(fold(ORDER), START[0], START[1], 3)
