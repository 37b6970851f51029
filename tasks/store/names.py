"""The names of objects: what a key may look like, and digests as parts of keys."""

from __future__ import annotations

import re

from lora_ops.errors import StoreError, UsageError

# Folder of half-written files at the root of a store on disk. No key may begin with it.
RESERVED = ".partial"

_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
_DIGEST_IN_KEY = re.compile(r"^sha256-[0-9a-f]{64}$")
_STAGED = re.compile(r"^[^#]*#\d+$")  # what obstore calls its own half-written files on disk, and never lists
_MAX_KEY_BYTES = 1024  # S3, GCS and Azure
_MAX_SEGMENT_BYTES = 255  # a file's name on a local disk


def check_key(key: str) -> str:
    """The key itself; StoreError when not every store could hold it.

    A key is segments joined by `/`: none empty, `.` or `..`, no control characters, no backslash, no
    `#<number>` at the end, at most 255 bytes of UTF-8 a segment and 1024 in all.
    """
    segments = key.split("/")
    reason = ""
    if any(segment in ("", ".", "..") for segment in segments):
        reason = "it has an empty, `.` or `..` segment"
    elif any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) <= 0xDFFF for char in key):
        reason = "it has a control character or half of a surrogate pair"
    elif "\\" in key:
        reason = "it has a backslash, which Azure takes for a `/`"
    elif _STAGED.match(segments[-1]):
        reason = "it ends in `#` and a number"
    elif segments[0] == RESERVED:
        reason = f"`{RESERVED}/` is reserved for half-written files"
    elif len(key.encode()) > _MAX_KEY_BYTES or any(len(s.encode()) > _MAX_SEGMENT_BYTES for s in segments):
        reason = f"it is longer than {_MAX_KEY_BYTES} bytes, or a segment than {_MAX_SEGMENT_BYTES}"
    if reason:
        raise StoreError(
            f"{key!r} cannot be the name of an object: {reason}.", "Rename the file or the folder."
        )
    return key


def folder(prefix: str) -> str:
    """A prefix as `""` or `a/b/`: `a/b` never matches `a/bc`."""
    stripped = prefix.strip("/")
    return f"{check_key(stripped)}/" if stripped else ""


def key_digest(digest: str) -> str:
    """`sha256:<hex>` as part of a key: `sha256-<hex>` (a colon is awkward in file names)."""
    if not _DIGEST.match(digest):
        raise UsageError(f"`{digest}` is not a digest.", "A digest is `sha256:` and 64 hexadecimal digits.")
    return digest.replace(":", "-")


def digest_from_key(segment: str) -> str | None:
    """The digest that a key's segment stands for, or None when it is none."""
    return segment.replace("-", ":") if _DIGEST_IN_KEY.match(segment) else None
