"""What a write covers of clusters and subclusters, and what must be copied around it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from diskwright.node import Node, Placement

from . import layout

if TYPE_CHECKING:
    from .header import Header
    from .l2 import Table
    from .refcount import Column

_COMPRESSED = layout.OFLAG_COMPRESSED
_ALL = layout.SUBCLUSTERS_ALLOCATED_MASK
_SHIFT = layout.SUBCLUSTERS_ZERO_SHIFT


@lru_cache(64)
def _no_bitmaps(count: int) -> Column:
    """Subcluster bitmaps where there are none."""
    zeros = np.zeros(count, np.uint64)
    zeros.flags.writeable = False
    return zeros


class RangeWithinTable:
    """A guest range that one L2 table maps.

    :ivar start: guest offset, bytes.
    :ivar end: the guest offset behind it.
    :ivar l1_index: which table.
    :ivar first: the first entry of the table that the range touches.
    :ivar last: the entry behind the last one.
    """

    def __init__(self, header: Header, start: int, end: int) -> None:
        self.header = header
        self.start = start
        self.end = end
        self.l1_index = start // header.l1_coverage
        base = self.l1_index * header.l2_entries
        self.first = (start >> header.cluster_bits) - base
        self.last = -(-end >> header.cluster_bits) - base

    def entries(self, table: Table) -> tuple[Column, Column]:
        """The descriptors of the range and their subcluster bitmaps (zeros without extended entries)."""
        part = table[self.first : self.last]
        if self.header.extended_l2:
            return part[:, 0], part[:, 1]
        return part, _no_bitmaps(len(part))

    def placement(
        self, node: Node, first: int, last: int, host: int, entries: Column, bitmaps: Column, in_place: bool
    ) -> Placement:
        """The placement of clusters ``first`` to ``last`` - 1, counted from the first of the range.

        :param host: host offset of the first of them, bytes.
        :param in_place: whether they stand there already.
        """
        size = self.header.cluster_size
        base = self.start - self.start % size
        start, end = max(self.start, base + first * size), min(self.end, base + last * size)
        head = head_length(self, entries[first], bitmaps[first], in_place) if start == self.start else 0
        tail = tail_length(self, entries[last - 1], bitmaps[last - 1], in_place) if end == self.end else 0
        return Placement(start, end - start, node, host + start - base - first * size, head, tail)


def head_length(part: RangeWithinTable, entry: int, bitmap: int, in_place: bool) -> int:
    """How many bytes before the range belong to the same newly used space.

    :param entry: the L2 entry of the first cluster.
    :param bitmap: its subcluster bitmap.
    """
    before = part.start % part.header.cluster_size
    if not before:
        return 0
    if not part.header.extended_l2:
        return 0 if in_place and not int(entry) & layout.OFLAG_ZERO else before
    if int(entry) & _COMPRESSED:
        return before
    unit = part.header.subcluster_size
    index = before // unit
    allocated = int(bitmap) & _ALL
    if in_place:
        return 0 if allocated >> index & 1 else before % unit
    # A new cluster: all that the old one has, from its first subcluster on, has to move along.
    below = allocated & ((1 << index) - 1)
    if below:
        return before - ((below & -below).bit_length() - 1) * unit
    return before % unit


def tail_length(part: RangeWithinTable, entry: int, bitmap: int, in_place: bool) -> int:
    """How many bytes behind the range belong to the same newly used space; see :func:`head_length`."""
    size = part.header.cluster_size
    behind = -part.end % size
    if not behind:
        return 0
    if not part.header.extended_l2:
        return 0 if in_place and not int(entry) & layout.OFLAG_ZERO else behind
    if int(entry) & _COMPRESSED:
        return behind
    unit = part.header.subcluster_size
    index = (size - behind - 1) // unit
    allocated = int(bitmap) & _ALL
    if in_place:
        return 0 if allocated >> index & 1 else behind % unit
    above = allocated >> (index + 1) << (index + 1)
    if above:
        return behind - (size - above.bit_length() * unit)
    return behind % unit


def written_bitmaps(part: RangeWithinTable, entries: Column, bitmaps: Column, same: Column) -> Column:
    """The subcluster bitmaps after the whole range, which starts and ends with subclusters, has been written.

    :param entries: the descriptors before.
    :param same: for each, whether its host cluster stays the same.
    """
    size, unit = part.header.cluster_size, part.header.subcluster_size
    allocated = np.full(len(entries), _ALL, np.uint64)
    skipped = part.start % size // unit
    allocated[0] &= np.uint64(_ALL << skipped & _ALL)
    left_out = -part.end % size // unit
    allocated[-1] &= np.uint64(_ALL >> left_out)
    zero = bitmaps >> np.uint64(_SHIFT) & ~allocated
    zero[entries & np.uint64(_COMPRESSED) != 0] = 0
    before = np.where(same, bitmaps & np.uint64(_ALL), np.uint64(0))
    return allocated | before | zero << np.uint64(_SHIFT)
