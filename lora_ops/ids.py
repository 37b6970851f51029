"""Identifiers that sort by time. Time and randomness are arguments."""

from __future__ import annotations

import re

from lora_ops.errors import UsageError

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_SHAPE = re.compile(r"[a-z]{2,8}-[0-9a-hjkmnp-tv-z]{15}")

REQUEST = "req"
ROLLOUT = "roll"


def new_id(prefix: str, epoch_s: float, random_bits: int) -> str:
    """`<prefix>-<9 characters of milliseconds><6 characters of 30 random bits>`."""
    return f"{prefix}-{_base32(int(epoch_s * 1000), 9)}{_base32(random_bits % 2**30, 6)}"


def check_id(text: str, what: str = "id") -> str:
    """The id itself; UsageError when it could not be one (it becomes part of a store's key)."""
    if not _SHAPE.fullmatch(text):
        raise UsageError(f"`{text}` is not a {what}.", "Ids look like `req-06dk3v9z1q7a4bc`.")
    return text


def created_at(identifier: str) -> float:
    """Seconds since the epoch that the id carries (its maker's wall clock: for people, not for rules)."""
    value = 0
    for char in identifier.rpartition("-")[2][:9]:
        value = value * 32 + ALPHABET.index(char)
    return value / 1000


def _base32(value: int, width: int) -> str:
    chars = []
    for _ in range(width):
        value, digit = divmod(value, 32)
        chars.append(ALPHABET[digit])
    return "".join(reversed(chars))
