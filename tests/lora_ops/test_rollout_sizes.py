"""A rollout sets the sizes of clouds when it starts, in the event that starts it."""

from __future__ import annotations

import pytest

from lora_ops.errors import NotFoundError
from tests.lora_ops.worlds import cloud_set, drive, fold, own, platform, policy, readable_again, started, step


def test_sizes_take_effect_with_the_start_and_stay() -> None:
    state = platform(("a", "b"))
    rules = policy([("a", "b")], sizes={"b": 5})
    after = step(state, started(rules=rules))
    assert {name: each.size for name, each in after.clouds.items()} == {"a": 1, "b": 5}
    assert readable_again(after) == after
    assert after.rollout is not None
    back = step(after, own(after.rollout, "rolled-back"))
    assert back.clouds["b"].size == 5, "the size is the cloud's, not the release's"
    assert step(back, cloud_set("b", size=2)).clouds["b"].size == 2


def test_one_that_waits_changes_nothing_until_its_turn() -> None:
    state = step(platform(("a",)), started("roll-1", policy([("a",)])))
    kind, data = started("roll-2", policy([("a",)], sizes={"a": 7}))
    queued = step(state, ("rollout-queued", data))
    assert queued.clouds["a"].size == 1
    turn = step(drive(queued, 20), (kind, data))
    assert turn.clouds["a"].size == 7


def test_a_cloud_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFoundError, match="cloud `x` is unknown"):
        fold(started(rules=policy([("a",)], sizes={"x": 2})), state=platform(("a",)))
