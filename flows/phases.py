"""The phases of a rollout as Prefect tasks, and the loop that takes them in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from flows.approve import APPROVE_DEPLOYMENT
from flows.bundles import Bundles
from flows.context import FlowContext, flow_spec
from flows.dataset import dataset
from flows.looks import Looker
from flows.probes import Prober, probe_key
from lora_ops import SCHEMA_VERSION, keys
from lora_ops.errors import LoraOpsError, NotFoundError, ObjectExists, Refused, StoreUnavailable
from lora_ops.state import IMAGE, AppState, Finished, Phase, Rollout
from lora_ops.steps import Do, Next, Sight, kept, next_step
from tasks.prefect_api import PrefectApi

if TYPE_CHECKING:
    from flows.images import Images

BEAT_S = 5.0
STORE_RETRY_S = 2.0
T = TypeVar("T")


class Superseded(Exception):
    """Another flow leads this rollout, or it is over, as `state` says."""

    def __init__(self, state: AppState) -> None:
        super().__init__()
        self.state = state


class Lead:
    """Leads one rollout under one epoch."""

    def __init__(self, context: FlowContext, rollout_id: str, epoch: int) -> None:
        self.context = context
        self.platform = context.platform
        self.id = rollout_id
        self.epoch = epoch
        self.looker = Looker(context.platform, rollout_id, epoch)
        self.prober = Prober(context.platform)
        self.asked: set[int] = set()
        self.shows: set[asyncio.Task[None]] = set()

    async def run(self) -> Finished | None:
        """The finished rollout, or None when another flow leads it."""
        while True:
            try:
                state = self.platform.state()
                rollout = self.mine(state)
                upcoming: Next | None = Next(Do.LOOK)  # nothing is decided about a canary without a look
                if not rollout.phase.exposes:
                    upcoming = next_step(rollout, self.looker.sight(rollout))
                if upcoming is not None and upcoming.do is Do.LOOK:
                    upcoming = await in_task(_watch_name(rollout), partial(self.watch, rollout))
                if upcoming is not None:
                    await self.do(upcoming, rollout)
            except Superseded as over:
                return next((each for each in over.state.finished if each.id == self.id), None)
            except Refused as refusal:
                get_run_logger().info("%s", refusal.message)  # somebody decided first: read again
            except StoreUnavailable as error:
                get_run_logger().warning("%s", error.message)
                await asyncio.sleep(STORE_RETRY_S)

    def mine(self, state: AppState) -> Rollout:
        rollout = state.rollout
        if rollout is None or rollout.id != self.id or rollout.epoch != self.epoch:
            raise Superseded(state)
        return rollout

    async def beat(self) -> None:
        """Tell the reconciler that this flow lives."""
        while True:
            document = {"schema_version": SCHEMA_VERSION, "epoch": self.epoch}
            with suppress(LoraOpsError):  # the next beat tells it; without any the reconciler takes over
                await asyncio.to_thread(
                    self.platform.store.put, keys.flow(self.id), json.dumps(document).encode()
                )
            await asyncio.sleep(BEAT_S)

    async def do(self, upcoming: Next, rollout: Rollout) -> None:
        match upcoming.do:
            case Do.VALIDATE:
                await self.ending_badly("validate", lambda: self.validate(rollout))
            case Do.BUILD:
                await self.ending_badly(f"build {_named(rollout)}", lambda: self.build(rollout))
            case Do.SELF_CHECK:
                await self.ending_badly("self-check", lambda: self.self_check(rollout))
            case Do.DISTRIBUTE:
                clouds = ", ".join(rollout.clouds)
                await self.ending_badly(f"bring to {clouds}", lambda: self.distribute(rollout))
            case Do.START_STEP:
                self.record(
                    "step-started", {"wave": upcoming.wave, "step": upcoming.step}, reason=upcoming.reason
                )
            case Do.REQUEST_APPROVAL:
                self.record("approval-requested", {"wave": upcoming.wave}, reason=upcoming.reason)
            case Do.PROMOTE_WAVE:
                clouds = ", ".join(rollout.wave_clouds)
                await in_task(f"promote {clouds}", lambda: self.promote(upcoming))
            case Do.HOLD:
                self.record("holding", {}, reason=upcoming.reason)
            case Do.FINISH:
                self.record("promoted", {"reason": upcoming.reason}, reason=upcoming.reason)
            case Do.PAUSE:
                self.record("paused", {"reason": upcoming.reason}, reason=upcoming.reason)
            case Do.ROLL_BACK:
                await in_task("roll back", lambda: self.roll_back(upcoming.reason))

    def record(self, kind: str, data: dict[str, Any], **words: Any) -> AppState:
        """Journal an event of this rollout under this epoch."""
        return self.platform.record(kind, {"rollout": self.id, "epoch": self.epoch, **data}, **words)

    async def ending_badly(self, name: str, phase: Callable[[], Awaitable[None]]) -> None:
        """Run a phase before the canary; an error of lora-ops in it ends the rollout as `failed`."""
        try:
            await in_task(name, phase)
        except (Refused, StoreUnavailable):
            raise
        except LoraOpsError as error:
            reason = " ".join([f"{name}: {error.message}", *error.details[:5], error.hint]).strip()
            self.record("failed", {"reason": reason}, reason=reason, evidence={"details": error.details})

    # --- phases ---

    async def validate(self, rollout: Rollout) -> None:
        """The probe's config and dataset, decoded by the trainer's own checker."""
        probes = rollout.policy.probes
        evidence: dict[str, Any] = {}
        if probes is not None:
            path = Path(probes.config)
            if not await asyncio.to_thread(path.is_file):
                raise NotFoundError(f"the probe config {path} is missing.", "Mend `rollout.probes.config`.")
            evidence = await dataset(config=str(path), checked_for=rollout.id)
            with suppress(ObjectExists):
                self.platform.store.create(probe_key(rollout.id), evidence.pop("text").encode())
        self.record("validated", {}, evidence=evidence)

    async def build(self, rollout: Rollout) -> None:
        """The release from its source, published by content."""
        release, revision = await asyncio.to_thread(self.releases(rollout).build, rollout)
        state = self.platform.state()
        if all(state.clouds[name].stable == release for name in rollout.clouds):
            raise LoraOpsError(
                f"{release} is stable on every cloud already.", "There is nothing to roll out."
            )
        self.record("built", {"release": release, "revision": revision})

    async def self_check(self, rollout: Rollout) -> None:
        """Versions against the lock and one real training step, inside the built thing."""
        report = await asyncio.to_thread(self.releases(rollout).self_check, rollout)
        self.record("self-checked", {}, evidence=report)

    async def distribute(self, rollout: Rollout) -> None:
        """The same digest to every cloud, verified there."""
        held = await asyncio.to_thread(self.releases(rollout).distribute, rollout)
        self.record("distributed", {"clouds": held})

    def releases(self, rollout: Rollout) -> Bundles | Images:
        """What brings out this kind of release."""
        say = get_run_logger().info
        if rollout.source.kind != IMAGE:
            return Bundles(self.context, say)
        from flows.images import Images  # with the Kubernetes client, which only images need

        return Images(self.platform.store, flow_spec(), say)

    async def watch(self, began: Rollout) -> Next | None:
        """Look every few seconds until something else is to be done; None when somebody else did it."""
        rollout = began
        while (rollout.phase, rollout.wave, rollout.step) == (began.phase, began.wave, began.step):
            sight = await asyncio.to_thread(self.looker.look, rollout)
            self.show_looks()
            upcoming = next_step(rollout, sight)
            if upcoming.do is not Do.LOOK:
                return upcoming
            if rollout.phase is Phase.CANARYING:
                await self.probe(rollout, sight)
            elif rollout.phase is Phase.AWAITING_APPROVAL and rollout.wave not in self.asked:
                await asyncio.to_thread(self.offer_form, rollout, sight.summary)
            await asyncio.sleep(rollout.policy.look_every_s)
            rollout = self.mine(self.platform.state())
        return None

    def offer_form(self, rollout: Rollout, summary: str) -> None:
        """A form in Prefect's UI, once a wave whoever leads; without Prefect at the next turn."""
        api = PrefectApi(_api_url())
        try:
            api.create_run(
                APPROVE_DEPLOYMENT,
                key=f"{rollout.id}-approve-{rollout.wave}",
                parameters={"rollout": rollout.id, "summary": summary, "wave": rollout.wave},
                queue="default",
            )
            self.asked.add(rollout.wave)
        except LoraOpsError as error:
            get_run_logger().warning("no form in Prefect: %s", error.message)
        finally:
            api.close()

    def show_looks(self) -> None:
        """Beside the loop: Prefect's client tries for a minute when its server is away."""
        if self.looker.unshown:
            self.shows = {each for each in self.shows if not each.done()}
            self.shows.add(asyncio.create_task(self.looker.show()))

    async def probe(self, rollout: Rollout, sight: Sight) -> None:
        """Keep probes under way; what cannot be submitted is said, and the deadline decides."""
        try:
            await asyncio.to_thread(self.prober.keep, rollout, sight.decided)
        except (Refused, StoreUnavailable):
            raise
        except LoraOpsError as error:
            get_run_logger().error("no probe: %s %s", error.message, error.hint)

    async def promote(self, upcoming: Next) -> None:
        """The pointer first; what it does is verified by the reconciler through the normal router."""
        self.record("wave-promoted", {"wave": upcoming.wave}, reason=upcoming.reason)

    async def roll_back(self, reason: str) -> None:
        """The pointer first; the reconciler then moves the canary's unfinished attempts to stable."""
        rollout = self.mine(self.platform.state())
        evidence = {"look": self.looker.newest}
        data = {"reason": reason, "keep": kept(rollout, self.looker.failing())}
        self.record("rolled-back", data, reason=reason, evidence=evidence)


async def in_task(name: str, act: Callable[[], Awaitable[T]]) -> T:
    """Run it as a Prefect task with a readable name, never cached: the journal says what is done."""

    async def run() -> T:
        return await act()

    made: T = await task(name=name, task_run_name=name, cache_policy=NO_CACHE)(run)()
    return made


def _watch_name(rollout: Rollout) -> str:
    if rollout.phase is Phase.CANARYING:
        weights = sorted({rollout.clouds[name].weight for name in rollout.wave_clouds})
        shown = "/".join(f"{weight}%" for weight in weights)
        return f"canary {shown} on {', '.join(rollout.wave_clouds)}"
    return {
        Phase.AWAITING_APPROVAL: "wait for approval",
        Phase.PROMOTING: "verify",
        Phase.HOLDING: "hold",
    }.get(rollout.phase, rollout.phase.value)


def _named(rollout: Rollout) -> str:
    source = rollout.source
    found = source.release or source.image
    return found or (source.revision or "HEAD" if not source.dirty else "working tree")


def _api_url() -> str:
    from prefect.settings import get_current_settings

    return str(get_current_settings().api.url or "http://127.0.0.1:4200/api")
