"""The deploy flow's loop, killed on every write and started again: the same rollout comes out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flows import bundles, looks, phases
from flows.context import FlowContext
from flows.phases import Lead
from flows.probes import Prober
from lora_ops import ids, keys
from lora_ops.errors import BundleError, LoraOpsError, StoreUnavailable
from lora_ops.gates.samples import Sample, Start
from lora_ops.state import Finished, Phase, Policy, Rollout
from tasks.platform import Platform
from tasks.store.faulty import Fault, FaultyStore, Killed
from tests.flows.reconciler_world import NEW, SPEC, WRITES, Plan, World, no_fault, nth


class _Quiet:
    def info(self, *words: object) -> None: ...

    warning = info


class Scene:
    """One rollout and flows that lead it; canary attempts are samples that the prober writes at once."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str | None = None) -> None:
        self.world = World(tmp_path)
        self.cause = cause
        self.samples = 0
        self.forms: list[int] = []
        self.check: Callable[[], dict[str, Any]] = dict
        monkeypatch.setattr(looks, "get_run_logger", _Quiet)
        monkeypatch.setattr(phases, "get_run_logger", _Quiet)
        monkeypatch.setattr(phases, "in_task", _directly)
        monkeypatch.setattr(phases, "STORE_RETRY_S", 0.0)
        monkeypatch.setattr(bundles, "ensure_unpacked", lambda store, digest, cache: cache)
        monkeypatch.setattr(bundles, "self_check", lambda root, base: self.check())
        monkeypatch.setattr(Lead, "show_looks", lambda lead: None)
        monkeypatch.setattr(Lead, "offer_form", lambda lead, *words: self._offer(*words))
        monkeypatch.setattr(Prober, "keep", lambda prober, rollout, *more: self._samples(rollout))

    def begin(self, **policy: Any) -> str:
        made = SPEC.policy().model_dump(mode="json") | {
            "look_every_s": 0.0,
            "hold_s": 0.0,
            "verify_timeout_s": -1.0,
            "harmful": 0.9,
            "plans": {cloud: [10, 50] for cloud in SPEC.clouds},
            "fresh_samples": 1,
            "max_restarts": 50,
            **policy,
        }
        name = ids.new_id(ids.ROLLOUT, 1_700_000_000, 1)
        frozen = Policy.model_validate(made).model_dump(mode="json")
        source = {"release": NEW, "revision": "abc"}
        self.world.platform.record("rollout-started", {"id": name, "source": source, "policy": frozen})
        return name

    def lead(self, name: str, plan: Plan = no_fault) -> Lead:
        """A flow of the present epoch."""
        store = FaultyStore(self.world.store, plan)
        context = FlowContext(Platform(store, "loras", "deploy"), self.world.home, None)
        lead = Lead(context, name, self.world.active.epoch)
        return lead

    def run(self, lead: Lead) -> Finished | None:
        return asyncio.run(asyncio.wait_for(lead.run(), 20))

    def _samples(self, rollout: Rollout) -> int:
        """One attempt a cloud that is being canaried."""
        self.samples += 1
        for cloud in rollout.wave_clouds:
            request = f"req-{self.samples}-{cloud}"
            facts = {"request": request, "attempt": 1, "cloud": cloud}
            facts |= {"track": "canary", "digest": rollout.release}
            where = (rollout.id, cloud, "canary", request, 1)
            self.world.store.create(keys.start(*where), Start(**facts).model_dump_json().encode())
            sample = Sample(**facts, cause=self.cause, at_horizon=self.cause is None)
            self.world.store.create(keys.sample(*where), sample.model_dump_json().encode())
        return 1

    def _offer(self, rollout: Rollout, summary: str) -> None:
        self.forms.append(rollout.wave)

    def kinds(self) -> list[str]:
        return [entry.document["kind"] for entry in self.world.platform.history()][len(SPEC.clouds) :]


async def _directly(name: str, act: Callable[[], Awaitable[Any]]) -> Any:
    return await act()


GOOD = [
    *("rollout-started", "validated", "built", "self-checked", "distributed"),
    *("step-started", "step-started", "wave-promoted", "holding", "promoted"),
]
BAD = [*GOOD[:6], "rolled-back"]


@pytest.mark.parametrize("cause", [None, "trainer_error"], ids=["good", "broken"])
@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
def test_killed_on_any_write_it_ends_as_if_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str | None, fault: Fault
) -> None:
    undisturbed = BAD if cause else GOOD
    for n in range(100):
        scene = Scene(tmp_path, monkeypatch, cause)
        name = scene.begin()
        lead = scene.lead(name, nth(n, fault, WRITES))
        try:
            ended = scene.run(lead)
            assert n > 5
            assert ended is not None
            return  # there is no n-th write
        except Killed:
            pass
        if scene.world.platform.state().rollout is not None:
            scene.world.record("flow-restarted")
            assert scene.run(scene.lead(name)) is not None
        assert [kind for kind in scene.kinds() if kind != "flow-restarted"] == undisturbed
        numbers = [seen.n for seen in scene.world.platform.looks(name)]
        assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("fault", [Fault.NO_REQUEST, Fault.NO_ANSWER])
