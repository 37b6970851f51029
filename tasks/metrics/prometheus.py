"""Prometheus' query API: instant queries, each with a deadline for the whole answer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import httpx

from lora_ops.state import Provider

LONGEST_ANSWER = 16 * 1024 * 1024


class NoAnswer(Exception):
    """The server gave no answer in time: it is dead, slow, starting, or not to be reached."""


class QueryRefused(Exception):
    """The server answered, and refuses the query; with its own words."""


class Prometheus:
    """One server. Close it after use."""

    def __init__(self, provider: Provider, environment: Mapping[str, str] = os.environ) -> None:
        self.url = provider.url
        self.timeout_s = provider.timeout_s
        self._unusable: list[str] = []
        headers: dict[str, str] = {}
        for header, name in provider.headers_env.items():
            headers[header] = self._secret(environment, name)
        if provider.bearer_token_env is not None:
            headers["Authorization"] = f"Bearer {self._secret(environment, provider.bearer_token_env)}"
        self._client = httpx.Client(headers=headers, timeout=provider.timeout_s)

    def close(self) -> None:
        self._client.close()

    def query(self, text: str) -> Any:
        """The JSON document of an instant query at the server's own time.

        Raises NoAnswer and QueryRefused.
        """
        if self._unusable:
            raise NoAnswer("; ".join(self._unusable))
        deadline = time.monotonic() + self.timeout_s
        form = {"query": text, "timeout": f"{self.timeout_s:g}s"}
        try:
            with self._client.stream("POST", f"{self.url}/api/v1/query", data=form) as answer:
                body = self._body(answer, deadline)
        except httpx.TimeoutException:
            raise NoAnswer(f"{self.url}: nothing within {self.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise NoAnswer(f"{self.url}: {error or type(error).__name__}") from None
        return _document(self.url, answer.status_code, body)

    def _body(self, answer: httpx.Response, deadline: float) -> bytes:
        """The client's timeout is for each read alone: a server that drips would never reach it."""
        body = bytearray()
        for part in answer.iter_bytes():
            body += part
            if time.monotonic() > deadline:
                raise NoAnswer(f"{self.url}: no whole answer within {self.timeout_s:g} s")
            if len(body) > LONGEST_ANSWER:
                raise QueryRefused(f"the answer is longer than {LONGEST_ANSWER >> 20} MiB: narrow the query")
        return bytes(body)

    def _secret(self, environment: Mapping[str, str], name: str) -> str:
        """Its value, "" when no header can hold it: the HTTP client's complaint would print it."""
        value = environment.get(name, "").strip()
        if value and value.isascii() and value.isprintable():
            return value
        wrong = "holds a line break or a letter beyond ASCII" if value else "is not set"
        self._unusable.append(f"{name} {wrong} in this process's environment")
        return ""


def _document(url: str, status: int, body: bytes) -> Any:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if status == httpx.codes.OK and isinstance(document, dict) and document.get("status") == "success":
        return document
    told = document.get("error") if isinstance(document, dict) else None
    words = f"HTTP {status}: {told or ' '.join(body[:200].decode(errors='replace').split()) or 'no body'}"
    if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
        raise NoAnswer(f"{url}: {words}")
    raise QueryRefused(words)
