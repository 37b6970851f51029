"""`providers:` of lora-ops.yaml: the Prometheus servers that gates ask."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from lora_ops.errors import nearest
from lora_ops.gates.promql import selector
from lora_ops.gates.verdict import STORE
from lora_ops.state import Provider
from lora_ops.units import seconds

PROMETHEUS: Literal["prometheus"] = "prometheus"
"""A gate that names this means the only provider there is, or the one of this name."""

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # a token of RFC 9110


class ProviderSpec(BaseModel):
    """A Prometheus, or what speaks its API (Thanos, Mimir, VictoriaMetrics). Secrets stay in the environment:
    the values of `bearer_token_env` and `headers_env` are names of its variables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["prometheus"] = PROMETHEUS
    url: str
    timeout: Annotated[float, Field(ge=0.1, le=60), BeforeValidator(seconds)] = 5.0
    bearer_token_env: str | None = None
    headers_env: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        scheme, separator, rest = url.partition("://")
        if scheme not in ("http", "https") or not separator or not rest.strip("/"):
            raise ValueError("it begins with http:// or https://, such as http://prometheus:9090")
        if "@" in rest.partition("/")[0]:
            raise ValueError("no user and password in a url: name variables in `headers_env`")
        if "?" in rest or "#" in rest:
            raise ValueError("the server's address alone; lora-ops adds /api/v1/query")
        return url.rstrip("/")

    @field_validator("headers_env")
    @classmethod
    def _headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for header in headers:
            if not _HEADER.fullmatch(header):
                raise ValueError(f"`{header}` is not a header's name, such as X-Scope-OrgID")
        return headers

    @field_validator("labels")
    @classmethod
    def _labels(cls, labels: dict[str, str]) -> dict[str, str]:
        selector("up", labels)
        return labels

    def record(self) -> Provider:
        """As a rollout keeps it."""
        fields = self.model_dump(exclude={"timeout"})
        return Provider(**fields, timeout_s=self.timeout)


def resolve(name: str, providers: Mapping[str, ProviderSpec]) -> str:
    """The provider that a gate names. Raises ValueError, in words for a person, when there is none."""
    if name == STORE or name in providers:
        return name
    if name == PROMETHEUS and len(providers) == 1:
        return next(iter(providers))
    if name == PROMETHEUS:
        declared = ", ".join(sorted(providers))
        ways = f"name one of {declared}" if providers else "declare one: `providers: {prometheus: {url: …}}`"
        raise ValueError(f"which provider `prometheus` means is not known; {ways}")
    raise ValueError(f"provider `{name}` is unknown. {nearest(name, [STORE, *providers])}")