def test_a_store_that_is_away_for_a_moment_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    for n in range(300):
        scene = Scene(tmp_path, monkeypatch)
        lead = scene.lead(scene.begin(), nth(n, fault))
        ended = scene.run(lead)
        assert ended is not None
        assert ended.phase is Phase.PROMOTED
        assert scene.kinds() == GOOD


def test_an_older_epoch_decides_nothing_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken for dead and wakes up in the middle of any step."""
    scene = Scene(tmp_path, monkeypatch)
    name = scene.begin()
    old = scene.lead(name)
    scene.world.record("flow-restarted")
    assert scene.run(old) is None
    assert scene.kinds() == ["rollout-started", "flow-restarted"]
    with pytest.raises(LoraOpsError, match="led by flow 1"):
        old.record("validated", {})


def test_a_failed_self_check_ends_it_with_its_details(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch)

    def check() -> dict[str, Any]:
        raise BundleError("it does not pass.", "Mend it.", ["torch: the lock wants 2.13.0, found 2.1.0"])

    scene.check = check
    ended = scene.run(scene.lead(scene.begin()))
    assert ended is not None
    assert (ended.phase, ended.release) == (Phase.FAILED, NEW)
    assert "torch: the lock wants 2.13.0, found 2.1.0" in ended.reason


def test_a_release_that_is_stable_everywhere_is_not_rolled_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch)
    for cloud in SPEC.clouds:
        state = scene.world.platform.state()
        assert state.clouds[cloud].stable != NEW
    first = scene.run(scene.lead(scene.begin()))
    assert first is not None
    policy = SPEC.policy().model_dump(mode="json")
    again = {"id": ids.new_id(ids.ROLLOUT, 1_700_000_001, 2), "source": {"release": NEW}, "policy": policy}
    scene.world.platform.record("rollout-started", again)
    ended = scene.run(scene.lead(str(again["id"])))
    assert ended is not None
    assert ended.phase is Phase.FAILED
    assert "nothing to roll out" in ended.reason


@pytest.mark.parametrize("phase", ["canarying", "approved", "holding"])
def test_a_flow_that_was_started_again_looks_before_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """While nobody led it, the deadline or the hold ran out, or a person approved; and samples turned bad."""
    scene = Scene(tmp_path, monkeypatch)
    name = scene.begin(deadline_s=-1.0, approval=phase == "approved")
    for kind, data in (
        ("validated", {}),
        ("built", {"release": NEW}),
        ("self-checked", {}),
        ("distributed", {"clouds": dict.fromkeys(SPEC.clouds, NEW)}),
        ("step-started", {"wave": 0, "step": 0}),
        ("step-started", {"wave": 0, "step": 1}),
    ):
        scene.world.record(kind, **data)
    if phase == "approved":
        scene.world.record("approval-requested")
        scene.world.record("approved", by="Ann")
    if phase == "holding":
        scene.world.record("wave-promoted", wave=0)
        scene.world.record("holding")
    scene.cause = "trainer_error"
    for _ in range(4):
        scene._samples(scene.world.active)
    ended = scene.run(scene.lead(name))
    assert ended is not None
    assert ended.phase is Phase.ROLLED_BACK
    assert "attempts of the new release failed" in ended.reason
    assert {cloud.stable for cloud in scene.world.platform.state().clouds.values()} != {NEW}


def test_the_form_is_offered_by_whoever_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the event and the form: the next flow offers it."""
    scene = Scene(tmp_path, monkeypatch)
    name = scene.begin(approval=True)
    lead = scene.lead(name)

    def killed(rollout: Rollout, summary: str) -> None:
        raise Killed("before the form")

    lead.offer_form = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        scene.run(lead)
    assert scene.kinds()[-1] == "approval-requested"
    assert scene.world.platform.history()[-1].document["data"]["wave"] == 0
    scene.world.record("flow-restarted")
    lead = scene.lead(name)

    def approve(rollout: Rollout, summary: str) -> None:
        scene.forms.append(rollout.wave)
        scene.world.record("approved", by="Ann")

    lead.offer_form = approve  # type: ignore[method-assign]
    ended = scene.run(lead)
    assert ended is not None
    assert ended.phase is Phase.PROMOTED
    assert scene.forms == [0]


def test_the_store_may_be_away_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch)
    left = [200]

    def plan(method: str, key: str) -> Fault | None:
        left[0] -= 1
        return Fault.NO_REQUEST if 0 < left[0] < 150 and not key.startswith("clock/") else None

    ended = scene.run(scene.lead(scene.begin(), plan))
    assert ended is not None
    assert ended.phase is Phase.PROMOTED
    with pytest.raises(StoreUnavailable):
        Platform(FaultyStore(scene.world.store, lambda *_: Fault.NO_REQUEST), "loras", "x").state()
