"""New refcount structures for an image, beside the old ones: they count from the header's switch to them on."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diskwright.errors import NodeIOError
from diskwright.extent import distinct
from diskwright.facts import CheckResult

from . import layout
from .allocate import Run
from .check import count_content, unsound
from .check_references import References, StoredRefcounts
from .check_tables import TableCheck
from .hostspace import lowest_gap
from .order import Disk
from .refcount import MAX_TABLE_ENTRIES, pack_refcounts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .image import Qcow2Image
    from .refcount import Column


_STEP = 1 << 12
_WINDOW = 1 << 22
"""Counts looked at together: of a large file most are zero and take no memory as long as they are left alone."""


class Layout(NamedTuple):
    """The place of each of the new refcount structures.

    :ivar places: for each refcount block there will be, its cluster.
    :ivar table: the clusters of the refcount table.
    :ivar run: clusters that are counted besides, which may include those.
    """

    places: dict[int, int]
    table: Run
    run: Run = Run(0, 0)

    @property
    def owned(self) -> Column:
        """All clusters that have a reference more than before, in order."""
        parts = [np.array(list(self.places.values()), np.int64)]
        parts += [np.arange(run.first, run.end, dtype=np.int64) for run in (self.table, self.run)]
        clusters: Column = distinct(np.concatenate(parts))
        return clusters


class Plan(NamedTuple):
    """Where new structures go, all together.

    :ivar run: all of their clusters: those for something else, the refcount blocks, the table.
    :ivar extra: clusters at the start of the run for something else.
    :ivar blocks: which refcount blocks there will be, in order.
    :ivar table_clusters: size of the refcount table.
    """

    run: Run
    extra: int
    blocks: list[int]
    table_clusters: int

    @property
    def layout(self) -> Layout:
        """The place of each structure."""
        first = self.run.first + self.extra
        places = {index: first + number for number, index in enumerate(self.blocks)}
        return Layout(places, Run(self.run.end - self.table_clusters, self.table_clusters), self.run)


class RefcountBuilder:
    """Builds the refcount structures of an image from the references to its clusters.

    :param counts: references to each cluster, those of refcount structures left out; there are none behind the end.
    :param order: width of the new refcounts, ``1 << order`` bits.
    """

    def __init__(self, image: Qcow2Image, counts: Column, order: int) -> None:
        self.disk = Disk(image.file)
        self.bits = image.header.cluster_bits
        self.counts = counts
        self.order = order
        self.entries = (8 << self.bits) >> order
        self._per_cluster = (1 << self.bits) // layout.REFCOUNT_TABLE_ENTRY_SIZE
        self._used: set[int] = set()
        for start, part in used_windows(counts):
            self._used.update(distinct((np.flatnonzero(part) + start) // self.entries).tolist())

    def plan(self, start: int, extra: int = 0) -> Plan:
        """Put the new structures at ``start``; all clusters from there on are free.

        :raises NodeIOError: the refcount table would be larger than it may be.
        """
        blocks, table = 0, 1
        while True:
            end = start + extra + blocks + table
            indexes = self._used | set(range(start // self.entries, (end - 1) // self.entries + 1))
            clusters = -(-(max(indexes) + 1) // self._per_cluster)
            if (len(indexes), clusters) == (blocks, table):
                return Plan(Run(start, end - start), extra, sorted(indexes), table)
            blocks, table = len(indexes), clusters
            self._limit(table)

    def plan_low(self, busy: Column, extra: int = 0) -> Plan:
        """Put the new structures into the lowest gap that is wide enough.

        :param busy: for each cluster whether it is in use now; those behind the end are free.
        """
        plan = self.plan(len(busy), extra)
        while True:
            start = lowest_gap(busy, plan.run.length)
            moved = self.plan(start, extra)
            if moved.run.length <= plan.run.length:
                return moved
            plan = moved

    def spread(self) -> Layout:
        """Put the new structures wherever there is room, as low as possible.

        A block stands behind the first cluster that it counts or there, the table anywhere.

        :raises NodeIOError: the refcount table would be larger than it may be.
        """
        free = FreeSpace(self.counts)
        places: dict[int, int] = {}
        needed = set(self._used)
        while True:
            while needed:
                index = min(needed)
                needed.discard(index)
                places[index] = free.take(index * self.entries)
                if places[index] // self.entries not in places:
                    needed.add(places[index] // self.entries)
            clusters = -(-(max(places) + 1) // self._per_cluster)
            self._limit(clusters)
            table = Run(free.gap(clusters), clusters)
            needed = set(range(table.first // self.entries, (table.end - 1) // self.entries + 1)) - places.keys()
            if not needed:
                return Layout(places, table)

    def _limit(self, table_clusters: int) -> None:
        """Refuse a table that is too large."""
        if table_clusters > -(-MAX_TABLE_ENTRIES // self._per_cluster):
            raise NodeIOError("", OSError(errno.EFBIG, "file too large"))

    def write(self, plan: Layout) -> dict[str, int]:
        """Write the new structures.

        :returns: the header fields that lead to them.
        """
        table = np.zeros(plan.table.length * self._per_cluster, np.uint64)
        owned = plan.owned
        for index, place in sorted(plan.places.items()):
            self.disk.write(place << self.bits, pack_refcounts(self._block(index, owned), self.order))
            table[index] = place << self.bits
        offset = plan.table.first << self.bits
        self.disk.write(offset, table.astype(layout.REFCOUNT_TABLE_DTYPE).tobytes())
        return {"refcount_table_offset": offset, "refcount_table_clusters": plan.table.length}

    def _block(self, index: int, owned: Column) -> Column:
        first = index * self.entries
        counts = np.zeros(self.entries, np.uint64)
        part = self.counts[first : first + self.entries]
        counts[: len(part)] = part
        start, end = np.searchsorted(owned, (first, first + self.entries))
        counts[owned[start:end] - first] += np.uint64(1)
        return counts


class FreeSpace:
    """The clusters that nothing refers to; all behind the end of the counts are free."""

    def __init__(self, counts: Column) -> None:
        self._counts = counts
        self._taken: set[int] = set()
        self._searched = Run(0, 0)

    def take(self, start: int) -> int:
        """Take the first free cluster from ``start`` on."""
        if self._searched.first <= start < self._searched.end:
            place = self._searched.end
        else:
            place = start
            self._searched = Run(start, 0)
        while place in self._taken or (place < len(self._counts) and self._counts[place]):
            place += 1
            if place < len(self._counts) and self._counts[place]:
                place = self._skip(place)
        self._taken.add(place)
        self._searched = Run(self._searched.first, place + 1 - self._searched.first)
        return place

    def _skip(self, place: int) -> int:
        """The first cluster from ``place`` on without references."""
        while place < len(self._counts):
            free = np.flatnonzero(self._counts[place : place + _STEP] == 0)
            if len(free):
                return place + int(free[0])
            place += _STEP
        return len(self._counts)

    def gap(self, length: int) -> int:
        """The first of the lowest ``length`` neighbouring clusters that are free; they stay so."""
        taken = np.array(sorted(self._taken), np.int64)
        last = -1
        for start in range(0, len(self._counts), _WINDOW):
            busy = np.flatnonzero(self._counts[start : start + _WINDOW]) + start
            first, end = np.searchsorted(taken, (start, start + _WINDOW))
            edges = np.concatenate(([last], distinct(np.concatenate((busy, taken[first:end])))))
            wide = np.flatnonzero(np.diff(edges) > length)
            if len(wide):
                return int(edges[wide[0]]) + 1
            last = int(edges[-1])
        behind = np.concatenate(([last], taken[taken > last]))
        wide = np.flatnonzero(np.diff(behind) > length)
        return int(behind[wide[0]] if len(wide) else behind[-1]) + 1


def used_windows(counts: Column) -> Iterator[tuple[int, Column]]:
    """The parts of an array of counts that are not all zero, with the index of their first."""
    for start in range(0, len(counts), _WINDOW):
        part = counts[start : start + _WINDOW]
        if part.any():
            yield start, part


def content_references(image: Qcow2Image, active: Column, *, crowded: bool = False) -> Column:
    """References to each cluster of the file by everything but refcount structures and the active L1 table's own place.

    :param active: the active L1 table.
    :param crowded: whether clusters may have more references than their refcounts have room for.
    :raises InvalidImage: the image has errors.
    """
    result = CheckResult()
    references = References(image, result)
    tables = TableCheck(image, references, StoredRefcounts(image, references.clusters), result)
    count_content(image, tables, active, image.snapshots)
    references.limit()
    excused = references.overflows if crowded else 0
    if result.corruptions > excused or result.check_errors:
        raise unsound(image, result)
    return references.counts
