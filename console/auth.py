"""Who may ask: a bearer token, or without one only this machine. Default-deny, in front of all routes."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from hmac import compare_digest
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from console.errors import answer
from lora_ops.errors import AuthError, LoraOpsError

TOKEN_ENV = "LORA_OPS_TOKEN"
OPEN_PATHS = frozenset({"/healthz"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Forbidden(AuthError):
    """It will not get better with a token."""

    http_status = 403


def token_from_env(environment: Mapping[str, str] = os.environ) -> str | None:
    return environment.get(TOKEN_ENV) or None


def check_bind(host: str, token: str | None) -> None:
    """Raises AuthError when `serve` would listen beyond this machine without a token."""
    if not token and not is_loopback(host):
        raise AuthError(
            f"`serve` will not listen on {host} without a token: anyone who reaches it could deploy.",
            f"Set {TOKEN_ENV} to a long random text for the server and its clients, or listen on 127.0.0.1.",
        )


def is_loopback(host: str) -> bool:
    """Whether a name or an address can only be this machine. A name is never looked up."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class Guard:
    """ASGI middleware that lets a request through to the app, or answers 401 or 403 itself."""

    def __init__(self, app: ASGIApp, token: str | None, host: str) -> None:
        self._app = app
        self._token = token.encode() if token else None
        self._names = _LOCAL_NAMES | {host.lower().strip("[]")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN_PATHS):
            await self._app(scope, receive, send)
            return
        error = self._refusal(scope)
        if error is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await answer(error)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Scope) -> LoraOpsError | None:
        headers = Headers(scope=scope)
        if self._token is not None:
            refusal = self._check_token(headers)
        else:
            refusal = self._check_local(scope, headers)
        return refusal or _check_origin(scope, headers)

    def _check_token(self, headers: Headers) -> AuthError | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if self._token and scheme.lower() == "bearer" and compare_digest(given.strip().encode(), self._token):
            return None
        told = "The token is wrong." if given else "This server wants a token."
        return AuthError(told, f"Set {TOKEN_ENV} to the token that `lora-ops serve` was given.")

    def _check_local(self, scope: Scope, headers: Headers) -> AuthError | None:
        """Only loopback, and only under this machine's own names: a rebound DNS name is another."""
        peer = scope.get("client")
        if peer is None or not is_loopback(peer[0]):
            return AuthError(
                "Without a token this server answers its own machine only.", f"Start it with {TOKEN_ENV} set."
            )
        host = _host(headers.get("host", ""))
        if host not in self._names:
            return Forbidden(
                f"This server is not called `{host}`.", "Use http://127.0.0.1, or start it with a token."
            )
        return None


def _check_origin(scope: Scope, headers: Headers) -> AuthError | None:
    """An unsafe method must not come from another site's page (OWASP: Fetch Metadata, else Origin)."""
    if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
        return None
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    if foreign:
        return Forbidden("Another site's page asked for this change.", "Use the CLI, or our own pages.")
    return None


def _host(header: str) -> str:
    """The name of a Host header without its port."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""
