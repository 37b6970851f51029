"""What an S3 bucket says of itself: versions, object lock, encryption, lifecycle, public access.

obstore cannot ask this, nor send a retention with an object: the bucket's default is what counts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lora_ops.errors import LoraOpsError
from lora_ops.storage_spec import Address
from tasks.store.base import Store
from tasks.store.checks import Finding, Level
from tasks.store.remote import s3_session

_ABSENT = (
    "ObjectLockConfigurationNotFoundError",
    "ServerSideEncryptionConfigurationNotFoundError",
    "NoSuchLifecycleConfiguration",
    "NoSuchPublicAccessBlockConfiguration",
    "NoSuchBucketPolicy",
)
_DENIED = ("AccessDenied", "AllAccessDisabled", "403")
_FORGETTABLE = ("clock/", "probe/")  # what a lifecycle rule may delete
_FROZEN = ("GLACIER", "DEEP_ARCHIVE")
_SSE = {"sse-s3": "AES256", "sse-kms": "aws:kms"}


class _Silent(Exception):
    """The bucket cannot be asked this."""


def check_bucket(address: Address, store: Store) -> Iterator[Finding]:
    """A finding for each property. What the identity may not ask is said, and is no failure."""
    bucket, _, folder = address.url.removeprefix("s3://").partition("/")
    try:
        client = _client(address)
    except LoraOpsError as error:
        yield Finding("bucket", Level.WARN, error.message, error.hint)
        return
    looks: dict[str, Callable[[], Finding]] = {
        "versions": lambda: _versions(client, bucket),
        "object lock": lambda: _lock(client, bucket),
        "encryption": lambda: _encryption(client, bucket, folder, address, store),
        "lifecycle": lambda: _lifecycle(client, bucket, folder),
        "public access": lambda: _public(client, bucket),
    }
    for name, look in looks.items():
        try:
            yield look()
        except _Silent as silence:
            yield Finding(name, Level.OK, f"not known: {silence}")


def _client(address: Address) -> Any:
    import boto3  # type: ignore[import-untyped]
    from botocore.config import Config  # type: ignore[import-untyped]

    session, endpoint = s3_session(address)
    settings = Config(
        connect_timeout=5,
        read_timeout=10,
        retries={"total_max_attempts": 2},
        s3={"addressing_style": "path"} if endpoint else {},
    )
    return (session or boto3.Session()).client(
        "s3",
        endpoint_url=endpoint or os.environ.get("AWS_ENDPOINT") or None,
        region_name=address.region or os.environ.get("AWS_REGION"),
        config=settings,
    )


def _ask(client: Any, method: str, **arguments: str) -> Mapping[str, Any] | None:
    """The answer; None where nothing is set. Raises _Silent."""
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    try:
        answer: Mapping[str, Any] = getattr(client, method)(**arguments)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _ABSENT:
            return None
        if code in _DENIED:
            right = "".join(part.capitalize() for part in method.split("_"))
            raise _Silent(f"this identity may not ask (s3:{right})") from None
        raise _Silent(f"the server answers {code or 'nothing known'}") from None
    except BotoCoreError as error:
        raise _Silent(str(error).partition("\n")[0]) from None
    return answer


def _versions(client: Any, bucket: str) -> Finding:
    answer = _ask(client, "get_bucket_versioning", Bucket=bucket) or {}
    if answer.get("Status") == "Enabled":
        return Finding("versions", Level.OK, "kept")
    return Finding(
        "versions",
        Level.WARN,
        "not kept",
        "Turn versioning on: a journal's entry that someone deletes can then be brought back.",
    )


def _lock(client: Any, bucket: str) -> Finding:
    answer = _ask(client, "get_object_lock_configuration", Bucket=bucket) or {}
    lock = answer.get("ObjectLockConfiguration", {})
    if lock.get("ObjectLockEnabled") != "Enabled":
        return Finding("object lock", Level.OK, "off")
    default = lock.get("Rule", {}).get("DefaultRetention")
    if not default:
        return Finding(
            "object lock",
            Level.WARN,
            "on, without a default retention: it keeps nothing",
            "Set a default retention on the bucket: lora-ops sends none with its objects.",
        )
    span = f"{default['Days']} days" if "Days" in default else f"{default.get('Years')} years"
    return Finding("object lock", Level.OK, f"{default.get('Mode', '').lower()}, {span} by default")


def _encryption(client: Any, bucket: str, folder: str, address: Address, store: Store) -> Finding:
    """What an object that was just written got; the bucket's default is not asked for another right."""
    name = f"probe/encryption/{secrets.token_hex(8)}"
    try:
        store.put(name, b"x")
        key = f"{folder}/{name}" if folder else name
        head = _ask(client, "head_object", Bucket=bucket, Key=key) or {}
    finally:
        with contextlib.suppress(LoraOpsError):
            store.delete(name)
    got = head.get("ServerSideEncryption")
    with_key = f" with {head['SSEKMSKeyId']}" if head.get("SSEKMSKeyId") else ""
    wanted = _SSE.get(address.encryption or "")
    if wanted is not None and got != wanted:
        return Finding(
            "encryption",
            Level.FAIL,
            f"asked for {wanted}, got {got or 'none'}",
            "This server ignores what is asked: set encryption on the bucket, or use another store.",
        )
    if got is None:
        return Finding(
            "encryption",
            Level.WARN,
            "none is told",
            "Add `?encryption=sse-s3` to the URL, or set a default on the bucket.",
        )
    return Finding("encryption", Level.OK, f"{got}{with_key}")


