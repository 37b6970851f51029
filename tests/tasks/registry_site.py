"""Real registries (Debian's docker-registry) on free ports, small images in them, and one that lies."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

USER, PASSWORD = "alice", "wonder"
HTPASSWD = f"{USER}:$2b$04$Sd6Yxp2C5jG5JRAy6qw9se7Yr/xPCemYodpz.XTrXz4P02RyS1L6e\n"


def need(*programs: str) -> None:
    """Skip where a program is not installed; in CI, fail."""
    for program in programs:
        if shutil.which(program) is None:
            if os.environ.get("LORA_OPS_CI"):
                pytest.fail(f"{program} is not installed")
            pytest.skip(f"{program} is not installed")


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """One running registry. `host`: as in an image's name; `data`: its folder, which others may share."""

    def __init__(self, host: str, data: Path, scheme: str = "http") -> None:
        self.host = host
        self.data = data
        self._url = f"{scheme}://{host}"

    def push(self, repository: str, tag: str, *, text: str = "hi", **labels: str) -> str:
        """A `FROM scratch` image of one layer that holds `text`; its digest."""
        return self._put_manifest(repository, tag, MANIFEST, self.image(repository, text, labels))

    def push_list(self, repository: str, tag: str, platforms: dict[str, dict[str, str]]) -> str:
        """An image for several platforms (architecture: labels); the list's digest."""
        children = []
        for architecture, labels in platforms.items():
            image = self.image(repository, architecture, labels, architecture)
            digest = self._put_manifest(repository, sha256(json.dumps(image).encode()), MANIFEST, image)
            platform = {"os": "linux", "architecture": architecture}
            size = len(json.dumps(image))
            children.append({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": platform})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": children}
        return self._put_manifest(repository, tag, INDEX, index)

    def image(
        self, repository: str, text: str, labels: dict[str, str], architecture: str = "amd64"
    ) -> dict[str, Any]:
        """The manifest of a small image whose blobs are pushed."""
        layer = _tar(text)
        diff = sha256(gzip.decompress(layer))
        config = json.dumps(
            {
                "os": "linux",
                "architecture": architecture,
                "config": {"Labels": labels},
                "rootfs": {"type": "layers", "diff_ids": [diff]},
                "history": [{"created_by": "test"}],
            }
        ).encode()
        described = [
            {"mediaType": kind, "digest": self._put_blob(repository, data), "size": len(data)}
            for kind, data in ((CONFIG, config), (LAYER, layer))
        ]
        return {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}

    def delete(self, repository: str, digest: str) -> None:
        self._ask("DELETE", f"/v2/{repository}/manifests/{digest}")

    def lose_blob(self, digest: str) -> None:
        """What a clean-up that went wrong leaves: the manifest is there, the blob is not."""
        shutil.rmtree(self.data / "docker/registry/v2/blobs/sha256" / digest[7:9] / digest[7:])

    def blobs(self, repository: str, digest: str) -> list[str]:
        """The digests of an image's config and layers."""
        manifest = json.loads(self._ask("GET", f"/v2/{repository}/manifests/{digest}"))
        return [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]

    def tags(self, repository: str) -> list[str]:
        return sorted(json.loads(self._ask("GET", f"/v2/{repository}/tags/list"))["tags"])

    def _put_blob(self, repository: str, data: bytes) -> str:
        url = f"{self._url}/v2/{repository}/blobs/uploads/"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=10) as answer:
            place = answer.headers["Location"]
        digest = sha256(data)
        more = f"{'&' if '?' in place else '?'}digest={digest}"
        request = urllib.request.Request(
            place + more, data=data, method="PUT", headers={"Content-Type": "application/octet-stream"}
        )
        urllib.request.urlopen(request, timeout=10).close()
        return digest

    def _put_manifest(self, repository: str, name: str, kind: str, content: dict[str, Any]) -> str:
        data = json.dumps(content).encode()
        self._ask("PUT", f"/v2/{repository}/manifests/{name}", data, kind)
        return sha256(data)

    def _ask(self, method: str, path: str, data: bytes | None = None, kind: str = MANIFEST) -> bytes:
        headers = {"Content-Type": kind, "Accept": f"{MANIFEST}, {INDEX}"}
        request = urllib.request.Request(self._url + path, data=data, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())


@contextmanager
def registry(
    folder: Path,
    *,
    data: Path | None = None,
    address: str = "127.0.0.1",
    tls: tuple[Path, Path] | None = None,
    htpasswd: bool = False,
) -> Iterator[Registry]:
    """docker-registry with its files below `folder`. `tls`: (certificate, key). Ended by its pid."""
    need("docker-registry")
    folder.mkdir(parents=True)
    data = data or folder / "data"
    http_section: dict[str, Any] = {"addr": f"{address}:0"}
    if tls:
        http_section["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"formatter": "text"},
        "storage": {"filesystem": {"rootdirectory": str(data)}, "delete": {"enabled": True}},
        "http": http_section,
    }
    if htpasswd:
        (folder / "htpasswd").write_text(HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(json.dumps(config))
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        port = _port(process, log)
        yield Registry(f"{address}:{port}", data, "https" if tls else "http")
    finally:
        process.kill()
        process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = re.search(r"listening on [^\s\"]*:(\d+)", log.read_text())
        if found:
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def certificate(folder: Path, address: str) -> tuple[Path, Path]:
    """A self-signed certificate for an IP address, and its key."""
    need("openssl")
    files = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", f"subjectAltName=IP:{address}", "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(command, check=True, capture_output=True)
    return files


def auth_file(path: Path, host: str, password: str = PASSWORD) -> Path:
    """What `docker login` writes."""
    token = base64.b64encode(f"{USER}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": token}}}))
    return path


@contextmanager
def answering(status: int, manifest: bytes = b"{}") -> Iterator[str]:
    """A server that takes itself for a registry: every manifest is `manifest`, with `status`. Its host."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = "/manifests/" in self.path
            self.send_response(status if asked else 200)
            self.send_header("Content-Type", MANIFEST if asked else "application/json")
            body = manifest if asked else b"{}"
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def frozen() -> Iterator[str]:
    """A host that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def _tar(text: str) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        info = tarfile.TarInfo("hello")
        info.size = len(text.encode())
        tar.addfile(info, io.BytesIO(text.encode()))
    return gzip.compress(raw.getvalue(), mtime=0)
