"""Routing: shares, stickiness, and who gets nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.errors import ConflictError
from lora_ops.ids import new_id
from lora_ops.routing import Fleet, Lane, Route, pinned, route
from lora_ops.state import AppState, Track
from tests.lora_ops.worlds import (
    NEW,
    OLD,
    cloud_set,
    drive,
    fold,
    live_platforms,
    platform,
    policy,
    started,
    step,
)

NOW = 1_700_000_000.0
LATER = NOW + 60
IDS = [new_id("req", NOW + n * 0.01, n * 2654435761) for n in range(100_000)]
SOME = IDS[:2_000]

request_ids = st.sampled_from(SOME) | st.text(max_size=20)


def lane(cloud: str, share: float = 1.0, weight: float = 0, *, opened: bool = True) -> Lane:
    canary = NEW if weight else None
    return Lane(cloud, share, OLD, canary, weight / 100 * 2.0**64, opened)


def fleet(*lanes: Lane, rollout: str | None = "roll-1", lease_until: float | None = LATER) -> Fleet:
    return Fleet(lanes, rollout, lease_until)


def routes(of: Fleet, ids: list[str] = SOME, **wishes: Any) -> dict[str, Route]:
    return {each: route(each, of, NOW, **wishes) for each in ids}


def canaries(of: Fleet, ids: list[str] = SOME) -> set[str]:
    return {each for each, found in routes(of, ids).items() if found.track is Track.CANARY}


def test_shares_hold_within_one_percent_also_of_the_canary_in_each_cloud() -> None:
    weights = {"a": 10, "b": 25, "c": 50}
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    of = fleet(*[lane(name, 10 * shares[name], weights[name]) for name in weights])
    clouds: Counter[str] = Counter()
    canary: Counter[str] = Counter()
    for found in routes(of, IDS).values():
        clouds[found.cloud] += 1
        canary[found.cloud] += found.track is Track.CANARY
    for name, share in shares.items():
        assert abs(clouds[name] / len(IDS) - share) < 0.01
        assert abs(canary[name] / clouds[name] - weights[name] / 100) < 0.01


shares = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.1, 100), min_size=2)
fleets = st.builds(
    lambda shares, weights: fleet(*[lane(name, share, weights[name]) for name, share in shares.items()]),
    shares,
    st.fixed_dictionaries({name: st.integers(0, 100) for name in "abcdef"}),
)


@given(fleets, request_ids, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_same_id_and_state_always_route_alike(of: Fleet, request_id: str, random: Any) -> None:
    shuffled = list(of.lanes)
    random.shuffle(shuffled)
    again = fleet(*[replace(each) for each in shuffled])
    assert route(request_id, of, NOW) == route(request_id, again, NOW)


@given(live_platforms(), request_ids)
@settings(max_examples=75, deadline=None)
def test_a_state_that_was_stored_and_read_routes_alike(state: AppState, request_id: str) -> None:
    read = AppState.model_validate_json(state.model_dump_json())
    found = route(request_id, Fleet.of(state, {}, LATER), NOW)
    assert found == route(request_id, Fleet.of(read, {}, LATER), NOW)
    cloud = state.clouds[found.cloud]
    rollout = state.rollout
    assert rollout is not None
    if found.track is Track.CANARY:
        part = rollout.clouds[found.cloud]
        assert (found.digest, part.wave, part.promoted) == (rollout.release, rollout.wave, False)
        assert part.weight > 0
        assert rollout.phase.exposes
    else:
        assert found.digest == cloud.stable


@given(fleets, st.data())
@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("drains", [True, False])
def test_a_cloud_that_goes_moves_only_its_own_share(drains: bool, of: Fleet, data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from([each.cloud for each in of.lanes]))
    if drains:
        lanes = [replace(each, open=False) if each.cloud == gone else each for each in of.lanes]
    else:
        lanes = [each for each in of.lanes if each.cloud != gone]
    ids = SOME[:300]
    before, after = routes(of, ids), routes(fleet(*lanes), ids)
    for each in ids:
        if before[each].cloud != gone:
            assert after[each] == before[each]
        else:
            assert after[each].cloud != gone


@given(st.integers(0, 100), st.integers(0, 100), shares)
@settings(max_examples=20, deadline=None)
def test_raising_the_weight_keeps_who_was_in(one: int, other: int, by: dict[str, float]) -> None:
    small, large = sorted((one, other))
    sets = [
        canaries(fleet(*[lane(name, share, weight) for name, share in by.items()]), SOME[:300])
        for weight in (small, large)
    ]
    assert sets[0] <= sets[1]


def test_the_ends_of_the_scale_are_exact() -> None:
    assert canaries(fleet(lane("a", weight=0), lane("b", weight=100))) == {
        each for each, found in routes(fleet(lane("a"), lane("b"))).items() if found.cloud == "b"
    }


def test_two_rollouts_choose_other_requests() -> None:
    first = canaries(fleet(lane("a", weight=50)))
    second = canaries(fleet(lane("a", weight=50), rollout="roll-2"))
    assert 0.2 < len(first & second) / len(SOME) < 0.3


def test_the_canary_does_not_depend_on_the_cloud() -> None:
    """Independent hashes: a canary takes its weight of a small cloud's share, too."""
    of = fleet(lane("a", 9, 50), lane("b", 1, 50))
    small = [found.track is Track.CANARY for found in routes(of, IDS[:20_000]).values() if found.cloud == "b"]
    assert abs(sum(small) / len(small) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("until", "any_canary"), [(None, False), (NOW, False), (NOW - 1, False), (NOW + 1, True)]
)
def test_without_a_lease_everything_is_stable(until: float | None, any_canary: bool) -> None:
    assert bool(canaries(fleet(lane("a", weight=100), lease_until=until))) is any_canary


