"""An attempt's log in the store: the newest part of it, which says how much is not there any more.

Positions in a log count from its very first byte, so a follower knows what it has missed.
"""

from __future__ import annotations

import re

_HEAD = re.compile(rb"\[lora-ops: the first (\d{1,18}) bytes of this log are not kept\]\n")


def pack(dropped: int, text: bytes) -> bytes:
    """The object's bytes. `dropped`: how many bytes of the log came before `text`."""
    head = b"[lora-ops: the first %d bytes of this log are not kept]\n" % dropped if dropped else b""
    return head + text


def unpack(data: bytes) -> tuple[int, bytes]:
    """(dropped, text) of what `pack` made, or of a log without a head."""
    head = _HEAD.match(data)
    return (int(head[1]), data[head.end() :]) if head else (0, data)
