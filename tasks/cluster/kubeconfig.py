"""Opens one context of a kubeconfig. The official client is heavy, and imported when a cluster is asked."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_ops.errors import ConfigError, nearest

LOGIN_HINT = (
    "Log in again (aws eks update-kubeconfig, gcloud container clusters get-credentials, "
    "az aks get-credentials), or renew the token in the kubeconfig."
)


def kubeconfig_files(kubeconfig: str | Path | None = None) -> list[Path]:
    """The files that are named, else those of $KUBECONFIG, else ~/.kube/config. ConfigError without one."""
    named = str(kubeconfig) if kubeconfig is not None else os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [Path(each).expanduser() for each in named.split(os.pathsep) if each]
    found = [each for each in files if each.is_file()]
    if not found:
        raise ConfigError(
            f"there is no kubeconfig: {named} does not exist.",
            "Set KUBECONFIG, or get one from your cluster (aws eks update-kubeconfig, gcloud container "
            "clusters get-credentials, az aks get-credentials).",
        )
    return found


def open_context(context: str, kubeconfig: str | Path | None = None) -> Any:
    """A `kubernetes.client.ApiClient` of that context, without retries. ConfigError names file, context."""
    from kubernetes import config as untyped
    from kubernetes.client import ApiClient, Configuration
    from yaml import YAMLError

    config: Any = untyped

    files = kubeconfig_files(kubeconfig)
    shown = os.pathsep.join(map(str, files))
    try:
        contexts, _ = config.list_kube_config_contexts(shown)
        known = [str(each["name"]) for each in contexts]
        if context in known:
            configuration = Configuration()
            configuration.retries = False
            config.load_kube_config(shown, context, client_configuration=configuration, persist_config=False)
            return ApiClient(configuration)
    except (config.ConfigException, YAMLError, OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the kubeconfig {shown} cannot be used: {_first_line(error)}.",
            "`kubectl config view` shows what it holds.",
        ) from None
    raise ConfigError(f"there is no context `{context}` in {shown}.", nearest(context, known))


def token_end(client: Any) -> str:
    """Until when the client's token says that it is good: one line, empty when it does not say."""
    words: Sequence[str] = str(client.configuration.api_key.get("BearerToken") or "").split(".")
    if len(words) != 3:
        return ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(words[1] + "=" * (-len(words[1]) % 4)))
        end = datetime.fromtimestamp(int(claims["exp"]), UTC)
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return ""
    return f"Its token ends at {end:%Y-%m-%d %H:%M:%S} UTC."


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