def _lifecycle(client: Any, bucket: str, folder: str) -> Finding:
    answer = _ask(client, "get_bucket_lifecycle_configuration", Bucket=bucket) or {}
    rules = [rule for rule in answer.get("Rules", []) if rule.get("Status") == "Enabled"]
    bad = [rule for rule in rules if _takes(rule) and _touches(rule, folder)]
    if bad:
        named = ", ".join(f"`{rule.get('ID') or _prefix(rule) or 'whole bucket'}`" for rule in bad)
        return Finding(
            "lifecycle",
            Level.FAIL,
            f"{named} deletes or freezes what lora-ops needs",
            "Take this rule off lora-ops' folder: `lora-ops storage gc` clears it, and never a journal.",
        )
    return Finding("lifecycle", Level.OK, f"{len(rules)} rules, none takes what is needed")


def _takes(rule: Mapping[str, Any]) -> bool:
    """Whether it deletes current objects or moves them to where they cannot be read."""
    expires = rule.get("Expiration", {})
    frozen = any(each.get("StorageClass") in _FROZEN for each in rule.get("Transitions", []))
    return "Days" in expires or "Date" in expires or frozen


def _touches(rule: Mapping[str, Any], folder: str) -> bool:
    condition = rule.get("Filter", {})
    if "Tag" in condition or condition.get("And", {}).get("Tags"):
        return False  # lora-ops tags nothing
    ours, theirs = f"{folder}/" if folder else "", _prefix(rule)
    inside = theirs.removeprefix(ours)
    if theirs.startswith(ours) and inside.startswith(_FORGETTABLE):
        return False
    return theirs.startswith(ours) or ours.startswith(theirs)


def _prefix(rule: Mapping[str, Any]) -> str:
    condition = rule.get("Filter", {})
    return str(condition.get("Prefix") or condition.get("And", {}).get("Prefix") or rule.get("Prefix") or "")


def _public(client: Any, bucket: str) -> Finding:
    answer = _ask(client, "get_public_access_block", Bucket=bucket) or {}
    block = answer.get("PublicAccessBlockConfiguration", {})
    if len(block) == 4 and all(block.values()):
        return Finding("public access", Level.OK, "blocked")
    return Finding(
        "public access", Level.WARN, "not blocked", "Turn on all four settings of Block Public Access."
    )
