"""Starting a rollout: one at a time, the second refused with the first one's name, or queued."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

from flows.context import flow_spec
from lora_ops import ids
from lora_ops.errors import BundleError, ConfigError, Refused, UsageError
from lora_ops.pipeline import Translation
from lora_ops.spec import PlatformSpec
from lora_ops.state import BUNDLE, IMAGE, AppState, Policy, Source
from tasks.platform import Platform


def start_rollout(
    platform: Platform, path: str, revision: str | None, *, actor: str, reason: str = ""
) -> str:
    """Journal a rollout of a checkout's revision by the spec in the environment; its id."""
    spec = flow_spec()
    if not Path(path).is_absolute():
        raise UsageError(f"`source` is `{path}`.", "Name the checkout by its whole path.")
    source = Source(path=path, revision=revision)
    return begin_rollout(platform, spec, source, actor=actor, reason=reason)[0]


def begin_rollout(
    platform: Platform,
    spec: PlatformSpec,
    source: Source,
    *,
    actor: str,
    reason: str = "",
    steps: tuple[int, ...] | None = None,
    translation: Translation | None = None,
    queue: bool = False,
) -> tuple[str, AppState, bool]:
    """(id, state, queued). Raises Refused naming the active rollout unless `queue`.

    `translation`: of the pipeline document that asks for it. Of the queued rollouts of one source the newest
    wins; an older one is journalled as overtaken.
    """
    if source.path is not None and not Path(source.path).is_dir():
        raise BundleError(f"{source.path} is not a folder.", "Name a git checkout with `--source DIR`.")
    policy = rollout_policy(spec, steps, translation)
    source = source.model_copy(update={"kind": release_kind(spec)})
    rollout_id = ids.new_id(ids.ROLLOUT, time.time(), secrets.randbits(30))
    data = {"id": rollout_id, "source": source.model_dump(), "policy": policy.model_dump(mode="json")}
    words: dict[str, Any] = {"actor": actor, "reason": reason}
    if translation is not None:
        words["reason"] = reason or translation.reason
        words["evidence"] = {"pipeline": translation.source, "translation": list(translation.lines)}
    try:
        return rollout_id, platform.record("rollout-started", data, **words), False
    except Refused:
        if not queue or platform.state().rollout is None:
            raise
    state = platform.state()
    for entry in state.queue:
        if entry.source.line == source.line:
            overtaken = {"id": entry.id, "by": rollout_id}
            try:
                platform.record("rollout-overtaken", overtaken, actor=actor, reason="a newer one is queued")
            except Refused:
                continue
    return rollout_id, platform.record("rollout-queued", data, **words), True


def release_kind(spec: PlatformSpec) -> str:
    """What a release is on the clouds of this platform."""
    return IMAGE if spec.on_kubernetes else BUNDLE


def rollout_policy(
    spec: PlatformSpec, steps: tuple[int, ...] | None = None, translation: Translation | None = None
) -> Policy:
    """The spec's policy with the plan, or the pipeline document, that was given for this rollout.

    ConfigError when a plan begins with probes alone and there are none: it could only run into its deadline.
    """
    policy = translation.policy(spec) if translation is not None else spec.policy(steps)
    mute = [name for name, plan in policy.plans.items() if plan[0] == 0]
    if mute and policy.probes is None:
        raise ConfigError(
            f"The plan of {', '.join(mute)} begins with 0 %, where probes alone judge, and there are none.",
            "Add `probes: {config: FILE}` to the rollout section of lora-ops.yaml, or begin above 0.",
        )
    return policy
