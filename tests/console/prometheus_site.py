"""A real Prometheus that scrapes a real console app, with the configuration and the rules that we ship."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn
import yaml
from fastapi import FastAPI

from lora_ops.state import Provider
from tasks.metrics.prometheus import NoAnswer, Prometheus

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
T = TypeVar("T")


def binary(name: str) -> str:
    """Debian's package `prometheus` brings both. Where CI runs, they are not optional."""
    found = shutil.which(name)
    if found is None:
        told = f"{name} is not installed: apt-get install prometheus"
        if os.environ.get("LORA_OPS_CI") or os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(found: Callable[[], T | None], what: str, seconds: float = 60.0) -> T:
    """What `found` returns once it is something; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen = found()
        if seen:
            return seen
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds:g} s")


class Serve:
    """A console app on a free port; `stop` it like a replica that dies."""

    def __init__(self, app: FastAPI) -> None:
        self.port = free_port()
        config = uvicorn.Config(
            app, host="127.0.0.1", port=self.port, log_level="error", ws="none", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started, "the console app starts")

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)


class Exporter:
    """A small exporter; `text` is what it shows."""

    def __init__(self) -> None:
        self.text = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = outer.text.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.http.server_port}"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@dataclass
class Site:
    """A Prometheus in `folder` on `port`; killed and started again it goes on with its data."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *targets: str, every: str = "500ms") -> None:
        """With the shipped configuration, but for its targets and for shorter intervals."""
        config = yaml.safe_load((DEPLOYMENTS / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {
            "scrape_interval": every,
            "evaluation_interval": every,
            "scrape_timeout": every,
        }
        config["rule_files"] = [str(DEPLOYMENTS / "prometheus" / each) for each in config["rule_files"]]
        (job,) = config["scrape_configs"]
        job |= {
            "scrape_interval": every,
            "scrape_timeout": every,
            "static_configs": [{"targets": [*targets]}],
        }
        self.folder.mkdir(exist_ok=True)
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.again()

    def again(self) -> None:
        with (self.folder / "prometheus.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    binary("prometheus"),
                    f"--config.file={self.folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
            )
        until(lambda: self.ask("vector(1)") is not None, "Prometheus answers")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def ask(self, query: str) -> Any:
        """The result of a query; None while there is no answer."""
        client = Prometheus(Provider(url=self.url, timeout_s=20.0))
        try:
            return client.query(query)["data"]["result"]
        except NoAnswer:
            return None
        finally:
            client.close()
