"""Sorted ranges of a disk, (start, end) in bytes, as lazy streams: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

Range: TypeAlias = tuple[int, int]


def joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ranges sorted by their start, with those that touch or overlap made one."""
    current: Range | None = None
    for start, end in ranges:
        if current is None:
            current = (start, end)
        elif start <= current[1]:
            current = (current[0], max(current[1], end))
        else:
            yield current
            current = (start, end)
    if current is not None:
        yield current


def intersection(left: Iterable[Range], right: Iterable[Range]) -> Iterator[Range]:
    """What is in both of two sorted streams, each without overlaps."""
    lefts, rights = iter(left), iter(right)
    a, b = next(lefts, None), next(rights, None)
    while a is not None and b is not None:
        start, end = max(a[0], b[0]), min(a[1], b[1])
        if start < end:
            yield start, end
        if a[1] <= b[1]:
            a = next(lefts, None)
        else:
            b = next(rights, None)


def difference(left: Iterable[Range], right: Iterable[Range]) -> Iterator[Range]:
    """What is in the first of two sorted streams but not in the second, each without overlaps."""
    rights = iter(right)
    hole = next(rights, None)
    for start, end in left:
        position = start
        while hole is not None and hole[0] < end:
            if position < hole[0]:
                yield position, hole[0]
            position = max(position, min(end, hole[1]))
            if hole[1] > end:
                break
            hole = next(rights, None)
        if position < end:
            yield position, end


def aligned(ranges: Iterable[Range], block: int, limit: int) -> Iterator[Range]:
    """Ranges rounded out to whole blocks, the last one cut at ``limit``, and joined."""
    return joined((start // block * block, min(limit, -(-end // block) * block)) for start, end in ranges)


def cut(ranges: Iterable[Range], step: int) -> Iterator[Range]:
    """Ranges cut at multiples of ``step``."""
    for start, end in ranges:
        position = start
        while position < end:
            stop = min(end, (position // step + 1) * step)
            yield position, stop
            position = stop