def test_wishes() -> None:
    of = fleet(lane("a", weight=100), lane("b", weight=100), lane("c", weight=100, opened=False))
    assert {found.track for found in routes(of, canary=False).values()} == {Track.STABLE}
    assert {found.cloud for found in routes(of, cloud="b").values()} == {"b"}
    assert routes(of, cloud="c") == routes(of) == routes(of, cloud="unknown")
    assert {found.cloud for found in routes(of, avoid={"b"}).values()} == {"a"}
    assert routes(of, avoid={"a", "b", "c"}) == routes(of)
    assert {found.cloud for found in routes(of, cloud="b", avoid={"b"}).values()} == {"a"}


@pytest.mark.parametrize("how", ["drained", "unhealthy", "without a share"])
def test_a_closed_cloud_gets_nothing(how: str) -> None:
    change = ("cloud-drained", {"cloud": "a"}) if how == "drained" else cloud_set("a", share=0.0)
    state = platform() if how == "unhealthy" else fold(change, state=platform())
    of = Fleet.of(state, {"a": how != "unhealthy"}, LATER)
    assert {found.cloud for found in routes(of).values()} == {"b", "c"}
    assert "a" not in {found.cloud for found in routes(of, cloud="a").values()}


def test_with_every_cloud_closed_there_is_an_error_with_a_way_out() -> None:
    with pytest.raises(ConflictError, match="no cloud can take a request") as caught:
        route("req-1", fleet(lane("a", opened=False)), NOW)
    assert "undrain" in caught.value.hint
    with pytest.raises(ConflictError):
        route("req-1", fleet(), NOW)


