"""What an image is called: `host/repository:tag`, `host/repository@sha256:…`, or both."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from lora_ops.errors import ConfigError

_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9.:\[\]-]*(/[a-z0-9]+([._-]+[a-z0-9]+)*)+")


class Reference(NamedTuple):
    """An image in a registry. A digest wins over a tag beside it."""

    repository: str
    tag: str | None
    digest: str | None

    @staticmethod
    def parse(text: str) -> Reference:
        """Raises ConfigError: no tag and no digest, or not a reference at all."""
        name, at, digest = text.partition("@")
        repository, tag = name, None
        if ":" in name.rpartition("/")[2]:
            repository, _, tag = name.rpartition(":")
        if (
            not _REPOSITORY.fullmatch(repository)
            or (at and not _DIGEST.fullmatch(digest))
            or (tag is not None and not _TAG.fullmatch(tag))
        ):
            raise ConfigError(
                f"`{text}` is not the name of an image in a registry.",
                "Write registry/repository:tag or registry/repository@sha256:… (64 hex digits).",
            )
        if tag is None and not digest:
            raise ConfigError(
                f"`{text}` names neither a tag nor a digest.", f"Write {text}:TAG or {text}@sha256:…"
            )
        return Reference(repository, tag, digest or None)

    @property
    def host(self) -> str:
        return host_of(self.repository)

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"


def host_of(repository: str) -> str:
    """The registry of a repository, with its port; Docker Hub where it names none, as docker has it."""
    first, slash, _ = repository.partition("/")
    has_host = slash and ("." in first or ":" in first or first == "localhost")
    return first if has_host else "docker.io"


def is_loopback(host: str) -> bool:
    """Whether a registry is on this machine: docker then speaks plain HTTP to it."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
