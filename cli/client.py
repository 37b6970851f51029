"""The HTTP client of `lora-ops serve`."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from lora_ops.errors import AuthError, ConfigError, LoraOpsError, UnreachableError, UsageError

DEFAULT_SERVER = "http://127.0.0.1:8700"
SPEC = "lora-ops.yaml"
Json = dict[str, Any]


def server_url(option: str | None) -> str:
    """Where `serve` is: the option, LORA_OPS_SERVER, the nearest lora-ops.yaml's `serve`, or the default."""
    url = option or os.environ.get("LORA_OPS_SERVER") or _from_spec() or DEFAULT_SERVER
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"`{url}` is not the address of a server.", f"Write it like {DEFAULT_SERVER}.")
    return url.rstrip("/")


def _from_spec() -> str | None:
    here = Path.cwd()
    path = next((folder / SPEC for folder in (here, *here.parents) if (folder / SPEC).is_file()), None)
    if path is None:
        return None
    import yaml

    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", "Mend it, or name the server: --server URL."
        ) from error
    serve = spec.get("serve") if isinstance(spec, dict) else None
    if not isinstance(serve, dict):
        return None
    host = str(serve.get("host", "127.0.0.1"))
    if host in ("0.0.0.0", "::", ""):  # it listens everywhere: from here that is loopback
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{serve.get('port', 8700)}"


class Api:
    """Requests to one server; every failure is a LoraOpsError. `now` is the server's clock at its answer."""

    def __init__(self, url: str) -> None:
        token = os.environ.get("LORA_OPS_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url
        self.now = datetime.now(UTC)
        self._http = httpx.Client(
            base_url=url,
            headers={"Accept": "application/json", **headers},
            timeout=httpx.Timeout(60.0, connect=5.0),
            # Loading the certificates takes longer than a request; redirects to https are not followed.
            verify=url.startswith("https"),
            # This machine's own server is never behind the environment's proxy.
            trust_env=httpx.URL(url).host not in ("127.0.0.1", "localhost", "::1"),
        )

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def get(self, path: str, **query: Any) -> Json:
        """GET below `/api`; query values that are None are left out."""
        return self._send(
            "GET", path, params={key: value for key, value in query.items() if value is not None}
        )

    def post(self, path: str, body: Json | None = None, *, tries: int = 1) -> Json:
        """POST below `/api`. More than one try is for requests that carry an idempotency key."""
        while True:
            try:
                return self._send("POST", path, json=body or {})
            except _LostAnswer:
                tries -= 1
                if tries <= 0:
                    raise

    def _send(self, method: str, path: str, **options: Any) -> Json:
        try:
            answer = self._http.request(method, f"/api{path}", **options)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise UnreachableError(
                f"No lora-ops server answers at {self.url}.",
                "Start it here with `lora-ops up`, or name another: --server URL, or LORA_OPS_SERVER.",
            ) from error
        except httpx.HTTPError as error:
            raise _LostAnswer(
                f"The server at {self.url} broke off: {str(error) or type(error).__name__}.",
                "Look at its log; whether the request took effect shows in `lora-ops status`.",
            ) from error
        self._read_clock(answer)
        try:
            body = answer.json()
        except ValueError:
            body = None
        if answer.is_success and isinstance(body, dict):
            return body
        raise _error_of(self.url, answer.status_code, body)

    def _read_clock(self, answer: httpx.Response) -> None:
        try:
            self.now = parsedate_to_datetime(answer.headers["date"])
        except (KeyError, ValueError):
            self.now = datetime.now(UTC)


class _LostAnswer(UnreachableError):
    """The request may have been carried out."""

    kind = "lost-answer"


def _error_of(url: str, status: int, body: Any) -> LoraOpsError:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return LoraOpsError.from_dict(error)
    if status in (401, 403):
        return AuthError(
            f"{url} refuses: HTTP {status}.", "Set LORA_OPS_TOKEN to the token that `serve` was given."
        )
    return UnreachableError(
        f"What answers at {url} is not this version's `lora-ops serve`: HTTP {status}.",
        "Another program may have the port: name the server with --server URL, or see `lora-ops doctor`.",
    )
