"""Opens obstore's clients for S3, GCS and Azure: credentials, endpoint, retries."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from lora_ops.errors import ConfigError, StoreUnavailable
from lora_ops.storage_spec import Address

_open: Callable[..., ObjectStore] = from_url  # its overloads know one cloud's options each
_RETRIES: dict[str, Any] = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3), "base": 2},
}
_ENDPOINTS = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
)
_SSE = {"sse-s3": "AES256", "sse-kms": "aws:kms"}
_OWN_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")  # fmt: skip


def open_remote(address: Address, options: Mapping[str, Any]) -> ObjectStore:
    """obstore's client for a store; opens no connection. Raises ConfigError, StoreUnavailable."""
    url, scheme = address.url, address.url.partition("://")[0]
    settings: dict[str, Any] = dict(options)
    if scheme == "s3":
        _set_s3(settings, address)
    endpoints = [str(settings.get("endpoint", "")), *(os.environ.get(name, "") for name in _ENDPOINTS)]
    client: Any = {"connect_timeout": "5s", "timeout": "60s"} | dict(settings.pop("client_options", {}))
    if next((e for e in endpoints if e), "").startswith("http://"):
        client["allow_http"] = True
    try:
        return _open(url, client_options=client, **{"retry_config": _RETRIES, **settings})
    except (BaseError, ValueError, TypeError) as error:
        raise ConfigError(
            f"The store {url} cannot be opened: {str(error).partition(chr(10))[0]}",
            "A store is `s3://bucket/folder`, `gs://bucket/folder` or `az://container/folder`.",
        ) from error


def s3_session(address: Address) -> tuple[Any, str | None]:
    """boto3's session for a store, None where the usual environment says all; and its endpoint, if any.

    Raises ConfigError for a block or a profile that cannot be, StoreUnavailable (no Prefect).
    """
    if address.credentials_block is None:
        return _from_profile(), address.endpoint
    session, endpoint = _from_block(address.credentials_block)
    return session, address.endpoint or endpoint


def _set_s3(settings: dict[str, Any], address: Address) -> None:
    session, endpoint = (None, None) if "access_key_id" in settings else s3_session(address)
    if session is not None:
        from obstore.auth.boto3 import Boto3CredentialProvider

        try:
            settings["credential_provider"] = Boto3CredentialProvider(session)
        except ValueError as error:
            raise ConfigError(
                f"No AWS credentials for {address.url}: {error}", "Run `aws configure`."
            ) from error
    if endpoint or address.endpoint:
        settings.setdefault("endpoint", endpoint or address.endpoint)
    if address.region:
        settings.setdefault("region", address.region)
    if address.encryption:
        settings["server_side_encryption"] = _SSE[address.encryption]
    if address.kms_key:
        settings.update(sse_kms_key_id=address.kms_key, sse_bucket_key_enabled=True)
    if not os.environ.get("AWS_CHECKSUM_ALGORITHM"):  # buckets with object lock want one
        settings.setdefault("checksum_algorithm", "sha256")
    # A plain DELETE: not every S3-compatible server has the other.
    settings.setdefault("disable_bulk_delete", True)


def _from_profile() -> Any:
    """A boto3 session of the shared AWS files, which obstore does not read; None if not needed."""
    shared = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    if any(os.environ.get(name) for name in _OWN_CREDENTIALS):
        return None
    if not os.environ.get("AWS_PROFILE") and not shared.is_file():
        return None
    import boto3  # type: ignore[import-untyped]
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    try:
        return boto3.Session()
    except BotoCoreError as error:
        raise ConfigError(f"The AWS profile cannot be used: {error}", "Check AWS_PROFILE.") from error


def _from_block(name: str) -> tuple[Any, str | None]:
    """boto3 session and endpoint of a block: `aws-credentials/x`, `minio-credentials/x` or just `x`."""
    try:
        from prefect_aws import AwsCredentials, MinIOCredentials
    except ImportError as error:
        raise ConfigError(
            f"The credentials block `{name}` needs the package prefect-aws.", "pip install prefect-aws"
        ) from error
    kinds: dict[str, Any] = {"aws-credentials": AwsCredentials, "minio-credentials": MinIOCredentials}
    kind, _, short = name.rpartition("/")
    if kind and kind not in kinds:
        raise ConfigError(f"`{kind}` is not a kind of credentials block.", f"Known: {', '.join(kinds)}.")
    for block in [kinds[kind]] if kind else kinds.values():
        try:
            loaded = block.load(short, _sync=True)
        except ValueError:
            continue  # Prefect's answer for a name that it does not know
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("httpx", "prefect"):
                raise
            raise StoreUnavailable(
                f"The credentials block `{name}` cannot be read: {error}",
                "Is the Prefect server (PREFECT_API_URL) up?",
            ) from error
        return loaded.get_boto3_session(), loaded.aws_client_parameters.endpoint_url
    raise ConfigError(
        f"Prefect knows no credentials block `{name}`.",
        "List them with `prefect block ls`, or make one with `prefect block create aws-credentials`.",
    )
