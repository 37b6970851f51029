"""Keys: where each thing lies is what docs/architecture.md says, and no two things lie in one place."""

from __future__ import annotations

import itertools

import pytest

from lora_ops import keys
from lora_ops.ids import new_id

REQUESTS = [new_id("req", 1_700_000_000 + n, n) for n in range(2)]
ROLLOUTS = [new_id("roll", 1_700_000_000 + n, n) for n in range(2)]


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        (keys.journal("app"), "journal/app"),
        (keys.request("req-1"), "requests/req-1"),
        (keys.request_config("req-1"), "requests/req-1/config.yaml"),
        (keys.open_marker("req-1"), "open/req-1"),
        (keys.heartbeat("req-1", 2), "requests/req-1/attempts/2/heartbeat.json"),
        (keys.log("req-1", 2), "requests/req-1/attempts/2/log.txt"),
        (keys.look("roll-1", 7), "rollouts/roll-1/looks/000007.json"),
        (keys.flow("roll-1"), "rollouts/roll-1/flow.json"),
        (keys.start("roll-1", "a", "canary", "req-1", 2), "rollouts/roll-1/starts/a/canary/req-1-2.json"),
        (keys.start(None, "a", "stable", "req-1", 2), "requests/req-1/attempts/2/start.json"),
        (keys.sample("roll-1", "a", "canary", "req-1", 2), "rollouts/roll-1/samples/a/canary/req-1-2.json"),
        (
            keys.sample("roll-1", "a", "canary", "req-1", 2, late=True),
            "rollouts/roll-1/samples/a/canary/req-1-2-late.json",
        ),
        (keys.checkpoints("req-1", 2), "checkpoints/req-1/2"),
        (keys.artifacts("req-1", 2), "artifacts/req-1/2"),
    ],
)
def test_each_thing_lies_where_the_architecture_says(key: str, wanted: str) -> None:
    assert key == wanted


def test_no_two_things_lie_in_one_place() -> None:
    found: list[str] = []
    for request, n in itertools.product(REQUESTS, range(1, 12)):
        found += [
            keys.heartbeat(request, n),
            keys.log(request, n),
            keys.start(None, "a", "stable", request, n),
        ]
        for rollout, cloud, track in itertools.product(ROLLOUTS, ("a", "a-1"), ("stable", "canary")):
            found.append(keys.start(rollout, cloud, track, request, n))
            found += [keys.sample(rollout, cloud, track, request, n, late) for late in (False, True)]
    for rollout in ROLLOUTS:
        found += [keys.flow(rollout), *[keys.look(rollout, n) for n in range(12)]]
    for request in REQUESTS:
        found += [keys.request_config(request), keys.open_marker(request)]
    assert len(set(found)) == len(found)


def test_looks_sort_by_number_and_lie_below_their_prefix() -> None:
    made = [keys.look("roll-1", n) for n in (0, 9, 10, 99_999, 100_000)]
    assert made == sorted(made)
    assert all(key.startswith(f"{keys.looks('roll-1')}/") for key in made)
    assert keys.start("roll-1", "a", "canary", "req-1", 1).startswith(f"{keys.starts('roll-1')}/")
    assert keys.sample("roll-1", "a", "canary", "req-1", 1).startswith(f"{keys.samples('roll-1')}/")
