"""What nothing can need any more: nothing of an open request, of a rollout that may go on, of a journal."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.garbage import (
    MANIFEST,
    TOMBSTONE,
    Item,
    Kind,
    Known,
    Limits,
    find_garbage,
    needed_releases,
)
from lora_ops.request import Attempt, AttemptState, Order, RequestState, Result, ResultState
from lora_ops.state import (
    AppState,
    CloudRollout,
    CloudState,
    Finished,
    Phase,
    Policy,
    Queued,
    Rollout,
    Source,
)
from lora_ops.state import Track as TrackName

DAY = 86_400.0
ALL = Limits(30 * DAY, DAY, releases=True, datasets=True)
DIGESTS = ["sha256:" + each * 64 for each in "abcdef"]
REQUESTS = ["req-1", "req-2", "req-3"]
DATASETS = ["faces", "cats"]


def rollout(release: str | None, before: str = DIGESTS[0], source: Source | None = None) -> Rollout:
    policy = Policy(waves=(("east",),), plans={"east": (100,)}, gates=())
    clouds = {"east": CloudRollout(wave=0, plan=(100,), before=before)}
    return Rollout(
        id="roll-1",
        source=source or Source(),
        policy=policy,
        release=release,
        clouds=clouds,
        started_seq=0,
        phase_seq=0,
    )


digests = st.sampled_from(DIGESTS)


@st.composite
def apps(draw: st.DrawFn) -> AppState:
    previous = draw(st.none() | digests)
    cloud = CloudState(name="east", stable=draw(digests), previous=previous)
    active = draw(st.none() | st.builds(rollout, st.none() | digests, digests))
    ended = draw(st.lists(digests, max_size=2))
    finished = [
        Finished(id=f"roll-{n}", release=each, phase=Phase.PROMOTED, reason="", started_seq=0, ended_seq=1)
        for n, each in enumerate(ended)
    ]
    return AppState(app="team", clouds={"east": cloud}, rollout=active, finished=tuple(finished))


@st.composite
def requests(draw: st.DrawFn, name: str) -> RequestState:
    """In any state, also one that was never journalled."""
    order = Order(dataset=draw(st.sampled_from(DATASETS)), dataset_digest=draw(digests))
    count = draw(st.integers(0, 3))
    attempts = [
        Attempt(
            n=n + 1, cloud="east", track=TrackName.STABLE, digest=draw(digests), seq=n,
            state=AttemptState.OPEN if n == count - 1 else AttemptState.LOST,
        )
        for n in range(count)
    ]  # fmt: skip
    ends = st.none() | st.builds(
        Result,
        state=st.sampled_from(ResultState),
        attempt=st.none() | st.integers(1, 3),
        seq=st.just(9),
    )
    return RequestState(
        id=name, order=draw(st.none() | st.just(order)), attempts=tuple(attempts), result=draw(ends)
    )


@st.composite
def worlds(draw: st.DrawFn) -> Known:
    states = {name: draw(requests(name)) for name in draw(st.sets(st.sampled_from(REQUESTS)))}
    marked = draw(st.sets(st.sampled_from(REQUESTS)))
    unfinished = {name for name, state in states.items() if state.result is None}
    return Known(frozenset(marked | unfinished), states, draw(st.lists(apps(), max_size=2)))


def every_key() -> list[str]:
    keys = [
        f"journal/team/{0:020d}.json",
        "clock/serve",
        "probe/create-only/x",
        "open/req-1",
        "idempotency/x",
    ]
    for request in REQUESTS:
        keys += [f"requests/{request}/{0:020d}.json", f"requests/{request}/config.yaml"]
        for n in (1, 2, 3):
            keys += [
                f"requests/{request}/attempts/{n}/{name}"
                for name in ("log.txt", "heartbeat.json", "start.json")
            ]
            keys += [f"{kind}/{request}/{n}/x/{MANIFEST}" for kind in ("checkpoints", "artifacts")]
    keys += ["rollouts/roll-1/looks/000000.json", "rollouts/roll-1/starts/east/canary/req-1-1.json"]
    for digest in (each.replace(":", "-") for each in DIGESTS):
        keys += [f"releases/{digest}/bundle.tar", f"releases/{digest}/release.json"]
        for name in DATASETS:
            keys += [f"datasets/{name}/{digest}/files/1.png", f"datasets/{name}/{digest}/{MANIFEST}"]
    return keys


ITEMS = st.lists(
    st.builds(
        Item,
        st.sampled_from(every_key()),
        st.sampled_from([0, len(TOMBSTONE), 500]),
        st.sampled_from([0.0, 2 * DAY, 60 * DAY]),
    ),
    unique_by=lambda item: item.key,
)
LIMITS = st.builds(
    Limits,
    st.sampled_from([0.0, 30 * DAY]),
    st.sampled_from([0.0, DAY]),
    releases=st.booleans(),
    datasets=st.booleans(),
)


@given(ITEMS, worlds(), LIMITS)
def test_what_may_be_needed_is_never_garbage(items: Sequence[Item], known: Known, limits: Limits) -> None:
    garbage = {each.key: each for each in find_garbage(items, known, limits)}
    needed = {each.replace(":", "-") for each in needed_releases(known)}
    sizes = {item.key: item.size for item in items}
    for key, each in garbage.items():
        parts = key.split("/")
        assert parts[0] not in ("journal", "open", "rollouts", "idempotency")
        assert key.startswith("requests/") <= (parts[-1] in ("log.txt", "heartbeat.json"))
        if parts[0] in ("checkpoints", "artifacts", "requests"):
            state = known.requests[parts[1]]
            assert parts[1] not in known.open
            assert state.result is not None
            if parts[0] == "artifacts":
                assert parts[2] != str(state.result.attempt)
        if parts[0] == "releases":
            assert limits.releases
            assert parts[1] not in needed
        if each.kind is Kind.DATASET:
            assert limits.datasets
            assert not any(app.rollout or app.queue for app in known.apps)
            for request in known.open:
                order = known.requests[request].order
                assert order is not None
                assert (
                    f"datasets/{order.dataset}/{str(order.dataset_digest).replace(':', '-')}" != each.folder
                )
        if each.kind is Kind.UNFINISHED:
            assert sizes.get(f"{each.folder}/{MANIFEST}", len(TOMBSTONE)) == len(TOMBSTONE)


@given(ITEMS, worlds(), LIMITS)
def test_a_folder_goes_whole_or_not_at_all(items: Sequence[Item], known: Known, limits: Limits) -> None:
    garbage = find_garbage(items, known, limits)
    keys = {each.key for each in garbage}
    for folder in {each.folder for each in garbage if each.folder}:
        assert all(item.key in keys for item in items if item.key.startswith(f"{folder}/"))
    assert len(keys) == len(garbage)


@given(ITEMS, worlds())
def test_more_time_and_leave_never_saves_anything(items: Sequence[Item], known: Known) -> None:
    careful = {each.key for each in find_garbage(items, known, Limits())}
    bold = {each.key for each in find_garbage(items, known, Limits(0, 0, releases=True, datasets=True))}
    assert careful <= bold


def over(name: str, attempt: int | None = 2) -> RequestState:
    result = Result(state=ResultState.SUCCEEDED if attempt else ResultState.FAILED, attempt=attempt, seq=3)
    return RequestState(id=name, order=Order(dataset="faces", dataset_digest=DIGESTS[0]), result=result)


def kinds(keys: Sequence[str], known: Known, limits: Limits = ALL, age: float = 60 * DAY) -> list[Kind]:
    return [each.kind for each in find_garbage([Item(key, 500, age) for key in keys], known, limits)]


@pytest.mark.parametrize(
    ("key", "age", "kind"),
    [
        ("checkpoints/req-1/1/step-3/weights", 0.0, Kind.CHECKPOINT),
        ("artifacts/req-1/1/lora.safetensors", 0.0, Kind.ARTIFACT),
        ("artifacts/req-1/2/lora.safetensors", 60 * DAY, None),
        ("requests/req-1/attempts/1/log.txt", 29 * DAY, None),
        ("requests/req-1/attempts/1/log.txt", 30 * DAY, Kind.LOG),
        ("requests/req-1/attempts/1/start.json", 60 * DAY, None),
        ("requests/req-1/config.yaml", 60 * DAY, None),
        ("clock/serve-1", 0.9 * DAY, None),
        ("clock/serve-1", DAY, Kind.MOMENTARY),
        ("datasets/faces/sha256-x/files/1.png", 0.9 * DAY, None),
        ("datasets/faces/sha256-x/files/1.png", DAY, Kind.UNFINISHED),
        ("releases/sha256-x/bundle.tar", 29 * DAY, None),
        ("releases/sha256-x/bundle.tar", 30 * DAY, Kind.RELEASE),
        ("somebody/elses/file", 60 * DAY, None),
    ],
)
def test_each_kind(key: str, age: float, kind: Kind | None) -> None:
    known = Known(frozenset(), {"req-1": over("req-1")})
    assert kinds([key], known, age=age) == ([kind] if kind else [])


def test_a_request_without_a_success_leaves_no_artifact() -> None:
    known = Known(frozenset(), {"req-1": over("req-1", None)})
    assert kinds(["artifacts/req-1/1/x", "artifacts/req-1/2/x"], known) == [Kind.ARTIFACT] * 2


def test_a_dataset_upload_with_one_young_file_goes_on() -> None:
    items = [Item("datasets/a/b/files/1", 5, 5 * DAY), Item("datasets/a/b/files/2", 5, 60.0)]
    assert find_garbage(items, Known(frozenset()), ALL) == []


def test_a_tombstone_is_cleared_whatever_its_age_and_a_manifest_is_never_so_short() -> None:
    items = [Item("datasets/a/b/files/1", 5, 0.0), Item(f"datasets/a/b/{MANIFEST}", len(TOMBSTONE), 0.0)]
    assert [each.kind for each in find_garbage(items, Known(frozenset()), Limits())] == [Kind.UNFINISHED] * 2
    assert len(TOMBSTONE) < 64  # a manifest holds at least one sha256


@pytest.mark.parametrize(
    "app",
    [
        AppState(app="t", rollout=rollout(None)),
        AppState(app="t", queue=(Queued(id="q", source=Source(), policy=rollout(None).policy, seq=1),)),
    ],
)
def test_no_release_goes_while_one_is_built_or_waits(app: AppState) -> None:
    keys = [f"releases/sha256-{'f' * 64}/bundle.tar"]
    assert kinds(keys, Known(frozenset(), {}, [AppState(app="t")])) == [Kind.RELEASE]
    assert kinds(keys, Known(frozenset(), {}, [app])) == []


def test_images_that_rollouts_name_are_needed() -> None:
    active = rollout(DIGESTS[1], DIGESTS[2], Source(image=f"ghcr.io/team/x@{DIGESTS[3]}"))
    cloud = CloudState(name="east", stable=DIGESTS[4], previous=DIGESTS[5])
    app = AppState(app="t", rollout=active, clouds={"east": cloud})
    assert needed_releases(Known(frozenset(), {}, [app])) == set(DIGESTS[1:])


def test_an_open_request_that_is_not_journalled_yet_keeps_every_dataset() -> None:
    keys = [f"datasets/a/b/{MANIFEST}"]
    assert kinds(keys, Known(frozenset())) == [Kind.DATASET]
    assert kinds(keys, Known(frozenset({"req-9"}))) == []
