"""All manifests of a platform, by the name of the file that each belongs into."""

from __future__ import annotations

from collections.abc import Sequence

from lora_ops.errors import ConfigError, NotFoundError, UsageError, nearest
from lora_ops.spec import PlatformSpec
from tasks.manifests.serve import reachable
from tasks.manifests.templates import Manifest
from tasks.manifests.worker import worker_manifests


def render(
    spec: PlatformSpec,
    worker_image: str | None,
    *,
    only: str | None = None,
    egress: Sequence[str] = (),
) -> dict[str, list[Manifest]]:
    """`<cloud>.yaml` for every cloud, or for the cloud `only`.

    `worker_image`: `repository@sha256:…`, pulled from each cloud's own registry when it is the spec's image;
    None leaves the workers' Deployments out. ConfigError, NotFoundError or UsageError when that cannot be.
    """
    if not spec.on_kubernetes:
        raise ConfigError(
            "the clouds of this lora-ops.yaml are folders of this machine: they need no manifests.",
            "Give a cloud `kind: kubernetes` (`lora-ops cloud add`).",
        )
    if only is not None and only not in spec.clouds:
        raise NotFoundError(f"there is no cloud `{only}`.", nearest(only, spec.clouds))
    found = {}
    for name, cloud in spec.clouds.items():
        if only in (None, name):
            key = "prefect.api_url" if cloud.prefect_api_url is None else f"clouds.{name}.prefect_api_url"
            url = reachable(cloud.prefect_api_url or spec.prefect.api_url, key)
            image = _image(spec, name, worker_image) if worker_image is not None else None
            found[f"{name}.yaml"] = worker_manifests(name, cloud, spec.app, image, url, egress)
    return found


def pinned(reference: str) -> tuple[str, str]:
    """(repository, digest) of `repository@sha256:…`; UsageError for anything else."""
    repository, separator, digest = reference.partition("@")
    if not (repository and separator and digest.startswith("sha256:") and len(digest) == 71):
        raise UsageError(
            f"{reference} is not named by its digest.",
            "Give repository@sha256:…; `skopeo inspect --format {{.Digest}} docker://…` tells a tag's.",
        )
    return repository, digest


def _image(spec: PlatformSpec, name: str, reference: str) -> str:
    repository, digest = pinned(reference)
    if spec.image is not None and repository == spec.image.repository:
        return spec.clouds[name].image(repository, digest)
    return reference
