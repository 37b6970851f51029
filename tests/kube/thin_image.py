"""An image that is one thin layer on another, made in the registry itself: nothing is pulled or unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Collection, Mapping

import httpx

MANIFEST = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


def thin_image(
    repository: str, base: str, files: Mapping[str, bytes], replaced: Collection[str] = (), torn: bool = False
) -> str:
    """The digest of `repository`'s image `base` (a digest) with `files` (path: content) on top.

    `replaced`: folders of which only what is in `files` stays. `torn`: the layer is no archive at all.
    """
    with _registry(repository) as registry:
        manifest = registry.get(f"manifests/{base}", headers={"Accept": ", ".join(MANIFEST)}).json()
        config = registry.get(f"blobs/{manifest['config']['digest']}").json()
        tar = _layer(files, replaced)
        layer = b"torn" + tar if torn else gzip.compress(tar, mtime=0)
        config["rootfs"]["diff_ids"].append(_digest(tar))
        config.setdefault("history", []).append({"created_by": "a thin layer"})
        made = json.dumps(config).encode()
        kind = manifest["layers"][-1]["mediaType"]
        manifest["layers"].append({"mediaType": kind, "digest": _digest(layer), "size": len(layer)})
        manifest["config"] |= {"digest": _digest(made), "size": len(made)}
        for blob in (layer, made):
            _upload(registry, blob)
        body = json.dumps(manifest).encode()
        media = manifest.get("mediaType", MANIFEST[0])
        registry.put(
            f"manifests/{_digest(body)}", content=body, headers={"Content-Type": media}
        ).raise_for_status()
        return _digest(body)


def tag_image(repository: str, digest: str, tag: str) -> None:
    """Let a tag name the image."""
    with _registry(repository) as registry:
        found = registry.get(f"manifests/{digest}", headers={"Accept": ", ".join(MANIFEST)})
        headers = {"Content-Type": found.headers["Content-Type"]}
        registry.put(f"manifests/{tag}", content=found.content, headers=headers).raise_for_status()


def _registry(repository: str) -> httpx.Client:
    host, _, path = repository.partition("/")
    return httpx.Client(base_url=f"http://{host}/v2/{path}", timeout=60)


def _upload(registry: httpx.Client, blob: bytes) -> None:
    begun = registry.post("blobs/uploads/")
    begun.raise_for_status()
    where = httpx.URL(begun.headers["Location"]).copy_merge_params({"digest": _digest(blob)})
    registry.put(where, content=blob).raise_for_status()


def _layer(files: Mapping[str, bytes], replaced: Collection[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in replaced:
            folder = tarfile.TarInfo(path)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
            tar.addfile(tarfile.TarInfo(f"{path}/.wh..wh..opq"))
        for path, content in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
