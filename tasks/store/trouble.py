"""What a store's refusal means, for a person: which credential is wrong, and what to do about it."""

from __future__ import annotations

import re

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

from lora_ops.errors import StoreDenied, StoreUnavailable

_STATUS = re.compile(r"\b40[13] (Forbidden|Unauthorized)")
_SPOKEN = re.compile(r"credential|AccessDenied|InvalidAccessKeyId|service_account|\bOAuth\b", re.IGNORECASE)
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|The specified bucket does not exist")
_CODE = re.compile(r"<Code>([A-Za-z0-9]+)</Code>")
_REASONS = {
    "InvalidAccessKeyId": "it knows no such access key",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "AuthenticationFailed": "the account's key or token is wrong",
    "AccessDenied": "it knows the key, and does not allow it this",
    "AuthorizationPermissionMismatch": "it knows the identity, and does not allow it this",
    "ExpiredToken": "the session's token has expired",
    "InvalidToken": "the session's token is wrong",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
}
_SOURCES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the pod's role, or the prefect-aws block that"
    " `credentials_block` names",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the pod's workload identity; it needs Storage Object User",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, or the pod's workload identity; it"
    " needs Storage Blob Data Contributor",
}


def no_bucket(error: Exception) -> bool:
    """Whether the store says that there is no such bucket."""
    return bool(_NO_BUCKET.search(str(error)))


def no_answer(url: str, error: Exception) -> StoreUnavailable:
    """StoreDenied when the store refuses the credentials, StoreUnavailable for everything else."""
    text = str(error)
    if no_bucket(error):
        return StoreUnavailable(
            f"The store {url} does not exist: {first_line(error)}",
            "Create the bucket first; lora-ops never creates one.",
        )
    if isinstance(error, PermissionError):
        return StoreUnavailable(
            f"The store {url} cannot be used: {first_line(error)}",
            "Give this user the right to read and write that folder.",
        )
    found = _CODE.search(text)
    code = found[1] if found else ""
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _STATUS.search(text):
        why = _REASONS.get(code, code or first_line(error))
        return StoreDenied(f"The store {url} refuses the credentials: {why}.", _hint(url, code))
    hint = "Check the address and the network, then run the same command again."
    if _SPOKEN.search(text):
        hint = _hint(url, code)
    return StoreUnavailable(f"The store {url} does not answer: {first_line(error)}", hint)


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _hint(url: str, code: str) -> str:
    if code == "RequestTimeTooSkewed":
        return "Set the clock of this machine (NTP), then run the same command again."
    more = " docs/storage.md has the rights that lora-ops needs." if code == "AccessDenied" else ""
    source = _SOURCES.get(url.partition("://")[0], "what its SDK reads")
    return f"Check the credentials: {source}.{more}"
