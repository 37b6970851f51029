"""Any pipeline document: it means one thing, or its fault is told; nothing of it is dropped."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.errors import ConfigError
from lora_ops.json_lines import written
from lora_ops.state import Policy
from tests.lora_ops.pipelines import (
    CLOUDS,
    complaints,
    meant,
    spec,
    stage,
)

containers = st.sampled_from(["lora-scripts:latest", "ghcr.io/x/y:v1"])
steps = st.lists(st.integers(0, 100), min_size=1, max_size=4).map(sorted)
strategies = st.fixed_dictionaries({"strategy": st.just("bluegreen")}) | st.fixed_dictionaries(
    {}, optional={"strategy": st.just("canary"), "steps": steps}
)


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """Documents that mean something."""
    container = draw(containers)
    names = draw(st.permutations(CLOUDS))[: draw(st.integers(1, 3))]
    clusters = []
    for name in names:
        sized = draw(st.fixed_dictionaries({}, optional={"targetSize": st.integers(1, 1000)}))
        clusters.append({"account": name, "container": container, **sized, **draw(strategies)})
    stages: list[Any] = [{"type": "deploy", "clusters": clusters}]
    if draw(st.booleans()):
        if draw(st.booleans()):
            prefixes = [name[: draw(st.integers(1, len(name)))] for name in names]
            monitor = {
                "type": "monitor",
                "metricsAccount": draw(st.sampled_from(["prometheus-prod", "store"])),
            }
            stages.append(
                {**monitor, "scopes": draw(st.lists(st.sampled_from(prefixes), min_size=1, max_size=3))}
            )
        conditions = draw(
            st.lists(st.sampled_from(["errorRate > 5%", "latency>500 ms"]), min_size=1, unique=True)
        )
        stages.append({"type": "rollback", "trigger": "automatic", "conditions": conditions})
    return {"application": draw(st.sampled_from(["loras", "other"])), "pipeline": {"stages": stages}}


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of what has nothing below it; a list of numbers is one."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, (*path, key))
    elif isinstance(value, list) and not isinstance(value[0], int):
        for n, below in enumerate(value):
            yield from leaves(below, (*path, n))
    else:
        yield path


cases = settings(max_examples=80, deadline=None)


@given(documents())
@cases
def test_no_key_is_ignored_and_each_cloud_is_judged(document: Any) -> None:
    found = meant(document)
    told = {line.partition(": ")[0] for line in found.lines}
    assert {written(path) for path in leaves(document) if path[-1] != "type"} <= told
    policy = found.policy(spec())
    assert Policy.model_validate_json(policy.model_dump_json()) == policy
    assert set(policy.plans) == set(CLOUDS)
    titles = [gate.title for gate in policy.gates]
    assert len(set(titles)) == len(titles)
    own = spec().policy()
    for name in CLOUDS:
        ours = {gate.metric for gate in policy.gates if gate.covers(name)}
        assert ours >= {gate.metric for gate in own.gates if gate.covers(name)}, "no protection is lost"
        judged = [gate.metric for gate in policy.gates if gate.covers(name)]
        assert len(set(judged)) == len(judged), "no metric is judged twice"
        if not any(each["account"] == name for each in stage(document, 0)["clusters"]):
            assert policy.plans[name] == own.plans[name]
            assert name not in policy.sizes
            assert ours == {gate.metric for gate in own.gates if gate.covers(name)}


@given(documents(), st.data())
@cases
def test_an_unknown_key_anywhere_is_named_with_its_line(document: Any, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([path[:n] for path in leaves(document) for n in range(len(path))]))
    changed = copy.deepcopy(document)
    place = changed
    for part in path:
        place = place[part]
    if not isinstance(place, dict):
        return
    place["extra"] = 1
    text = json.dumps(changed, indent=1)
    line = next(n for n, each in enumerate(text.splitlines(), 1) if '"extra"' in each)
    (found,) = complaints(text)
    assert found.startswith(f"p.json:{line}: `{written((*path, 'extra'))}`: unknown key.")


things = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
)


@given(documents(), things, st.data())
@cases
def test_whatever_stands_anywhere_is_meant_or_told(document: Any, thing: Any, data: st.DataObject) -> None:
    """Never an error of another kind; nothing is left of the document that the words do not fit."""
    path = data.draw(st.sampled_from([path[: n + 1] for path in leaves(document) for n in range(len(path))]))
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = thing
    try:
        meant(document)
    except ConfigError as error:
        told = [line for line in error.details if not line.startswith("    ")]
        assert all(line.startswith("p.json:") and line.isprintable() for line in told)
