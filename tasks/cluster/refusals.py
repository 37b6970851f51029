"""What a Kubernetes API refuses, and what goes wrong on the way to it, as errors of lora-ops."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lora_ops.errors import (
    AuthError,
    ConfigError,
    ConflictError,
    LoraOpsError,
    NotFoundError,
    UnreachableError,
)
from tasks.cluster.kubeconfig import LOGIN_HINT


class AlreadyThere(ConflictError):
    """A thing of that name exists."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of whom. `namespace`: empty for what lies outside of namespaces."""

    context: str
    verb: str
    resource: str
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        what = f"{self.verb} {self.resource}" + (f"/{self.name}" if self.name else "")
        return f"{what} in namespace `{self.namespace}`" if self.namespace else what


def refusal(status: int, body: str, asked: Asked, token: str = "") -> LoraOpsError:
    """The error for an answer that is no success. `token`: what is known of the credentials' end."""
    answer = _status(body)
    told = str(answer.get("message") or body.strip()[:300] or f"status {status}")
    cluster = f"the cluster of context `{asked.context}`"
    if status == 401:
        return AuthError(f"{cluster} refuses your credentials.", LOGIN_HINT, [token] if token else [])
    if status == 403 and "being terminated" in told:
        return ConflictError(
            f"namespace `{asked.namespace}` of {cluster} is being deleted.", "Wait, or take another.", [told]
        )
    if status == 403:
        hint = "Bind the Role `lora-ops-serve` to your user (`lora-ops manifests render` prints it)."
        if asked.verb == "patch":
            hint = "Let an administrator apply what `lora-ops manifests render` prints."
        return AuthError(f"you may not {asked} of {cluster}.", hint, [told])
    if status == 404 and asked.namespace and "namespaces" in told:
        return NotFoundError(
            f"{cluster} has no namespace `{asked.namespace}`.",
            f"kubectl --context {asked.context} create namespace {asked.namespace}",
        )
    if status == 404:
        return NotFoundError(f"{cluster} cannot {asked}: {told}.")
    if status == 409:
        kind = AlreadyThere if answer.get("reason") == "AlreadyExists" else ConflictError
        return kind(f"{cluster} cannot {asked}: {told}.")
    if status in (400, 413, 415, 422):
        causes = (answer.get("details") or {}).get("causes") or []
        lines = [f"{each.get('field')}: {each.get('message')}" for each in causes if isinstance(each, dict)]
        return ConfigError(f"{cluster} refuses to {asked}: {told}.", details=lines)
    if status == 429 or status >= 500:
        return UnreachableError(f"the API of {cluster} cannot answer now ({status}).", "Try again.", [told])
    return LoraOpsError(f"{cluster} answers {status} to {asked}: {told}.")


def silence(error: Exception, asked: Asked, host: str, timeout_s: float) -> LoraOpsError:
    """The error for an answer that never came."""
    told = " ".join(str(error).split())
    where = f"the API of context `{asked.context}` at {host}"
    if "certificate" in told.lower():
        return ConfigError(
            f"the certificate of {where} cannot be trusted.",
            "Mend `certificate-authority-data` of that cluster in the kubeconfig; when it says that it is "
            "not yet valid or has expired, look at the clocks of both machines.",
            [told[:300]],
        )
    return UnreachableError(
        f"{where} does not answer within {timeout_s:g} s.",
        "Is the cluster up, and reachable from here (VPN, firewall, proxy)?",
        [told[:300]],
    )


def _status(body: str) -> dict[str, Any]:
    """The API's `Status` document; empty when a proxy or something else answered."""
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
