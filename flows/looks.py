"""Looks: the gates judged on what the store holds, written down, shown in Prefect, turned into a sight."""

from __future__ import annotations

import json
from collections.abc import Mapping

import httpx
from prefect.artifacts import acreate_markdown_artifact
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

from lora_ops import SCHEMA_VERSION, keys
from lora_ops.errors import ObjectExists
from lora_ops.gates.counts import fresh_samples
from lora_ops.gates.promql import Scope
from lora_ops.gates.statistics import Verdict
from lora_ops.gates.verdict import GateResult, Look, judge, number_of_tests
from lora_ops.lease import due
from lora_ops.state import Phase, Rollout
from lora_ops.steps import Sight
from tasks.metrics.counting import count_all
from tasks.platform import Platform, SeenLook


class Looker:
    """One deploy flow's eyes on its rollout."""

    def __init__(self, platform: Platform, rollout_id: str, epoch: int) -> None:
        self.platform = platform
        self.id = rollout_id
        self.epoch = epoch
        self.newest: int | None = None
        self.unshown: list[tuple[int, Look]] = []

    def look(self, rollout: Rollout) -> Sight:
        """Judge now; write the look when the counts changed or half of the lease is gone."""
        gathered = self.platform.clock.now().earliest  # before the first fact is read
        look = judge_now(self.platform, rollout)
        if look is None:
            return self.sight(rollout)
        newest = self._newest()
        changed = newest is None or newest.look.results != look.results
        since = self.platform.renews_from(rollout, newest) if newest is not None else None
        age = self.platform.clock.now().latest - since if since is not None else rollout.policy.lease_s
        if newest is not None:
            self.newest = newest.n
        if due(age, rollout.policy.lease_s, changed):
            self._write(rollout, look, gathered)
        return self._sight(rollout, look)

    def failing(self) -> set[str]:
        """The clouds on which a gate failed in the newest look."""
        newest = self._newest()
        results = newest.look.results if newest is not None else []
        return {result.cloud for result in results if result.verdict is Verdict.FAIL}

    def sight(self, rollout: Rollout) -> Sight:
        """What is known before a look of this process: durations, and no verdict."""
        return self._sight(rollout, None)

    def _sight(self, rollout: Rollout, look: Look | None) -> Sight:
        now = self.platform.clock.now().earliest
        began = self.platform.time_of(rollout.phase_seq)
        step = self.platform.time_of(rollout.step_seq) if rollout.step_seq is not None else began
        resumed = self.platform.time_of(rollout.resumed_seq) if rollout.resumed_seq is not None else 0.0
        fresh: dict[str, int] = {}
        if look is not None and rollout.phase is Phase.CANARYING and rollout.release is not None:
            starts, samples = self.platform.attempts(self.id)
            before = self.platform.started_before(self.id, step)
            fresh = {
                cloud: fresh_samples(starts, samples, rollout.release, cloud, before)
                for cloud in rollout.wave_clouds
            }
        return Sight(
            verdict=look.verdict.value if look is not None else None,
            summary=look.summary if look is not None else "",
            fresh=fresh,
            decided=_decided(rollout, look, fresh) if look is not None else frozenset(),
            in_step_s=now - max(step, resumed),
            in_phase_s=now - max(began, resumed),
        )

    def _newest(self) -> SeenLook | None:
        looks = self.platform.looks(self.id)
        return looks[-1] if looks else None

    def _write(self, rollout: Rollout, look: Look, gathered: float) -> None:
        document = {
            "schema_version": SCHEMA_VERSION,
            "epoch": self.epoch,
            "gathered_at": gathered,
            "phase": rollout.phase.value,
            "wave": rollout.wave,
            "step": rollout.step,
            "look": look.model_dump(mode="json"),
        }
        newest = self._newest()
        n = newest.n + 1 if newest is not None else 0
        try:
            self.platform.store.create(keys.look(self.id, n), json.dumps(document).encode())
        except ObjectExists:
            return  # another flow looks too: the next turn reads its look
        self.newest = n
        self.unshown.append((n, look))
        get_run_logger().info("look %d: %s: %s", n, look.verdict.value, look.summary)

    async def show(self) -> None:
        """The looks that this process wrote, as artifacts in Prefect's UI. Never fails."""
        while self.unshown:
            n, look = self.unshown.pop(0)
            try:
                await acreate_markdown_artifact(
                    key=f"look-{self.id}", markdown=_markdown(look), description=f"Look {n} of {self.id}"
                )
            except (httpx.HTTPError, OSError, RuntimeError, PrefectException) as error:
                get_run_logger().warning("look %d is not shown in Prefect: %s", n, error)


def judge_now(platform: Platform, rollout: Rollout) -> Look | None:
    """The gates on every cloud that the release has reached; None before it has reached any."""
    if rollout.release is None or not rollout.phase.exposes:
        return None
    starts, samples = platform.attempts(rollout.id)
    policy = rollout.policy
    release = rollout.release
    clouds = [name for name, cloud in rollout.clouds.items() if cloud.wave <= rollout.wave]
    scopes: list[Scope] = []
    if any(gate.external for gate in policy.gates):
        scopes = [_scope(platform, rollout, release, cloud) for cloud in clouds]
    return judge(
        policy.gates,
        clouds,
        starts,
        samples,
        release,
        alpha=policy.alpha,
        beta=policy.beta,
        harmful=policy.harmful,
        tests=number_of_tests(policy.gates, rollout.clouds),
        external_counts=count_all(policy.gates, scopes, policy.providers),
    )


def _scope(platform: Platform, rollout: Rollout, release: str, cloud: str) -> Scope:
    """The counts of a rollout begin with it: before its canary, nothing of its release ran."""
    return Scope(
        app=platform.app,
        rollout=rollout.id,
        cloud=cloud,
        release=release,
        stable=rollout.clouds[cloud].before,
        since=platform.time_of(rollout.started_seq),
        now=platform.clock.now().latest,
    )


def _decided(rollout: Rollout, look: Look, fresh: Mapping[str, int]) -> frozenset[str]:
    """The clouds on which every gate passes with enough samples of this step."""
    open_clouds = {result.cloud for result in look.results if result.verdict is not Verdict.PASS}
    wanted = rollout.policy.fresh_samples if rollout.step > 0 else 0
    return frozenset(cloud for cloud in fresh if cloud not in open_clouds and fresh[cloud] >= wanted)


def _markdown(look: Look) -> str:
    rows = [_row(result) for result in look.results]
    head = "| cloud | gate | bad / samples | evidence | needed | verdict |\n|---|---|---|---|---|---|"
    lines = [f"**{look.verdict.value}**: {look.summary}", "", head, *rows]
    if look.asked:
        lines += ["", "| cloud | gate | asked | answer |", "|---|---|---|---|"]
        lines += [
            f"| {each.cloud} | {each.gate} | `{_cell(each.query)}` | {_cell(each.answer)} |"
            for each in look.asked
        ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _row(result: GateResult) -> str:
    return (
        f"| {result.cloud} | {result.gate} | {result.k_fail} / {result.n_fail} | {result.e_value:.3g} "
        f"| {result.threshold:.3g} | {result.verdict.value} |"
    )
