"""Bringing out an image: built from git or found, the same digest in every cloud's registry, and checked
there by a Job in the image itself, on the nodes that will run it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lora_ops.errors import BundleError, LoraOpsError
from lora_ops.spec import PlatformSpec
from lora_ops.state import IMAGE, Rollout, Source
from tasks.cluster.client import Cluster
from tasks.cluster.run_job import run_job
from tasks.images import Reference, Registries, build_and_push
from tasks.manifests import check_job
from tasks.releases import describe, find_release
from tasks.store import Store

CHECK = ["python", "-P", "-m", "tasks.image_check"]
CHECK_TIMEOUT_S = 900.0


class Images:
    """The releases of kubernetes clouds. `say`: a line of progress."""

    def __init__(self, store: Store, spec: PlatformSpec, say: Callable[[str], None]) -> None:
        self.store = store
        self.say = say
        self.spec = spec
        self.registries = Registries(spec.insecure_registries)
        assert spec.image is not None  # the spec is refused without
        self.image = spec.image

    # --- the phases of a rollout ---

    def build(self, rollout: Rollout) -> tuple[str, str | None]:
        """(digest, revision): the registry's digest of what was built here or is named."""
        source = rollout.source
        if source.release is not None:
            return source.release, source.revision
        if source.image is not None:
            return source.image.partition("@")[2], source.revision
        revision = None if source.dirty else (source.revision or "HEAD")
        built = build_and_push(Path(source.path or "."), revision, self.image, self.registries, self.say)
        return built.digest, built.revision

    def distribute(self, rollout: Rollout) -> dict[str, str]:
        """The digest that each cloud's registry holds. Raises LoraOpsError naming the cloud."""
        assert rollout.release is not None
        self.copy(self._origin(rollout.source), rollout.release, rollout.clouds)
        return dict.fromkeys(rollout.clouds, rollout.release)

    def self_check(self, rollout: Rollout) -> dict[str, Any]:
        """Its report on each cloud. BundleError with a line for each thing found that was not expected; a
        release that passes is published, with the digest of the code in it."""
        assert rollout.release is not None
        origin = self._origin(rollout.source)
        reports = self.check(rollout.release, rollout.clouds, rollout.id, rollout.epoch)
        self.publish(rollout.release, origin, reports, rollout.id, rollout.source.path, rollout.revision)
        return reports

    # --- what they are made of ---

    def first(self, named: str | None, root: Path) -> tuple[str, str]:
        """(repository, digest) of a platform's first release: the one that is named, or the tree, built."""
        if named is not None:
            return Reference.parse(named).repository, self.registries.resolve(named)
        built = build_and_push(root, None, self.image, self.registries, self.say)
        return built.repository, built.digest

    def copy(self, origin: str, digest: str, clouds: Collection[str]) -> None:
        """The same digest in every cloud's registry, verified there. `origin`: the repository that has it."""
        for name in clouds:
            target = self._reference(name, digest)
            repository = target.partition("@")[0]
            self.say(f"{name}: {target}")
            try:
                if repository != origin:
                    self.registries.copy(f"{origin}@{digest}", repository)
                self.registries.verify(repository, digest)
            except LoraOpsError as error:
                error.message = f"{name}: {error.message}"
                raise

    def check(self, digest: str, clouds: Collection[str], purpose: str, epoch: int = 0) -> dict[str, Any]:
        """The self-check's report on each cloud, by a Job in the image. BundleError: a line for each thing
        found that was not expected. `epoch`: of the flow that asks; one that was given up must not delete the
        Job of its successor."""
        names = list(clouds)
        with ThreadPoolExecutor(len(names), thread_name_prefix="self-check") as pool:
            checked = pool.map(lambda name: self._check(digest, name, purpose, epoch), names)
            reports = dict(zip(names, checked, strict=True))
        wrong = [line for name, report in reports.items() for line in _complaints(name, report)]
        trees = sorted({str(report.get("tree")) for report in reports.values()})
        if len(trees) != 1:
            wrong.append(f"the clouds run different code: {', '.join(trees)}")
        if wrong:
            raise BundleError(
                "the release does not pass its self-check.",
                "Mend the image or its lock, and deploy again.",
                wrong,
            )
        return reports

    def publish(
        self,
        digest: str,
        origin: str,
        reports: Mapping[str, Mapping[str, Any]],
        created_by: str,
        source: str | None = None,
        revision: str | None = None,
    ) -> None:
        """Write what the release is: its labels, and the code that its reports found in it."""
        labels = self.registries.labels(f"{origin}@{digest}")
        describe(
            self.store,
            digest,
            kind=IMAGE,
            repository=origin,
            tree=next(iter(reports.values()))["tree"],
            revision=revision or labels.get("org.opencontainers.image.revision", ""),
            source=source or labels.get("org.opencontainers.image.source", origin),
            created_by=created_by,
            lock_sha256=labels.get("lora-ops.lock", ""),
            size=0,
        )

    # --- helpers ---

    def _origin(self, source: Source) -> str:
        """The repository that holds the digest before it is copied."""
        if source.image is not None:
            return source.image.partition("@")[0]
        if source.release is not None:
            return find_release(self.store, source.release).repository or self.image.repository
        return self.image.repository

    def _reference(self, cloud: str, digest: str) -> str:
        return self.spec.clouds[cloud].image(self.image.repository, digest)

    def _check(self, digest: str, name: str, purpose: str, epoch: int) -> dict[str, Any]:
        """The report of the Job. BundleError when it gave none."""
        cloud = self.spec.clouds[name]
        assert cloud.context is not None  # the spec is refused without
        labels = {
            "lora-ops/app": self.spec.app,
            "lora-ops/cloud": name,
            "lora-ops/rollout": purpose,
            "lora-ops/release": digest[7:19],
        }
        image = self._reference(name, digest)
        command = [*CHECK, "--gpus", str(cloud.resources.gpu)]
        whose = f"self-check-{purpose}-{epoch}"
        job = check_job(name, cloud, self.spec.app, image, whose, command, {}, labels)
        self.say(f"{name}: self-check in {image}")
        ended = run_job(Cluster(cloud.context, cloud.namespace), job, CHECK_TIMEOUT_S, self.say)
        report = ended.report("ok")
        if report is None:
            told = ended.sight.message or f"it ended with exit code {ended.exit_code}"
            raise BundleError(
                f"the self-check on {name} gave no report: {told}",
                "Run `python -P -m tasks.image_check` in the image.",
                ended.logs.strip().splitlines()[-5:],
            )
        return report


def _complaints(cloud: str, report: Mapping[str, Any]) -> list[str]:
    """Found and expected, a line each."""
    if report.get("ok"):
        return []
    lines = [
        f"{cloud}: {each.get('name')}: expected {each.get('expected')}, found {each.get('found')}"
        for each in report.get("packages", [])
        if not each.get("ok")
    ]
    lines += [f"{cloud}: {problem}" for problem in report.get("problems", [])]
    step = report.get("step") or {}
    if not step.get("ok", True):
        lines.append(f"{cloud}: one training step: {step.get('error')}")
    return lines or [f"{cloud}: it is not ok, and does not say why"]
