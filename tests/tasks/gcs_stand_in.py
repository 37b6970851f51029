"""A stand-in for the calls of Google Cloud Storage's XML API that obstore makes. It is not Google's server:
it shows that our adapter asks for create-only as GCS documents it, and reads its answers."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import time
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000


class Gcs:
    """Objects by bucket and key; one lock makes each call atomic, as GCS promises."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float, str]] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.lock = threading.Lock()
        self.seen: list[tuple[str, str | None]] = []
        outer = self

        class Handler(_Handler):
            gcs = outer

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def key(self) -> str:
        """A service account's key that leads a client here, without a token."""
        account = {"gcs_base_url": f"http://127.0.0.1:{self.http.server_port}", "disable_oauth": True}
        return json.dumps({**account, "client_email": "", "private_key": "", "private_key_id": ""})

    def write(self, path: str, data: bytes) -> str:
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        self.objects[path] = (data, time(), tag)
        return tag

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    gcs: Gcs
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def handle_one(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path).lstrip("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match = self.headers.get("x-goog-if-generation-match")
        with self.gcs.lock:
            self.gcs.seen.append((self.command, match))
            status, answer, headers = self.act(path, query, body, match)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_one  # noqa: N815

    def act(
        self, path: str, query: dict[str, str], body: bytes, match: str | None
    ) -> tuple[int, bytes, dict[str, str]]:
        there = self.gcs.objects.get(path)
        if "/" not in path:
            return 200, self.listing(path, query), {"Content-Type": "application/xml"}
        if "uploads" in query or "uploadId" in query:
            return self.multipart(path, query, body)
        if self.command == "PUT":
            if match == "0" and there is not None:
                return 412, _error("PreconditionFailed"), {}
            return 200, b"", {"ETag": self.gcs.write(path, body), "x-goog-generation": "1"}
        if there is None:
            return 404, _error("NoSuchKey"), {}
        if self.command == "DELETE":
            del self.gcs.objects[path]
            return 204, b"", {}
        data, written, tag = there
        headers = {
            "ETag": tag,
            "Last-Modified": formatdate(written, usegmt=True),
            "Content-Type": "text/plain",
        }
        if found := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(found[1]), int(found[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return 206, data[first : last + 1], headers
        return 200, data, headers

    def multipart(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if "uploads" in query:
            name = str(len(self.gcs.uploads))
            self.gcs.uploads[name] = {}
            xml = (
                f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            )
            return 200, xml.encode(), {}
        parts = self.gcs.uploads[query["uploadId"]]
        if self.command == "PUT":
            parts[int(query["partNumber"])] = body
            return 200, b"", {"ETag": f'"{query["partNumber"]}"'}
        if self.command == "DELETE":
            return 204, b"", {}
        tag = self.gcs.write(path, b"".join(parts[number] for number in sorted(parts)))
        return 200, _tag("CompleteMultipartUploadResult", f"<ETag>{escape(tag)}</ETag>").encode(), {}

    def listing(self, bucket: str, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        contents, common = [], set()
        names = sorted(each.partition("/")[2] for each in self.gcs.objects if each.startswith(f"{bucket}/"))
        matching = [name for name in names if name.startswith(prefix) and name > after]
        for name in matching[:PAGE]:
            head, cut, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else ("", "", "")
            if cut:
                common.add(f"{prefix}{head}{delimiter}")
                continue
            data, written, tag = self.gcs.objects[f"{bucket}/{name}"]
            stamp = datetime.fromtimestamp(written, UTC).isoformat(timespec="milliseconds")
            told = f"<Key>{escape(name)}</Key><LastModified>{stamp}</LastModified>"
            contents.append(_tag("Contents", f"{told}<ETag>{escape(tag)}</ETag><Size>{len(data)}</Size>"))
        found = "".join(contents)
        found += "".join(
            _tag("CommonPrefixes", f"<Prefix>{escape(each)}</Prefix>") for each in sorted(common)
        )
        if matching[PAGE:]:
            found += _tag("NextContinuationToken", escape(matching[PAGE - 1]))
        return _tag("ListBucketResult", found).encode()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def _tag(name: str, inner: str) -> str:
    return f"<{name}>{inner}</{name}>"


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code></Error>".encode()
