"""The clouds of lora-ops.yaml in the journal; on the first day with a first stable release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ops.errors import ConfigError
from lora_ops.spec import PlatformSpec
from lora_ops.state import AppState

if TYPE_CHECKING:
    from cli.local.platform import Local
    from tasks.platform import Platform


class Bootstrap:
    """`image`: the first release of kubernetes clouds. `say`: a line of progress."""

    def __init__(
        self, platform: Platform, local: Local, say: Callable[[str], None], image: str | None
    ) -> None:
        self.platform = platform
        self.local = local
        self.say = say
        self.image = image

    def clouds(self, only: str | None = None) -> None:
        """Journal what differs from the spec, or what does of one cloud. ConfigError for a cloud that changed
        its kind."""
        state = self.platform.state()
        stable = others_stable(state, self.local.spec)
        for name, cloud in self.local.spec.clouds.items():
            if only not in (None, name):
                continue
            known = state.clouds.get(name)
            wanted = {"name": name, "kind": cloud.kind, "size": cloud.size, "share": cloud.share}
            if known is not None and known.kind != cloud.kind:
                raise ConfigError(
                    f"cloud `{name}` was {known.kind}, and its releases are not those of {cloud.kind}.",
                    "Give the new cloud another name, or the platform another `app`.",
                )
            if known is not None and (known.size, known.share) == (cloud.size, cloud.share):
                continue
            if known is None:
                fresh = stable is None
                stable = stable or self._first_release()
                if cloud.on_kubernetes and not fresh:
                    self._bring(stable, name)
                wanted["stable"] = stable
            self.platform.record("cloud-set", wanted, reason="lora-ops up")
        if only is not None:
            return
        for name in self.platform.state().clouds.keys() - self.local.spec.clouds.keys():
            if not self.platform.state().clouds[name].drained:
                reason = "it is not in lora-ops.yaml any more"
                self.platform.record("cloud-drained", {"cloud": name}, reason=reason)

    def _first_release(self) -> str:
        """Built from the spec's own tree, or this installation's; an image, by `--image` or built, is brought
        to every cloud and checked there."""
        root = source_root(self.local)
        if not self.local.spec.on_kubernetes:
            from tasks.bundle import build_bundle, publish

            self.say(f"building the first release from {root}")
            return publish(self.platform.store, build_bundle(root, None), created_by="lora-ops up")
        from flows.images import Images

        spec = self.local.spec
        images = Images(self.platform.store, spec, self.say)
        origin, digest = images.first(self.image, root)
        self.say(f"the first release: {origin}@{digest}")
        images.copy(origin, digest, spec.clouds)
        reports = images.check(digest, spec.clouds, "first")
        images.publish(digest, origin, reports, "lora-ops up")
        return digest

    def _bring(self, stable: str, cloud: str) -> None:
        """A new cloud begins with the others' stable release."""
        from flows.images import Images
        from tasks.releases import find_release

        origin = find_release(self.platform.store, stable).repository
        Images(self.platform.store, self.local.spec, self.say).copy(origin, stable, [cloud])


def source_root(local: Local) -> Path:
    """The tree of the first release: the spec's own folder when it is one, else this installation's."""
    import trainer

    here = local.spec_path.parent
    if (here / "trainer" / "__init__.py").is_file() and (here / "flows").is_dir():
        return here
    return Path(str(trainer.__file__)).resolve().parent.parent


def others_stable(state: AppState, spec: PlatformSpec) -> str | None:
    """What a new cloud begins with: a release that is stable on one of the spec's clouds, if need be on one
    that has left it, and not on trial."""
    trial = state.rollout.clouds if state.rollout is not None else {}
    found = {
        name: trial[name].before if name in trial else cloud.stable for name, cloud in state.clouds.items()
    }
    serving = [name for name in found if name in spec.clouds and not state.clouds[name].drained]
    return next((found[name] for name in [*serving, *found]), None)
