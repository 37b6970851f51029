"""Bringing out a source bundle: built from git, checked in this environment, unpacked on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.context import FlowContext
from lora_ops.state import Rollout
from tasks import home
from tasks.bundle import build_bundle, ensure_unpacked, publish
from tasks.selfcheck import self_check


class Bundles:
    """The releases of local clouds. `say`: a line of progress."""

    def __init__(self, context: FlowContext, say: Callable[[str], None]) -> None:
        self.context = context
        self.store = context.platform.store
        self.say = say

    def build(self, rollout: Rollout) -> tuple[str, str | None]:
        """(release, revision): published by content, unless the source is a release already."""
        source = rollout.source
        if source.release is not None:
            return source.release, source.revision
        revision = None if source.dirty else (source.revision or "HEAD")
        bundle = build_bundle(Path(source.path or "."), revision)
        return publish(self.store, bundle), bundle.revision

    def self_check(self, rollout: Rollout) -> dict[str, Any]:
        """Versions against the lock and one real training step, inside the built thing."""
        return self_check(self._unpack(rollout), self.context.home)

    def distribute(self, rollout: Rollout) -> dict[str, str]:
        """The digest that each cloud holds. A local cloud unpacks and hashes it anew."""
        self._unpack(rollout)
        assert rollout.release is not None
        return dict.fromkeys(rollout.clouds, rollout.release)

    def _unpack(self, rollout: Rollout) -> Path:
        assert rollout.release is not None
        return ensure_unpacked(self.store, rollout.release, home.bundles(self.context.home))
