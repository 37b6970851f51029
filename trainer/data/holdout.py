"""Which samples are held out for validation: told from their content, so that new ones move none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def split(contents: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """(places that are trained on, places held out) of the samples with these contents (a digest will do).

    About `share` of the distinct contents are held out, at least one and never all of them where there are
    two; equal contents go the same way. Whether a sample is held out does not depend on the others (but for
    these two bounds). A share of 0, or a single content, holds out nothing.
    """
    draws = {content: _draw(content) for content in contents}
    if share <= 0 or len(draws) < 2:
        return list(range(len(contents))), []
    held = {content for content, draw in draws.items() if draw < share}
    held = held or {min(draws, key=draws.__getitem__)}
    if len(held) == len(draws):
        held.remove(max(draws, key=draws.__getitem__))
    places: tuple[list[int], list[int]] = ([], [])
    for place, content in enumerate(contents):
        places[content in held].append(place)
    return places


def _draw(content: str) -> float:
    """A number in [0, 1) that follows from the content alone."""
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
