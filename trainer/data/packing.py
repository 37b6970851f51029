"""Several rows in one sequence: best-fit-decreasing bin packing. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[tuple[int, ...]]:
    """Bins of rows (places in `lengths`) whose lengths add up to at most `capacity`: the longest rows first,
    each into the fullest bin that takes it. A row longer than that has a bin of its own. At most 11/9 of the
    smallest possible number of bins, and four more (Johnson 1974)."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for row in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        at = bisect_left(room, (lengths[row], -1))
        if at == len(room):
            bins.append([row])
            insort(room, (capacity - lengths[row], len(bins) - 1))
        else:
            left, number = room.pop(at)
            bins[number].append(row)
            insort(room, (left - lengths[row], number))
    return [tuple(rows) for rows in bins]
