"""How people name an image: `repo:tag`, `repo@sha256:…`, or `name:tag` for the platform's own repository."""

from __future__ import annotations

import re

from pydantic import ValidationError

from lora_ops.cloud_spec import ImageSpec
from lora_ops.errors import UsageError
from lora_ops.spec import PlatformSpec

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def full_reference(text: str, spec: PlatformSpec) -> str:
    """`repository:tag`, or `repository@digest` where a digest is given (a tag before it says nothing then).

    UsageError when the platform runs no images; ValueError, in words for a person, when this names none.
    """
    if spec.image is None or not spec.on_kubernetes:
        raise UsageError(
            f"`{text}` is an image, but the clouds of this platform are local: they run source bundles.",
            "Deploy a checkout with `--source DIR`; images run on clouds of `kind: kubernetes`.",
        )
    named, at, digest = text.partition("@")
    path, slash, last = named.rpartition("/")
    name, colon, tag = last.partition(":")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError(f"`{digest}` is not a digest: sha256: and 64 of 0-9 and a-f")
    if colon and not _TAG.fullmatch(tag):
        raise ValueError(f"`{tag}` is not a tag")
    if not at and not colon:
        raise ValueError(f"`{text}` has neither a tag nor a digest; write {text}:latest or {text}@sha256:…")
    repository = _repository(path + slash + name, spec.image)
    return f"{repository}@{digest}" if at else f"{repository}:{tag}"


def repository_of(reference: str) -> str:
    """The repository of what `full_reference` gave."""
    named, at, _ = reference.partition("@")
    return named if at else reference.rpartition(":")[0]


def _repository(named: str, image: ImageSpec) -> str:
    if named in (image.name, image.repository):
        return image.repository
    host, slash, _ = named.partition("/")
    if not slash:
        raise ValueError(
            f"`{named}` names no registry, and is not the name of `image.repository` ({image.repository})"
        )
    if not ("." in host or ":" in host or host == "localhost"):
        raise ValueError(f"`{host}` is not a registry's host; for Docker Hub write docker.io/{named}")
    try:
        return ImageSpec(repository=named).repository
    except ValidationError as error:
        raise ValueError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
