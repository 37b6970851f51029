"""Registries, through skopeo: what a tag means, and the same digest in another registry."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Collection
from typing import Any

from lora_ops.errors import ConfigError, LoraOpsError, NotFoundError, nearest
from tasks.images import programs
from tasks.images.blobs import missing_blobs
from tasks.images.programs import ProgramFailed, Say
from tasks.images.reference import Reference, host_of, is_loopback

COPY_TIMEOUT_S = 3600.0


class Registries:
    """Registries as skopeo sees them: with its auth files, credential helpers and certificates.

    One on this machine's loopback is spoken to in plain HTTP, as docker does; so is every host of `insecure`
    (or TLS with whatever certificate). `timeout_s` bounds each question; a copy may take an hour.

    Every method raises, besides what it says: UnreachableError (no answer), AuthError (401, 403), ConfigError
    (no trusted certificate, skopeo not installed, not a reference).
    """

    def __init__(self, insecure: Collection[str] = (), timeout_s: float = 30.0) -> None:
        self._insecure = frozenset(insecure)
        self._timeout_s = timeout_s

    def is_insecure(self, repository: str) -> bool:
        """Whether the repository's registry is used without a trusted certificate."""
        host = host_of(repository)
        return host in self._insecure or is_loopback(host)

    def resolve(self, reference: str) -> str:
        """The digest that `repository:tag` or `repository@sha256:…` is in its registry now.

        Of an image for several platforms, that of the list. Raises NotFoundError (names the nearest tag),
        DigestMismatch.
        """
        asked = Reference.parse(reference)
        return _sha256(self._manifest(asked))

    def labels(self, reference: str) -> dict[str, str]:
        """The labels of an image; of one for several platforms, those of linux/amd64 or of the first.

        Raises NotFoundError, DigestMismatch.
        """
        asked = Reference.parse(reference)
        raw = self._manifest(asked)
        children = _children(_parse(raw, asked))
        one = Reference(asked.repository, None, children[0] if children else _sha256(raw))
        config = json.loads(self._skopeo("reading", one, "inspect", "--config"))
        return dict((config.get("config") or {}).get("Labels") or {})

    def copy(self, source: str, repository: str, say: Say = lambda _: None) -> None:
        """Bring `repository@sha256:…` into another repository under the same digest; all its platforms.

        Does nothing when it is there already, whole. It gets a tag of its own there, because registries clean
        up what has none. Raises NotFoundError when the source is gone, DigestMismatch.
        """
        wanted = Reference.parse(source)
        if wanted.digest is None:
            raise ConfigError(f"`{source}` has no digest.", "Copy by digest: a tag may move meanwhile.")
        try:
            self.verify(repository, wanted.digest)
            return
        except NotFoundError:
            self._manifest(wanted)  # a source that is gone, told apart from a destination that lacks it
        target = f"{repository}:lora-ops-{wanted.digest.removeprefix('sha256:')[:12]}"
        command = [
            *("skopeo", "copy", "--all", "--preserve-digests", "--retry-times", "2"),
            *_tls("--src-tls-verify", self.is_insecure(wanted.repository)),
            *_tls("--dest-tls-verify", self.is_insecure(repository)),
            f"docker://{wanted}",
            f"docker://{target}",
        ]
        say(f"{wanted.repository} -> {target}")
        try:
            programs.follow(command, COPY_TIMEOUT_S, _tell_blobs(say))
        except ProgramFailed as error:
            raise programs.explain(str(error), target, host_of(repository), "copying to") from None
        except subprocess.TimeoutExpired:
            raise programs.unreachable(
                host_of(repository), [f"the copy did not end within {COPY_TIMEOUT_S:g} s"]
            ) from None

    def verify(self, repository: str, digest: str) -> None:
        """Make sure that a repository holds a digest: the manifest, those that it lists, and every blob.

        Raises DigestMismatch (names both digests), NotFoundError (names the missing blobs).
        """
        top = Reference(repository, None, digest)
        content = _parse(self._manifest(top), top)
        for child in _children(content) or [digest]:
            one = Reference(repository, None, child)
            self._verify_blobs(one, content if child == digest else _parse(self._manifest(one), one))

    def _verify_blobs(self, image: Reference, manifest: dict[str, Any]) -> None:
        listed = [manifest["config"], *manifest["layers"]]
        sizes = {blob["digest"]: blob["size"] for blob in listed if not blob.get("urls")}
        flags = _tls("--tls-verify", self.is_insecure(image.repository))
        try:
            missing = missing_blobs(str(image), flags, sizes, self._timeout_s)
        except ProgramFailed as error:
            raise programs.explain(str(error), str(image), image.host, "reading") from None
        except subprocess.TimeoutExpired:
            raise programs.unreachable(image.host) from None
        if missing:
            raise NotFoundError(
                f"{image.host} has the manifest of {image}, but lacks {len(missing)} of its blobs.",
                "Its clean-up removed them. Push or copy the image again.",
                missing,
            )

    def _manifest(self, image: Reference) -> bytes:
        """The manifest as the registry sends it, checked against the reference's digest."""
        try:
            raw = self._skopeo("reading", image, "inspect", "--raw")
        except NotFoundError as error:
            raise self._not_found(image, error) from None
        found = _sha256(raw)
        if image.digest and found != image.digest:
            raise programs.lies(image.host, image.repository, image.digest, found)
        _parse(raw, image)
        return raw

    def _not_found(self, image: Reference, error: NotFoundError) -> NotFoundError:
        if image.digest:
            error.hint = (
                "The tag that it was may have moved, and the registry cleaned the old image up."
                " Push it again, or deploy what the tag is now."
            )
            return error
        try:
            answer = self._skopeo("listing", image, "list-tags")
            error.hint = nearest(str(image.tag), json.loads(answer).get("Tags") or [])
        except LoraOpsError:
            error.hint = f"There is no repository {image.repository}, or it is not for you to list."
        return error

    def _skopeo(self, doing: str, image: Reference, *command: str) -> bytes:
        named = image.repository if command[0] == "list-tags" else str(image)
        flags = _tls("--tls-verify", self.is_insecure(image.repository))
        try:
            return programs.run(["skopeo", *command, *flags, f"docker://{named}"], self._timeout_s)
        except ProgramFailed as error:
            raise programs.explain(str(error), str(image), image.host, doing) from None
        except subprocess.TimeoutExpired:
            raise programs.unreachable(image.host, [f"no answer within {self._timeout_s:g} s"]) from None


def _tls(flag: str, insecure: bool) -> list[str]:
    return [f"{flag}=false"] if insecure else []


def _sha256(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def _parse(raw: bytes, image: Reference) -> dict[str, Any]:
    """An image's manifest, or the list of several platforms' manifests."""
    try:
        content = json.loads(raw)
    except ValueError:
        content = None
    if isinstance(content, dict) and ("manifests" in content or {"config", "layers"} <= content.keys()):
        return content
    raise ConfigError(
        f"{image} is no image of a known kind: neither a manifest of schema 2 nor a list of them.",
        "Build it anew with a current docker or buildah.",
    )


def _children(content: dict[str, Any]) -> list[str]:
    """The digests that a list holds, linux/amd64 first; none of what is no list."""

    def foreign(child: dict[str, Any]) -> bool:
        platform = child.get("platform") or {}
        return (platform.get("os"), platform.get("architecture")) != ("linux", "amd64")

    return [child["digest"] for child in sorted(content.get("manifests", []), key=foreign)]


def _tell_blobs(say: Say) -> Say:
    def tell(line: str) -> None:
        if line.startswith(("Copying ", "Writing manifest")):
            say(line)

    return tell
