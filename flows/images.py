"""Bringing out an image: built from git or found, the same digest in every cloud's registry, and checked
there by a Job in the image itself, on the nodes that will run it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.cluster import Cluster, run_job
from tasks.images import Registries, build_and_push
from tasks.manifests import check_job

from flows.context import FlowContext, flow_spec
from lora_ops.errors import BundleError, LoraOpsError
from lora_ops.state import IMAGE, Rollout
from tasks.releases import describe, find_release

CHECK = ["python", "-P", "-m", "tasks.image_check"]
CHECK_TIMEOUT_S = 900.0


class Images:
    """The releases of kubernetes clouds. `say`: a line of progress."""

    def __init__(self, context: FlowContext, say: Callable[[str], None]) -> None:
        self.platform = context.platform
        self.store = context.platform.store
        self.say = say
        self.spec = flow_spec()
        self.registries = Registries(self.spec.insecure_registries)

    @cached_property
    def repository(self) -> str:
        assert self.spec.image is not None  # the spec is refused without
        return self.spec.image.repository

    def build(self, rollout: Rollout) -> tuple[str, str | None]:
        """(digest, revision): the registry's digest of what was built here or is named."""
        source = rollout.source
        if source.release is not None:
            return source.release, source.revision
        if source.image is not None:
            return source.image.partition("@")[2], source.revision
        assert self.spec.image is not None
        revision = None if source.dirty else (source.revision or "HEAD")
        built = build_and_push(Path(source.path or "."), revision, self.spec.image, self.registries, self.say)
        return built.digest, built.revision

    def distribute(self, rollout: Rollout) -> dict[str, str]:
        """The same digest in every cloud's registry, verified there. Raises LoraOpsError naming the cloud."""
        release = rollout.release
        assert release is not None
        source = f"{self._origin(rollout)}@{release}"
        for name in rollout.clouds:
            target = self._target(name, release)
            self.say(f"{name}: {target}")
            try:
                if target != source:
                    self.registries.copy(source, target.partition("@")[0])
                self.registries.verify(target.partition("@")[0], release)
            except LoraOpsError as error:
                error.message = f"{name}: {error.message}"
                raise
        return dict.fromkeys(rollout.clouds, release)

    def self_check(self, rollout: Rollout) -> dict[str, Any]:
        """Its report on each cloud. BundleError with a line for each thing found that was not expected; a
        release that passes is published, with the digest of the code in it."""
        clouds = list(rollout.clouds)
        with ThreadPoolExecutor(len(clouds), thread_name_prefix="self-check") as pool:
            checked = pool.map(lambda name: self._check(rollout, name), clouds)
            reports = dict(zip(clouds, checked, strict=True))
        wrong = [line for name, report in reports.items() for line in _complaints(name, report)]
        trees = {str(report.get("tree")) for report in reports.values()}
        if len(trees) != 1:
            wrong.append(f"the clouds run different code: {', '.join(sorted(trees))}")
        if wrong:
            raise BundleError(
                "the release does not pass its self-check.",
                "Mend the image or its lock, and deploy again.",
                wrong,
            )
        self._publish(rollout, trees.pop())
        return reports

    # --- helpers ---

    def _origin(self, rollout: Rollout) -> str:
        """The repository that holds the digest before it is copied."""
        if rollout.source.image is not None:
            return rollout.source.image.partition("@")[0]
        if rollout.source.release is not None:
            return find_release(self.store, rollout.source.release).repository or self.repository
        return self.repository

    def _target(self, cloud: str, digest: str) -> str:
        return self.spec.clouds[cloud].image(self.repository, digest)

    def _check(self, rollout: Rollout, name: str) -> dict[str, Any]:
        """The report of the Job. BundleError when it gave none."""
        cloud, release = self.spec.clouds[name], rollout.release
        assert cloud.context is not None
        assert release is not None
        labels = {
            "lora-ops/app": self.spec.app,
            "lora-ops/cloud": name,
            "lora-ops/rollout": rollout.id,
            "lora-ops/release": release[7:19],
        }
        image = self._target(name, release)
        purpose = f"self-check-{rollout.id}".lower()
        job = check_job(name, cloud, self.spec.app, image, purpose, CHECK, {}, labels)
        self.say(f"{name}: self-check of {image}")
        ended = run_job(Cluster(cloud.context, cloud.namespace), job, CHECK_TIMEOUT_S, self.say)
        report = _last_document(ended.logs)
        if report is None:
            told = ended.sight.message or f"it ended with exit code {ended.exit_code} and no report"
            raise BundleError(
                f"the self-check on {name} gave no report: {told}",
                "Run `python -P -m tasks.image_check` in the image.",
                ended.logs.strip().splitlines()[-5:],
            )
        return report

    def _publish(self, rollout: Rollout, tree: str) -> None:
        release = rollout.release
        assert release is not None
        origin = self._origin(rollout)
        labels = self.registries.labels(f"{origin}@{release}")
        describe(
            self.store,
            release,
            kind=IMAGE,
            repository=origin,
            tree=tree,
            revision=rollout.revision or labels.get("org.opencontainers.image.revision", ""),
            source=labels.get("org.opencontainers.image.source", rollout.source.path or origin),
            created_by=rollout.id,
            lock_sha256=labels.get("lora-ops.lock", ""),
            size=0,
        )


def _last_document(logs: str) -> dict[str, Any] | None:
    """The report is the last line that is a JSON object: libraries may print before it."""
    for line in reversed(logs.strip().splitlines()):
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict) and "ok" in document:
            return document
    return None


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