def test_the_canary_is_on_the_clouds_of_the_active_wave_only() -> None:
    state = drive(step(platform(), started(rules=policy([("a",), ("b", "c")], plan=(100,)))), 5)

    def tracks() -> dict[str, str]:
        found = routes(Fleet.of(state, {}, LATER)).values()
        return {each.cloud: f"{each.track.value} {each.digest}" for each in found}

    assert tracks() == {"a": f"canary {NEW}", "b": f"stable {OLD}", "c": f"stable {OLD}"}
    state = drive(state, 1)
    assert tracks() == {"a": f"stable {NEW}", "b": f"stable {OLD}", "c": f"stable {OLD}"}
    state = drive(state, 1)
    assert tracks() == {"a": f"stable {NEW}", "b": f"canary {NEW}", "c": f"canary {NEW}"}
    state = fold(("rolled-back", {"rollout": "roll-1"}), state=state)
    assert set(tracks().values()) == {f"stable {OLD}"}


def test_a_pinned_probe_reaches_a_canary_of_weight_zero_but_never_after_the_lease() -> None:
    """Blue/green is the plan [0, 100]: at 0 only probes see the canary."""
    state = drive(step(platform(), started(rules=policy([("a", "b", "c")], plan=(0, 100)))), 5)
    of = Fleet.of(state, {}, LATER)
    assert canaries(of) == set()
    assert pinned(of, "a", Track.CANARY, NOW) == Route("a", Track.CANARY, NEW)
    assert pinned(of, "a", Track.STABLE, NOW) == Route("a", Track.STABLE, OLD)
    assert pinned(of, "a", Track.CANARY, LATER) is None
    assert pinned(of, "a", Track.STABLE, LATER) == Route("a", Track.STABLE, OLD)
    assert pinned(of, "x", Track.STABLE, NOW) is None


def test_a_pinned_probe_reaches_no_canary_outside_of_its_wave() -> None:
    start = step(platform(), started(rules=policy([("a",), ("b", "c")], plan=(100,))))
    reached = {
        steps: [
            cloud
            for cloud in "abc"
            if pinned(Fleet.of(drive(start, steps), {}, LATER), cloud, Track.CANARY, NOW) is not None
        ]
        for steps in (0, 4, 5, 6, 7, 8, 9)
    }
    assert reached == {0: [], 4: [], 5: ["a"], 6: [], 7: ["b", "c"], 8: [], 9: []}


@given(fleets, request_ids, st.data())
@settings(max_examples=100, deadline=None)
def test_a_dark_cloud_gets_nothing_while_another_is_open(
    of: Fleet, request_id: str, data: st.DataObject
) -> None:
    """Whatever the request prefers or should avoid; when all are dark it goes where it would have gone."""
    names = st.sampled_from([each.cloud for each in of.lanes])
    dark, avoid = data.draw(st.sets(names)), data.draw(st.sets(names))
    closed, wish = data.draw(st.sets(names)), data.draw(names | st.none())
    of = fleet(*[replace(each, open=each.cloud not in closed) for each in of.lanes])
    usable = {each.cloud for each in of.lanes if each.open}
    if not usable:
        with pytest.raises(ConflictError):
            route(request_id, of, NOW, dark=dark)
        return
    found = route(request_id, of, NOW, cloud=wish, avoid=avoid, dark=dark)
    assert found.cloud in usable
    if usable - dark:
        assert found.cloud not in dark
        if usable - dark - avoid:
            assert found.cloud not in avoid
    else:
        assert found == route(request_id, of, NOW, cloud=wish, avoid=avoid)


# --- a request that names its cloud --------------------------------------------------------------------


@given(request_ids, st.booleans(), st.sets(st.sampled_from("abc")), st.sets(st.sampled_from("abc")))
def test_a_request_that_insists_on_a_cloud_goes_there_or_nowhere(
    request: str, opened: bool, avoid: set[str], dark: set[str]
) -> None:
    of = fleet(lane("a"), lane("b", opened=opened), lane("c"))
    if opened:
        assert route(request, of, NOW, cloud="b", only=True, avoid=avoid, dark=dark).cloud == "b"
    else:
        with pytest.raises(ConflictError, match="cloud b cannot take it"):
            route(request, of, NOW, cloud="b", only=True, avoid=avoid, dark=dark)
