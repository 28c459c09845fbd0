"""New refcount structures for an image, beside the old ones: they count from the header's switch to them on."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diskwright.errors import InvalidImage, NodeIOError
from diskwright.hookspecs import CheckResult

from . import layout
from .allocate import Run
from .check import count_content
from .check_references import References, StoredRefcounts
from .check_tables import TableCheck
from .hostspace import lowest_gap
from .order import Disk
from .refcount import MAX_TABLE_ENTRIES, pack_refcounts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .image import Qcow2Image
    from .refcount import Column


_WINDOW = 1 << 22
"""Counts looked at together: of a large file most are zero and take no memory as long as they are left alone."""


class Plan(NamedTuple):
    """Where new structures go.

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
    def table(self) -> Run:
        """Where the refcount table goes."""
        return Run(self.run.end - self.table_clusters, self.table_clusters)


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
            self._used.update(np.unique((np.flatnonzero(part) + start) // self.entries).tolist())

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
            if table > -(-MAX_TABLE_ENTRIES // self._per_cluster):
                raise NodeIOError("", OSError(errno.EFBIG, "file too large"))

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

    def write(self, plan: Plan) -> dict[str, int]:
        """Write the new structures.

        :returns: the header fields that lead to them.
        """
        table = np.zeros(plan.table_clusters * self._per_cluster, np.uint64)
        place = plan.run.first + plan.extra
        for index in plan.blocks:
            self.disk.write(place << self.bits, pack_refcounts(self._block(index, plan.run), self.order))
            table[index] = place << self.bits
            place += 1
        offset = plan.table.first << self.bits
        self.disk.write(offset, table.astype(layout.REFCOUNT_TABLE_DTYPE).tobytes())
        return {"refcount_table_offset": offset, "refcount_table_clusters": plan.table_clusters}

    def _block(self, index: int, run: Run) -> Column:
        first = index * self.entries
        counts = np.zeros(self.entries, np.uint64)
        part = self.counts[first : first + self.entries]
        counts[: len(part)] = part
        start, end = max(run.first, first), min(run.end, first + self.entries)
        counts[max(0, start - first) : max(0, end - first)] += np.uint64(1)
        return counts


def used_windows(counts: Column) -> Iterator[tuple[int, Column]]:
    """The parts of an array of counts that are not all zero, with the index of their first."""
    for start in range(0, len(counts), _WINDOW):
        part = counts[start : start + _WINDOW]
        if part.any():
            yield start, part


def content_references(image: Qcow2Image, active: Column, *, sound: bool = True) -> Column:
    """References to each cluster of the file by everything but refcount structures and the active L1 table's own place.

    :param active: the active L1 table.
    :param sound: whether to refuse an image with errors in it, instead of counting what can be counted.
    :raises InvalidImage: it has errors.
    """
    result = CheckResult()
    references = References(image, result)
    tables = TableCheck(image, references, StoredRefcounts(image, references.clusters), result)
    count_content(image, tables, active)
    references.limit()
    if sound and (result.corruptions or result.check_errors):
        reason = "; ".join(result.findings[:1])
        raise InvalidImage(f"qcow2: The image has errors, check it first ({reason})", filename=image.file.filename)
    return references.counts
