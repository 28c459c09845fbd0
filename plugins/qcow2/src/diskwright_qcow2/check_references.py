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
    from diskwright.facts import CheckResult

    from .image import Qcow2Image

MAX_CLUSTERS = 1 << 31
"""Host clusters of a file that can be checked; memory is taken only for those in use."""
_PAGE_BITS = 16
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


def outside_line(offset: int, length: int) -> str:
    """The finding that a range of the file lies behind its end."""
    return (
        "ERROR: counting reference for region exceeding the end of the file by one cluster or more: "
        f"offset {offset:#x} size {length:#x}"
    )


class References:
    """Counts of references to host clusters, computed from everything that refers to any.

    :ivar counts: for each cluster of the file, and one more that the file may end in.
    :ivar clusters: how many clusters the file has, or will have when it has grown.
    :ivar overflows: corruptions that are references for which the refcounts have no room.
    :param grown: file size that a repair is going to set, bytes; what refers behind the present end is wrong even so.
    """

    def __init__(self, image: Qcow2Image, result: CheckResult, grown: int = 0) -> None:
        self.header = image.header
        self.result = result
        size = image.file.size
        self.file_size = -(-size // SECTOR) * SECTOR
        self.clusters = -(-max(self.file_size, grown) >> self.header.cluster_bits)
        if self.clusters > MAX_CLUSTERS:
            raise UnsupportedFeature(f"qcow2: files of more than {MAX_CLUSTERS} clusters cannot be checked")
        self.overflows = 0
        self.counts: Column = np.zeros(self.clusters + 1, np.uint32)
        self._touched: Column = np.zeros((self.clusters >> _PAGE_BITS) + 1, bool)

    def fits(self, offset: int, length: int) -> bool:
        """Whether a range, in bytes, does not exceed the file by a cluster or more."""
        return offset + length - self.file_size < 1 << self.header.cluster_bits

    def add_range(self, offset: int, length: int) -> None:
        """Count references to a range of the file, in bytes, or report that it is outside."""
        if length > 0 and not self.count_range(offset, length):
            self.result.error(outside_line(offset, length))

    def count_range(self, offset: int, length: int) -> bool:
        """Count references to a range of the file, in bytes; whether it is inside."""
        if not self.fits(offset, length):
            return False
        bits = self.header.cluster_bits
        first, last = offset >> bits, (offset + length - 1) >> bits
        self.counts[first : last + 1] += np.uint32(1)
        self._touched[first >> _PAGE_BITS : (last >> _PAGE_BITS) + 1] = True
        return True

    def add_many(self, offsets: Column, lengths: Column | int, weights: Column) -> Column:
        """Count references to many short ranges.

        :param offsets: bytes, signed.
        :param lengths: bytes, > 0, at most two clusters.
        :returns: which of them are outside the file, and not counted.
        """
        bits = self.header.cluster_bits
        ends: Column = offsets + lengths
        outside: Column = ends - self.file_size >= 1 << bits
        if outside.any():
            inside = ~outside
            offsets, ends, weights = offsets[inside], ends[inside], weights[inside]
        first: Column = offsets >> bits
        last: Column = (ends - 1) >> bits
        self._count(first, weights)
        for step in (1, 2):
            more = first + step <= last
            if not more.any():
                break
            self._count(first[more] + step, weights[more])
        return outside

    def _count(self, clusters: Column, weights: Column) -> None:
        """Count references to clusters of the file, which may repeat; those in order are counted faster."""
        if not len(clusters):
            return
        self._touched[clusters >> _PAGE_BITS] = True
        weights = weights.astype(np.uint32)
        steps = clusters[1:] - clusters[:-1]
        if (steps == 1).all():
            self.counts[clusters[0] : clusters[0] + len(clusters)] += weights
        elif (steps > 0).all():
            self.counts[clusters] += weights
        else:
            np.add.at(self.counts, clusters, weights)

    def count_inside(self, offset: int) -> None:
        """Count a reference to one cluster that is, or is going to be, in the file."""
        cluster = offset >> self.header.cluster_bits
        if self.counts[cluster] == (1 << min(32, self.header.refcount_bits)) - 1:
            self._overflow(cluster, 1)
            return
        self.counts[cluster] += np.uint32(1)
        self._touched[cluster >> _PAGE_BITS] = True

    def _overflow(self, cluster: int, times: int) -> None:
        self.result.corruptions += times
        self.overflows += times
        self.result.note(f"ERROR: overflow cluster offset={cluster << self.header.cluster_bits:#x}\n{_OVERFLOW_HINT}")

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
            excess = part[over] - np.uint32(maximum)
            shown = over[: self.result.MAX_FINDINGS]
            for index, times in zip(shown.tolist(), excess.tolist(), strict=False):
                self._overflow(start + index, times)
            unshown = int(excess[len(shown) :].sum())
            self.result.corruptions += unshown
            self.overflows += unshown
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


def read_refcount_table(image: Qcow2Image) -> tuple[Column, str]:
    """The refcount table as stored, and why it cannot be read; without entries if it cannot."""
    header = image.header
    count = (header.refcount_table_clusters << header.cluster_bits) // layout.REFCOUNT_TABLE_ENTRY_SIZE
    try:
        table: Column = image.reader.table(
            layout.REFCOUNT_TABLE_DTYPE, header.refcount_table_offset, count, "refcount table", limit=MAX_TABLE_ENTRIES
        )
    except InvalidImage as error:
        return np.zeros(0, np.uint64), str(error)
    return table, ""


class StoredRefcounts:
    """All refcounts that an image states for the clusters of its file.

    :ivar counts: one for each cluster, and one more.
    :ivar table: the refcount table as stored.
    :ivar problem: why the table cannot be read, empty if it can.
    :ivar unreadable: ranges of clusters whose refcounts cannot be read.
    """

    def __init__(self, image: Qcow2Image, clusters: int) -> None:
        header = image.header
        self._file = image.file
        self.entries = header.refcount_block_entries
        self._cluster_size = header.cluster_size
        self.table, self.problem = read_refcount_table(image)
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

    def require_readable(self) -> None:
        """Refuse an image of which refcounts are missing; a change that meets them half-way could not be finished.

        :raises InvalidImage: they are.
        """
        places = self.table & np.uint64(layout.REFCOUNT_TABLE_OFFSET_MASK)
        if self.problem or self.unreadable or (places >= np.uint64(max(1, self._file.size))).any():
            raise InvalidImage(
                "qcow2: The refcounts cannot be read, check the image first", filename=self._file.filename
            )

    def of(self, clusters: Column) -> tuple[Column, Column]:
        """The counts of some clusters, and which of them can be read; those behind the end of the file have none."""
        inside = clusters < len(self.counts)
        if inside.all():
            found = self.counts[clusters]
        else:
            found = np.zeros(len(clusters), self.counts.dtype)
            found[inside] = self.counts[clusters[inside]]
        if not self.unreadable:
            return found, np.ones(len(clusters), bool)
        starts, ends = np.array(self.unreadable, np.int64).T
        span = np.searchsorted(starts, clusters, side="right") - 1
        return found, (span < 0) | (clusters >= ends[span])

    def unreadable_reason(self) -> str:
        """Why the first refcounts that cannot be read cannot: for a block that is not aligned; else empty."""
        if not self.unreadable:
            return ""
        index = self.unreadable[0][0] // self.entries
        offset = int(self.table[index]) & layout.REFCOUNT_TABLE_OFFSET_MASK
        if not offset & (self._cluster_size - 1):
            return ""
        return f"Refblock offset {offset:#x} unaligned (reftable index: {hex(index) if index else 0})"

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
