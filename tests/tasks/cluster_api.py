"""A stand-in for a Kubernetes API: an HTTP server with scripted answers, and a kubeconfig that names it."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml


class Api:
    """Answers by `METHOD path`, one after the other, the last for ever; 404 for what is not scripted."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, list[tuple[int, object]]] = {}
        self.calls: list[tuple[str, str, dict[str, str], object]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size) or b"null")
                heads = {key.lower(): value for key, value in self.headers.items()}
                outer.calls.append((self.command, self.path, heads, body))
                found = outer.answers.get(f"{self.command} {self.path.partition('?')[0]}")
                missing = {"kind": "Status", "message": "not scripted", "reason": "NotFound"}
                code, what = (404, missing) if not found else found.pop(0) if len(found) > 1 else found[0]
                data = what.encode() if isinstance(what, str) else json.dumps(what).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815 - the library's names

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        if context is not None:
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def on(self, route: str, *answers: object, code: int = 200) -> None:
        self.answers[route] = [(code, each) for each in answers]

    def refuse(self, route: str, code: int, message: str, **more: object) -> None:
        self.on(route, {"kind": "Status", "code": code, "message": message, **more}, code=code)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def kubeconfig(folder: Path, server: str, **user: str) -> Path:
    path = folder / "kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "aws-prod",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [
            {"name": "aws-prod", "context": {"cluster": "c", "user": "u"}},
            {"name": "gcp-prod", "context": {"cluster": "c", "user": "u"}},
        ],
    }
    path.write_text(yaml.safe_dump(document))
    return path
