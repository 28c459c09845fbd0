"""How often each host cluster is referred to, and what the refcount blocks say about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from diskwright.errors import InvalidImage, UnsupportedFeature
from diskwright.node import SECTOR
from diskwright.sizes import MAX_INT64

from . import layout
from .refcount import MAX_TABLE_ENTRIES, Column, unpack_refcounts

if TYPE_CHECKING:
    from diskwright.hookspecs import CheckResult

    from .image import Qcow2Image

MAX_CLUSTERS = 1 << 31
"""Host clusters of a file that can be checked; memory is taken only for those in use."""
_PAGE_BITS = 16
_MAX_REPEATS = 100
_OVERFLOW_HINT = (
    "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the image "
    "cannot be opened for writing"
)


def note_all(result: CheckResult, number: int, line: Callable[[int], str], indexes: Column) -> None:
    """Count corruptions of one kind, and note a line for each place as long as there is room for lines.

    :param number: how many there are.
    :param line: the line for an index.
    """
    result.corruptions += number
    room = result.MAX_FINDINGS - len(result.findings)
    for index in indexes[: max(0, room)].tolist():
        result.note(line(index))


def note_weighted(result: CheckResult, weights: Column, line: Callable[[int], str], indexes: Column) -> None:
    """The same where each place counts as often as its weight says; lines are repeated too, but not without end.

    :param weights: for each possible index.
    """
    shown = indexes[: result.MAX_FINDINGS]
    repeated = np.repeat(shown, np.minimum(weights[shown], _MAX_REPEATS))
    note_all(result, int(weights[indexes].sum()), line, repeated)


class References:
    """Counts of references to host clusters, computed from everything that refers to any.

    :ivar counts: for each cluster of the file, and one more that the file may end in.
    :ivar clusters: how many clusters the file has.
    """

    def __init__(self, image: Qcow2Image, result: CheckResult) -> None:
        self.header = image.header
        self.result = result
        size = image.file.size
        self.file_size = -(-size // SECTOR) * SECTOR
        self.clusters = -(-self.file_size >> self.header.cluster_bits)
        if self.clusters > MAX_CLUSTERS:
            raise UnsupportedFeature(f"qcow2: files of more than {MAX_CLUSTERS} clusters cannot be checked")
        self.counts: Column = np.zeros(self.clusters + 1, np.uint32)
        self._touched: Column = np.zeros((self.clusters >> _PAGE_BITS) + 1, bool)

    def add_range(self, offset: int, length: int) -> None:
        """Count references to a range of the file, in bytes."""
        if length <= 0:
            return
        bits = self.header.cluster_bits
        if offset + length - self.file_size >= 1 << bits:
            self._outside(np.array([offset]), np.array([length]), np.array([1]))
            return
        first, last = offset >> bits, (offset + length - 1) >> bits
        self.counts[first : last + 1] += np.uint32(1)
        self._touched[first >> _PAGE_BITS : (last >> _PAGE_BITS) + 1] = True

    def add_many(self, offsets: Column, lengths: Column | int, weights: Column) -> None:
        """Count references to many short ranges.

        :param offsets: bytes, signed.
        :param lengths: bytes, > 0, at most two clusters.
        """
        bits = self.header.cluster_bits
        ends: Column = offsets + lengths
        outside = ends - self.file_size >= 1 << bits
        if outside.any():
            self._outside(offsets[outside], (ends - offsets)[outside], weights[outside])
            inside = ~outside
            offsets, ends, weights = offsets[inside], ends[inside], weights[inside]
        first: Column = offsets >> bits
        last: Column = (ends - 1) >> bits
        for step in range(3):
            more = first + step <= last
            if not more.any():
                return
            clusters = first[more] + step if step or not more.all() else first
            self._touched[clusters >> _PAGE_BITS] = True
            np.add.at(self.counts, clusters, weights[more].astype(np.uint32))

    def _outside(self, offsets: Column, lengths: Column, weights: Column) -> None:
        note_weighted(
            self.result,
            weights,
            lambda i: (
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: "
                f"offset {int(offsets[i]):#x} size {int(lengths[i]):#x}"
            ),
            np.arange(len(offsets)),
        )

    def limit(self) -> None:
        """Report counts that no refcount of this image can have, and treat them as the highest that it can."""
        maximum = (1 << self.header.refcount_bits) - 1
        if maximum >= 1 << 32:
            return
        for start, end in self.touched_ranges():
            self._limit_range(start, end, maximum)

    def _limit_range(self, start: int, end: int, maximum: int) -> None:
        part = self.counts[start:end]
        over = np.flatnonzero(part > maximum)
        if len(over):
            bits = self.header.cluster_bits
            excess = int((part[over] - np.uint32(maximum)).sum())
            note_all(
                self.result,
                excess,
                lambda i: f"ERROR: overflow cluster offset={(start + i) << bits:#x}\n{_OVERFLOW_HINT}",
                over,
            )
            part[over] = maximum

    def touched_ranges(self) -> list[tuple[int, int]]:
        """Ranges of clusters, in order, outside of which all counts are zero."""
        pages = np.flatnonzero(self._touched)
        if not len(pages):
            return []
        breaks = np.flatnonzero(np.diff(pages) > 1)
        firsts = pages[np.concatenate(([0], breaks + 1))]
        lasts = pages[np.concatenate((breaks, [len(pages) - 1]))]
        size = len(self.counts)
        return [
            (int(first) << _PAGE_BITS, min(size, int(last + 1) << _PAGE_BITS))
            for first, last in zip(firsts, lasts, strict=True)
        ]


class StoredRefcounts:
    """All refcounts that an image states for the clusters of its file.

    :ivar counts: one for each cluster, and one more.
    :ivar table: the refcount table as stored.
    :ivar problem: why the table cannot be read, empty if it can.
    :ivar unreadable: ranges of clusters whose refcounts cannot be read.
    """

    def __init__(self, image: Qcow2Image, clusters: int) -> None:
        header = image.header
        self.entries = header.refcount_block_entries
        count = (header.refcount_table_clusters << header.cluster_bits) // layout.REFCOUNT_TABLE_ENTRY_SIZE
        self.problem = ""
        try:
            self.table: Column = image.reader.table(
                layout.REFCOUNT_TABLE_DTYPE,
                header.refcount_table_offset,
                count,
                "refcount table",
                limit=MAX_TABLE_ENTRIES,
            )
        except InvalidImage as error:
            self.table = np.zeros(0, np.uint64)
            self.problem = str(error)
        width = unpack_refcounts(bytes(8), header.refcount_order).dtype
        self.counts: Column = np.zeros(clusters + 1, width)
        self.unreadable: list[tuple[int, int]] = []
        self._present: list[tuple[int, int]] = []
        needed = -(-len(self.counts) // self.entries)
        for index in np.flatnonzero(self.table[:needed]).tolist():
            offset = int(self.table[index]) & layout.REFCOUNT_TABLE_OFFSET_MASK
            start = index * self.entries
            span = (start, min(len(self.counts), start + self.entries))
            if offset & (header.cluster_size - 1) or offset > MAX_INT64 - header.cluster_size:
                self.unreadable.append((start, start + self.entries))
            elif offset and offset < image.file.size:
                image.file.note_event("refblock_load")
                block = unpack_refcounts(image.file.read_at(offset, header.cluster_size), header.refcount_order)
                self.counts[start : start + self.entries] = block[: len(self.counts) - start]
                self._present.append(span)

    def of(self, clusters: Column) -> tuple[Column, Column]:
        """The counts of some clusters, and which of them can be read; those behind the end of the file have none."""
        inside = clusters < len(self.counts)
        found = np.zeros(len(clusters), self.counts.dtype)
        found[inside] = self.counts[clusters[inside]]
        if not self.unreadable:
            return found, np.ones(len(clusters), bool)
        starts, ends = np.array(self.unreadable, np.int64).T
        span = np.searchsorted(starts, clusters, side="right") - 1
        return found, (span < 0) | (clusters >= ends[span])

    def covered(self, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those ranges together with what the blocks cover, sorted, without overlap and without what is unreadable."""
        marks = sorted(
            [(at, change, 0) for start, end in (*ranges, *self._present) for at, change in ((start, 1), (end, -1))]
            + [(at, 0, change) for start, end in self.unreadable for at, change in ((start, 1), (end, -1))]
        )
        found: list[tuple[int, int]] = []
        position = wanted = hidden = 0
        for at, more, less in marks:
            if at > position and wanted and not hidden:
                if found and found[-1][1] == position:
                    found[-1] = (found[-1][0], at)
                else:
                    found.append((position, at))
            position, wanted, hidden = at, wanted + more, hidden + less
        return found
