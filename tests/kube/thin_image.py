"""An image that is one thin layer on another, made in the registry itself: nothing is pulled or unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping

import httpx

MANIFEST = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


def thin_image(repository: str, base: str, files: Mapping[str, bytes], replaced: str = "") -> str:
    """The digest of `repository`'s image `base` (a digest) with `files` (path: content) on top.

    `replaced`: a folder of which only what is in `files` stays.
    """
    host, _, path = repository.partition("/")
    with httpx.Client(base_url=f"http://{host}/v2/{path}", timeout=60) as registry:
        manifest = registry.get(f"manifests/{base}", headers={"Accept": ", ".join(MANIFEST)}).json()
        config = registry.get(f"blobs/{manifest['config']['digest']}").json()
        tar = _layer(files, replaced)
        layer = gzip.compress(tar, mtime=0)
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


def _upload(registry: httpx.Client, blob: bytes) -> None:
    begun = registry.post("blobs/uploads/")
    begun.raise_for_status()
    where = httpx.URL(begun.headers["Location"]).copy_merge_params({"digest": _digest(blob)})
    registry.put(where, content=blob).raise_for_status()


def _layer(files: Mapping[str, bytes], replaced: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        if replaced:
            folder = tarfile.TarInfo(replaced)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
            tar.addfile(tarfile.TarInfo(f"{replaced}/.wh..wh..opq"))
        for path, content in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
